package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// watching serves h and returns a wire on which it has begun to answer.
func watching(t *testing.T, ctx context.Context, h http.HandlerFunc) *wire {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	w, err := dial(ctx, &rest.Config{Host: s.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	if _, err := w.Write(w.request("GET", "/", "application/json", nil)); err != nil {
		t.Fatal(err)
	}
	if status, _, err := w.head(); err != nil || status != http.StatusOK {
		t.Fatal(status, err)
	}
	return w
}

// Every event counts, wherever the server cuts the stream into chunks, and a watch that the server ends has an end.
func TestEvents(t *testing.T) {
	const n = 300
	w := watching(t, t.Context(), func(w http.ResponseWriter, _ *http.Request) {
		for i := range n {
			event := fmt.Sprintf(`{"type":"MODIFIED","object":{"n":%d}}`+"\n", i)
			for _, part := range []string{event[:i%len(event)], event[i%len(event):]} {
				_, _ = io.WriteString(w, part)
				_ = http.NewResponseController(w).Flush()
			}
		}
	})
	if seen, err := w.events(n + 1); seen != n || !errors.Is(err, io.EOF) {
		t.Errorf("%d events of %d, %v", seen, n, err)
	}
}

// A row that waits for what does not come is given up, with what it had and nothing left of it.
func TestRowHangs(t *testing.T) {
	end := make(chan struct{})
	hung := row{name: "hung", run: func(ctx context.Context, _ *bench) ([]float64, error) {
		w := watching(t, ctx, func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, `{"type":"ADDED"}`)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			close(end)
		})
		defer w.Close()
		seen, err := w.events(2)
		return nil, fmt.Errorf("after %d events: %w", seen, err)
	}}
	_, err := hung.within(t.Context(), nil, 100*time.Millisecond)
	if !errors.Is(err, os.ErrDeadlineExceeded) || !strings.HasPrefix(err.Error(), "hung, given up after 100ms: after 1 events: ") {
		t.Error(err)
	}
	<-end
}
