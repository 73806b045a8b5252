package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// The channels of a session over WebSocket.
const (
	channelIn = iota
	channelOut
	channelErr
	channelStatus
	channelResize
	channels
)

const (
	sessionIdle  = 4 * time.Hour
	statusWithin = 10 * time.Second
	v5           = "v5.channel.k8s.io"
)

// streams says which streams a session has.
type streams struct{ in, out, err, tty bool }

// translate serves a session over WebSocket's protocol v5, which runtimes do not speak: it opens the same session at the
// runtime over SPDY and copies.
func (s *Server) translate(w http.ResponseWriter, r *http.Request, to *url.URL, has streams) {
	kinds := make([]wsstream.ChannelType, channels)
	kinds[channelIn], kinds[channelOut], kinds[channelErr] = kind(has.in, wsstream.ReadChannel), kind(has.out, wsstream.WriteChannel), kind(has.err, wsstream.WriteChannel)
	kinds[channelStatus], kinds[channelResize] = wsstream.WriteChannel, wsstream.ReadChannel
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{v5: {Binary: true, Channels: kinds}})
	conn.SetIdleTimeout(sessionIdle)
	_, chans, err := conn.Open(w, r)
	if err != nil {
		s.Log.Debug("session was not opened", "err", err)
		return
	}
	defer conn.Close()
	// The client waits for a first message, which may be empty.
	if _, err := chans[channelStatus].Write(nil); err != nil {
		return
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: to.Scheme + "://" + to.Host}, http.MethodPost, to)
	if err == nil {
		options := remotecommand.StreamOptions{Tty: has.tty}
		if has.in {
			options.Stdin = chans[channelIn]
		}
		if has.out {
			options.Stdout = chans[channelOut]
		}
		if has.err {
			options.Stderr = chans[channelErr]
		}
		if has.tty {
			options.TerminalSizeQueue = &sizes{ctx: r.Context(), decoder: json.NewDecoder(chans[channelResize])}
		}
		err = e.StreamWithContext(r.Context(), options)
	}
	b, merr := json.Marshal(outcome(err))
	if merr != nil {
		return
	}
	conn.SetWriteDeadline(statusWithin)
	if _, err := chans[channelStatus].Write(b); err != nil {
		s.Log.Debug("session's outcome was not told", "err", err)
	}
}

func kind(is bool, k wsstream.ChannelType) wsstream.ChannelType {
	if is {
		return k
	}
	return wsstream.IgnoreChannel
}

// outcome is how a session ended, as clients read it.
func outcome(err error) metav1.Status {
	var code utilexec.ExitError
	switch {
	case err == nil:
		return metav1.Status{Status: metav1.StatusSuccess}
	case errors.As(err, &code) && code.Exited():
		return metav1.Status{Status: metav1.StatusFailure, Reason: remotecommandNonZero, Message: "command terminated with non-zero exit code: " + err.Error(),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: "ExitCode", Message: strconv.Itoa(code.ExitStatus())}}}}
	}
	return apierrors.NewInternalError(err).Status()
}

// remotecommandNonZero is the reason that clients know.
const remotecommandNonZero = metav1.StatusReason("NonZeroExitCode")

// sizes reads the terminal's sizes as the client sends them.
type sizes struct {
	ctx     context.Context
	decoder *json.Decoder
}

// Next returns the next size, nil at the end.
func (s *sizes) Next() *remotecommand.TerminalSize {
	size := new(remotecommand.TerminalSize)
	if err := s.decoder.Decode(size); err != nil || s.ctx.Err() != nil {
		return nil
	}
	return size
}
