package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
)

// The load generator shares the machine's cores with what it measures, so it does as little as can be: requests are bytes
// that were made before, sent over HTTP/1.1 on one connection per worker, and answers are not decoded.

const protobuf = "application/vnd.kubernetes.protobuf"

// wire is one connection. Nothing waits on it for longer than the context that it was made with.
type wire struct {
	net.Conn
	stop func() bool
	in   *bufio.Reader
	host string
	auth string
}

// dial connects as the configuration says.
func dial(ctx context.Context, c *rest.Config) (*wire, error) {
	u, err := url.Parse(c.Host)
	if err != nil {
		return nil, err
	}
	tc, err := rest.TLSConfigFor(c)
	if err != nil {
		return nil, err
	}
	if tc == nil {
		return nil, errors.New("no TLS")
	}
	tc = tc.Clone()
	tc.NextProtos = []string{"http/1.1"}
	conn, err := (&tls.Dialer{Config: tc}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	// In the past: what waits for the peer fails, and so does what comes later.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	w := &wire{Conn: conn, stop: stop, in: bufio.NewReaderSize(conn, 64<<10), host: u.Host}
	if c.BearerToken != "" {
		w.auth = "Authorization: Bearer " + c.BearerToken + "\r\n"
	}
	return w, nil
}

// Close ends the connection.
func (w *wire) Close() error {
	w.stop()
	return w.Conn.Close()
}

// request returns the bytes of a request.
func (w *wire) request(method, path, accept string, body []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: bench\r\nAccept: %s\r\n%s", method, path, w.host, accept, w.auth)
	if body != nil {
		fmt.Fprintf(&b, "Content-Type: %s\r\nContent-Length: %d\r\n", protobuf, len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	return b.Bytes()
}

// do sends a request and reads its answer away. It returns the length of the answer's body.
func (w *wire) do(request []byte) (int, error) {
	if _, err := w.Write(request); err != nil {
		return 0, err
	}
	status, length, err := w.head()
	if err != nil {
		return 0, err
	}
	if length < 0 {
		if length, err = w.chunks(); err != nil {
			return 0, err
		}
	} else if _, err := w.in.Discard(length); err != nil {
		return 0, err
	}
	if status >= 300 {
		return 0, fmt.Errorf("status %d", status)
	}
	return length, nil
}

// head reads an answer's head. The length is -1 for an answer in chunks.
func (w *wire) head() (status, length int, err error) {
	length = -1
	for first := true; ; first = false {
		line, err := w.in.ReadSlice('\n')
		if err != nil {
			return 0, 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		switch {
		case first:
			if len(line) < 12 {
				return 0, 0, fmt.Errorf("answer begins with %q", line)
			}
			if status, err = strconv.Atoi(string(line[9:12])); err != nil {
				return 0, 0, err
			}
		case len(line) == 0:
			return status, length, nil
		case len(line) > 16 && strings.EqualFold(string(line[:16]), "Content-Length: "):
			if length, err = strconv.Atoi(string(line[16:])); err != nil {
				return 0, 0, err
			}
		}
	}
}

// chunks reads a body in chunks away.
func (w *wire) chunks() (total int, err error) {
	for {
		line, err := w.in.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		n, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return 0, err
		}
		if _, err := w.in.Discard(int(n) + 2); err != nil {
			return 0, err
		}
		if n == 0 {
			return total, nil
		}
		total += int(n)
	}
}

// encode returns a ConfigMap as it is sent.
func encode(cm *corev1.ConfigMap) ([]byte, error) {
	raw, err := cm.Marshal()
	if err != nil {
		return nil, err
	}
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, Raw: raw}
	b, err := u.Marshal()
	return append([]byte("k8s\x00"), b...), err
}

// load sends n requests by the workers, each on a connection of its own, and returns how long that took. Requests are made
// before the clock starts.
func load(ctx context.Context, c *rest.Config, n int, make func(w *wire, i int) ([]byte, error)) (time.Duration, error) {
	var wires [workers]*wire
	requests := [workers][][]byte{}
	for k := range wires {
		w, err := dial(ctx, c)
		if err != nil {
			return 0, err
		}
		defer w.Close()
		wires[k] = w
		for i := k; i < n; i += workers {
			r, err := make(w, i)
			if err != nil {
				return 0, err
			}
			requests[k] = append(requests[k], r)
		}
	}
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	begin := time.Now()
	for k, w := range wires {
		wg.Go(func() {
			for _, r := range requests[k] {
				if _, err := w.do(r); err != nil {
					failed.Store(&err)
					return
				}
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return took, nil
}
