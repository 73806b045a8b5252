package usage

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// sample is what a kubelet said at a time.
type sample struct {
	taken time.Time
	node  point
	pods  map[string]map[string]point // by the pod's UID and the container's name
}

// point is what a counter and a gauge showed.
type point struct {
	at      time.Time
	started time.Time // zero: not known
	cpu     uint64    // nanoseconds, since it started
	memory  uint64    // bytes
}

func sampleOf(s *statsapi.Summary, taken time.Time) *sample {
	out := &sample{taken: taken, pods: make(map[string]map[string]point, len(s.Pods))}
	out.node, _ = pointOf(s.Node.CPU, s.Node.Memory, s.Node.StartTime, taken)
	for i := range s.Pods {
		p := &s.Pods[i]
		containers := make(map[string]point, len(p.Containers))
		for _, c := range p.Containers {
			if x, ok := pointOf(c.CPU, c.Memory, c.StartTime, taken); ok {
				containers[c.Name] = x
			}
		}
		out.pods[p.PodRef.UID] = containers
	}
	return out
}

func pointOf(c *statsapi.CPUStats, m *statsapi.MemoryStats, started metav1.Time, taken time.Time) (point, bool) {
	if c == nil || m == nil || c.UsageCoreNanoSeconds == nil || m.WorkingSetBytes == nil {
		return point{}, false
	}
	at := c.Time.Time
	if since := taken.Sub(at); since >= 0 && since < time.Second { // read for this answer, whose times are whole seconds
		at = taken
	}
	return point{at, started.Time, *c.UsageCoreNanoSeconds, *m.WorkingSetBytes}, true
}

// recent leaves out samples that are too old to be compared with one that was taken now.
func recent(samples []*sample, now time.Time) []*sample {
	return slices.DeleteFunc(samples, func(s *sample) bool { return now.Sub(s.taken) > memory })
}

// choose returns the newest sample and the one to compare it with: the youngest that makes a good window, else the oldest.
func choose(samples []*sample) pair {
	if len(samples) == 0 {
		return pair{}
	}
	last := len(samples) - 1
	p := pair{now: samples[last]}
	for i := last - 1; i >= 0; i-- {
		window := p.now.taken.Sub(samples[i].taken)
		if window >= leastWindow {
			p.before = samples[i]
		}
		if window >= goodWindow {
			break
		}
	}
	return p
}

// use is what is used over the window that ended at a time.
type use struct {
	at     time.Time
	window time.Duration
	list   corev1.ResourceList
}

// rate returns what was used between before and now. What began in between is counted from there; not ok where the time is too
// short to tell.
func rate(now point, before *point) (use, bool) {
	from, least := point{at: now.started}, goodWindow // when it began is known to a second
	if before != nil && before.cpu <= now.cpu && before.started.Equal(now.started) {
		from, least = *before, leastWindow/2 // clocks of counters are not those of requests
	}
	window := now.at.Sub(from.at)
	if from.at.IsZero() || now.at.IsZero() || window < least {
		return use{}, false
	}
	nanocores := float64(now.cpu-from.cpu) / window.Seconds()
	return use{now.at, window, corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewScaledQuantity(int64(nanocores), resource.Nano),
		corev1.ResourceMemory: *resource.NewQuantity(int64(now.memory), resource.BinarySI),
	}}, true
}

// nodeMetrics returns what a node uses, nil where that is not known.
func nodeMetrics(n *corev1.Node, p pair, now time.Time) *metricsv1beta1.NodeMetrics {
	if p.before == nil {
		return nil
	}
	u, ok := rate(p.now.node, &p.before.node)
	if !ok {
		return nil
	}
	return &metricsv1beta1.NodeMetrics{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name, Labels: n.Labels, CreationTimestamp: metav1.NewTime(now)},
		Timestamp:  metav1.NewTime(u.at), Window: metav1.Duration{Duration: u.window}, Usage: u.list,
	}
}

// podMetrics returns what a pod uses, nil where that is not known of each of its containers that run. The window is that of the
// container whose figures are the oldest.
func podMetrics(pod *corev1.Pod, p pair, now time.Time) *metricsv1beta1.PodMetrics {
	if p.before == nil {
		return nil
	}
	points, old := p.now.pods[string(pod.UID)], p.before.pods[string(pod.UID)]
	m := &metricsv1beta1.PodMetrics{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, Labels: pod.Labels, CreationTimestamp: metav1.NewTime(now)}}
	for _, s := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
		if s.State.Running == nil {
			continue
		}
		x, ok := points[s.Name]
		if !ok {
			return nil
		}
		var before *point
		if b, ok := old[s.Name]; ok {
			before = &b
		}
		u, ok := rate(x, before)
		if !ok {
			return nil
		}
		if m.Timestamp.IsZero() || u.at.Before(m.Timestamp.Time) {
			m.Timestamp, m.Window = metav1.NewTime(u.at), metav1.Duration{Duration: u.window}
		}
		m.Containers = append(m.Containers, metricsv1beta1.ContainerMetrics{Name: s.Name, Usage: u.list})
	}
	if len(m.Containers) == 0 {
		return nil
	}
	return m
}
