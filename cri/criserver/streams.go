package criserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/yare-dev/yare/oci/shim"
)

// streams serves the sessions that Exec, Attach and PortForward prepare, over
// SPDY and WebSocket.
type streams struct {
	server streaming.Server
	s      *Server
}

// serveStreams listens. stop ends all sessions.
func (s *Server) serveStreams(failed chan<- error) (stop func(), err error) {
	l, err := net.Listen("tcp", s.cfg.Streaming)
	if err != nil {
		return nil, fmt.Errorf("listen for sessions: %w", err)
	}
	config := streaming.DefaultConfig
	config.Addr = l.Addr().String()
	config.BaseURL = &url.URL{Scheme: "http", Host: config.Addr}
	st := &streams{s: s}
	if st.server, err = streaming.NewServer(config, st); err != nil {
		l.Close()
		return nil, fmt.Errorf("listen for sessions: %w", err)
	}
	s.streams = st
	// Sessions hijack their connections, which the HTTP server then no longer
	// closes: their contexts tell them to end.
	ctx, cancel := context.WithCancel(s.lasting)
	h := &http.Server{Handler: st.server, BaseContext: func(net.Listener) context.Context { return ctx }}
	s.background.Go(func() {
		if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve sessions: %w", err)
		}
	})
	return func() {
		cancel()
		h.Close()
	}, nil
}

// Exec runs a session's command. A code other than 0 is a utilexec.ExitError.
func (st *streams) Exec(ctx context.Context, id string, cmd []string, in io.Reader, out, err io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	c, findErr := st.s.findContainer(id)
	if findErr != nil {
		return findErr
	}
	process, processErr := st.s.execProcess(c, cmd, tty)
	if processErr != nil {
		return processErr
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, clientErr := c.sandbox.client()
	if clientErr != nil {
		return clientErr
	}
	exit, execErr := client.Exec(ctx, shim.ExecRequest{
		ID: c.id, Process: process, Streams: shimStreams(ctx, in, out, err, resize),
	})
	if execErr != nil {
		return execErr
	}
	if exit.Code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", exit.Code), Code: exit.Code}
	}
	return nil
}

// Attach connects a session to a container's own streams.
func (st *streams) Attach(ctx context.Context, id string, in io.Reader, out, err io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	c, findErr := st.s.findContainer(id)
	if findErr != nil {
		return findErr
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	client, clientErr := c.sandbox.client()
	if clientErr != nil {
		return clientErr
	}
	return client.Attach(ctx, c.id, shimStreams(ctx, in, out, err, resize))
}

// shimStreams passes streams on; nil ones must stay nil, whatever their type.
func shimStreams(ctx context.Context, in io.Reader, out, err io.WriteCloser, resize <-chan remotecommand.TerminalSize) shim.Streams {
	streams := shim.Streams{Stdin: in}
	if out != nil {
		streams.Stdout = out
	}
	if err != nil {
		streams.Stderr = err
	}
	if resize != nil {
		streams.Resize = sizes(ctx, resize)
	}
	return streams
}

// sizes translates terminal sizes until ctx ends or no more come.
func sizes(ctx context.Context, from <-chan remotecommand.TerminalSize) <-chan shim.Size {
	to := make(chan shim.Size)
	go func() {
		defer close(to)
		for {
			select {
			case size, ok := <-from:
				if !ok {
					return
				}
				select {
				case to <- shim.Size{Width: size.Width, Height: size.Height}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return to
}
