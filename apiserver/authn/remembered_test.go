package authn

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Remembered[int, string]
		want := func(k int, answer string, ok bool) {
			t.Helper()
			if a, known := r.Get(k); a != answer || known != ok {
				t.Errorf("%d: %q, %v", k, a, known)
			}
		}
		want(0, "", false)
		r.Put(0, "a", time.Now().Add(time.Minute))
		r.Put(1, "b", time.Now().Add(time.Hour))
		want(0, "a", true)
		time.Sleep(time.Minute)
		want(0, "", false)
		want(1, "b", true)
		for k := range mostRemembered - 1 { // 0 is there, and counts
			r.Put(k+1, "c", time.Now().Add(time.Hour))
		}
		want(1, "c", true)
		r.Put(-1, "d", time.Now().Add(time.Hour))
		want(1, "", false)
		want(-1, "d", true)
	})
}
