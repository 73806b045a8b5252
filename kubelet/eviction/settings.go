package eviction

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Signal is something that can run out.
type Signal string

// The signals.
const (
	MemoryAvailable   Signal = "memory.available"
	NodeFsAvailable   Signal = "nodefs.available"
	NodeFsInodesFree  Signal = "nodefs.inodesFree"
	ImageFsAvailable  Signal = "imagefs.available"
	ImageFsInodesFree Signal = "imagefs.inodesFree"
	PIDAvailable      Signal = "pid.available"
)

// What Events and messages call what is scarce, beside memory and ephemeral-storage.
const (
	resourceInodes corev1.ResourceName = "inodes"
	resourcePIDs   corev1.ResourceName = "pids"
)

// signals are all in the order in which they are acted upon: memory first, since the kernel's way out is the worst.
func signals() []Signal {
	return []Signal{MemoryAvailable, NodeFsAvailable, NodeFsInodesFree, ImageFsAvailable, ImageFsInodesFree, PIDAvailable}
}

// Resource is what a lack of the signal is a lack of.
func (s Signal) Resource() corev1.ResourceName {
	switch s {
	case MemoryAvailable:
		return corev1.ResourceMemory
	case NodeFsInodesFree, ImageFsInodesFree:
		return resourceInodes
	case PIDAvailable:
		return resourcePIDs
	}
	return corev1.ResourceEphemeralStorage
}

// Condition is the Node's condition that tells of it.
func (s Signal) Condition() corev1.NodeConditionType {
	switch s {
	case MemoryAvailable:
		return corev1.NodeMemoryPressure
	case PIDAvailable:
		return corev1.NodePIDPressure
	}
	return corev1.NodeDiskPressure
}

// Settings are those of KubeletConfiguration, by the same names.
type Settings struct {
	// Hard and Soft are evictionHard and evictionSoft: quantities or percentages by signal. A nil Hard is the usual one.
	Hard, Soft map[string]string
	// SoftGracePeriod has a duration for each of Soft.
	SoftGracePeriod map[string]string
	// MinimumReclaim is how much more than its threshold a signal must have before pressure is over.
	MinimumReclaim map[string]string
	// MaxPodGracePeriod is how many seconds pods get at most that a soft threshold evicts.
	MaxPodGracePeriod int32
	// TransitionPeriod is how long a condition outlasts its reason; 0 is the usual one.
	TransitionPeriod time.Duration
	// MergeDefaults adds to Hard what is usual for the signals that it has not.
	MergeDefaults bool
}

// UsualTransition is the usual TransitionPeriod.
const UsualTransition = 5 * time.Minute

// usualHard are KubeletConfiguration's defaults for Linux.
func usualHard() map[string]string {
	return map[string]string{string(MemoryAvailable): "100Mi", string(NodeFsAvailable): "10%", string(NodeFsInodesFree): "5%",
		string(ImageFsAvailable): "15%", string(ImageFsInodesFree): "5%"}
}

// Value is a quantity, or where that is nil a share of what there is.
type Value struct {
	Quantity *resource.Quantity
	Share    float64
}

// of returns what it amounts to.
func (v Value) of(capacity int64) resource.Quantity {
	if v.Quantity != nil {
		return v.Quantity.DeepCopy()
	}
	return *resource.NewQuantity(int64(float64(capacity)*v.Share), resource.BinarySI)
}

// Threshold is met when less than Value is available.
type Threshold struct {
	Signal  Signal
	Value   Value
	Reclaim Value         // further, before one that was acted upon is over
	Soft    bool          // pods get time to end
	Grace   time.Duration // how long it has to be met
}

// Check tells problem of every mistake, each by its field.
func (s Settings) Check(problem func(field, format string, args ...any)) { s.parse(problem) }

// Thresholds returns what the settings, which are checked, say: the hard ones of a signal before the soft, the signals in the order in which
// they are acted upon.
func (s Settings) Thresholds() []Threshold { return s.parse(func(string, string, ...any) {}) }

// EffectiveHard is Hard with the defaults where these count.
func (s Settings) EffectiveHard() map[string]string {
	if s.Hard != nil && !s.MergeDefaults {
		return s.Hard
	}
	hard := usualHard()
	maps.Copy(hard, s.Hard)
	return hard
}

func (s Settings) parse(problem func(field, format string, args ...any)) (all []Threshold) {
	reclaim := map[Signal]Value{}
	each("evictionMinimumReclaim", s.MinimumReclaim, problem, func(field string, signal Signal, text string) {
		if v, ok := parseValue(field, text, problem); ok {
			reclaim[signal] = v
		}
	})
	grace := map[Signal]time.Duration{}
	each("evictionSoftGracePeriod", s.SoftGracePeriod, problem, func(field string, signal Signal, text string) {
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			problem(field, "%q is not a duration such as 1m30s", text)
			return
		}
		grace[signal] = d
		if _, ok := s.Soft[string(signal)]; !ok {
			problem(field, "evictionSoft has no threshold for it: add one, or leave this out")
		}
	})
	add := func(field string, t Threshold, text string) {
		if text == "0%" || text == "100%" { // upstream's words for none
			return
		}
		v, ok := parseValue(field, text, problem)
		if ok && v.Quantity != nil && v.Quantity.IsZero() {
			problem(field, "must be above 0; 0%% is no threshold")
		}
		t.Value, t.Reclaim = v, reclaim[t.Signal]
		all = append(all, t)
	}
	each("evictionHard", s.EffectiveHard(), problem, func(field string, signal Signal, text string) {
		add(field, Threshold{Signal: signal}, text)
	})
	each("evictionSoft", s.Soft, problem, func(field string, signal Signal, text string) {
		d, ok := grace[signal]
		if _, given := s.SoftGracePeriod[string(signal)]; !ok && !given {
			problem("evictionSoftGracePeriod", "%s is missing, as evictionSoft has a threshold for it", signal)
		}
		add(field, Threshold{Signal: signal, Soft: true, Grace: d}, text)
	})
	if s.MaxPodGracePeriod < 0 {
		problem("evictionMaxPodGracePeriod", "%d is negative", s.MaxPodGracePeriod)
	}
	if s.TransitionPeriod < 0 {
		problem("evictionPressureTransitionPeriod", "%v is negative", s.TransitionPeriod)
	}
	order := signals()
	slices.SortStableFunc(all, func(a, b Threshold) int { return slices.Index(order, a.Signal) - slices.Index(order, b.Signal) })
	return all
}

// each calls f for the settings of signals that there are, and tells of others.
func each(field string, settings map[string]string, problem func(field, format string, args ...any), f func(field string, s Signal, text string)) {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		full := field + "." + name
		switch {
		case slices.Contains(signals(), Signal(name)):
			f(full, Signal(name), settings[name])
		case strings.HasPrefix(name, "containerfs."):
			problem(full, "follows the file system that containers are on: set nodefs, or imagefs where images are on another")
		case name == "allocatableMemory.available":
			problem(full, "is not observed, as the memory of all pods together has no limit: set memory.available")
		default:
			problem(full, "is not a signal: use %s", join(signals()))
		}
	}
}

func join(all []Signal) string {
	var names []string
	for _, s := range all {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

func parseValue(field, text string, problem func(field, format string, args ...any)) (Value, bool) {
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		f, err := strconv.ParseFloat(percent, 64)
		if err != nil || math.IsNaN(f) || f < 0 || f > 100 {
			problem(field, "%q is not a percentage from 0%% to 100%%", text)
			return Value{}, false
		}
		return Value{Share: f / 100}, true
	}
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		problem(field, "%q is neither a quantity such as 100Mi nor a percentage", text)
		return Value{}, false
	}
	return Value{Quantity: &q}, true
}

// Kept is what the hard thresholds keep from pods of what there is: memory and ephemeral-storage (KEP "Node Allocatable").
func Kept(thresholds []Threshold, capacity corev1.ResourceList) corev1.ResourceList {
	kept := corev1.ResourceList{}
	for _, t := range thresholds {
		if t.Soft || t.Signal != MemoryAvailable && t.Signal != NodeFsAvailable {
			continue
		}
		if all, ok := capacity[t.Signal.Resource()]; ok {
			kept[t.Signal.Resource()] = t.Value.of(all.Value())
		}
	}
	return kept
}
