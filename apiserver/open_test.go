package apiserver_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// timed notes until when its request may be read.
type timed struct {
	*httptest.ResponseRecorder
	until []time.Time
}

func (w *timed) SetReadDeadline(t time.Time) error {
	w.until = append(w.until, t)
	return nil
}

// Strangers who send their requests slowly hold few places, for a short time; a request that is there takes as long as it takes; a handler that panics
// is one request's.
func TestOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		s, err := apiserver.New(apiserver.Config{}, apiserver.Deps{
			Store: store.New(memory.New(true), api.Stored(), store.Options{Log: log}), Resources: resources(), Authorizer: allow{}, Log: log,
			Open: map[string]http.Handler{"/open": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				if err != nil || string(b) == "panic" {
					panic(string(b))
				}
				_, _ = w.Write(b)
			})},
		})
		if err != nil {
			t.Fatal(err)
		}
		ask := func(body io.Reader) *timed {
			w := &timed{ResponseRecorder: httptest.NewRecorder()}
			r := httptest.NewRequest(http.MethodPost, "/open", body)
			s.ServeHTTP(w, r)
			return w
		}
		var wg sync.WaitGroup
		var slow []*io.PipeWriter
		for range 50 {
			r, w := io.Pipe()
			slow = append(slow, w)
			wg.Go(func() {
				if a := ask(r); a.Code != http.StatusRequestTimeout || len(a.until) != 1 || time.Until(a.until[0]) > 10*time.Second {
					t.Errorf("%d, %v", a.Code, a.until)
				}
			})
		}
		synctest.Wait()
		if a := ask(strings.NewReader("x")); a.Code != http.StatusServiceUnavailable {
			t.Errorf("one more: %d", a.Code)
		}
		for _, w := range slow {
			w.CloseWithError(os.ErrDeadlineExceeded)
		}
		wg.Wait()
		if a := ask(strings.NewReader("x")); a.Code != http.StatusOK || a.Body.String() != "x" || len(a.until) != 2 || !a.until[1].IsZero() {
			t.Errorf("%d %s, %v", a.Code, a.Body, a.until)
		}
		if a := ask(strings.NewReader(strings.Repeat("x", 1<<17))); a.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("a long one: %d", a.Code)
		}
		if a := ask(strings.NewReader("panic")); a.Code != http.StatusInternalServerError {
			t.Errorf("a panic: %d", a.Code)
		}
	})
}
