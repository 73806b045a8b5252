package usage

import (
	"context"
	"encoding/json"
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
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time {
	return epoch.Add(time.Duration(seconds * float64(time.Second)))
}

func TestRate(t *testing.T) {
	began := at(-100)
	for _, tt := range []struct {
		name   string
		now    point
		before *point
		want   string
	}{
		{"half a CPU", point{at(10), began, 9e9, 4096}, &point{at(0), began, 4e9, 1}, "500m 4Ki 10s"},
		{"nothing", point{at(10), began, 4e9, 0}, &point{at(0), began, 4e9, 1}, "0 0 10s"},
		{"a tiny bit", point{at(10), began, 4e9 + 12345, 1 << 30}, &point{at(0), began, 4e9, 1}, "1234n 1Gi 10s"},
		{"began in between", point{at(10), at(-2), 3e9, 1}, nil, "250m 1 12s"},
		{"began anew", point{at(10), at(-2), 3e9, 1}, &point{at(0), began, 4e9, 1}, "250m 1 12s"},
		{"began just now", point{at(10), at(9.9), 1e9, 1}, nil, "-"},
		{"began nobody knows when", point{at(10), time.Time{}, 1e9, 1}, nil, "-"},
		{"has not been read again", point{at(10), began, 4e9, 1}, &point{at(10), began, 4e9, 1}, "-"},
	} {
		got := "-"
		if u, ok := rate(tt.now, tt.before); ok {
			got = fmt.Sprint(u.list.Cpu(), " ", u.list.Memory(), " ", u.window)
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// A kubelet tells times in whole seconds: what it read for the answer was read then, what it remembers was not.
func TestTimes(t *testing.T) {
	for told, want := range map[float64]float64{7: 7.9, 6: 6, 8: 8} {
		c := &statsapi.CPUStats{Time: metav1.NewTime(at(told)), UsageCoreNanoSeconds: ptr(uint64(1))}
		p, ok := pointOf(c, &statsapi.MemoryStats{WorkingSetBytes: ptr(uint64(1))}, metav1.Time{}, at(7.9))
		if !ok || !p.at.Equal(at(want)) {
			t.Errorf("%v: %v", told, p.at)
		}
	}
	if _, ok := pointOf(nil, nil, metav1.Time{}, at(0)); ok {
		t.Error("no figures are none")
	}
}

func TestChoose(t *testing.T) {
	for _, tt := range []struct{ taken, want string }{
		{"", "-"}, {"1", "1 -"}, {"1 1.5", "1.5 -"}, {"1 2", "2 1"}, {"1 4 8", "8 1"}, {"1 4 8 15", "15 4"}, {"1 4 8 15 60", "60 15"},
	} {
		var samples []*sample
		for _, f := range strings.Fields(tt.taken) {
			var s float64
			if _, err := fmt.Sscan(f, &s); err != nil {
				t.Fatal(err)
			}
			samples = append(samples, &sample{taken: at(s)})
		}
		p := choose(samples)
		got := "-"
		if p.now != nil {
			got = fmt.Sprint(p.now.taken.Sub(epoch).Seconds(), " -")
		}
		if p.before != nil {
			got = fmt.Sprint(p.now.taken.Sub(epoch).Seconds(), " ", p.before.taken.Sub(epoch).Seconds())
		}
		if got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.taken, got, tt.want)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// kubelet uses half a CPU, and a quarter in each container.
type kubelet struct {
	begin time.Time
	asked atomic.Int32
}

func (k *kubelet) get(_ context.Context, n *corev1.Node, path string) ([]byte, error) {
	if n.Name == "dead" {
		return nil, errors.New("does not answer")
	}
	k.asked.Add(1)
	now := metav1.Now()
	used := uint64(now.Sub(k.begin))
	stats := func(part uint64) (*statsapi.CPUStats, *statsapi.MemoryStats) {
		return &statsapi.CPUStats{Time: now, UsageCoreNanoSeconds: ptr(used / part)}, &statsapi.MemoryStats{Time: now, WorkingSetBytes: ptr(uint64(1 << 20))}
	}
	s := statsapi.Summary{}
	s.Node.StartTime = metav1.NewTime(k.begin)
	s.Node.CPU, s.Node.Memory = stats(2)
	for _, uid := range []string{"u-a", "u-b"} {
		p := statsapi.PodStats{PodRef: statsapi.PodReference{UID: uid}}
		c := statsapi.ContainerStats{Name: "c", StartTime: metav1.NewTime(k.begin)}
		c.CPU, c.Memory = stats(4)
		p.Containers = append(p.Containers, c)
		s.Pods = append(s.Pods, p)
	}
	if path != "/stats/summary?only_cpu_and_memory=true" {
		return nil, errors.New("asked for " + path)
	}
	return json.Marshal(s)
}

// Metrics are there for who asks first, and nobody asks a kubelet more often than need be.
func TestReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := servertest.Store(t)
		put := func(k *api.Kind, o api.Object) {
			if _, err := s.Create(t.Context(), k, o, 0); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{"dead", "n1"} {
			put(api.NodeKind, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": "z"}}})
		}
		pod := func(name, node, container string) {
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("u-" + name), Labels: map[string]string{"app": name}}}
			p.Spec.NodeName, p.Status.Phase = node, corev1.PodRunning
			p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: container, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
			put(api.PodKind, p)
		}
		pod("a", "n1", "c")
		pod("b", "n1", "new") // has no figures yet
		pod("lost", "dead", "c")
		k := &kubelet{begin: time.Now().Add(-time.Hour)}
		r := New(Deps{Store: s, Get: k.get, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		nodes := r.Nodes(t.Context(), rest.Wanted{})
		if len(nodes) != 1 || nodes[0].Name != "n1" || nodes[0].Usage.Cpu().String() != "500m" || nodes[0].Usage.Memory().String() != "1Mi" ||
			nodes[0].Window.Duration != time.Second || nodes[0].Labels["zone"] != "z" || !nodes[0].Timestamp.Time.Equal(time.Now()) {
			t.Errorf("nodes: %+v", nodes)
		}
		pods := r.Pods(t.Context(), rest.Wanted{})
		if len(pods) != 1 || pods[0].Name != "a" || pods[0].Namespace != "ns" || len(pods[0].Containers) != 1 ||
			pods[0].Containers[0].Usage.Cpu().String() != "250m" {
			t.Errorf("pods: %+v", pods)
		}
		if n := k.asked.Load(); n != 2 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(15 * time.Second)
		for range 10 {
			if pods = r.Pods(t.Context(), rest.Wanted{Key: api.Key{Namespace: "ns", Name: "a"}}); len(pods) != 1 || pods[0].Window.Duration != 15*time.Second {
				t.Errorf("later: %+v", pods)
			}
		}
		if n := k.asked.Load(); n != 3 {
			t.Errorf("asked %d times", n)
		}
		for _, w := range []rest.Wanted{{Key: api.Key{Namespace: "other"}}, {Labels: labels.SelectorFromSet(labels.Set{"app": "b"})}, {Key: api.Key{Namespace: "ns", Name: "none"}}, {Key: api.Key{Name: "none"}}} {
			if pods := r.Pods(t.Context(), w); len(pods) != 0 {
				t.Errorf("%+v: %+v", w, pods)
			}
		}
		if pods := r.Pods(t.Context(), rest.Wanted{Key: api.Key{Name: "a"}}); len(pods) != 1 { // by a field selector
			t.Errorf("in any namespace: %+v", pods)
		}
		time.Sleep(time.Hour)
		if r.Nodes(t.Context(), rest.Wanted{Key: api.Key{Name: "n1"}})[0].Window.Duration != time.Second {
			t.Error("an hour ago is no sample to compare with")
		}
		if len(r.nodes) != 1 {
			t.Errorf("%d nodes are remembered", len(r.nodes))
		}
	})
}

// A kubelet that hangs is waited for once by all who ask, and no longer than each of them likes.
func TestHangingKubelet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := servertest.Store(t)
		if _, err := s.Create(t.Context(), api.NodeKind, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}, 0); err != nil {
			t.Fatal(err)
		}
		var asked atomic.Int32
		hangs := func(ctx context.Context, _ *corev1.Node, _ string) ([]byte, error) {
			asked.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		r := New(Deps{Store: s, Get: hangs, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		ask := func(ctx context.Context, want time.Duration) {
			begin := time.Now()
			if nodes := r.Nodes(ctx, rest.Wanted{}); len(nodes) != 0 || time.Since(begin) != want {
				t.Errorf("%+v after %v, want %v", nodes, time.Since(begin), want)
			}
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { ask(t.Context(), answerWithin) })
		}
		synctest.Wait()
		hasty, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ask(hasty, time.Second)
		wg.Wait()
		if n := asked.Load(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(fresh)
		ask(t.Context(), answerWithin)
		if n := asked.Load(); n != 2 {
			t.Errorf("asked %d times", n)
		}
	})
}
