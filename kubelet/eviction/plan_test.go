package eviction

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const mi = 1 << 20

// at is what there is of memory and disk after some time, both of 1000 Mi; below 0 is not observed.
type at struct {
	after        time.Duration
	memory, disk int64
	want         string // what is acute, and the conditions
}

// Thresholds, grace periods, minimum reclaim and transition, look by look.
func TestState(t *testing.T) {
	const memory, disk = "MemoryPressure", "DiskPressure"
	hard := Settings{Hard: settings{"memory.available": "100Mi", "nodefs.available": "10%"}}
	soft := Settings{Hard: settings{"memory.available": "100Mi"}, Soft: settings{"memory.available": "200Mi"}, SoftGracePeriod: settings{"memory.available": "30s"}}
	reclaim := Settings{Hard: settings{"memory.available": "100Mi"}, MinimumReclaim: settings{"memory.available": "50Mi"}}
	reclaimSoft := soft
	reclaimSoft.Hard, reclaimSoft.MinimumReclaim = settings{}, settings{"memory.available": "5%"}
	for _, c := range []struct {
		name  string
		s     Settings
		looks []at
	}{
		{"at ease", hard, []at{{0, 100, 100, " []"}, {10, 101, 101, " []"}}},
		{"one below is too little", hard, []at{{0, 99, 100, "memory.available [" + memory + "]"}}},
		{"both: memory first", hard, []at{{0, 99, 99, "memory.available nodefs.available [" + disk + " " + memory + "]"}}},
		{"the condition outlasts its reason", hard, []at{{0, 99, 100, "memory.available [" + memory + "]"}, {10, 100, 100, " [" + memory + "]"},
			{299, 500, 500, " [" + memory + "]"}, {300, 500, 500, " []"}}},
		{"from the last time on", hard, []at{{0, 99, 100, "memory.available [" + memory + "]"}, {200, 99, 100, "memory.available [" + memory + "]"},
			{400, 500, 500, " [" + memory + "]"}, {500, 500, 500, " []"}}},
		{"what cannot be observed is not met", hard, []at{{0, -1, 50, "nodefs.available [" + disk + "]"}, {10, 500, -1, " [" + disk + "]"}}},
		{"soft: the condition at once, eviction later", soft, []at{{0, 150, 500, " [" + memory + "]"}, {20, 150, 500, " [" + memory + "]"},
			{30, 150, 500, "memory.available [" + memory + "]"}, {40, 50, 500, "memory.available memory.available [" + memory + "]"}}},
		{"soft: an interruption begins anew", soft, []at{{0, 150, 500, " [" + memory + "]"}, {20, 250, 500, " [" + memory + "]"},
			{30, 150, 500, " [" + memory + "]"}, {59, 150, 500, " [" + memory + "]"}, {60, 150, 500, "memory.available [" + memory + "]"}}},
		{"minimum reclaim", reclaim, []at{{0, 120, 0, " []"}, {10, 99, 0, "memory.available [" + memory + "]"}, {20, 149, 0, "memory.available [" + memory + "]"},
			{30, 150, 0, " [" + memory + "]"}, {40, 120, 0, " [" + memory + "]"}}},
		{"minimum reclaim of a soft one counts once it is acute", reclaimSoft, []at{{0, 199, 0, " [" + memory + "]"}, {10, 210, 0, " [" + memory + "]"},
			{20, 199, 0, " [" + memory + "]"}, {50, 199, 0, "memory.available [" + memory + "]"}, {60, 249, 0, "memory.available [" + memory + "]"},
			{70, 250, 0, " [" + memory + "]"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.s.Check(func(field, format string, args ...any) { t.Error(field, fmt.Sprintf(format, args...)) })
			s := State{Thresholds: c.s.Thresholds(), TransitionPeriod: UsualTransition}
			for _, look := range c.looks {
				o := Observations{At: time.Unix(1000, 0).Add(look.after * time.Second), Of: map[Signal]Observation{}}
				for signal, n := range map[Signal]int64{MemoryAvailable: look.memory, NodeFsAvailable: look.disk} {
					if n >= 0 {
						o.Of[signal] = Observation{n * mi, 1000 * mi}
					}
				}
				var acute []string
				for _, a := range s.Observe(o) {
					acute = append(acute, string(a.Signal))
				}
				if got := strings.Join(acute, " ") + " " + fmt.Sprint(s.Conditions()); got != look.want {
					t.Errorf("after %ds: %q, want %q", look.after, got, look.want)
				}
			}
		})
	}
}

// A short transition still shows what is there now.
func TestNoTransition(t *testing.T) {
	s := State{Thresholds: Settings{}.Thresholds()}
	low := Observations{At: time.Unix(1000, 0), Of: map[Signal]Observation{PIDAvailable: {}, MemoryAvailable: {Available: 1, Capacity: 1 << 30}}}
	s.Observe(low)
	if got := fmt.Sprint(s.Conditions()); got != "[MemoryPressure]" {
		t.Error(got)
	}
	if s.Observe(Observations{At: time.Unix(1001, 0)}); len(s.Conditions()) != 0 {
		t.Error(s.Conditions())
	}
}

// Whether what was removed is enough is a matter of the signal alone, with its minimum reclaim.
func TestOver(t *testing.T) {
	s := State{Thresholds: Settings{Hard: settings{"nodefs.available": "10%", "memory.available": "100Mi"}, MinimumReclaim: settings{"nodefs.available": "5%"}}.Thresholds()}
	look := func(memory, disk int64) Observations {
		return Observations{At: time.Unix(1000, 0), Of: map[Signal]Observation{MemoryAvailable: {memory * mi, 1000 * mi}, NodeFsAvailable: {disk * mi, 1000 * mi}}}
	}
	s.Observe(look(1, 1))
	for disk, want := range map[int64]bool{99: false, 120: false, 149: false, 150: true} {
		if got := s.Over(NodeFsAvailable, look(1, disk)); got != want {
			t.Errorf("%d Mi: %v", disk, got)
		}
	}
	if s.Over(NodeFsAvailable, Observations{}) {
		t.Error("over, unseen")
	}
}
