package pod

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// What a worker keeps does not grow with the restarts of its containers.
func TestRestartsLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.runtime.OnExec = func(_ string, cmd []string) (int32, string, error) { return 1, "no", nil }
		command := corev1.ExecAction{Command: []string{"x"}}
		b.api.Put(newPod("a", func(p *corev1.Pod) { // its hook fails each time, so that it is stopped
			p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &command}}
		}))
		time.Sleep(time.Hour)
		b.settle()
		restarts := b.pod("a").Status.ContainerStatuses[0].RestartCount
		b.stop() // the worker's own belongs to who looks now
		w := b.pods.workers[b.pod("a").UID]
		const runs = 2 + 1 // those that are shown, and one that may have been started since
		jobs := len(w.jobs.all)
		if restarts < 10 || len(w.messages) > runs || len(w.hooks) > runs || len(w.born) > runs || jobs > 2*runs {
			t.Errorf("after %d restarts: %d messages, %d hooks, %d born, %d jobs", restarts, len(w.messages), len(w.hooks), len(w.born), jobs)
		}
	})
}
