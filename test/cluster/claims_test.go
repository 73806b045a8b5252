package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
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
	resourcev1 "k8s.io/api/resource/v1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const draDriver = "dra.example.com"

// driver is a DRA driver, whose devices are files: what a container finds in its greeting is the device that it has. It notes for which claim
// each device is prepared.
type driver struct {
	drapb.UnimplementedDRAPluginServer
	registerapi.UnimplementedRegistrationServer
	c      *cluster
	socket string

	mu       sync.Mutex
	prepared map[string]string // claims by device
}

func (d *driver) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.DRAPlugin, Name: draDriver, Endpoint: d.socket, SupportedVersions: []string{drapb.DRAPluginService}}, nil
}

func (d *driver) NotifyRegistrationStatus(context.Context, *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	return &registerapi.RegistrationStatusResponse{}, nil
}

func (d *driver) NodePrepareResources(_ context.Context, r *drapb.NodePrepareResourcesRequest) (*drapb.NodePrepareResourcesResponse, error) {
	out := &drapb.NodePrepareResourcesResponse{Claims: map[string]*drapb.NodePrepareResourceResponse{}}
	for _, c := range r.Claims {
		devices, err := d.prepare(c)
		out.Claims[c.Uid] = &drapb.NodePrepareResourceResponse{Devices: devices}
		if err != nil {
			out.Claims[c.Uid].Error = err.Error()
		}
	}
	return out, nil
}

func (d *driver) prepare(c *drapb.Claim) (devices []*drapb.Device, err error) {
	text, err := d.c.tryKubectl("get", "resourceclaim", "-n", c.Namespace, c.Name, "-o", "json")
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	var claim resourcev1.ResourceClaim
	if err := json.Unmarshal([]byte(text), &claim); err != nil {
		return nil, err
	}
	if string(claim.UID) != c.Uid || claim.Status.Allocation == nil {
		return nil, fmt.Errorf("claim %s is not allocated", c.Name)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range claim.Status.Allocation.Devices.Results {
		if other := d.prepared[r.Device]; other != "" && other != c.Uid {
			d.c.t.Errorf("%s is prepared for claim %s, and is %s's", r.Device, c.Uid, other)
		}
		d.prepared[r.Device] = c.Uid
		devices = append(devices, &drapb.Device{RequestNames: []string{r.Request}, PoolName: r.Pool, DeviceName: r.Device, CdiDeviceIds: []string{draDriver + "/file=" + r.Device}})
	}
	return devices, nil
}

func (d *driver) NodeUnprepareResources(_ context.Context, r *drapb.NodeUnprepareResourcesRequest) (*drapb.NodeUnprepareResourcesResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := &drapb.NodeUnprepareResourcesResponse{Claims: map[string]*drapb.NodeUnprepareResourceResponse{}}
	for _, c := range r.Claims {
		for device, claim := range d.prepared {
			if claim == c.Uid {
				delete(d.prepared, device)
			}
		}
		out.Claims[c.Uid] = &drapb.NodeUnprepareResourceResponse{}
	}
	return out, nil
}

// serves has the driver on its two sockets, and its devices in a CDI file, until the test ends.
func (d *driver) serves(devices ...string) {
	t, kubelet := d.c.t, filepath.Join(d.c.data, "kubelet")
	files := t.TempDir()
	cdi := map[string]any{"cdiVersion": "0.5.0", "kind": draDriver + "/file"}
	var list []any
	for _, name := range devices {
		file := filepath.Join(files, name)
		if err := os.WriteFile(file, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		mount := map[string]any{"hostPath": file, "containerPath": "/etc/hello/greeting", "options": []string{"bind", "ro"}}
		list = append(list, map[string]any{"name": name, "containerEdits": map[string]any{"mounts": []any{mount}}})
	}
	cdi["devices"] = list
	text, err := json.Marshal(cdi)
	if err != nil {
		t.Fatal(err)
	}
	const dir = "/var/run/cdi"
	if os.Mkdir(dir, 0o755) == nil {
		t.Cleanup(func() { os.Remove(dir) })
	}
	file := filepath.Join(dir, "yare-test-"+draDriver+".json")
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(file) })
	d.socket = filepath.Join(kubelet, "plugins", draDriver, "dra.sock")
	for path, register := range map[string]func(*grpc.Server){
		d.socket: func(s *grpc.Server) { drapb.RegisterDRAPluginServer(s, d) },
		filepath.Join(kubelet, "plugins_registry", draDriver+"-reg.sock"): func(s *grpc.Server) { registerapi.RegisterRegistrationServer(s, d) },
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer()
		register(s)
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { s.Stop(); <-done })
	}
}

const filesSlice = `
apiVersion: resource.k8s.io/v1
kind: ResourceSlice
metadata: {name: files}
spec:
  driver: dra.example.com
  nodeName: NODE
  pool: {name: NODE, resourceSliceCount: 1}
  devices: [{name: f0}, {name: f1}, {name: f2}]
`

const withClaims3 = `
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: files}
spec: {selectors: [{cel: {expression: "device.driver == 'dra.example.com'"}}]}
---
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: file}
spec: {spec: {devices: {requests: [{name: file, exactly: {deviceClassName: files}}]}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: claims}
spec:
  replicas: 3
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: claims}}
  template:
    metadata: {labels: {app: claims}}
    spec:
      terminationGracePeriodSeconds: 1
      resourceClaims: [{name: mine, resourceClaimTemplateName: file}]
      containers: [{name: hello, image: "hello:1", resources: {claims: [{name: mine}]}}]
`

// withDriver makes a cluster whose node has a driver with three devices.
func withDriver(t *testing.T, name string) (*cluster, *driver) {
	c := newCluster(t, name)
	c.hello()
	d := &driver{c: c, prepared: map[string]string{}}
	d.serves("f0", "f1", "f2")
	node := strings.TrimSpace(c.kubectl("get", "nodes", "-o", "name"))
	c.apply(strings.NewReplacer("NODE", strings.TrimPrefix(node, "node/")).Replace(filesSlice))
	return c, d
}

// TestClaims has pods with claims of a driver's devices, of which there are no more than pods, while the server is killed at any point of their way
// up and down: each pod has the device that its claim says, none is prepared twice, and all is given back at the end.
func TestClaims(t *testing.T) {
	c, d := withDriver(t, "claims")
	c.apply(withClaims3)
	// settled returns what each pod finds, when all are ready and none is about to go.
	settled := func() (found []string) {
		t.Helper()
		const columns = "{range .items[*]}{.metadata.deletionTimestamp}{.status.containerStatuses[0].ready}{'\\n'}{end}"
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			out, err := c.tryKubectl("get", "pods", "-l", "app=claims", "-o", "jsonpath="+columns)
			if err == nil && out == "true\ntrue\ntrue\n" {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("the pods are not ready: %v\n%s", err, out)
			}
		}
		for i := range 3 {
			out := c.kubectl("exec", fmt.Sprintf("claims-%d", i), "--", "/hello", "get", "http://127.0.0.1:8080/")
			device, _, _ := strings.Cut(out, " ")
			found = append(found, device)
		}
		return found
	}
	all := []string{"f0", "f1", "f2"}
	before := settled()
	for n := range 5 {
		c.kubectl("delete", "pod", "claims-1", "claims-2", "--wait=false")
		time.Sleep(time.Duration(n) * 300 * time.Millisecond) // also while they end, and while they begin
		if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c.up()
		after := settled()
		if after[0] != before[0] {
			t.Errorf("kill %d: the pod that was left alone had %s, and has %s", n, before[0], after[0])
		}
		if got := slices.Sorted(slices.Values(after)); !slices.Equal(got, all) {
			t.Fatalf("kill %d: the pods have %v", n, after)
		}
	}
	c.kubectl("delete", "statefulset", "claims")
	c.kubectl("wait", "resourceclaims", "--all", "--for=delete", "--timeout=60s")
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.prepared) > 0 {
		t.Error("still prepared:", d.prepared)
	}
}

// withExtended are pods that ask for a resource for which a class stands: by the name that the class gives, by the one that every class has, and, in an init
// container too, for one more than is left.
const withExtended = `
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: files}
spec:
  extendedResourceName: example.com/file
  selectors: [{cel: {expression: "device.driver == 'dra.example.com'"}}]
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: files}
spec: {hard: {requests.example.com/file: 4}}
---
apiVersion: v1
kind: Pod
metadata: {name: one}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: with, image: "hello:1", resources: {limits: {example.com/file: 1}}}
  - {name: without, image: "hello:1", args: [idle]}
---
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: with, image: "hello:1", resources: {limits: {deviceclass.resource.kubernetes.io/files: 1}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: three}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: with, image: "hello:1", resources: {limits: {example.com/file: 2}}}]
`

// TestExtendedResources has pods served by a driver that ask for its devices as of a device plugin's (KEP-5004), over a kill of the server.
func TestExtendedResources(t *testing.T) {
	c, d := withDriver(t, "extended")
	c.apply(withExtended)
	c.kubectl("wait", "pod/one", "pod/two", "--for=condition=Ready", "--timeout=60s")
	greeting := func(pod string) string {
		t.Helper()
		out := c.kubectl("exec", pod, "-c", "with", "--", "/hello", "get", "http://127.0.0.1:8080/")
		device, _, _ := strings.Cut(out, " ")
		return device
	}
	one, two := greeting("one"), greeting("two")
	if one == two || !strings.HasPrefix(one, "f") || !strings.HasPrefix(two, "f") {
		t.Errorf("the pods have %q and %q", one, two)
	}
	const claims = "{range .items[*]}{.metadata.annotations.resource\\.kubernetes\\.io/extended-resource-claim} {.metadata.ownerReferences[0].name} {.status.reservedFor[0].name}\n{end}"
	if out := c.kubectl("get", "resourceclaims", "-o", "jsonpath="+claims); out != "true one one\ntrue two two\n" {
		t.Errorf("claims: %s", out)
	}
	if out := c.kubectl("get", "pod", "one", "-o", "jsonpath={.status.extendedResourceClaimStatus.requestMappings}"); out !=
		`[{"containerName":"with","requestName":"container-0-request-0","resourceName":"example.com/file"}]` {
		t.Error(out)
	}
	if err := syscall.Kill(c.status().PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.up()
	c.kubectl("wait", "pod/three", "--for=condition=PodScheduled=false", "--timeout=60s")
	if out := c.kubectl("get", "pod", "three", "-o", "jsonpath={.status.conditions[?(@.type=='PodScheduled')].message}"); !strings.Contains(out, "1 cannot allocate all claims") {
		t.Error(out)
	}
	// One and three count by what they ask for, two by its claim.
	if out := c.kubectl("get", "resourcequota", "files", "-o", "jsonpath={.status.used}"); out != `{"requests.example.com/file":"4"}` {
		t.Error(out)
	}
	c.kubectl("delete", "pod", "one")
	c.kubectl("wait", "pod/three", "--for=condition=Ready", "--timeout=60s")
	if got := greeting("two"); got != two {
		t.Errorf("the pod that was left alone had %s, and has %s", two, got)
	}
	if got := greeting("three"); got == two || !strings.HasPrefix(got, "f") {
		t.Error("the third pod has", got)
	}
	c.kubectl("delete", "pods", "--all")
	c.kubectl("wait", "resourceclaims", "--all", "--for=delete", "--timeout=60s")
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.prepared) > 0 {
		t.Error("still prepared:", d.prepared)
	}
}
