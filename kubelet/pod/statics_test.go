package pod

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/spec"
)

// staticPod is of a file that says so of its port and its container.
func staticPod(uid types.UID, container string, port int32) *corev1.Pod {
	return newPod("web", func(p *corev1.Pod) {
		p.UID, p.Annotations = uid, map[string]string{spec.ConfigSourceAnnotation: "file"}
		p.Spec.Containers[0].Name = container
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: port, ContainerPort: port}}
	})
}

// A static pod that is edited, or comes back, starts when nothing is left of the one before.
func TestStaticPodWaitsForTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
		b.runtime.Linger["app"] = 10 * time.Second
		first, second := staticPod("u1", "app", 80), staticPod("u2", "side", 80)
		b.pods.SetStatics([]*corev1.Pod{first})
		b.wantRunning("app")
		b.pods.SetStatics([]*corev1.Pod{second})
		b.wantRunning("app")
		time.Sleep(10 * time.Second)
		b.wantRunning("side")
		// The file comes back as it was while its pod ends.
		b.pods.SetStatics([]*corev1.Pod{first})
		b.wantRunning("app")
		b.pods.SetStatics(nil)
		b.settle()
		b.pods.SetStatics([]*corev1.Pod{first})
		time.Sleep(10 * time.Second)
		b.wantRunning("app")
		time.Sleep(time.Minute)
		b.wantRunning("app")
		b.pods.SetStatics(nil)
		time.Sleep(10 * time.Second)
		b.wantRunning()
		if left := b.runtime.Left(); len(left) > 0 {
			t.Error("left:", left)
		}
	})
}

// What its mirror says of a static pod that has run is true of it, also for the kubelet after.
func TestStaticPodThatHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		static := staticPod("u1", "app", 80)
		static.Spec.RestartPolicy = corev1.RestartPolicyNever
		mirror := static.DeepCopy()
		mirror.UID = "m1"
		b.pods.SetStatics([]*corev1.Pod{static})
		b.pods.Mirror("u1", mirror)
		b.wantRunning("app")
		b.runtime.Exit("app", 0)
		b.wantRunning()
		b.stop()
		b.start()
		mirror = mirror.DeepCopy()
		mirror.Status.Phase = corev1.PodSucceeded
		b.pods.SetStatics([]*corev1.Pod{static})
		b.pods.Mirror("u1", mirror)
		time.Sleep(time.Minute)
		b.wantRunning()
		if calls := b.runtime.Calls(); slices.Contains(calls[slices.Index(calls, "start app")+1:], "start app") {
			t.Error("it runs again:", calls)
		}
	})
}

// A pod that was deleted by force takes no room, although it has not ended.
func TestForceDeletedPodsTakeNoRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
		b.runtime.Linger["app"] = 10 * time.Second
		port := func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}}
		}
		b.api.Put(newPod("a", port))
		b.wantRunning("app")
		b.api.DeletePod(api.Key{Namespace: "default", Name: "a"}, 0)
		b.wantRunning("app")
		b.api.Put(newPod("b", port))
		b.wantStatus("b", "Running ready app=running")
	})
}
