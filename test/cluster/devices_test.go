package cluster_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// plugin is a device plugin as vendors write them: when the kubelet's socket is made anew it serves and registers again.
type plugin struct {
	pluginapi.UnimplementedDevicePluginServer
	dir string
	ids []string
}

func (p *plugin) ListAndWatch(_ *pluginapi.Empty, s pluginapi.DevicePlugin_ListAndWatchServer) error {
	r := &pluginapi.ListAndWatchResponse{}
	for _, id := range p.ids {
		r.Devices = append(r.Devices, &pluginapi.Device{ID: id, Health: pluginapi.Healthy})
	}
	if err := s.Send(r); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

// Allocate takes its time, so that it is interrupted now and then.
func (p *plugin) Allocate(_ context.Context, r *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	time.Sleep(30 * time.Millisecond)
	return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{{
		Envs:    map[string]string{"DEVICE": strings.Join(r.ContainerRequests[0].DevicesIds, ",")},
		Devices: []*pluginapi.DeviceSpec{{HostPath: "/dev/kmsg", ContainerPath: "/dev/device", Permissions: "r"}},
	}}}, nil
}

func (p *plugin) run(ctx context.Context) {
	var server *grpc.Server
	defer func() {
		if server != nil {
			server.Stop()
		}
	}()
	kubelet, own := filepath.Join(p.dir, "kubelet.sock"), filepath.Join(p.dir, "plugin.sock")
	var known os.FileInfo
	for ; ctx.Err() == nil; time.Sleep(10 * time.Millisecond) {
		now, err := os.Stat(kubelet)
		if err != nil || known != nil && os.SameFile(now, known) && now.ModTime().Equal(known.ModTime()) {
			continue
		}
		if server != nil {
			server.Stop()
		}
		os.Remove(own)
		l, err := net.Listen("unix", own)
		if err != nil {
			continue
		}
		server = grpc.NewServer()
		pluginapi.RegisterDevicePluginServer(server, p)
		go func() { _ = server.Serve(l) }()
		if p.register(ctx, kubelet) == nil {
			known = now
		}
	}
}

func (p *plugin) register(ctx context.Context, kubelet string) error {
	conn, err := grpc.NewClient("unix:"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = pluginapi.NewRegistrationClient(conn).Register(ctx, &pluginapi.RegisterRequest{Version: "v1beta1", Endpoint: "plugin.sock", ResourceName: "example.com/device"})
	return err
}

const withDevices = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: uses}
spec:
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: uses}}
  template:
    metadata: {labels: {app: uses}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: hello, image: "hello:1", resources: {limits: {example.com/device: 1}}}]
`

// TestDevices has pods with a plugin's devices, of which there are no more than pods, while the server is killed at any point of their way up and
// down: no device is given twice, none is lost, and no pod is refused.
func TestDevices(t *testing.T) {
	c := newCluster(t, "devices")
	c.hello()
	p := &plugin{dir: filepath.Join(c.data, "kubelet", "device-plugins"), ids: []string{"d0", "d1", "d2"}}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { p.run(ctx) })
	defer wg.Wait()
	defer cancel()
	c.apply(withDevices)
	// state returns the devices and containers of the three pods, when all are ready and none is about to go.
	state := func() (devices, containers []string) {
		const columns = "{range .items[*]}{.metadata.deletionTimestamp}{.status.containerStatuses[0].ready} " +
			"{.status.containerStatuses[0].allocatedResourcesStatus[0].resources[0].resourceID} {.status.containerStatuses[0].containerID}{'\\n'}{end}"
		out := ""
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			var err error
			if out, err = c.tryKubectl("get", "pods", "-l", "app=uses", "-o", "jsonpath="+columns); err != nil || strings.Count(out, "true ") != 3 {
				continue
			}
			devices, containers = nil, nil
			for line := range strings.Lines(out) {
				if f := strings.Fields(line); len(f) == 3 && f[0] == "true" {
					devices, containers = append(devices, f[1]), append(containers, f[2])
				}
			}
			if len(devices) == 3 {
				return devices, containers
			}
		}
		t.Fatalf("the pods are not ready with a device each:\n%s", out)
		return nil, nil
	}
	for n := range 7 {
		before, kept := state()
		c.kubectl("delete", "pod", "uses-1", "uses-2", "--wait=false")
		time.Sleep(time.Duration(n) * 250 * time.Millisecond) // also while they end, and while they begin
		if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.up()
		after, containers := state()
		if after[0] != before[0] || containers[0] != kept[0] {
			t.Errorf("kill %d: the pod that runs had %s in %s, has %s in %s", n, before[0], kept[0], after[0], containers[0])
		}
		slices.Sort(after)
		if !slices.Equal(after, p.ids) {
			t.Errorf("kill %d: pods have %q", n, after)
		}
	}
	if out := c.kubectl("get", "events", "-A", "-o", "jsonpath={range .items[*]}{.reason}{' '}{end}"); strings.Contains(out, "UnexpectedAdmissionError") {
		t.Error("a pod was refused:", out)
	}
	c.kubectl("delete", "statefulset", "uses")
	c.kubectl("wait", "--for=delete", "pod", "-l", "app=uses", "--timeout=60s")
}
