package apiserver_test

import (
	"context"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/fairness"
	"github.com/yare-dev/yare/apiserver/servertest"
)

// TestFairness asks a server all of whose seats are taken.
func TestFairness(t *testing.T) {
	t.Parallel()
	var fair *fairness.Fairness
	s := serve(t, func(_ *apiserver.Config, d *apiserver.Deps) {
		servertest.PutAs(t, d.Store, api.FlowSchemaKind, bootstrap.MandatoryFlowSchemaCatchAll.DeepCopy())
		fair = fairness.New(d.Store, 1)
		d.Fairness = fair
	})
	const maps = "/api/v1/namespaces/default/configmaps"
	if w := do(t, s, "GET", maps, "", "X-User", "jane"); w.Code != 200 || w.Header().Get("X-Kubernetes-PF-FlowSchema-UID") == "" {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	ticket, why := fair.Enter(t.Context(), &authz.Attributes{User: &authn.User{Name: "joe", Groups: []string{authn.Authenticated}}, Verb: "get", Resource: "configmaps"}, 1, time.Now())
	if why != "" {
		t.Fatal(why)
	}
	for _, path := range []string{maps, maps + "?watch=1", "/version"} {
		if w := do(t, s, "GET", path, "", "X-User", "jane"); w.Code != 429 || w.Header().Get("Retry-After") != "1" {
			t.Errorf("%s: %d %v", path, w.Code, w.Header())
		}
	}
	if w := do(t, s, "GET", maps, "", "X-User", "master"); w.Code != 200 {
		t.Errorf("a master gets %d", w.Code)
	}
	// What this process writes itself waits for its turn as well, and what it reads does not.
	local := s.ClientAs(&authn.User{Name: "jim", Groups: []string{authn.Authenticated}})
	if _, err := local.Get(t.Context(), api.ConfigMapKind, api.Key{Namespace: "default", Name: "none"}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
	ended, stop := context.WithCancel(t.Context())
	stop()
	made := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "local"}}
	if _, err := local.Create(ended, made); !apierrors.IsTooManyRequests(err) {
		t.Errorf("a write without a seat: %v", err)
	}
	ticket.Leave()
	if _, err := local.Create(t.Context(), made); err != nil {
		t.Error(err)
	}
	if w := do(t, s, "GET", maps, "", "X-User", "jane"); w.Code != 200 {
		t.Errorf("after the seat is free: %d", w.Code)
	}
}

// stalled is a client that reads nothing of an answer's body before it goes on.
type stalled struct {
	*httptest.ResponseRecorder
	on chan struct{}
}

func (w stalled) Write(b []byte) (int, error) {
	<-w.on
	return w.ResponseRecorder.Write(b)
}

// A watch has its seats until what there is was sent, or for a minute.
func TestWatchSeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serve(t, func(_ *apiserver.Config, d *apiserver.Deps) {
			servertest.PutAs(t, d.Store, api.FlowSchemaKind, bootstrap.MandatoryFlowSchemaCatchAll.DeepCopy())
			d.Fairness = fairness.New(d.Store, 1)
		})
		const maps = "/api/v1/namespaces/default/configmaps"
		code := func() int {
			synctest.Wait()
			return do(t, s, "GET", maps, "", "X-User", "jane").Code
		}
		watch := func(query string) (goOn, end func()) {
			ctx, cancel := context.WithCancel(t.Context())
			r := httptest.NewRequestWithContext(ctx, "GET", maps+"?watch=1"+query, nil)
			r.Header.Set("X-User", "jane")
			w, done := stalled{httptest.NewRecorder(), make(chan struct{})}, make(chan struct{})
			go func() {
				defer close(done)
				s.ServeHTTP(w, r)
			}()
			return func() { close(w.on) }, func() {
				cancel()
				<-done
			}
		}
		const initial = "&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
		goOn, end := watch(initial)
		if got := code(); got != 429 {
			t.Errorf("before the first events are sent: %d", got)
		}
		goOn()
		if got := code(); got != 200 {
			t.Errorf("after they were sent: %d", got)
		}
		end()
		goOn, end = watch(initial)
		synctest.Wait()
		time.Sleep(time.Minute + time.Second)
		if got := code(); got != 200 {
			t.Errorf("after a minute: %d", got)
		}
		goOn()
		end()
		_, end = watch("")
		if got := code(); got != 200 {
			t.Errorf("a watch that has nothing to send: %d", got)
		}
		end()
	})
}
