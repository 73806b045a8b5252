package csipeers

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var sidecarPrograms = flag.String("sidecars", "", "folder with the programs csi-provisioner, csi-attacher and csi-resizer; empty: built from the module sidecars")

// The controllers and the scheduler among upstream's programs that go with a driver: they make, attach, enlarge and remove its volumes.
func TestSidecars(t *testing.T) {
	b := newBed(t, "--enable-attach", "--capacity=slow=1Gi", "--maxvolumespernode=3")
	b.driverInfo("attachRequired: true, podInfoOnMount: true, storageCapacity: true, fsGroupPolicy: File")
	b.startSidecars()
	b.class("now", "Immediate")
	b.class("late", "WaitForFirstConsumer")
	// Each finds what the one before left.
	_ = t.Run("life", func(t *testing.T) { b.at(t).life() }) && t.Run("capacity", func(t *testing.T) { b.at(t).capacity() }) &&
		t.Run("limit", func(t *testing.T) { b.at(t).limit() }) && t.Run("server killed", func(t *testing.T) { b.at(t).attachKilled() })
}

// startSidecars runs what else is in the pod of a driver's controller.
func (b *bed) startSidecars() {
	b.t.Helper()
	dir := *sidecarPrograms
	if dir == "" {
		dir = filepath.Join(b.work, "sidecars")
		c := exec.Command("go", "build", "-o", dir+"/", "tool")
		c.Dir, c.Env = "sidecars", append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			b.t.Fatalf("build the sidecars: %v\n%s", err, out)
		}
	}
	for program, args := range map[string][]string{
		"csi-provisioner": {"--feature-gates=Topology=true", "--enable-capacity", "--capacity-ownerref-level=-1", "--capacity-poll-interval=2s", "--extra-create-metadata"},
		"csi-attacher":    nil,
		"csi-resizer":     nil,
	} {
		log, err := os.Create(filepath.Join(b.work, program+".log"))
		if err != nil {
			b.t.Fatal(err)
		}
		c := exec.Command(filepath.Join(dir, program), append([]string{"--kubeconfig=" + os.Getenv("KUBECONFIG"), "--csi-address=" + b.socket(), "--v=4",
			"--retry-interval-start=100ms"}, args...)...)
		c.Stdout, c.Stderr, c.Env = log, log, append(os.Environ(), "NAMESPACE=kube-system", "POD_NAME=none")
		if err := c.Start(); err != nil {
			b.t.Fatal(err)
		}
		log.Close()
		b.t.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
			if b.t.Failed() {
				out, _ := exec.Command("tail", "-n", "40", log.Name()).CombinedOutput()
				b.t.Logf("%s:\n%s", program, out)
			}
		})
	}
}

func (b *bed) class(name, mode string) {
	b.t.Helper()
	b.apply(fmt.Sprintf(`{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {name: %s}, provisioner: %s, volumeBindingMode: %s,
		allowVolumeExpansion: true, parameters: {kind: slow}}`, name, driverName, mode))
}

func (b *bed) claimOf(name, class, size string) {
	b.t.Helper()
	b.apply(fmt.Sprintf(`{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: %s}, spec: {storageClassName: %s, accessModes: [ReadWriteOnce],
		resources: {requests: {storage: %s}}}}`, name, class, size))
}

// end deletes pods and waits until their volumes are detached, and the claims with their volumes.
func (b *bed) end(pods []string, claims ...string) {
	b.t.Helper()
	b.kubectl(append([]string{"delete", "pod", "--ignore-not-found"}, pods...)...)
	b.wait("", "volumeattachments", "-o", "name")
	b.wait("[]", "nodes", "-o", "jsonpath={.items[0].status.volumesAttached}[]")
	b.wait("[]", "nodes", "-o", "jsonpath={.items[0].status.volumesInUse}[]")
	b.kubectl(append([]string{"delete", "pvc"}, claims...)...)
	b.wait("", "pv", "-o", "name")
	b.wantNothingLeft()
}

// A claim gets its volume, a pod has it attached, it grows, and goes.
func (b *bed) life() {
	b.claimOf("life", "now", "16Mi")
	b.wait("Bound", "pvc", "life", "-o", "jsonpath={.status.phase}")
	b.pod("life", claim("life"), mountAt)
	b.running("life")
	b.box("life", "write", "/data/f", "here")
	b.wait("true", "volumeattachments", "-o", "jsonpath={.items[*].status.attached}")
	name := b.kubectl("get", "nodes", "-o", "jsonpath={.items[0].status.volumesAttached[*].name} {.items[0].status.volumesInUse[*]}")
	if f := strings.Fields(name); len(f) != 2 || f[0] != f[1] || !strings.HasPrefix(f[0], "kubernetes.io/csi/"+driverName+"^") {
		b.t.Errorf("the node says %q", name)
	}
	b.waitEvent("life", "AttachVolume.Attach succeeded for volume")
	b.kubectl("patch", "pvc", "life", "--type=merge", "-p", `{"spec":{"resources":{"requests":{"storage":"32Mi"}}}}`)
	b.wait("32Mi", "pvc", "life", "-o", "jsonpath={.status.capacity.storage}")
	b.wait("32Mi", "pv", "-o", "jsonpath={.items[0].spec.capacity.storage}")
	out := b.kubectl("events", "--for", "pvc/life")
	for _, want := range []string{"ExternalExpanding", "ProvisioningSucceeded"} {
		if !strings.Contains(out, want) {
			b.t.Errorf("no event %s:\n%s", want, out)
		}
	}
	b.kubectl("delete", "pod", "life")
	b.wait("", "volumeattachments", "-o", "name")
	b.pod("again", claim("life"), mountAt)
	b.running("again")
	if got := b.box("again", "read", "/data/f"); got != "here" {
		b.t.Errorf("a later pod reads %q", got)
	}
	b.end([]string{"again"}, "life")
}

// What a driver has no room for is not placed; when it has, it is.
func (b *bed) capacity() {
	b.claimOf("large", "late", "2Gi")
	b.pod("large", claim("large"), mountAt)
	b.waitEvent("large", "node(s) did not have enough free storage")
	b.claimOf("small", "late", "16Mi")
	b.pod("small", claim("small"), mountAt)
	b.running("small")
	b.end([]string{"small", "large"}, "small", "large")
}

// A node takes as many volumes as its driver says.
func (b *bed) limit() {
	var pods []string
	for i := range 4 {
		name := fmt.Sprint("n", i)
		pods = append(pods, name)
		b.claimOf(name, "now", "16Mi")
		b.wait("Bound", "pvc", name, "-o", "jsonpath={.status.phase}")
	}
	for _, name := range pods[:3] {
		b.pod(name, claim(name), mountAt)
		b.running(name)
	}
	b.pod(pods[3], claim(pods[3]), mountAt)
	b.waitEvent(pods[3], "node(s) exceed max volume count")
	b.kubectl("delete", "pod", pods[0])
	b.running(pods[3])
	b.end(pods[1:], pods...)
}

// The server is killed at each state of volumes that are made, attached and detached: the next one completes what it finds. The sidecars need their time
// to notice that it is there: client-go waits longer after each failure, up to half a minute.
func (b *bed) attachKilled() {
	b.claimOf("killed", "late", "16Mi")
	wait := func(args ...string) { b.kubectl(append([]string{"wait", "--timeout=180s"}, args...)...) }
	up := []func(pod string){
		func(string) {},
		func(pod string) { wait("--for=condition=PodScheduled", "pod", pod) },
		func(string) { wait("--for=jsonpath={.status.volumesAttached[0]}", "nodes", "--all") },
		func(string) { wait("--for=jsonpath={.status.volumesInUse[0]}", "nodes", "--all") },
	}
	down := []func(pod string){
		func(string) {},
		func(pod string) { wait("--for=delete", "pod", pod) },
		func(string) { b.wait("[]", "nodes", "-o", "jsonpath={.items[0].status.volumesInUse}[]") },
		func(string) { wait("--for=delete", "volumeattachments", "--all") },
	}
	for i := range up {
		name := fmt.Sprint("k", i)
		b.pod(name, claim("killed"), mountAt)
		up[i](name)
		b.run("kill", "-9", fmt.Sprint(b.server()))
		b.run(b.yare, "up", "--name", *clusterName)
		wait("--for=condition=Ready", "pod", name)
		b.kubectl("delete", "pod", name, "--wait=false")
		down[i](name)
		b.run("kill", "-9", fmt.Sprint(b.server()))
		b.run(b.yare, "up", "--name", *clusterName)
	}
	b.kubectl("wait", "--for=delete", "pod", "--all", "--timeout=60s")
	wait("--for=delete", "volumeattachments", "--all")
	b.end([]string{"k0"}, "killed")
}
