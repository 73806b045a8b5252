package rest_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// bench is a pipeline over a memory store, within a synctest bubble.
type bench struct {
	*rest.Pipeline
	t   *testing.T
	ctx context.Context
}

// bubble runs f with a fresh bench. The store's mutation detector fails the test when a shared object was changed.
func bubble(t *testing.T, o store.Options, admission []rest.Admission, f func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		o.Log, o.Indexes, o.Detect = slog.New(slog.NewTextHandler(t.Output(), nil)), rest.Indexes(), true
		st := store.New(memory.New(true), api.Stored(), o)
		ctx, cancel := context.WithCancel(t.Context())
		up, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- st.Run(ctx, func() { close(up) }) }()
		<-up
		life, end := context.WithTimeout(ctx, 24*time.Hour) // of the bubble: a test that waits in vain fails
		defer end()
		f(&bench{rest.NewPipeline(st, admission), t, authn.WithUser(life, &authn.User{Name: "u"})})
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

var pods = rest.Register(api.PodKind, &rest.Resource[*corev1.Pod]{
	Fields: func(o *corev1.Pod) fields.Set { return fields.Set{"spec.nodeName": o.Spec.NodeName} },
})

var configMaps = rest.Register(api.ConfigMapKind, &rest.Resource[*corev1.ConfigMap]{})

func request(a rest.Any, name string) *rest.Request {
	return &rest.Request{Any: a, Key: api.Key{Namespace: "ns", Name: name}, Manager: "test"}
}

func configMap(name string, kv ...string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{}}
	for i := 0; i+1 < len(kv); i += 2 {
		cm.Data[kv[i]] = kv[i+1]
	}
	return cm
}

func (b *bench) create(a rest.Any, o api.Object) *store.Entry {
	b.t.Helper()
	e, err := b.Create(b.ctx, request(a, ""), o)
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

// Writers that name no revision all get through; those that do are told when they were overtaken.
func TestContention(t *testing.T) {
	bubble(t, store.Options{}, nil, func(b *bench) {
		made := b.create(configMaps, configMap("c"))
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				_, _, err := b.Patch(b.ctx, request(configMaps, "c"), rest.Patch{
					Type: types.MergePatchType, Data: fmt.Appendf(nil, `{"data":{"k%d":"v"}}`, i)})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		e, err := b.Get(b.ctx, request(configMaps, "c"), "")
		if err != nil {
			t.Fatal(err)
		}
		if got := e.Object.(*corev1.ConfigMap); len(got.Data) != 20 {
			t.Errorf("%d of 20 patches are seen", len(got.Data))
		}
		stale := configMap("c")
		stale.ResourceVersion = made.Object.GetResourceVersion()
		if _, _, err := b.Update(b.ctx, request(configMaps, "c"), stale); !apierrors.IsConflict(err) {
			t.Error(err)
		}
		if _, _, err := b.Update(b.ctx, request(configMaps, "c"), configMap("c")); err != nil {
			t.Error(err)
		}
	})
}

func TestGeneratedNames(t *testing.T) {
	bubble(t, store.Options{}, nil, func(b *bench) {
		long := strings.Repeat("x", 70)
		for _, prefix := range []string{"p-", long} {
			o := configMap("")
			o.GenerateName = prefix
			e := b.create(configMaps, o)
			if n := e.Key.Name; len(n) != min(len(prefix), 58)+5 || !strings.HasPrefix(n, prefix[:min(len(prefix), 58)]) {
				t.Errorf("generated %q", n)
			}
		}
	})
}

// A write without effect makes no revision, and so wakes nobody.
func TestNoEffect(t *testing.T) {
	bubble(t, store.Options{}, nil, func(b *bench) {
		first := b.create(configMaps, configMap("c", "a", "1"))
		time.Sleep(time.Hour)
		e, _, err := b.Update(b.ctx, request(configMaps, "c"), configMap("c", "a", "1"))
		if err != nil || e != first {
			t.Error(e, err)
		}
		dry := request(configMaps, "c")
		dry.DryRun = true
		e, _, err = b.Update(b.ctx, dry, configMap("c", "a", "2"))
		if err != nil || e.Object.(*corev1.ConfigMap).Data["a"] != "2" || b.Store().Revision() != first.Revision {
			t.Error(e, err)
		}
	})
}

func TestAdmission(t *testing.T) {
	var seen []string
	admission := []rest.Admission{{
		Name: "stamp",
		Mutate: func(_ context.Context, a *rest.Admitting) error {
			seen = append(seen, string(a.Operation)+" "+a.User.Name+" "+a.Key.String())
			if a.Object != nil {
				a.Object.SetLabels(map[string]string{"stamped": "yes"})
			}
			return nil
		},
		Validate: func(_ context.Context, a *rest.Admitting) error {
			if a.Object != nil && a.Object.GetName() == "bad" {
				return errors.New("no bad names")
			}
			return nil
		},
	}}
	bubble(t, store.Options{}, admission, func(b *bench) {
		if e := b.create(configMaps, configMap("c")); e.Object.GetLabels()["stamped"] != "yes" {
			t.Error("not stamped")
		}
		_, err := b.Create(b.ctx, request(configMaps, ""), configMap("bad"))
		if !apierrors.IsForbidden(err) || err.Error() != `configmaps "bad" is forbidden: stamp: no bad names` {
			t.Error(err)
		}
		if _, err := b.Delete(b.ctx, request(configMaps, "c"), &metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		if got, want := strings.Join(seen, ", "), "CREATE u ns/c, CREATE u ns/bad, DELETE u ns/c"; got != want {
			t.Errorf("asked %s", got)
		}
	})
}

// What Hold took is kept when the commit succeeds and given back in every other case.
func TestHold(t *testing.T) {
	var held, committed, aborted atomic.Int32
	a := rest.Register(api.ConfigMapKind, &rest.Resource[*corev1.ConfigMap]{
		Hold: func(_ context.Context, now, old *corev1.ConfigMap, _ bool) (*rest.Held, error) {
			if now != nil && now.Data["refuse"] != "" {
				return nil, apierrors.NewBadRequest("refused")
			}
			held.Add(1)
			return &rest.Held{
				Commit: func(context.Context) { committed.Add(1) }, Abort: func(context.Context) { aborted.Add(1) }}, nil
		},
	})
	bubble(t, store.Options{}, nil, func(b *bench) {
		b.create(a, configMap("c"))
		if _, err := b.Create(b.ctx, request(a, ""), configMap("c")); !apierrors.IsAlreadyExists(err) {
			t.Error(err)
		}
		if _, err := b.Create(b.ctx, request(a, ""), configMap("d", "refuse", "1")); !apierrors.IsBadRequest(err) {
			t.Error(err)
		}
		dry := request(a, "c")
		dry.DryRun = true
		if _, _, err := b.Update(b.ctx, dry, configMap("c", "k", "v")); err != nil {
			t.Error(err)
		}
		if _, err := b.Delete(b.ctx, request(a, "c"), &metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		if h, c, ab := held.Load(), committed.Load(), aborted.Load(); h != 4 || c != 2 || ab != 2 {
			t.Errorf("held %d, committed %d, aborted %d", h, c, ab)
		}
	})
}

// A list goes on page by page as of its first revision, whatever is written meanwhile.
func TestPages(t *testing.T) {
	bubble(t, store.Options{}, nil, func(b *bench) {
		for i := range 10 {
			b.create(configMaps, configMap(fmt.Sprintf("c%d", i)))
		}
		var names []string
		next := ""
		for page := 0; page == 0 || next != ""; page++ {
			p, err := b.List(b.ctx, request(configMaps, ""), rest.ListOptions{Limit: 3, Continue: next})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range p.Entries {
				names = append(names, e.Key.Name)
			}
			if left := int64(10 - len(names)); next != "" && left > 0 && *p.Remaining != left {
				t.Errorf("remaining %d of %d", *p.Remaining, left)
			}
			next = p.Continue
			b.create(configMaps, configMap(fmt.Sprintf("c%d-new", page)))
			if _, err := b.Delete(b.ctx, request(configMaps, fmt.Sprintf("c%d", 9-page)), &metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Join(names, " "); got != "c0 c1 c2 c3 c4 c5 c6 c7 c8 c9" {
			t.Errorf("got %s", got)
		}
	})
}

func TestFutureRevision(t *testing.T) {
	bubble(t, store.Options{}, nil, func(b *bench) {
		begin := time.Now()
		_, err := b.List(b.ctx, request(configMaps, ""), rest.ListOptions{Version: "1000"})
		if !apierrors.IsTimeout(err) || !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) || time.Since(begin) != 3*time.Second {
			t.Error(err, time.Since(begin))
		}
		var creating sync.WaitGroup
		creating.Go(func() {
			time.Sleep(time.Second)
			b.create(configMaps, configMap("c"))
		})
		if _, err := b.Get(b.ctx, request(configMaps, "c"), "2"); err != nil {
			t.Error(err)
		}
		creating.Wait()
	})
}

// story reads n events of a watch and tells them in a line.
func story(t *testing.T, ctx context.Context, w *rest.Watch, n int) string {
	t.Helper()
	var b strings.Builder
	for n > 0 {
		events, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range events {
			n--
			switch {
			case ev.Type == watch.Bookmark:
				fmt.Fprintf(&b, "%v@%d(%v) ", ev.Type, ev.Revision, ev.Complete)
			default:
				fmt.Fprintf(&b, "%v %s@%s ", ev.Type, ev.Entry.Key.Name, ev.Entry.Object.GetResourceVersion())
			}
		}
	}
	return strings.TrimSpace(b.String())
}

func TestWatch(t *testing.T) {
	bubble(t, store.Options{}, nil, func(b *bench) {
		pod := func(name, node string) *corev1.Pod {
			return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{NodeName: node}}
		}
		label := func(name, value string) {
			_, _, err := b.Patch(b.ctx, request(pods, name), rest.Patch{
				Type: types.MergePatchType, Data: fmt.Appendf(nil, `{"metadata":{"labels":{"l":%q}}}`, value)})
			if err != nil {
				t.Fatal(err)
			}
		}
		b.create(pods, pod("here", "n"))    // 2
		b.create(pods, pod("there", "far")) // 3
		yes := true
		all := request(pods, "")
		begin := func(o rest.WatchOptions) *rest.Watch {
			w, err := b.Watch(b.ctx, all, o)
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		onNode := begin(rest.WatchOptions{Selection: rest.Selection{Fields: fields.OneTermEqualSelector("spec.nodeName", "n")}, Initial: &yes, Mark: true, Bookmarks: true})
		labelled := begin(rest.WatchOptions{Selection: rest.Selection{Labels: labels.SelectorFromSet(labels.Set{"l": "1"})}})
		past := begin(rest.WatchOptions{Version: "2"})
		label("here", "1")                                                                          // 4
		label("there", "1")                                                                         // 5
		label("here", "2")                                                                          // 6
		if _, err := b.Delete(b.ctx, request(pods, "there"), &metav1.DeleteOptions{}); err != nil { // 7
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name string
			w    *rest.Watch
			n    int
			want string
		}{
			// The last bookmark comes a minute later and tells of changes that were not selected.
			{"node", onNode, 5, "ADDED here@2 BOOKMARK@3(true) MODIFIED here@4 MODIFIED here@6 BOOKMARK@7(false)"},
			{"labels", labelled, 4, "ADDED here@4 ADDED there@5 DELETED here@6 DELETED there@7"},
			{"from 2", past, 5, "ADDED there@3 MODIFIED here@4 MODIFIED there@5 MODIFIED here@6 DELETED there@7"},
		} {
			if got := story(t, b.ctx, tt.w, tt.n); got != tt.want {
				t.Errorf("%s: got %s", tt.name, got)
			}
		}
	})
}

// A revision that is no longer kept, and a reader that is too slow, are 410.
func TestWatchExpires(t *testing.T) {
	bubble(t, store.Options{Window: 4}, nil, func(b *bench) {
		b.create(configMaps, configMap("first"))
		w, err := b.Watch(b.ctx, request(configMaps, ""), rest.WatchOptions{Version: "2"})
		if err != nil {
			t.Fatal(err)
		}
		for i := range 30 {
			b.create(configMaps, configMap(fmt.Sprintf("c%d", i)))
		}
		if _, err := b.Watch(b.ctx, request(configMaps, ""), rest.WatchOptions{Version: "2"}); !apierrors.IsResourceExpired(err) {
			t.Error(err)
		}
		if _, err := w.Next(b.ctx); !apierrors.IsResourceExpired(err) {
			t.Error(err)
		}
	})
}

func TestOwned(t *testing.T) {
	bubble(t, store.Options{}, nil, func(b *bench) {
		for i, owner := range []types.UID{"x", "y", "x"} {
			cm := configMap(fmt.Sprint("c", i))
			cm.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: owner}}
			b.create(configMaps, cm)
		}
		p, err := b.List(b.ctx, request(configMaps, ""), rest.ListOptions{Selection: rest.Selection{Owner: "x"}})
		if err != nil || len(p.Entries) != 2 || p.Entries[1].Key.Name != "c2" {
			t.Error(p, err)
		}
	})
}
