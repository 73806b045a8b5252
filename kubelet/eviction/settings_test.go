package eviction

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// shown is the thresholds in a line each, with what they amount to of a capacity of 1000.
func shown(all []Threshold) (lines []string) {
	for _, t := range all {
		value, reclaim := t.Value.of(1000), t.Reclaim.of(1000)
		line := fmt.Sprintf("%s<%s", t.Signal, value.String())
		if !reclaim.IsZero() {
			line += "+" + reclaim.String()
		}
		if t.Soft {
			line += " for " + t.Grace.String()
		}
		lines = append(lines, line)
	}
	return lines
}

type settings = map[string]string

func TestThresholds(t *testing.T) {
	usual := []string{"memory.available<100Mi", "nodefs.available<100", "nodefs.inodesFree<50", "imagefs.available<150", "imagefs.inodesFree<50"}
	for _, c := range []struct {
		name string
		s    Settings
		want []string
	}{
		{"the usual ones", Settings{}, usual},
		{"none", Settings{Hard: settings{}}, nil},
		{"others take their place", Settings{Hard: settings{"pid.available": "5%", "memory.available": "1G"}}, []string{"memory.available<1G", "pid.available<50"}},
		{"or are added", Settings{Hard: settings{"pid.available": "20", "memory.available": "1Gi"}, MergeDefaults: true},
			append(append([]string{"memory.available<1Gi"}, usual[1:]...), "pid.available<20")},
		{"0% and 100% are none", Settings{Hard: settings{"memory.available": "0%", "nodefs.available": "100%"}}, nil},
		{"soft ones come after hard ones", Settings{Hard: settings{"memory.available": "100Mi"}, Soft: settings{"memory.available": "200Mi", "nodefs.available": "12.5%"},
			SoftGracePeriod: settings{"memory.available": "1m30s", "nodefs.available": "0s"}, MinimumReclaim: settings{"memory.available": "10Mi", "pid.available": "1"}},
			[]string{"memory.available<100Mi+10Mi", "memory.available<200Mi+10Mi for 1m30s", "nodefs.available<125 for 0s"}},
	} {
		c.s.Check(func(field, format string, args ...any) {
			t.Errorf("%s: %s: %s", c.name, field, fmt.Sprintf(format, args...))
		})
		if got := shown(c.s.Thresholds()); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// What is wrong is told by its name, all of it at once.
func TestMistakes(t *testing.T) {
	for _, c := range []struct {
		s    Settings
		want []string
	}{
		{Settings{Hard: settings{"memory": "1Gi"}}, []string{"evictionHard.memory: is not a signal: use memory.available, nodefs.available"}},
		{Settings{Hard: settings{"containerfs.available": "5%"}}, []string{"evictionHard.containerfs.available: follows"}},
		{Settings{Hard: settings{"allocatableMemory.available": "5%"}}, []string{"evictionHard.allocatableMemory.available: is not observed"}},
		{Settings{Hard: settings{"memory.available": "lots", "nodefs.available": "-1Gi", "pid.available": "101%", "imagefs.available": "x%", "nodefs.inodesFree": "0"}},
			[]string{`evictionHard.memory.available: "lots" is neither`, `evictionHard.nodefs.available: "-1Gi" is neither`, `evictionHard.pid.available: "101%" is not a percentage`,
				`evictionHard.imagefs.available: "x%" is not`, "evictionHard.nodefs.inodesFree: must be above 0"}},
		{Settings{Hard: settings{"memory.available": "-1%", "nodefs.available": "NaN%"}}, []string{`"-1%" is not a percentage`, `"NaN%" is not a percentage`}},
		{Settings{Soft: settings{"memory.available": "1Gi"}}, []string{"evictionSoftGracePeriod: memory.available is missing"}},
		{Settings{SoftGracePeriod: settings{"memory.available": "1m"}}, []string{"evictionSoftGracePeriod.memory.available: evictionSoft has no threshold"}},
		{Settings{Soft: settings{"memory.available": "1Gi"}, SoftGracePeriod: settings{"memory.available": "-1s"}}, []string{`evictionSoftGracePeriod.memory.available: "-1s" is not a duration`}},
		{Settings{MinimumReclaim: settings{"disk": "1Gi", "memory.available": "-1"}}, []string{"evictionMinimumReclaim.disk: is not a signal", `evictionMinimumReclaim.memory.available: "-1"`}},
		{Settings{TransitionPeriod: -time.Second}, []string{"evictionPressureTransitionPeriod: -1s is negative"}},
	} {
		var got []string
		c.s.Check(func(field, format string, args ...any) { got = append(got, field+": "+fmt.Sprintf(format, args...)) })
		if len(got) != len(c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
		for _, w := range c.want {
			if !slices.ContainsFunc(got, func(g string) bool { return strings.Contains(g, w) }) {
				t.Errorf("no %q in %q", w, got)
			}
		}
	}
}

// Hard thresholds of memory and disk are kept from pods, soft ones are not.
func TestKept(t *testing.T) {
	s := Settings{Soft: settings{"memory.available": "1Gi"}, SoftGracePeriod: settings{"memory.available": "1m"}}
	capacity := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("100Gi"), corev1.ResourceCPU: resource.MustParse("4")}
	kept := Kept(s.Thresholds(), capacity)
	if len(kept) != 2 || kept.Memory().String() != "100Mi" || kept.StorageEphemeral().String() != "10Gi" {
		t.Error(kept)
	}
	if kept := Kept(s.Thresholds(), corev1.ResourceList{}); len(kept) != 0 {
		t.Error(kept)
	}
}
