package reconcile_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

type mapping = *corev1.ConfigMap

func configMap(name string, mods ...func(mapping)) mapping {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	for _, m := range mods {
		m(cm)
	}
	return cm
}

// probe runs reconcile in a bubble with the ConfigMaps in place.
func probe(t *testing.T, f reconcile.For[mapping], then func(context.Context, *rt.Cluster), cms ...mapping) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		for _, cm := range cms {
			rt.Create(t, c, cm)
		}
		d := rt.Deps(t, c)
		f.Controller = "probe"
		rt.Start(t, d, reconcile.New(d, f))
		synctest.Wait()
		then(t.Context(), c)
	})
}

func TestRetry(t *testing.T) {
	var times []time.Duration
	begin := time.Time{}
	f := reconcile.For[mapping]{Reconcile: func(context.Context, *slog.Logger, mapping) (reconcile.Result, error) {
		if begin.IsZero() {
			begin = time.Now()
		}
		times = append(times, time.Since(begin))
		switch len(times) {
		case 1:
			return reconcile.Result{}, errors.New("no")
		case 2:
			panic("oh")
		case 3:
			return reconcile.Result{}, apierrors.NewConflict(api.ConfigMapKind.GroupResource(), "a", nil)
		case 4:
			return reconcile.Result{After: time.Minute}, nil
		}
		return reconcile.Result{}, nil
	}}
	probe(t, f, func(context.Context, *rt.Cluster) {
		time.Sleep(time.Hour)
		synctest.Wait()
	}, configMap("a"))
	ms := time.Millisecond
	if d := cmp.Diff([]time.Duration{0, 5 * ms, 15 * ms, 35 * ms, 35*ms + time.Minute}, times); d != "" {
		t.Error(d)
	}
}

// A key that is woken while it runs runs again; it never runs twice at a time.
func TestWakeDuringRun(t *testing.T) {
	var running, runs, seen atomic.Int32
	f := reconcile.For[mapping]{Reconcile: func(_ context.Context, _ *slog.Logger, cm mapping) (reconcile.Result, error) {
		if running.Add(1) > 1 {
			t.Error("a key runs twice at a time")
		}
		defer running.Add(-1)
		time.Sleep(time.Second)
		runs.Add(1)
		seen.Store(int32(len(cm.Data)))
		return reconcile.Result{}, nil
	}}
	probe(t, f, func(ctx context.Context, c *rt.Cluster) {
		for i := range 5 {
			cm := rt.Get[mapping](t, c, "ns", "a")
			rt.Mutate(t, c, cm, "", func(cm mapping) {
				if cm.Data == nil {
					cm.Data = map[string]string{}
				}
				cm.Data[fmt.Sprint(i)] = ""
			})
		}
		time.Sleep(time.Minute)
	}, configMap("a"))
	if runs.Load() != 2 || seen.Load() != 5 {
		t.Errorf("%d runs, the last saw %d keys", runs.Load(), seen.Load())
	}
}

func TestGone(t *testing.T) {
	var gone []string
	f := reconcile.For[mapping]{
		Reconcile: func(context.Context, *slog.Logger, mapping) (reconcile.Result, error) {
			return reconcile.Result{}, nil
		},
		Gone: func(_ context.Context, _ *slog.Logger, k api.Key) (reconcile.Result, error) {
			gone = append(gone, k.String())
			return reconcile.Result{}, nil
		}}
	probe(t, f, func(ctx context.Context, c *rt.Cluster) {
		if err := c.Delete(ctx, configMap("a"), client.DeleteOptions{}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
	}, configMap("a"), configMap("b"))
	if !slices.Equal(gone, []string{"ns/a"}) {
		t.Error(gone)
	}
}

func TestLoopGathersWakeups(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		runs := 0
		rt.Start(t, d, reconcile.NewLoop(d, reconcile.Loop{Controller: "loop", Wake: []*api.Kind{api.ConfigMapKind},
			Heeds: func(e client.Event) bool { return e.Object == nil || e.Object.GetName() != "dull" },
			Least: time.Second, Run: func(context.Context, *slog.Logger) (reconcile.Result, error) {
				runs++
				return reconcile.Result{}, nil
			}}))
		synctest.Wait()
		for i := range 10 {
			rt.Create(t, c, configMap(fmt.Sprint(i)))
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		rt.Create(t, c, configMap("dull"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if runs != 2 {
			t.Errorf("%d runs", runs)
		}
	})
}

func TestClaim(t *testing.T) {
	owner := configMap("owner")
	owner.UID = "o"
	other := configMap("other")
	other.UID = "x"
	lbl := func(v string) func(mapping) { return func(cm mapping) { cm.Labels = map[string]string{"app": v} } }
	by := func(o mapping) func(mapping) {
		return func(cm mapping) { cm.OwnerReferences = []metav1.OwnerReference{*reconcile.ControllerRef(o)} }
	}
	tests := []struct {
		name     string
		deleting bool
		child    mapping
		mine     bool
		owned    bool // afterwards
	}{
		{"its own", false, configMap("c", lbl("a"), by(owner)), true, true},
		{"an orphan is adopted", false, configMap("c", lbl("a")), true, true},
		{"an orphan that does not match", false, configMap("c", lbl("b")), false, false},
		{"somebody else's", false, configMap("c", lbl("a"), by(other)), false, false},
		{"one that matches no more is released", false, configMap("c", lbl("b"), by(owner)), false, false},
		{"the dying adopt nobody", true, configMap("c", lbl("a")), false, false},
		{"the dying release nobody", true, configMap("c", lbl("b"), by(owner)), false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, ctx := rt.New(t), t.Context()
			o := owner.DeepCopy()
			if tt.deleting {
				o.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
				o.Finalizers = []string{"f"}
			}
			o = rt.Create(t, c, o)
			rt.Create(t, c, tt.child)
			mine, err := reconcile.Claim[mapping](ctx, c, o, labels.SelectorFromSet(labels.Set{"app": "a"}))
			if err != nil {
				t.Fatal(err)
			}
			if (len(mine) == 1) != tt.mine {
				t.Errorf("claimed %d", len(mine))
			}
			now := rt.Get[mapping](t, c, "ns", "c")
			if metav1.IsControlledBy(now, o) != tt.owned {
				t.Errorf("owners are %v", now.OwnerReferences)
			}
		})
	}
}

func TestSlowStart(t *testing.T) {
	tests := []struct{ n, failFrom, asked, well int }{
		{0, 0, 0, 0}, {10, 99, 10, 10}, {100, 0, 1, 0}, {100, 2, 3, 2}, {100, 5, 7, 5},
	}
	for _, tt := range tests {
		var asked atomic.Int32
		well, err := reconcile.SlowStart(tt.n, func(i int) error {
			asked.Add(1)
			if i >= tt.failFrom {
				return errors.New("no")
			}
			return nil
		})
		if well != tt.well || int(asked.Load()) != tt.asked || (err != nil) != (tt.well < tt.n) {
			t.Errorf("%+v: %d asked, %d well, %v", tt, asked.Load(), well, err)
		}
	}
	if err := reconcile.Parallel(2, func(int) error { panic("oh") }); err == nil || !strings.Contains(err.Error(), "oh") {
		t.Error(err)
	}
}

func TestRole(t *testing.T) {
	d := rt.Deps(t, rt.New(t))
	c := reconcile.New(d, reconcile.For[mapping]{Controller: "probe",
		Also:  []reconcile.Source{reconcile.Owned[*corev1.Pod]()},
		Write: reconcile.Writes{api.PodKind: {"create", "update/status"}}})
	var got []string
	for _, r := range c.Role().Rules {
		got = append(got, fmt.Sprint(r.APIGroups, r.Resources, r.Verbs))
	}
	want := []string{"[] [configmaps] [get list watch]", "[] [events] [create patch]", "[] [pods] [create get list watch]",
		"[] [pods/status] [update]"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkWake(b *testing.B) {
	c := rt.New(b)
	d := rt.Deps(b, c)
	d.Log = slog.New(slog.DiscardHandler)
	ran := make(chan struct{}, 1000)
	ctl := reconcile.New(d, reconcile.For[mapping]{Controller: "probe",
		Gone: func(context.Context, *slog.Logger, api.Key) (reconcile.Result, error) {
			ran <- struct{}{}
			return reconcile.Result{}, nil
		}})
	rt.Start(b, d, ctl)
	for b.Loop() {
		ctl.Wake(api.Key{Name: "a"})
		<-ran
	}
}

// refusing is a Reader that may not watch.
type refusing struct{ client.Reader }

func (refusing) Watch(context.Context, *api.Kind, client.Query, api.Revision) iter.Seq2[client.Event, error] {
	return func(yield func(client.Event, error) bool) {
		yield(client.Event{}, apierrors.NewForbidden(api.ConfigMapKind.GroupResource(), "", nil))
	}
}

// A watch that is refused ends the process' informers, with the kind in the error, and nothing begins.
func TestRefusedWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := rt.Deps(t, rt.New(t))
		d.Informers = reconcile.NewInformers(refusing{})
		c := reconcile.New(d, reconcile.For[mapping]{Controller: "probe"})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx, func() { t.Error("the controller became ready") }) }()
		err := d.Informers.Run(ctx, func() { t.Error("the informers became ready") })
		if !apierrors.IsForbidden(err) || !strings.HasPrefix(err.Error(), "watch configmaps: ") {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
