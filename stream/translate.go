package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/remotecommand"
	clientspdy "k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream/spdy"
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
	pings        = 5 * time.Second
	v5           = "v5.channel.k8s.io"
)

// Streams says which streams a session of exec or attach has.
type Streams struct{ In, Out, Err, TTY bool }

// Translate serves a session over WebSocket's protocol v5: it opens the same session at the other end over SPDY and
// copies. It returns an error when the client got no session, or was not told how it ended.
func Translate(w http.ResponseWriter, r *http.Request, to *url.URL, t http.RoundTripper, has Streams) error {
	kinds := make([]wsstream.ChannelType, channels)
	kinds[channelIn], kinds[channelOut], kinds[channelErr] = kind(has.In, wsstream.ReadChannel), kind(has.Out, wsstream.WriteChannel), kind(has.Err, wsstream.WriteChannel)
	kinds[channelStatus], kinds[channelResize] = wsstream.WriteChannel, wsstream.ReadChannel
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{v5: {Binary: true, Channels: kinds}})
	conn.SetIdleTimeout(sessionIdle)
	_, chans, err := conn.Open(Hijacked{w}, r)
	if err != nil {
		return fmt.Errorf("open a session: %w", err)
	}
	defer conn.Close()
	// The client waits for a first message, which may be empty.
	if _, err := chans[has.first()].Write(nil); err != nil {
		return fmt.Errorf("open a session: %w", err)
	}
	err = has.copy(r.Context(), to, t, chans)
	b, merr := json.Marshal(outcome(err))
	if merr != nil {
		return fmt.Errorf("encode a session's outcome: %w", merr)
	}
	conn.SetWriteDeadline(statusWithin)
	if _, err := chans[channelStatus].Write(b); err != nil {
		return fmt.Errorf("tell a session's outcome: %w", err)
	}
	return nil
}

// first is the channel on which clients expect to hear first.
func (has Streams) first() int {
	switch {
	case has.Out:
		return channelOut
	case has.Err:
		return channelErr
	}
	return channelStatus
}

// copy opens the session at the other end and copies between it and the channels.
func (has Streams) copy(ctx context.Context, to *url.URL, t http.RoundTripper, chans []io.ReadWriteCloser) error {
	rt, err := spdy.NewRoundTripperWithConfig(spdy.RoundTripperConfig{UpgradeTransport: t, PingPeriod: pings})
	if err != nil {
		return fmt.Errorf("speak SPDY: %w", err)
	}
	e, err := remotecommand.NewSPDYExecutorRejectRedirects(rt, clientspdy.NewUpgraderForStreaming(rt), http.MethodPost, to)
	if err != nil {
		return fmt.Errorf("speak SPDY: %w", err)
	}
	options := remotecommand.StreamOptions{Tty: has.TTY}
	if has.In {
		options.Stdin = chans[channelIn]
	}
	if has.Out {
		options.Stdout = chans[channelOut]
	}
	if has.Err {
		options.Stderr = chans[channelErr]
	}
	if has.TTY {
		options.TerminalSizeQueue = &sizes{ctx: ctx, decoder: json.NewDecoder(chans[channelResize])}
	}
	return e.StreamWithContext(ctx, options)
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
	// The other end's outcome comes as its message, which may say so already.
	return apierrors.NewInternalError(errors.New(strings.TrimPrefix(err.Error(), internal))).Status()
}

// internal is what an internal error's message begins with.
const internal = "Internal error occurred: "

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
