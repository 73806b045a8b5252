package remote_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	apirest "github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/clienttest"
	"github.com/yare-dev/yare/client/remote"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// authorizer forbids one kind to everybody.
type authorizer struct{}

func (authorizer) Authorize(_ context.Context, a *authz.Attributes) (bool, string, error) {
	return a.Resource != "secrets", "", nil
}

type everybody struct{}

func (everybody) Authenticate(*http.Request) (*authn.User, error) {
	return &authn.User{Name: "tester"}, nil
}

// host is a server over HTTPS. Requests can be made to fail, and watches to break.
type host struct {
	*httptest.Server
	api     *apiserver.Server
	store   *store.Store
	backend store.Backend

	mu   sync.Mutex
	conn map[net.Conn]struct{}
	busy atomic.Int32 // requests that are still to be answered by 429
}

func (h *host) breakConnections() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conn {
		c.Close()
	}
	clear(h.conn)
}

func component(t testing.TB, c run.Component) {
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- c.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(c.Name(), "stopped:", err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatal(c.Name(), "did not start:", err)
	}
}

func newHost(t testing.TB) *host {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	h := &host{backend: memory.New(false), conn: map[net.Conn]struct{}{}}
	h.store = store.New(h.backend, api.Stored(), store.Options{Log: log, Indexes: apirest.Indexes(), Window: 16})
	component(t, h.store)
	s, err := apiserver.New(apiserver.Config{}, apiserver.Deps{
		Store: h.store, Authorizer: authorizer{}, Authenticators: []authn.Authenticator{everybody{}}, Log: log,
		Resources: builtin.All(builtin.Deps{Store: h.store, Access: authorizer{}, Services: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/16")}}),
	})
	if err != nil {
		t.Fatal(err)
	}
	h.api = s
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.busy.Add(-1) >= 0 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return
		}
		s.ServeHTTP(w, r)
	}))
	h.EnableHTTP2 = true
	h.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	h.Config.ConnState = func(c net.Conn, st http.ConnState) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if st == http.StateNew {
			h.conn[c] = struct{}{}
		}
	}
	h.StartTLS()
	t.Cleanup(func() {
		h.breakConnections()
		h.Close()
	})
	return h
}

func (h *host) dial(t testing.TB, watched ...remote.Watched) *remote.Client {
	t.Helper()
	cfg := &rest.Config{Host: h.URL, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
	c, err := remote.Dial(cfg, remote.Options{Watched: watched, Log: slog.New(slog.DiscardHandler), Agent: "tester/1"})
	if err != nil {
		t.Fatal(err)
	}
	component(t, c)
	return c
}

func TestSuite(t *testing.T) {
	t.Parallel()
	t.Run("requests", func(t *testing.T) {
		t.Parallel()
		clienttest.Suite(t, func(t *testing.T) client.Client { return newHost(t).dial(t) })
	})
	t.Run("in process", func(t *testing.T) {
		t.Parallel()
		clienttest.Suite(t, func(t *testing.T) client.Client { return newHost(t).api.ClientAs(&authn.User{Name: "tester"}) })
	})
	t.Run("tables", func(t *testing.T) {
		t.Parallel()
		clienttest.Suite(t, func(t *testing.T) client.Client {
			return newHost(t).dial(t, remote.Watched{Kind: api.ConfigMapKind}, remote.Watched{Kind: api.PodKind})
		})
	})
}

// What is of no kind known here is had as text.
func TestAsk(t *testing.T) {
	t.Parallel()
	c := newHost(t).dial(t)
	namespace(t, c)
	v1 := func(group string) schema.GroupVersion { return schema.GroupVersion{Group: group, Version: "v1"} }
	body, served, err := c.Ask(t.Context(), v1("apps"), "namespaces/ns/deployments", url.Values{"labelSelector": {"a=b"}})
	if !served || err != nil || !strings.Contains(string(body), `"kind":"DeploymentList"`) {
		t.Error(string(body), served, err)
	}
	if _, served, err := c.Ask(t.Context(), v1("apps"), "namespaces/ns/deployments/none", nil); !served || !apierrors.IsNotFound(err) {
		t.Error(served, err)
	}
	if _, served, err := c.Ask(t.Context(), v1("custom.metrics.k8s.io"), "namespaces/ns/pods/*/hits", nil); served || err != nil {
		t.Error(served, err)
	}
}

func configMap(name string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{}
	cm.Namespace, cm.Name = "ns", name
	return cm
}

func namespace(t *testing.T, c client.Client) {
	t.Helper()
	ns := &corev1.Namespace{}
	ns.Name = "ns"
	if _, err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
}

// Through broken connections and compactions a watch tells every net change and no other.
func TestWatchSurvives(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c, other := h.dial(t), h.dial(t)
	namespace(t, other)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	view, last := map[string]string{}, make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e, err := range c.Watch(ctx, api.ConfigMapKind, client.Query{}, 0) {
			if err != nil {
				t.Error(err)
				return
			}
			switch e.Op {
			case client.Synced:
			case client.Deleted:
				if _, ok := view[e.Object.GetName()]; !ok {
					t.Error("deleted what was not there:", e.Object.GetName())
				}
				delete(view, e.Object.GetName())
			default:
				if _, ok := view[e.Object.GetName()]; ok != (e.Op == client.Modified) {
					t.Errorf("%s: op %d", e.Object.GetName(), e.Op)
				}
				view[e.Object.GetName()] = e.Object.GetResourceVersion()
			}
			if e.Op == client.Added && e.Object.GetName() == "last" {
				close(last)
			}
		}
	}()
	want := map[string]string{}
	for round := range 12 {
		h.breakConnections()
		// More changes than the server's window has, so that the watch is sometimes too late to go on.
		for i := range 10 + 5*(round%3) {
			churn(t, other, want, i%4)
		}
	}
	o, err := other.Create(t.Context(), configMap("last"))
	if err != nil {
		t.Fatal(err)
	}
	want["last"] = o.GetResourceVersion()
	<-last
	cancel()
	<-done
	if len(view) != len(want) {
		t.Errorf("view has %v, want %v", view, want)
	}
	for name, rv := range want {
		if view[name] != rv {
			t.Errorf("%s is seen at %s, is at %s", name, view[name], rv)
		}
	}
}

// churn creates, changes or deletes one of a few objects. Connections may break under it: it then looks what happened.
func churn(t *testing.T, c client.Client, want map[string]string, i int) {
	name := string(rune('a' + i))
	key := api.Key{Namespace: "ns", Name: name}
	o, err := client.Get[*corev1.ConfigMap](t.Context(), c, key)
	switch {
	case apierrors.IsNotFound(err):
		_, err = c.Create(t.Context(), configMap(name))
	case err == nil && o.Data["n"] == "xxx":
		err = c.Delete(t.Context(), o, client.DeleteOptions{})
	case err == nil:
		_, err = client.Mutate(t.Context(), c, o, "", func(cm *corev1.ConfigMap) {
			cm.Data = map[string]string{"n": cm.Data["n"] + "x"}
		})
	}
	if err != nil {
		var s apierrors.APIStatus
		if errors.As(err, &s) {
			t.Error(err)
		}
	}
	for {
		o, err := client.Get[*corev1.ConfigMap](t.Context(), c, key)
		if apierrors.IsNotFound(err) {
			delete(want, name)
			return
		} else if err == nil {
			want[name] = o.ResourceVersion
			return
		}
	}
}

func TestForbidden(t *testing.T) {
	t.Parallel()
	c := newHost(t).dial(t)
	_, err := client.List[*corev1.Secret](t.Context(), c, client.Query{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("list: %v", err)
	}
	n := 0
	for _, err := range c.Watch(t.Context(), api.SecretKind, client.Query{}, 0) {
		if n++; !apierrors.IsForbidden(err) {
			t.Errorf("watch: %v", err)
		}
	}
	if n != 1 {
		t.Errorf("watch yields %d times", n)
	}
}

func TestBusyServer(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := h.dial(t)
	h.busy.Store(1)
	namespace(t, c)
}

// What is not the API server's answer is an error with its text.
func TestStrangeServer(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, "<html>hello")
			return
		}
		http.Error(w, "a proxy says no", http.StatusBadGateway)
	}))
	t.Cleanup(s.Close)
	c, err := remote.Dial(&rest.Config{Host: s.URL}, remote.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), api.PodKind, api.Key{Namespace: "a", Name: "b"}); err == nil {
		t.Error("a page of HTML is taken for a pod")
	}
	if _, err := c.Create(t.Context(), configMap("a")); err == nil || !strings.Contains(err.Error(), "a proxy says no") {
		t.Errorf("create: %v", err)
	}
}
