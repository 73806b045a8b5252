package scheduler

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/scheduler/plugins"
)

func queued(name string, priority int32) *corev1.Pod {
	return makePod(name, func(p *corev1.Pod) { p.UID, p.Spec.Priority = types.UID(name), &priority })
}

// name returns whose turn it is at now, "" for nobody's.
func (q *queue) name(now time.Time) (string, *item) {
	it := q.pop(now)
	if it == nil {
		return "", nil
	}
	return it.pod.Name, it
}

func TestQueueOrder(t *testing.T) {
	t.Parallel()
	q, now := newQueue(), time.Unix(1000, 0)
	for _, p := range []*corev1.Pod{queued("a", 0), queued("b", 5), queued("c", 0), queued("d", 5)} {
		q.set(p, now)
	}
	q.remove("c")
	for _, want := range []string{"b", "d", "a", ""} {
		if got, _ := q.name(now); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestQueueWaiting(t *testing.T) {
	t.Parallel()
	q, now := newQueue(), time.Unix(1000, 0)
	expect := func(what, want string) *item {
		t.Helper()
		got, it := q.name(now)
		if got != want {
			t.Errorf("%s: got %q, want %q", what, got, want)
		}
		return it
	}
	q.set(queued("a", 0), now)
	it := expect("new", "a")
	q.fail(it, plugins.PodRemoved, now)

	q.wake(plugins.NodeLabels, now)
	now = now.Add(time.Minute)
	expect("woken by what cannot help", "")
	q.wake(plugins.PodRemoved|plugins.NodeLabels, now)
	expect("woken, but backing off", "")
	now = now.Add(firstBackOff)
	it = expect("woken", "a")

	// Each failure doubles the pause, up to a limit.
	for want := 2 * firstBackOff; want < 2*lastBackOff; want *= 2 {
		q.fail(it, plugins.PodRemoved, now)
		q.wake(plugins.PodRemoved, now)
		due, ok := q.next()
		if wait := due.Sub(now); !ok || wait != min(want, lastBackOff) {
			t.Errorf("attempt %d: pause of %v, want %v", it.attempts, wait, want)
		}
		now = due
		it = expect("after its pause", "a")
	}

	// Nothing happens: it is tried again even so.
	q.fail(it, 0, now)
	now = now.Add(tooLong - 1)
	expect("not long enough", "")
	now = now.Add(1)
	it = expect("long enough", "a")

	// Its own change counts; a change of its status does not.
	q.fail(it, 0, now)
	status := it.pod.DeepCopy()
	status.Status.Message = "x"
	q.set(status, now)
	now = now.Add(lastBackOff)
	expect("status changed", "")
	labelled := status.DeepCopy()
	labelled.Labels = map[string]string{"a": "b"}
	q.set(labelled, now)
	now = now.Add(lastBackOff)
	it = expect("labels changed", "a")
	if it.pod != labelled {
		t.Error("an old state is tried")
	}

	// A pod that was removed while in flight does not come back.
	q.remove("a")
	q.fail(it, plugins.PodRemoved, now)
	q.retry(it, now)
	now = now.Add(time.Hour)
	expect("removed", "")
}
