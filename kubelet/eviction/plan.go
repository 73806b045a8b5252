package eviction

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Observation is how much of something there is, and of how much.
type Observation struct{ Available, Capacity int64 }

// Observations are what was seen at one time. What could not be seen is missing.
type Observations struct {
	At time.Time
	Of map[Signal]Observation
	// OwnImages says that images are on another file system than the kubelet's folder, LayersWithImages that what containers write to their
	// root file systems is there too.
	OwnImages, LayersWithImages bool
}

// quantity is how messages show n of what the signal counts.
func (s Signal) quantity(n int64) *resource.Quantity {
	switch s.Resource() {
	case resourceInodes, resourcePIDs:
		return resource.NewQuantity(n, resource.DecimalSI)
	}
	return resource.NewQuantity(n, resource.BinarySI)
}

// met reports whether less than the threshold is available, or where it counts, than what is to be reclaimed.
func (t *Threshold) met(o Observation, reclaim bool) bool {
	least := t.Value.of(o.Capacity)
	if reclaim {
		least.Add(t.Reclaim.of(o.Capacity))
	}
	return least.CmpInt64(o.Available) > 0
}

// State is what has been observed so far. The zero State with its Thresholds and TransitionPeriod is that of a start.
type State struct {
	Thresholds       []Threshold
	TransitionPeriod time.Duration

	since map[int]time.Time                      // when a threshold that is met was met first, by its index
	acute map[int]bool                           // those that are met for their grace periods
	seen  map[corev1.NodeConditionType]time.Time // when there was last a reason for a condition
	now   time.Time
}

// Observe takes a look at the machine into account and returns the thresholds that are acute, the one to act upon first.
func (s *State) Observe(o Observations) (acute []Threshold) {
	since, was := s.since, s.acute
	s.since, s.acute, s.now = map[int]time.Time{}, map[int]bool{}, o.At
	if s.seen == nil {
		s.seen = map[corev1.NodeConditionType]time.Time{}
	}
	for i := range s.Thresholds {
		t := &s.Thresholds[i]
		seen, ok := o.Of[t.Signal]
		if !ok || !t.met(seen, was[i]) {
			continue
		}
		s.since[i] = o.At
		if first, ok := since[i]; ok {
			s.since[i] = first
		}
		s.seen[t.Signal.Condition()] = o.At
		if o.At.Sub(s.since[i]) >= t.Grace {
			s.acute[i] = true
			acute = append(acute, *t)
		}
	}
	return acute
}

// Over reports whether a threshold of the signal that was acute is reached again, with its minimum reclaim, by a look that is not otherwise
// taken into account.
func (s *State) Over(signal Signal, o Observations) bool {
	for i := range s.acute {
		if t := &s.Thresholds[i]; t.Signal == signal {
			if seen, ok := o.Of[signal]; !ok || t.met(seen, true) {
				return false
			}
		}
	}
	return true
}

// Conditions are those of pressure that the Node has since the last look, ordered.
func (s *State) Conditions() []corev1.NodeConditionType {
	var out []corev1.NodeConditionType
	for c, at := range s.seen {
		if at.Equal(s.now) || s.now.Sub(at) < s.TransitionPeriod {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return out
}
