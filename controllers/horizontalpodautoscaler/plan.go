package horizontalpodautoscaler

import (
	"errors"
	"fmt"
	"math"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/yare-dev/yare/api"
)

const (
	// usualTolerance is how far from 1 the ratio of use to target may be without anything being done about it.
	usualTolerance = 0.1
	// cpuInitialization is for how long after its start a pod's use of CPU counts only while it is ready.
	cpuInitialization = 5 * time.Minute
	// initialReadiness is within what time after its start a pod that became unready is taken for one that never was ready.
	initialReadiness = 30 * time.Second
)

// tolerance is how far the ratio of use to target may be below and above 1.
type tolerance struct{ down, up float64 }

func (t tolerance) holds(ratio float64) bool { return 1-t.down <= ratio && ratio <= 1+t.up }

func toleranceOf(b *autoscalingv2.HorizontalPodAutoscalerBehavior) tolerance {
	t := tolerance{usualTolerance, usualTolerance}
	if b != nil && b.ScaleDown != nil && b.ScaleDown.Tolerance != nil {
		t.down = b.ScaleDown.Tolerance.AsApproximateFloat64()
	}
	if b != nil && b.ScaleUp != nil && b.ScaleUp.Tolerance != nil {
		t.up = b.ScaleUp.Tolerance.AsApproximateFloat64()
	}
	return t
}

// sample is a figure of a pod, in thousandths, over the window that ended at a time.
type sample struct {
	at     time.Time
	window time.Duration
	value  int64
}

// samples are pods' figures by the pods' names.
type samples map[string]sample

// found is what a metric's figures come to: the ratio to the target, the mean of a pod in thousandths, and of a utilization the
// percentage.
type found struct {
	ratio   float64
	average int64
	percent int32
}

// goal is what pods' figures are compared with.
type goal struct {
	measure func(s samples) (found, error)
	// full is what a pod without a figure counts when there are to be fewer pods.
	full func(pod string) int64
}

// averageGoal wants pods to have a mean of target.
func averageGoal(target int64) goal {
	return goal{
		measure: func(s samples) (found, error) {
			var sum int64
			for _, x := range s {
				sum += x.value
			}
			mean := sum / int64(len(s))
			return found{ratio: float64(mean) / float64(target), average: mean}, nil
		},
		full: func(string) int64 { return target },
	}
}

// utilizationGoal wants pods to use a percentage of what they request.
func utilizationGoal(target int32, requests map[string]int64) goal {
	return goal{
		measure: func(s samples) (found, error) {
			var used, requested, n int64
			for pod, x := range s {
				if r, ok := requests[pod]; ok {
					used, requested, n = used+x.value, requested+r, n+1
				}
			}
			if requested == 0 {
				return found{}, errors.New("no metrics returned matched known pods")
			}
			percent := int32(used * 100 / requested)
			return found{float64(percent) / float64(target), used / n, percent}, nil
		},
		full: func(pod string) int64 { return requests[pod] * int64(max(100, target)) / 100 },
	}
}

// group sorts pods by what their figures are worth. Those that are ignored are in neither set, and lose their figures as the unready do.
func group(pods []*corev1.Pod, s samples, resource corev1.ResourceName, now time.Time) (ready int, unready, missing []string) {
	for _, p := range pods {
		x, has := s[p.Name]
		switch {
		case p.DeletionTimestamp != nil || p.Status.Phase == corev1.PodFailed:
			delete(s, p.Name)
		case p.Status.Phase == corev1.PodPending:
			unready = append(unready, p.Name)
		case !has:
			missing = append(missing, p.Name)
		case resource == corev1.ResourceCPU && startsUp(p, x, now):
			unready = append(unready, p.Name)
		default:
			ready++
		}
	}
	for _, name := range unready {
		delete(s, name)
	}
	return ready, unready, missing
}

// startsUp says that a pod's use of CPU is that of its start, and says nothing of its load.
func startsUp(p *corev1.Pod, x sample, now time.Time) bool {
	c := api.PodCondition(p, corev1.PodReady)
	if c == nil || p.Status.StartTime == nil {
		return true
	}
	start, changed := p.Status.StartTime.Time, c.LastTransitionTime.Time
	if start.Add(cpuInitialization).After(now) {
		return c.Status == corev1.ConditionFalse || x.at.Before(changed.Add(x.window))
	}
	return c.Status == corev1.ConditionFalse && start.Add(initialReadiness).After(changed)
}

// byPods returns how many pods there are to be by the figures s of each of them, which it changes.
func byPods(current int32, pods []*corev1.Pod, s samples, resource corev1.ResourceName, g goal, t tolerance, now time.Time) (int32, found, error) {
	if len(pods) == 0 {
		return 0, found{}, errNoPods
	}
	ready, unready, missing := group(pods, s, resource, now)
	if len(s) == 0 {
		return 0, found{}, errors.New("did not receive metrics for targeted pods (pods might be unready)")
	}
	is, err := g.measure(s)
	if err != nil {
		return 0, found{}, err
	}
	up := is.ratio > 1
	if len(missing) == 0 && (len(unready) == 0 || !up) {
		if t.holds(is.ratio) {
			return current, is, nil
		}
		return ceil(is.ratio * float64(ready)), is, nil
	}
	// What is not known counts against a change.
	for _, pod := range missing {
		switch {
		case is.ratio < 1:
			s[pod] = sample{value: g.full(pod)}
		case up:
			s[pod] = sample{}
		}
	}
	if up {
		for _, pod := range unready {
			s[pod] = sample{}
		}
	}
	again, err := g.measure(s)
	if err != nil {
		return 0, found{}, err
	}
	if t.holds(again.ratio) || is.ratio < 1 && again.ratio > 1 || up && again.ratio < 1 {
		return current, is, nil
	}
	n := ceil(again.ratio * float64(len(s)))
	if again.ratio < 1 && n > current || again.ratio > 1 && n < current {
		return current, is, nil
	}
	return n, is, nil
}

var errNoPods = errors.New("no pods returned by selector while calculating replica count")

// byValue returns how many pods there are to be by a figure of them all together.
func byValue(current int32, pods []*corev1.Pod, value, target int64, t tolerance) (int32, error) {
	ratio := float64(value) / float64(target)
	if current == 0 {
		return ceil(ratio), nil
	}
	if t.holds(ratio) {
		return current, nil
	}
	if len(pods) == 0 {
		return 0, fmt.Errorf("unable to calculate ready pods: %w", errNoPods)
	}
	ready := 0
	for _, p := range pods {
		if p.Status.Phase == corev1.PodRunning && api.PodReady(p) {
			ready++
		}
	}
	return ceil(ratio * float64(ready)), nil
}

// byShare returns how many pods there are to be so that each has target of a figure of them all, and how much each of the pods that
// there are has.
func byShare(pods int32, value, target int64, t tolerance) (n int32, share int64) {
	n = pods
	if !t.holds(float64(value) / (float64(target) * float64(pods))) {
		n = ceil(float64(value) / float64(target))
	}
	if value == math.MaxInt64 || pods == 0 {
		return n, value
	}
	return n, int64(math.Ceil(float64(value) / float64(pods)))
}

// ceil is the least number of replicas that is not below f.
func ceil(f float64) int32 {
	if f >= math.MaxInt32 {
		return math.MaxInt32
	}
	return int32(math.Ceil(f))
}

// sum adds up figures; what is too large for a number is the largest.
func sum(values []int64) (total int64) {
	for _, v := range values {
		if v > 0 && total > math.MaxInt64-v {
			return math.MaxInt64
		}
		total += v
	}
	return total
}

// requests returns what each pod, or its container where one is named, requests of a resource, in thousandths.
func requests(pods []*corev1.Pod, container string, resource corev1.ResourceName) (map[string]int64, error) {
	all := make(map[string]int64, len(pods))
	for _, p := range pods {
		var n int64
		var err error
		if container == "" && resourcehelper.IsPodLevelRequestsSet(p) {
			n, err = podRequest(p, resource)
		} else {
			n, err = containerRequests(p, container, resource)
		}
		if err != nil {
			return nil, err
		}
		all[p.Name] = n
	}
	return all, nil
}

func podRequest(p *corev1.Pod, resource corev1.ResourceName) (int64, error) {
	q, ok := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})[resource]
	if !ok {
		return 0, fmt.Errorf("missing pod-level request for %s in Pod %s", resource, p.Name)
	}
	return q.MilliValue(), nil
}

// containerRequests counts what runs as long as the pod does.
func containerRequests(p *corev1.Pod, container string, resource corev1.ResourceName) (total int64, err error) {
	seen := false
	add := func(c *corev1.Container) error {
		if container != "" && c.Name != container {
			return nil
		}
		seen = true
		q, ok := c.Resources.Requests[resource]
		if !ok {
			return fmt.Errorf("missing request for %s in container %s of Pod %s", resource, c.Name, p.Name)
		}
		total += q.MilliValue()
		return nil
	}
	for i := range p.Spec.Containers {
		if err := add(&p.Spec.Containers[i]); err != nil {
			return 0, err
		}
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			if err := add(c); err != nil {
				return 0, err
			}
		}
	}
	if container != "" && !seen {
		return 0, fmt.Errorf("container %s not found in Pod %s", container, p.Name)
	}
	return total, nil
}
