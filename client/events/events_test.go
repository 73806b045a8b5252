package events

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// ledger is a Writer that keeps Events.
type ledger struct {
	client.Writer
	events map[api.Key]*corev1.Event
	lines  []string
	fail   func() error
}

func (l *ledger) Create(_ context.Context, o api.Object) (api.Object, error) {
	if l.fail != nil {
		if err := l.fail(); err != nil {
			return nil, err
		}
	}
	e := o.(*corev1.Event)
	if _, ok := l.events[api.KeyOf(e)]; ok {
		return nil, apierrors.NewAlreadyExists(api.EventKind.GroupResource(), e.Name)
	}
	l.events[api.KeyOf(e)] = e
	l.note("create", e)
	return e, nil
}

func (l *ledger) Patch(_ context.Context, _ *api.Kind, key api.Key, p client.Patch) (api.Object, error) {
	e, ok := l.events[key]
	if !ok {
		return nil, apierrors.NewNotFound(api.EventKind.GroupResource(), key.Name)
	}
	e = e.DeepCopy()
	if err := json.Unmarshal(p.Data, e); err != nil {
		return nil, err
	}
	l.events[key] = e
	l.note("patch", e)
	return e, nil
}

func (l *ledger) note(verb string, e *corev1.Event) {
	about := strings.TrimSpace(e.InvolvedObject.Name + " " + e.InvolvedObject.FieldPath)
	l.lines = append(l.lines, fmt.Sprintf("%s %s/%s %s x%d", verb, e.Namespace, about, e.Message, e.Count))
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "u"}}
}

// record runs say in a bubble and returns what was written.
func record(t *testing.T, l *ledger, say func(*Recorder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l.events = map[api.Key]*corev1.Event{}
		r := New(l, "test", "host", slog.New(slog.NewTextHandler(t.Output(), nil)))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx, func() {}) }()
		say(r)
		time.Sleep(5 * time.Minute)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestCorrelation(t *testing.T) {
	tests := []struct {
		name string
		say  func(*Recorder)
		want []string
	}{
		{"the same again is counted", func(r *Recorder) {
			for range 3 {
				r.Event(pod("a"), "Normal", "R", "m")
			}
		}, []string{"create ns/a m x1", "patch ns/a m x2", "patch ns/a m x3"}},
		{"objects are told apart", func(r *Recorder) {
			r.Event(pod("a"), "Normal", "R", "m")
			r.Event(pod("b"), "Normal", "R", "m")
		}, []string{"create ns/a m x1", "create ns/b m x1"}},
		{"sources are told apart", func(r *Recorder) {
			r.Event(pod("a"), "Normal", "R", "m")
			r.As("other").Event(pod("a"), "Normal", "R", "m")
		}, []string{"create ns/a m x1", "create ns/a m x1"}},
		{"parts of an object are told apart, but share what is said of it", func(r *Recorder) {
			r.EventAt(pod("a"), "spec.containers{x}", "Normal", "R", "m")
			r.EventAt(pod("a"), "spec.containers{y}", "Normal", "R", "m")
			r.EventAt(pod("a"), "spec.containers{x}", "Normal", "R", "m")
			for i := range 11 {
				r.EventAt(pod("a"), fmt.Sprintf("spec.containers{%d}", i), "Normal", "R", fmt.Sprint(i))
			}
		}, []string{
			"create ns/a spec.containers{x} m x1", "create ns/a spec.containers{y} m x1", "patch ns/a spec.containers{x} m x2",
			"create ns/a spec.containers{0} 0 x1", "create ns/a spec.containers{1} 1 x1", "create ns/a spec.containers{2} 2 x1",
			"create ns/a spec.containers{3} 3 x1", "create ns/a spec.containers{4} 4 x1", "create ns/a spec.containers{5} 5 x1",
			"create ns/a spec.containers{6} 6 x1", "create ns/a spec.containers{7} 7 x1", "create ns/a spec.containers{8} 8 x1",
			"create ns/a spec.containers{9} (combined from similar events): 9 x1", "patch ns/a spec.containers{9} (combined from similar events): 10 x2"}},
		{"cluster-scoped objects' events are in default", func(r *Recorder) {
			r.Event(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, "Normal", "R", "m")
		}, []string{"create default/n m x1"}},
		{"many messages are combined, old ones still counted", func(r *Recorder) {
			for i := range 12 {
				r.Event(pod("a"), "Normal", "R", fmt.Sprint(i))
			}
			r.Event(pod("a"), "Normal", "R", "0")
		}, []string{
			"create ns/a 0 x1", "create ns/a 1 x1", "create ns/a 2 x1", "create ns/a 3 x1", "create ns/a 4 x1",
			"create ns/a 5 x1", "create ns/a 6 x1", "create ns/a 7 x1", "create ns/a 8 x1", "create ns/a 9 x1",
			"create ns/a (combined from similar events): 10 x1", "patch ns/a (combined from similar events): 11 x2",
			"patch ns/a 0 x2"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := &ledger{}
			record(t, l, tt.say)
			if d := cmp.Diff(tt.want, l.lines); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestSpamIsLimited(t *testing.T) {
	l := &ledger{}
	record(t, l, func(r *Recorder) {
		for range 100 {
			r.Event(pod("a"), "Normal", "R", "m")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(l.lines) != burst {
			t.Errorf("%d of 100 events were written at once", len(l.lines))
		}
		time.Sleep(2 * refill)
		for range 100 {
			r.Event(pod("a"), "Normal", "R", "m")
		}
	})
	if want := burst + 2; len(l.lines) != want {
		t.Errorf("%d events were written, want %d", len(l.lines), want)
	}
}

func TestExpiredEventIsMadeAnew(t *testing.T) {
	l := &ledger{}
	record(t, l, func(r *Recorder) {
		r.Event(pod("a"), "Normal", "R", "m")
		synctest.Wait()
		clear(l.events)
		r.Event(pod("a"), "Normal", "R", "m")
	})
	if d := cmp.Diff([]string{"create ns/a m x1", "create ns/a m x2"}, l.lines); d != "" {
		t.Error(d)
	}
}

func TestFailures(t *testing.T) {
	away := 3
	l := &ledger{fail: func() error {
		if away--; away >= 0 {
			return apierrors.NewServiceUnavailable("away")
		}
		return nil
	}}
	record(t, l, func(r *Recorder) { r.Event(pod("a"), "Normal", "R", "m") })
	if len(l.lines) != 1 {
		t.Errorf("after an absence: %q", l.lines)
	}

	asked := 0
	l = &ledger{fail: func() error {
		asked++
		return apierrors.NewForbidden(api.EventKind.GroupResource(), "", nil)
	}}
	record(t, l, func(r *Recorder) { r.Event(pod("a"), "Normal", "R", "m") })
	if asked != 1 {
		t.Errorf("a refused event was sent %d times", asked)
	}
}

func TestFullQueueDoesNotBlock(t *testing.T) {
	r := New(&ledger{}, "test", "", slog.New(slog.NewTextHandler(t.Output(), nil)))
	for range queueLength + 7 {
		r.Event(pod("a"), "Normal", "R", "m")
	}
	if n := r.dropped.Load(); n != 7 {
		t.Errorf("%d were dropped", n)
	}
	var none *Recorder
	none.As("x").Event(pod("a"), "Normal", "R", "m")
}

func TestLRU(t *testing.T) {
	l := newLRU[int, string](2)
	l.put(1, "a")
	l.put(2, "b")
	l.get(1)
	l.put(3, "c")
	if _, ok := l.get(2); ok {
		t.Error("2 was used longest ago and is still there")
	}
	if v, ok := l.get(1); !ok || v != "a" || len(l.at) != 2 || l.order.Len() != 2 {
		t.Error("1 is gone")
	}
}

// Annotations are those of the Event, also when it is said again.
func TestAnnotated(t *testing.T) {
	l := &ledger{}
	record(t, l, func(r *Recorder) {
		for range 2 {
			r.Annotated(pod("a"), map[string]string{"starved_resource": "memory"}, "Warning", "Evicted", "m")
		}
		r.Event(pod("b"), "Warning", "Evicted", "m")
	})
	if want := []string{"create ns/a m x1", "patch ns/a m x2", "create ns/b m x1"}; !slices.Equal(l.lines, want) {
		t.Errorf("%q, want %q", l.lines, want)
	}
	for _, e := range l.events {
		if got, want := e.Annotations["starved_resource"] == "memory", e.InvolvedObject.Name == "a"; got != want {
			t.Errorf("%s: annotations %v", e.InvolvedObject.Name, e.Annotations)
		}
	}
}

// What is remembered of Events is bounded, however much they have to say.
func TestLongMessagesAreCut(t *testing.T) {
	l := &ledger{}
	record(t, l, func(r *Recorder) { r.Event(pod("a"), "Warning", "R", strings.Repeat("ä", 1<<20)) })
	for _, e := range l.events {
		if len(e.Message) > maxMessage || len(e.Message) < 11<<10 || !utf8.ValidString(e.Message) || !strings.HasSuffix(e.Message, "ä ...") {
			t.Errorf("%d bytes: %s", len(e.Message), e.Message[len(e.Message)-10:])
		}
	}
	if len(l.events) != 1 {
		t.Error("events:", len(l.events))
	}
}
