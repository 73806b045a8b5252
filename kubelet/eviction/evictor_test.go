package eviction

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// fake is a machine with pods on it, and what was done to them.
type fake struct {
	*testing.T
	mu       sync.Mutex
	begin    time.Time
	of       map[Signal]Observation
	err      error
	pods     []Candidate
	lingers  bool // evicted pods do not end
	freed    int64
	measured int
	done     []string
	wake     chan struct{}
	evictor  *Evictor
}

func (f *fake) note(format string, args ...any) {
	f.done = append(f.done, fmt.Sprintf("%v ", time.Since(f.begin))+fmt.Sprintf(format, args...))
}

// took returns what was done since the last time.
func (f *fake) took() string {
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	done := f.done
	f.done = nil
	return strings.Join(done, "; ")
}

func (f *fake) left(s Signal, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.of[s] = Observation{n * mi, 1000 * mi}
}

// begins starts an Evictor that observes f.
func begins(t *testing.T, s Settings, pods ...Candidate) *fake {
	f := &fake{T: t, begin: time.Now(), of: map[Signal]Observation{}, pods: pods, wake: make(chan struct{}, 1)}
	do := func(what string) func(context.Context) error {
		return func(context.Context) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.note("%s", what)
			if o, ok := f.of[NodeFsAvailable]; ok && what == "images" {
				f.of[NodeFsAvailable] = Observation{o.Available + f.freed, o.Capacity}
			}
			return nil
		}
	}
	f.evictor = New(s, Deps{
		Observe: func(context.Context) (Observations, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			o := Observations{At: time.Now(), Of: map[Signal]Observation{}}
			for s, seen := range f.of {
				o.Of[s] = seen
			}
			return o, f.err
		},
		Wake: f.wake,
		Changed: func() {
			conditions := f.evictor.Conditions()
			f.mu.Lock()
			defer f.mu.Unlock()
			f.note("%v", conditions)
		},
		Pods: func() (all []*corev1.Pod) {
			f.mu.Lock()
			defer f.mu.Unlock()
			for _, p := range f.pods {
				all = append(all, p.Pod)
			}
			return all
		},
		Measure: func(context.Context, []*corev1.Pod, Parts) ([]Candidate, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.measured++
			return slices.Clone(f.pods), nil
		},
		RemoveDead: do("dead"), RemoveImages: do("images"),
		Evict: func(p *corev1.Pod, o Order) <-chan struct{} {
			f.mu.Lock()
			defer f.mu.Unlock()
			ended := make(chan struct{})
			f.pods = slices.DeleteFunc(f.pods, func(c Candidate) bool { return c.Pod == p })
			if p.Name == "gone" {
				return nil
			}
			if f.note("evict %s %v", p.Name, o.Grace); !f.lingers {
				close(ended)
			}
			return ended
		},
		Event:   func(_, reason, message string) { f.mu.Lock(); defer f.mu.Unlock(); f.note("%s: %s", reason, message) },
		Metrics: NewMetrics(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { f.evictor.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return f
}

func (f *fake) want(after time.Duration, want string) {
	f.Helper()
	time.Sleep(time.Until(f.begin.Add(after)))
	if got := f.took(); got != want {
		f.Errorf("after %v: %q, want %q", after, got, want)
	}
}

func TestEvictor(t *testing.T) {
	const met = "EvictionThresholdMet: Attempting to reclaim "
	pods := func() []Candidate {
		return []Candidate{candidate("small", 0, "", "", memory(10)), candidate("large", 0, "", "", memory(90)), candidate("gone", 0, "", "", memory(99))}
	}
	for name, test := range map[string]func(t *testing.T){
		"one pod an interval, as long as memory is short": func(t *testing.T) {
			f := begins(t, Settings{}, pods()...)
			f.left(MemoryAvailable, 500)
			f.want(35*time.Second, "")
			f.left(MemoryAvailable, 50)
			f.want(49*time.Second, "40s [MemoryPressure]; 40s "+met+"memory; 40s evict large 1s")
			f.want(51*time.Second, "50s "+met+"memory; 50s evict small 1s")
			f.want(61*time.Second, "1m0s "+met+"memory") // nobody is left
			f.left(MemoryAvailable, 500)
			f.want(5*time.Minute+59*time.Second, "")
			f.want(6*time.Minute+time.Second, "6m0s []")
			if f.measured != 2 {
				t.Error("measured", f.measured, "times")
			}
		},
		"the next waits for the end, but not for ever": func(t *testing.T) {
			f := begins(t, Settings{}, pods()...)
			f.lingers = true
			f.left(MemoryAvailable, 50)
			f.want(39*time.Second, "10s [MemoryPressure]; 10s "+met+"memory; 10s evict large 1s")
			f.want(41*time.Second, "40s "+met+"memory; 40s evict small 1s")
		},
		"removing is enough": func(t *testing.T) {
			f := begins(t, Settings{}, pods()...)
			f.freed = 100 * mi
			f.left(NodeFsAvailable, 50)
			f.want(25*time.Second, "10s [DiskPressure]; 10s "+met+"ephemeral-storage; 10s dead; 10s images")
			if f.measured != 0 {
				t.Error("pods were measured")
			}
		},
		"removing is not enough": func(t *testing.T) {
			f := begins(t, Settings{}, candidate("a", 0, "", "", disk(1, 1, 1)))
			f.freed = 49 * mi
			f.left(NodeFsAvailable, 50)
			f.want(15*time.Second, "10s [DiskPressure]; 10s "+met+"ephemeral-storage; 10s dead; 10s images; 10s evict a 1s")
		},
		"soft: grace of the pod, up to the most": func(t *testing.T) {
			long, short := int64(600), int64(20)
			all := pods()[:2]
			all[0].Pod.Spec.TerminationGracePeriodSeconds, all[1].Pod.Spec.TerminationGracePeriodSeconds = &long, &short
			f := begins(t, Settings{Hard: settings{}, Soft: settings{"memory.available": "10%"}, SoftGracePeriod: settings{"memory.available": "1m"}, MaxPodGracePeriod: 60}, all...)
			f.left(MemoryAvailable, 99)
			f.want(69*time.Second, "10s [MemoryPressure]")
			f.want(85*time.Second, "1m10s "+met+"memory; 1m10s evict large 20s; 1m20s "+met+"memory; 1m20s evict small 1m0s")
		},
		"a failed look changes nothing": func(t *testing.T) {
			f := begins(t, Settings{}, pods()...)
			f.err = errors.New("unreadable")
			f.left(MemoryAvailable, 50)
			f.want(25*time.Second, "")
			f.mu.Lock()
			f.err = nil
			f.mu.Unlock()
			f.want(35*time.Second, "30s [MemoryPressure]; 30s "+met+"memory; 30s evict large 1s")
		},
		"a warning is looked into at once": func(t *testing.T) {
			f := begins(t, Settings{}, pods()...)
			f.left(MemoryAvailable, 500)
			f.want(13*time.Second, "")
			f.left(MemoryAvailable, 50)
			f.wake <- struct{}{}
			f.want(14*time.Second, "13s [MemoryPressure]; 13s "+met+"memory; 13s evict large 1s")
			f.wake <- struct{}{} // one an interval all the same
			f.want(22*time.Second, "")
			f.want(24*time.Second, "23s "+met+"memory; 23s evict small 1s")
		},
		"without thresholds nothing is looked at": func(t *testing.T) {
			f := begins(t, Settings{Hard: settings{}}, pods()...)
			f.left(MemoryAvailable, 0)
			f.want(time.Hour, "")
		},
		"a start under pressure knows at once, and waits": func(t *testing.T) {
			f := begins(t, Settings{}, pods()...)
			f.left(MemoryAvailable, 50)
			if _, err := f.evictor.Look(t.Context()); err != nil || !f.evictor.Under(corev1.NodeMemoryPressure) || f.evictor.Under(corev1.NodeDiskPressure) {
				t.Error(err, f.evictor.Conditions())
			}
			f.want(time.Second, "0s [MemoryPressure]")
			f.want(11*time.Second, "10s "+met+"memory; 10s evict large 1s")
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
}

// This machine has all that is always there.
func TestMachine(t *testing.T) {
	dir := t.TempDir()
	asked := 0
	m := &Machine{Root: dir, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Images: func(context.Context) (string, string, error) {
		if asked++; asked == 1 {
			return "", "", errors.New("busy")
		}
		return "/proc", dir, nil
	}}
	for range 4 {
		o, err := m.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []Signal{MemoryAvailable, NodeFsAvailable, PIDAvailable} {
			if seen := o.Of[s]; seen.Available <= 0 || seen.Capacity <= seen.Available {
				t.Errorf("%s: %+v", s, seen)
			}
		}
		if o.OwnImages != (asked > 1) || o.LayersWithImages {
			t.Errorf("asked %d times: %+v", asked, o)
		}
	}
	if asked != 2 {
		t.Error("asked", asked, "times where images are")
	}
	same := &Machine{Root: dir, Images: func(context.Context) (string, string, error) { return dir, dir, nil }}
	for range 2 {
		if o, err := same.Observe(t.Context()); err != nil || o.OwnImages || len(o.Of) > 4 {
			t.Error(o, err)
		}
	}
}
