package horizontalpodautoscaler

import (
	"fmt"
	"testing"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func ptr[T any](v T) *T { return &v }

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// podsOf makes pods of a word each: r(unning), p(ending), u(nready), s(tarting, ready), d(eleted), f(ailed).
func podsOf(word string) (pods []*corev1.Pod) {
	for i, c := range word {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", i)}}
		p.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1k")}}}}
		start, ready, changed := now.Add(-time.Hour), corev1.ConditionTrue, now.Add(-50*time.Minute)
		p.Status.Phase = corev1.PodRunning
		switch c {
		case 'p':
			p.Status.Phase = corev1.PodPending
		case 'f':
			p.Status.Phase = corev1.PodFailed
		case 'd':
			p.DeletionTimestamp = &metav1.Time{Time: now}
		case 'u': // never ready
			ready, changed = corev1.ConditionFalse, start.Add(time.Second)
		case 's': // for less than a window
			start, changed = now.Add(-time.Minute), now.Add(-10*time.Second)
		}
		p.Status.StartTime = &metav1.Time{Time: start}
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.Time{Time: changed}}}
		pods = append(pods, p)
	}
	return pods
}

func samplesOf(values []int64) samples {
	s := samples{}
	for i, v := range values {
		if v >= 0 {
			s[fmt.Sprint("p", i)] = sample{now.Add(-time.Second), 15 * time.Second, v}
		}
	}
	return s
}

func TestByPods(t *testing.T) {
	for _, tt := range []struct {
		name     string
		pods     string
		current  int32
		values   []int64 // -1: none
		target   int32   // percent of a request of 1000
		resource corev1.ResourceName
		want     string
	}{
		{"up", "rrr", 3, []int64{300, 500, 700}, 30, "cpu", "5 at 50%"},
		{"down", "rrrrr", 5, []int64{100, 300, 500, 250, 250}, 50, "cpu", "3 at 28%"},
		{"within the tolerance", "rrr", 3, []int64{1010, 1030, 1020}, 100, "cpu", "3 at 102%"},
		{"exactly", "rr", 2, []int64{500, 500}, 50, "cpu", "2 at 50%"},
		{"pending pods hold an increase back", "rrp", 3, []int64{300, 500, -1}, 30, "cpu", "3 at 40%"},
		{"unready ones too, of the CPU", "ruu", 3, []int64{400, 500, 700}, 30, "cpu", "3 at 40%"},
		{"of the memory they count", "ruu", 3, []int64{300, 500, 700}, 30, "memory", "5 at 50%"},
		{"those that just began", "rrs", 3, []int64{600, 600, 5000}, 50, "cpu", "3 at 60%"},
		{"the failed and the deleted do not count", "rrfd", 4, []int64{500, 700, -1, 900}, 50, "cpu", "3 at 60%"},
		{"missing figures count nothing on the way up", "rrrr", 4, []int64{700, 500, 900, -1}, 60, "cpu", "4 at 70%"},
		{"everything on the way down", "rrrr", 4, []int64{100, 100, 100, -1}, 50, "cpu", "3 at 10%"},
		{"the target where it is more than all", "rrrr", 4, []int64{100, 100, 100, -1}, 300, "cpu", "2 at 10%"},
		{"a change of direction is none", "rr", 2, []int64{300, -1}, 50, "cpu", "2 at 30%"},
		{"no figures", "rr", 2, []int64{-1, -1}, 50, "cpu", "did not receive metrics for targeted pods (pods might be unready)"},
		{"no pods", "", 2, nil, 50, "cpu", "no pods returned by selector while calculating replica count"},
	} {
		pods := podsOf(tt.pods)
		asked := map[string]int64{}
		for _, p := range pods {
			asked[p.Name] = 1000
		}
		n, is, err := byPods(tt.current, pods, samplesOf(tt.values), tt.resource, utilizationGoal(tt.target, asked), toleranceOf(nil), now)
		got := fmt.Sprintf("%d at %d%%", n, is.percent)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestByAverage(t *testing.T) {
	for _, tt := range []struct {
		pods   string
		values []int64
		target int64
		want   string
	}{
		{"rrr", []int64{20000, 10000, 30000}, 15000, "4 of 20000"},
		{"rrr", []int64{12000, 12000, 12000}, 20000, "2 of 12000"},
		{"rrr", []int64{12000, 12000, -1}, 20000, "3 of 12000"},    // the missing one is taken to be as wanted
		{"rrp", []int64{50000, 10000, 30000}, 15000, "4 of 30000"}, // and the pending one to be idle
	} {
		n, is, err := byPods(int32(len(tt.pods)), podsOf(tt.pods), samplesOf(tt.values), "", averageGoal(tt.target), toleranceOf(nil), now)
		if got := fmt.Sprintf("%d of %d", n, is.average); got != tt.want || err != nil {
			t.Errorf("%+v: got %s, %v", tt, got, err)
		}
	}
}

func TestByValue(t *testing.T) {
	for _, tt := range []struct {
		current       int32
		pods          string
		value, target int64
		want          int32
		fails         bool
	}{
		{3, "rrr", 20000, 15000, 4, false},
		{3, "rru", 20000, 15000, 3, false},
		{3, "rrr", 15500, 15000, 3, false},
		{5, "rrrrr", 8600, 14400, 3, false},
		{0, "", 20000, 15000, 2, false},
		{0, "", 0, 15000, 0, false},
		{2, "rr", 0, 15000, 0, false},
		{1, "r", 1 << 62, 1, 1<<31 - 1, false},
		{2, "", 20000, 15000, 0, true},
	} {
		n, err := byValue(tt.current, podsOf(tt.pods), tt.value, tt.target, toleranceOf(nil))
		if n != tt.want || (err != nil) != tt.fails {
			t.Errorf("%+v: %d, %v", tt, n, err)
		}
	}
	for _, tt := range []struct {
		pods          int32
		value, target int64
		n             int32
		share         int64
	}{{5, 8600, 2867, 3, 1720}, {3, 8600, 2867, 3, 2867}, {0, 0, 1000, 0, 0}, {0, 2500, 1000, 3, 2500}} {
		if n, share := byShare(tt.pods, tt.value, tt.target, toleranceOf(nil)); n != tt.n || share != tt.share {
			t.Errorf("%+v: %d, %d", tt, n, share)
		}
	}
	if got := sum([]int64{1 << 62, 1 << 62, 1 << 62}); got != 1<<63-1 {
		t.Error(got)
	}
}

func TestTolerance(t *testing.T) {
	b := &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleUp: &autoscalingv2.HPAScalingRules{Tolerance: ptr(resource.MustParse("0.5"))}}
	for ratio, want := range map[float64]bool{0.89: false, 0.91: true, 1.4: true, 1.6: false} {
		if got := toleranceOf(b).holds(ratio); got != want {
			t.Errorf("%v: %v", ratio, got)
		}
	}
}

func TestRequests(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	limits := func(cpu string) corev1.ResourceRequirements {
		if cpu == "" {
			return corev1.ResourceRequirements{}
		}
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	p.Spec.Containers = []corev1.Container{{Name: "a", Resources: limits("100m")}, {Name: "b", Resources: limits("200m")}}
	p.Spec.InitContainers = []corev1.Container{{Name: "once", Resources: limits("5")}, {Name: "side", RestartPolicy: &always, Resources: limits("10m")}}
	whole := p.DeepCopy()
	whole.Spec.Resources = ptr(limits("2"))
	less := p.DeepCopy()
	less.Spec.Containers[1].Resources = limits("")
	for _, tt := range []struct {
		pod       *corev1.Pod
		container string
		want      string
	}{
		{p, "", "310"}, {p, "b", "200"}, {p, "side", "10"}, {whole, "", "2000"}, {whole, "a", "100"},
		{less, "", "missing request for cpu in container b of Pod p"}, {less, "a", "100"},
		{p, "once", "container once not found in Pod p"},
	} {
		m, err := requests([]*corev1.Pod{tt.pod}, tt.container, corev1.ResourceCPU)
		got := fmt.Sprint(m["p"])
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%q: got %s, want %s", tt.container, got, tt.want)
		}
	}
}
