// Package streamtest is the other end of sessions for tests: a CRI streaming server without containers, and clients over
// each protocol that kubectl speaks.
package streamtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"net/url"
	"testing"

	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// RefusedPort is the one that nobody listens at.
const RefusedPort = 9

// New serves the sessions that the returned server's Get methods prepare, until the test ends.
//
//	exec           echoes its input, says the size of a terminal first, and ends with the code that is its number of arguments
//	attach         the same, with code 0
//	port-forward   echoes, and says "port <n>, <bytes>" when the client has closed its side
func New(t testing.TB) streaming.Server {
	t.Helper()
	front := httptest.NewUnstartedServer(nil)
	config := streaming.DefaultConfig
	config.BaseURL = &url.URL{Scheme: "http", Host: front.Listener.Addr().String()}
	s, err := streaming.NewServer(config, runtime{})
	if err != nil {
		t.Fatal(err)
	}
	front.Config.Handler = s
	front.Start()
	t.Cleanup(front.Close)
	return s
}

// missing is a command that cannot be run.
const missing = "missing"

type runtime struct{}

func (runtime) Exec(_ context.Context, _ string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	if len(cmd) > 0 && cmd[0] == missing {
		return errors.New("no such program")
	}
	if tty {
		size := <-resize
		if _, err := fmt.Fprintf(out, "%dx%d\n", size.Width, size.Height); err != nil {
			return err
		}
	}
	if in != nil && out != nil {
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	if errs != nil {
		if _, err := io.WriteString(errs, "the end"); err != nil {
			return err
		}
	}
	if code := len(cmd) - 1; code > 0 {
		return utilexec.CodeExitError{Err: errors.New("ended"), Code: code}
	}
	return nil
}

func (r runtime) Attach(ctx context.Context, id string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return r.Exec(ctx, id, nil, in, out, errs, tty, resize)
}

func (runtime) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	if port == RefusedPort {
		// As our runtime does: a stream must not be reset before its client knows that it is there, which a write waits for.
		_, _ = stream.Write(nil)
		return errors.New("connection refused")
	}
	n, err := io.Copy(stream, stream)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stream, "port %d, %d", port, n)
	return err
}
