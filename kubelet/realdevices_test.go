package kubelet

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/devices/devicetest"
	"github.com/yare-dev/yare/linux/socket"
)

// awaitDevices waits until the Node shows so many.
func (m *machine) awaitDevices(allocatable string) {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for e := range m.api.Watch(ctx, api.NodeKind, client.Query{}, 0) {
		if n, ok := e.Object.(*corev1.Node); ok {
			if q, ok := n.Status.Allocatable["example.com/dev"]; ok && q.String() == allocatable {
				return
			}
		}
	}
	m.Fatalf("the Node never shows %s devices", allocatable)
}

func devicePod(name string) *corev1.Pod {
	p := realPod(name, "sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
	p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"example.com/dev": resource.MustParse("1")}
	p.Spec.Containers[0].Resources.Requests = p.Spec.Containers[0].Resources.Limits
	return p
}

func TestRealDevices(t *testing.T) {
	m := newMachine(t)
	m.stop()
	m.config.DevicePlugins = true
	m.start()
	cdi := filepath.Join(filepath.Dir(m.config.RootDir), "cdi")
	if err := os.Mkdir(cdi, 0o755); err != nil {
		t.Fatal(err)
	}
	file := `{"cdiVersion": "0.6.0", "kind": "example.com/cdi", "devices": [{"name": "d0", "containerEdits": {"env": ["CDI=yes"], "deviceNodes": [{"path": "/dev/cdi", "hostPath": "/dev/zero"}]}}]}`
	if err := os.WriteFile(filepath.Join(cdi, "cdi.json"), []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	vendor := t.TempDir()
	if err := os.WriteFile(filepath.Join(vendor, "lib"), []byte("vendor\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	plugin := devicetest.New("example.com/dev", "d0")
	plugin.Options.PreStartRequired = true
	plugin.Answer = func(ids []string) (*pluginapi.AllocateResponse, error) {
		return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{{
			Envs:       map[string]string{"DEV": strings.Join(ids, ",")},
			Mounts:     []*pluginapi.Mount{{HostPath: vendor, ContainerPath: "/opt/vendor", ReadOnly: true}},
			Devices:    []*pluginapi.DeviceSpec{{HostPath: "/dev/kmsg", ContainerPath: "/dev/given", Permissions: "r"}},
			CdiDevices: []*pluginapi.CDIDevice{{Name: "example.com/cdi=d0"}}}}}, nil
	}
	dir := filepath.Join(m.config.RootDir, "device-plugins")
	come := func(name string) (stop func()) {
		l, err := socket.Listen(t.Context(), filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		stop = plugin.Serve(l)
		if err := plugin.Register(t.Context(), filepath.Join(dir, "kubelet.sock"), name); err != nil {
			t.Fatal(err)
		}
		m.awaitDevices("1")
		return stop
	}
	stop := come("a.sock")
	m.api.Put(devicePod("a"))
	got := m.await("a", isReady)
	const script = `echo "$DEV $CDI"; cat /opt/vendor/lib; (: > /opt/vendor/new) 2>/dev/null || echo read-only
		test -c /dev/given && test -c /dev/cdi && echo nodes; (: > /dev/given) 2>/dev/null || echo not written; (: > /dev/cdi) && echo written`
	if out, exit := m.exec("a", "sh", "-c", script); exit != 0 || out != "d0 yes\nvendor\nread-only\nnodes\nnot written\nwritten\n" {
		t.Errorf("%d %q", exit, out)
	}
	if s := got.Status.ContainerStatuses[0].AllocatedResourcesStatus; len(s) != 1 || s[0].Resources[0].ResourceID != "d0" {
		t.Error(s)
	}
	// A new kubelet leaves it as it is, gives the device to nobody else, and takes the plugin up again.
	m.stop()
	stop()
	m.start()
	defer come("b.sock")()
	m.api.Put(devicePod("b"))
	refused := m.await("b", func(p *corev1.Pod) bool { return p != nil && p.Status.Phase == corev1.PodFailed })
	if refused.Status.Reason != "UnexpectedAdmissionError" {
		t.Error(refused.Status)
	}
	if after := m.await("a", isReady); after.Status.ContainerStatuses[0].ContainerID != got.Status.ContainerStatuses[0].ContainerID {
		t.Error("the container was replaced")
	}
	m.remove("b")
	m.remove("a")
	m.awaitEmpty()
	m.api.Put(devicePod("c"))
	m.await("c", isReady)
	m.remove("c")
	m.awaitEmpty()
	if mistakes := plugin.Mistakes(); len(mistakes) > 0 {
		t.Error(mistakes)
	}
}
