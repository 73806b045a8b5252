package pod

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRuntimeClass runs a pod by the handler of its RuntimeClass, as soon as there is one.
func TestRuntimeClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		name := "light"
		b.api.Put(newPod("a", func(p *corev1.Pod) { p.Spec.RuntimeClassName = &name }))
		b.wantStatus("a", "Pending app=ContainerCreating")
		if events := strings.Join(b.api.Events(), "\n"); !strings.Contains(events, `Warning a FailedCreatePodSandBox: Failed to create pod sandbox: RuntimeClass "light": `) {
			t.Error(events)
		}
		b.api.Put(&nodev1.RuntimeClass{TypeMeta: metav1.TypeMeta{APIVersion: "node.k8s.io/v1", Kind: "RuntimeClass"},
			ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: "crun"})
		time.Sleep(time.Minute)
		b.wantStatus("a", "Running ready app=running")
		list, err := b.pods.cri.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := b.pods.cri.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: list.Items[0].Id})
		if err != nil || s.Status.RuntimeHandler != "crun" {
			t.Errorf("the sandbox %v, %v", s, err)
		}
	})
}
