package apiserver_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
)

// When the server is told to stop, watches end at once and Run returns with nothing left.
func TestRunEndsWatches(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var health *run.Health
	s := serve(t, func(c *apiserver.Config, d *apiserver.Deps) { c.Listeners, health = []net.Listener{l}, d.Health })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- health.Watch(s).Run(ctx, func() { close(up) }) }()
	<-up
	get := func(path string) *http.Response {
		resp, err := http.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		return resp
	}
	ready := get("/readyz?verbose")
	defer ready.Body.Close()
	if b, err := io.ReadAll(ready.Body); err != nil || !strings.Contains(string(b), "[+]apiserver ok\n") {
		t.Error(string(b), err)
	}
	slis := get("/metrics/slis")
	defer slis.Body.Close()
	if b, err := io.ReadAll(slis.Body); err != nil || slis.StatusCode != 200 ||
		!strings.Contains(string(b), "\nkubernetes_healthchecks_total{name=\"apiserver\",status=\"success\",type=\"readyz\"} 1\n") ||
		!strings.Contains(string(b), "\nkubernetes_healthcheck{name=\"ping\",type=\"livez\"} 1\n") {
		t.Error(string(b), err)
	}
	w := get("/api/v1/pods?watch=1")
	defer w.Body.Close()
	begin := time.Now()
	cancel()
	if b, err := io.ReadAll(w.Body); err != nil || len(b) != 0 {
		t.Error(string(b), err)
	}
	if err := <-done; err != nil || time.Since(begin) > 1500*time.Millisecond {
		t.Error(err, time.Since(begin))
	}
}

// A panic costs its request, not the process.
func TestPanic(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *apiserver.Config, d *apiserver.Deps) {
		d.Admission = []rest.Admission{{Name: "broken", Mutate: func(context.Context, *rest.Admitting) error { panic("broken") }}}
	})
	if w := do(t, s, "POST", "/api/v1/namespaces/default/configmaps", `{"metadata":{"name":"a"}}`); w.Code != 500 {
		t.Error(w.Code, w.Body)
	}
	if w := do(t, s, "GET", "/healthz", ""); w.Code != 200 {
		t.Error(w.Code, w.Body)
	}
}

// A request that takes too long is not to be sent again by itself.
func TestTimeout(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *apiserver.Config, d *apiserver.Deps) {
		d.Admission = []rest.Admission{{Name: "slow", Mutate: func(ctx context.Context, _ *rest.Admitting) error {
			<-ctx.Done()
			return fmt.Errorf("ask: %w", ctx.Err())
		}}}
	})
	w := do(t, s, "POST", "/api/v1/namespaces/default/configmaps?timeout=1ms", `{"metadata":{"name":"a"}}`)
	if _, has := w.Header()["Retry-After"]; w.Code != 504 || has || !strings.Contains(w.Body.String(), "request did not complete within requested timeout - context deadline exceeded") {
		t.Error(w.Code, w.Header(), w.Body)
	}
}

// Profiles and logs are served where they are switched on, to who may have them.
func TestDebug(t *testing.T) {
	t.Parallel()
	off := serve(t)
	on := serve(t, func(c *apiserver.Config, _ *apiserver.Deps) {
		c.Debug, c.Logs = true, fstest.MapFS{"pods/a.log": {Data: []byte("hello")}}
	})
	for path, want := range map[string]string{"/debug/pprof/": "goroutine", "/debug/pprof/cmdline": ".test", "/debug/pprof/goroutine?debug=1": "goroutine profile",
		"/logs/": "pods/", "/logs/pods/a.log": "hello"} {
		if w := do(t, off, "GET", path, ""); w.Code != 404 {
			t.Errorf("off: %s: %d", path, w.Code)
		}
		if w := do(t, on, "GET", path, ""); w.Code != 200 || !strings.Contains(w.Body.String(), want) {
			t.Errorf("on: %s: %d %s", path, w.Code, w.Body)
		}
		if w := do(t, on, "GET", path, "", "X-User", "nobody"); w.Code != 403 {
			t.Errorf("without leave: %s: %d", path, w.Code)
		}
	}
	if w := do(t, on, "GET", "/debug/other", ""); w.Code != 404 {
		t.Errorf("/debug/other: %d", w.Code)
	}
}
