package kubelet

import (
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yare-dev/yare/run/healthz"
)

// The kubelet is unwell when its runtime has told it nothing for two minutes, counted from the first time that it broke off.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &Kubelet{}
		e := healthz.New(k.checks, "healthz")
		for _, c := range []struct {
			name  string
			after time.Duration
			hears *bool
			want  int
		}{
			{"new", time.Hour, nil, 200}, {"hears", 0, new(true), 200}, {"broke off", time.Hour, new(false), 200},
			{"still", 90 * time.Second, new(false), 200}, {"too long", 40 * time.Second, new(false), 500}, {"back", 0, new(true), 200},
		} {
			time.Sleep(c.after)
			if c.hears != nil {
				k.hears(*c.hears)
			}
			w := httptest.NewRecorder()
			e.Serve(w, httptest.NewRequest("GET", "/healthz", nil), "healthz", "")
			if w.Code != c.want {
				t.Errorf("%s: %d %s", c.name, w.Code, w.Body)
			}
		}
	})
}
