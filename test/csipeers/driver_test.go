package csipeers

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/yare-dev/yare/csi"
	"github.com/yare-dev/yare/csi/csitest"
)

// What a driver and the kubelet are to each other, on a cluster.
func TestDriver(t *testing.T) {
	b := newBed(t)
	b.driverInfo("attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Persistent, Ephemeral], fsGroupPolicy: File, " +
		"tokenRequests: [{audience: vault, expirationSeconds: 600}]")
	node := strings.TrimSpace(b.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	b.wait("the-node topology.hostpath.csi/node", "csinode", node, "-o", "jsonpath={.spec."+ofDriver+".nodeID} {.spec."+ofDriver+".topologyKeys[0]}")
	b.wait("the-node", "node", node, "-o", `jsonpath={.metadata.labels.topology\.hostpath\.csi/node}`)
	t.Run("files", func(t *testing.T) { b.at(t).files() })
	t.Run("block", func(t *testing.T) { b.at(t).block() })
	t.Run("local device", func(t *testing.T) { b.at(t).device(node) })
	t.Run("suite", func(t *testing.T) { b.at(t).suite() })
	t.Run("own", func(t *testing.T) { b.at(t).own() })
	t.Run("stats and growth", func(t *testing.T) { b.at(t).grows(node) })
	t.Run("killed", func(t *testing.T) { b.at(t).killed() })
	t.Run("killed midway", func(t *testing.T) { b.at(t).killedMidway() })
	t.Run("driver restarted", func(t *testing.T) { b.at(t).restarted() })
}

// at is the bed in a part of its test.
func (b *bed) at(t *testing.T) *bed {
	part := *b
	part.t = t
	return &part
}

// ofDriver finds the driver in a CSINode, where the cluster's own storage is too.
const ofDriver = `drivers[?(@.name=="` + driverName + `")]`

const mountAt = "volumeMounts: [{name: v, mountPath: /data}]"

// Two pods have one volume, one a part of it; what is written stays.
func (b *bed) files() {
	b.persistent("files", b.volume("files", 16<<20, files()), "")
	b.pod("one", claim("files"), mountAt)
	b.running("one")
	b.box("one", "write", "/data/f", "hello")
	b.pod("two", claim("files"), "volumeMounts: [{name: v, mountPath: /data}, {name: v, mountPath: /sub, subPath: part}]")
	b.running("two")
	if got := b.box("two", "read", "/data/f"); got != "hello" {
		b.t.Errorf("another pod reads %q", got)
	}
	b.box("two", "write", "/sub/g", "below")
	b.kubectl("delete", "pod", "one")
	if got := b.box("two", "read", "/data/part/g"); got != "below" {
		b.t.Errorf("a subPath has %q", got)
	}
	b.kubectl("delete", "pod", "two")
	b.wantNothingLeft()
	b.apply(`
apiVersion: v1
kind: Pod
metadata: {name: three}
spec:
  terminationGracePeriodSeconds: 2
  securityContext: {fsGroup: 2000, runAsUser: 1000}
  containers: [{name: box, image: "box:1", volumeMounts: [{name: v, mountPath: /data}]}]
  volumes: [{name: v, persistentVolumeClaim: {claimName: files}}]
`)
	b.running("three")
	if got := b.box("three", "stat", "/data/f"); got != "-rw-rw---- 2000" && got != "-rw-rw-r-- 2000" {
		b.t.Errorf("a file of the pod's group is %q", got)
	}
	if got := b.box("three", "read", "/data/f"); got != "hello" {
		b.t.Errorf("a later pod reads %q", got)
	}
	b.kubectl("delete", "pod", "three")
	b.wantNothingLeft()
}

func (b *bed) block() {
	b.persistent("block", b.volume("block", 16<<20, block()), "  volumeMode: Block")
	b.pod("disk", claim("block"), "volumeDevices: [{name: v, devicePath: /dev/disk}]")
	b.running("disk")
	b.box("disk", "write", "/dev/disk", "blocks")
	if got := b.box("disk", "read", "/dev/disk"); got != "blocks" {
		b.t.Errorf("the device has %q", got)
	}
	b.kubectl("delete", "pod", "disk")
	b.wantNothingLeft()
}

// A device of the node is a local volume.
func (b *bed) device(node string) {
	file := filepath.Join(b.work, "disk")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		b.t.Fatal(err)
	}
	loop := strings.TrimSpace(b.run("losetup", "--find", "--show", file))
	b.t.Cleanup(func() { b.run("losetup", "--detach", loop) })
	b.apply(fmt.Sprintf(`
apiVersion: v1
kind: PersistentVolume
metadata: {name: device}
spec:
  capacity: {storage: 1Mi}
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  storageClassName: ""
  claimRef: {namespace: default, name: device}
  local: {path: %s}
  nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [%s]}]}]}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: device}
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  storageClassName: ""
  volumeName: device
  resources: {requests: {storage: 1Mi}}
`, loop, node))
	b.pod("device", claim("device"), "securityContext: {privileged: true}, volumeDevices: [{name: v, devicePath: /dev/mine}]")
	b.running("device")
	b.box("device", "write", "/dev/mine", "local")
	if got := b.box("device", "read", "/dev/mine"); got != "local" {
		b.t.Errorf("the device has %q", got)
	}
	b.kubectl("delete", "pod", "device")
}

// The driver keeps to the suite that ours is held to.
func (b *bed) suite() {
	v := b.volume("suite", 16<<20, files())
	c, err := csi.Dial(driverName, b.socket())
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	csitest.Suite(b.t, c, csitest.Volume{Handle: v.VolumeId})
}

// A pod's own volume comes and goes with it.
func (b *bed) own() {
	b.pod("own", fmt.Sprintf("csi: {driver: %s, volumeAttributes: {size: 1Mi}}", driverName), mountAt)
	b.running("own")
	b.box("own", "write", "/data/f", "mine")
	b.kubectl("delete", "pod", "own")
	b.wantNothingLeft()
}

// The driver measures its volume, and makes it larger while a pod has it.
func (b *bed) grows(node string) {
	v := b.volume("grows", 16<<20, files())
	b.persistent("grows", v, "")
	b.pod("grows", claim("grows"), mountAt)
	b.running("grows")
	summary := b.kubectl("get", "--raw", "/api/v1/nodes/"+node+"/proxy/stats/summary")
	if !strings.Contains(summary, `"pvcRef":{"name":"grows","namespace":"default"}`) && !strings.Contains(summary, `"pvcRef": {`) {
		b.t.Error("no volume in the summary: ", summary)
	}
	metrics := b.kubectl("get", "--raw", "/api/v1/nodes/"+node+"/proxy/metrics")
	if !strings.Contains(metrics, `kubelet_volume_stats_capacity_bytes{namespace="default",persistentvolumeclaim="grows"}`) {
		b.t.Error("no volume in the metrics")
	}
	if _, err := b.control.ControllerExpandVolume(b.context(), &spec.ControllerExpandVolumeRequest{VolumeId: v.VolumeId,
		CapacityRange: &spec.CapacityRange{RequiredBytes: 32 << 20}, VolumeCapability: writer(files())}); err != nil {
		b.t.Fatal(err)
	}
	b.kubectl("patch", "pv", "grows", "-p", `{"spec": {"capacity": {"storage": "32Mi"}}}`)
	b.kubectl("patch", "pvc", "grows", "--subresource=status", "-p", `{"status": {"allocatedResourceStatuses": {"storage": "NodeResizePending"}, "allocatedResources": {"storage": "32Mi"}}}`)
	b.wait("32Mi ", "pvc", "grows", "-o", "jsonpath={.status.capacity.storage} {.status.allocatedResourceStatuses.storage}")
	b.kubectl("delete", "pod", "grows")
	b.wantNothingLeft()
}

// kill kills the server and waits for its end.
func (b *bed) kill() {
	b.t.Helper()
	pid := b.server()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	for range 1000 {
		if syscall.Kill(pid, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.t.Fatal("the server does not end")
}

// server is the process that serves the cluster.
func (b *bed) server() int {
	b.t.Helper()
	out := b.run(b.yare, "status", "--name", *clusterName)
	for _, w := range strings.Fields(strings.NewReplacer(",", " ", "(", " ", ")", " ").Replace(out)) {
		if n, err := strconv.Atoi(w); err == nil && n > 1 {
			return n
		}
	}
	b.t.Fatalf("no process in %q", out)
	return 0
}

// The server is killed while pods come and go: the next one completes or undoes what it finds, whatever the API has by then.
func (b *bed) killed() {
	b.persistent("killed", b.volume("killed", 16<<20, files()), "")
	b.pod("stays", claim("killed"), mountAt)
	b.running("stays")
	b.box("stays", "write", "/data/f", "kept")
	for i := range 5 {
		name := fmt.Sprint("k", i)
		b.pod(name, claim("killed"), mountAt)
		b.kill()
		b.run(b.yare, "up", "--name", *clusterName)
		b.running(name)
		if got := b.box(name, "read", "/data/f"); got != "kept" {
			b.t.Errorf("after a kill: %q", got)
		}
		b.kubectl("delete", "pod", name, "--wait=false")
		b.kill()
		b.run(b.yare, "up", "--name", *clusterName)
	}
	b.running("stays")
	b.kubectl("delete", "pod", "stays", "--grace-period=0", "--force")
	b.kubectl("wait", "--for=delete", "pod", "--all", "--timeout=60s")
	b.wantNothingLeft()
}

// The server is killed while it waits for the driver's answer, which carries the call out afterwards.
func (b *bed) killedMidway() {
	b.persistent("midway", b.volume("midway", 16<<20, files()), "")
	b.pod("first", claim("midway"), mountAt)
	b.running("first") // so this server knows the driver
	signal := func(s syscall.Signal) {
		b.t.Helper()
		if err := b.driver.Process.Signal(s); err != nil {
			b.t.Fatal(err)
		}
	}
	restart := func() {
		b.t.Helper()
		b.kill()
		signal(syscall.SIGCONT)
		b.run(b.yare, "up", "--name", *clusterName)
	}
	signal(syscall.SIGSTOP)
	b.pod("second", claim("midway"), mountAt)
	b.waitCalled("second", "midway")
	restart()
	b.running("second")
	signal(syscall.SIGSTOP)
	b.kubectl("delete", "pod", "second", "--wait=false")
	b.wait("Completed", "pod", "second", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason}")
	restart()
	b.wait("", "pod", "second", "--ignore-not-found")
	b.running("first")
	b.kubectl("delete", "pod", "first")
	b.wantNothingLeft()
}

// waitCalled waits until the driver was asked for the pod's volume.
func (b *bed) waitCalled(pod, volume string) {
	b.t.Helper()
	uid := b.kubectl("get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	for range 600 {
		text, err := os.ReadFile(filepath.Join(b.root, "pods", uid, "volumes", "kubernetes.io~csi", volume, "vol_data.json"))
		if err == nil && !strings.Contains(string(text), `"uncalled":true`) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Fatalf("the driver was not asked for volume %s of pod %s", volume, pod)
}

// A driver may be away while pods come and go: they wait for it.
func (b *bed) restarted() {
	b.persistent("away", b.volume("away", 16<<20, files()), "")
	b.pod("before", claim("away"), mountAt)
	b.running("before")
	b.stopDriver()
	b.kubectl("delete", "pod", "before", "--wait=false")
	b.pod("after", claim("away"), mountAt)
	b.waitEvent("after", "not found in the list of registered CSI drivers")
	b.startDriver()
	b.running("after")
	b.wait("", "pod", "before", "--ignore-not-found")
	b.kubectl("delete", "pod", "after")
	b.wantNothingLeft()
}

// waitEvent waits until an Event of the pod says text.
func (b *bed) waitEvent(pod, text string) {
	b.t.Helper()
	for range 300 {
		out, err := exec.Command(b.yare, "kubectl", "events", "--for", "pod/"+pod).CombinedOutput()
		if err == nil && strings.Contains(string(out), text) {
			return
		}
	}
	b.t.Fatalf("no Event of pod %s says %q", pod, text)
}

// A volume that has to be attached is in use, by the Node's word, from before it is mounted until it is unstaged; the pod waits until it is
// attached. The test is the attacher.
func TestAttached(t *testing.T) {
	b := newBed(t, "--enable-attach")
	b.driverInfo("attachRequired: true")
	node := strings.TrimSpace(b.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}"))
	v := b.volume("attached", 16<<20, files())
	b.persistent("attached", v, "")
	b.pod("waits", claim("attached"), mountAt)
	unique := "kubernetes.io/csi/" + driverName + "^" + v.VolumeId
	b.wait(unique, "node", node, "-o", "jsonpath={.status.volumesInUse[*]}")
	name := fmt.Sprintf("csi-%x", sha256.Sum256([]byte(v.VolumeId+driverName+node)))
	b.apply(fmt.Sprintf("{apiVersion: storage.k8s.io/v1, kind: VolumeAttachment, metadata: {name: %s}, spec: {attacher: %s, nodeName: %s, source: {persistentVolumeName: attached}}}",
		name, driverName, node))
	published, err := b.control.ControllerPublishVolume(b.context(), &spec.ControllerPublishVolumeRequest{VolumeId: v.VolumeId, NodeId: "the-node",
		VolumeCapability: writer(files())})
	if err != nil {
		t.Fatal(err)
	}
	t.Log("publish context:", published.PublishContext)
	if phase := b.kubectl("get", "pod", "waits", "-o", "jsonpath={.status.phase}"); phase != "Pending" {
		t.Error("a pod whose volume is not attached is ", phase)
	}
	b.kubectl("patch", "volumeattachment", name, "--subresource=status", "--type=merge", "-p", `{"status": {"attached": true}}`)
	b.kubectl("patch", "node", node, "--subresource=status", "--type=merge", "-p", fmt.Sprintf(`{"status": {"volumesAttached": [{"name": %q, "devicePath": ""}]}}`, unique))
	b.running("waits")
	b.kill()
	b.run(b.yare, "up", "--name", *clusterName)
	b.wait(unique, "node", node, "-o", "jsonpath={.status.volumesInUse[*]}")
	b.kubectl("delete", "pod", "waits")
	b.wait("", "node", node, "-o", "jsonpath={.status.volumesInUse[*]}")
	b.wantNothingLeft()
	if _, err := b.control.ControllerUnpublishVolume(b.context(), &spec.ControllerUnpublishVolumeRequest{VolumeId: v.VolumeId, NodeId: "the-node"}); err != nil {
		t.Error(err)
	}
}
