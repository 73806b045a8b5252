package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/dra/dratest"
)

// A driver registers by its socket, and what it prepares is in the container; a new kubelet leaves that as it is, and gives it back when the pod goes.
func TestRealClaims(t *testing.T) {
	m := newMachine(t)
	m.stop()
	m.config.DynamicResources = true
	m.start()
	cdi := filepath.Join(filepath.Dir(m.config.RootDir), "cdi")
	if err := os.Mkdir(cdi, 0o755); err != nil {
		t.Fatal(err)
	}
	file := `{"cdiVersion": "0.6.0", "kind": "example.com/x-example-com", "devices": [{"name": "c", "containerEdits": {"env": ["CLAIMED=yes"], "deviceNodes": [{"path": "/dev/claimed", "hostPath": "/dev/zero"}]}}]}`
	if err := os.WriteFile(filepath.Join(cdi, "cdi.json"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	name := "c"
	c := &resourcev1.ResourceClaim{TypeMeta: metav1.TypeMeta{APIVersion: "resource.k8s.io/v1", Kind: "ResourceClaim"}, ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	c.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{
		{Request: "one", Driver: "x.example.com", Pool: "pool", Device: "d-c"}}}}
	c.Status.ReservedFor = []resourcev1.ResourceClaimConsumerReference{{Resource: "pods", Name: "p", UID: "uid-of-p"}}
	m.api.Put(c)
	p := realPod("p", "sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
	p.UID = "uid-of-p"
	p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "e", ResourceClaimName: &name}}
	p.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "e"}}
	m.api.Put(p)
	driver := dratest.New("x.example.com")
	stop, err := driver.ServeAt(t.Context(), m.config.RootDir)
	if err != nil {
		t.Fatal(err)
	}
	got := m.await("p", isReady)
	if out, exit := m.exec("p", "sh", "-c", `echo "$CLAIMED"; test -c /dev/claimed && echo node`); exit != 0 || out != "yes\nnode\n" {
		t.Errorf("%d %q", exit, out)
	}
	if s := got.Status.ContainerStatuses[0].AllocatedResourcesStatus; len(s) != 1 || s[0].Name != "claim:e" || s[0].Resources[0].ResourceID != "x.example.com/pool/d-c" {
		t.Error(s)
	}
	m.stop()
	stop()
	m.start()
	if stop, err = driver.ServeAt(t.Context(), m.config.RootDir); err != nil {
		t.Fatal(err)
	}
	defer func() { stop() }()
	if after := m.await("p", isReady); after.Status.ContainerStatuses[0].ContainerID != got.Status.ContainerStatuses[0].ContainerID {
		t.Error("the container was replaced")
	}
	// A pod that is deleted while no kubelet runs has its claim given back by the next.
	back := make(chan struct{})
	driver.Change(func() {
		driver.Before = func(_ context.Context, call string) error {
			if call == "unprepare" {
				close(back)
			}
			return nil
		}
	})
	m.stop()
	m.api.DeletePod(api.Key{Namespace: "default", Name: "p"}, 0)
	m.start()
	select {
	case <-back:
	case <-time.After(30 * time.Second):
		t.Error("the claim is never given back")
	}
	m.awaitEmpty()
	calls := driver.Calls()
	if len(calls) != 2 || calls[0] != "prepare c" || calls[1] != "unprepare c" || len(driver.Prepared()) > 0 {
		t.Error(calls, driver.Prepared())
	}
	if mistakes := driver.Mistakes(); len(mistakes) > 0 {
		t.Error(mistakes)
	}
}
