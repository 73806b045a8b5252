package csipeers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A driver that runs as a pod, as those of all vendors do: it has the kubelet's folders mounted, and what it mounts in them is seen by the node
// and by other pods. Its end takes nothing from them.
func TestDriverPod(t *testing.T) {
	b := newCluster(t)
	if !b.isUsual() {
		t.Skip("another has /var/lib/kubelet")
	}
	b.driverInfo("attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Persistent, Ephemeral]")
	b.driverImage()
	b.apply(driverSet)
	b.wait(driverName, "csinodes", "-o", "jsonpath={.items[0].spec."+ofDriver+".name}")
	b.pod("own", fmt.Sprintf("csi: {driver: %s}", driverName), mountAt)
	b.running("own")
	b.box("own", "write", "/data/f", "mine")
	if got := b.run("findmnt", "-rno", "TARGET"); !strings.Contains(got, "kubernetes.io~csi/v/mount") {
		t.Error("the node does not see what the driver has mounted")
	}
	b.kubectl("delete", "pod", "-l", "app=driver", "--wait")
	if got := b.box("own", "read", "/data/f"); got != "mine" {
		t.Errorf("without the driver: %q", got)
	}
	b.wait("True", "pods", "-l", "app=driver", "-o", `jsonpath={.items[*].status.conditions[?(@.type=="Ready")].status}`)
	b.wait(driverName, "csinodes", "-o", "jsonpath={.items[0].spec."+ofDriver+".name}")
	b.kubectl("delete", "pod", "own")
	b.wantNothingLeft()
	b.kubectl("delete", "daemonset", "driver", "--wait")
	b.wait("", "csinodes", "-o", "jsonpath={.items[0].spec."+ofDriver+".name}")
	b.apply(driverSet)
	b.pod("last", fmt.Sprintf("csi: {driver: %s}", driverName), mountAt) // which goes with the cluster
	b.running("last")
}

// driverImage makes the image of the driver's pod: the driver, what it runs with the libraries of these, and box, which registers it.
func (b *bed) driverImage() {
	b.t.Helper()
	dir := filepath.Join(b.work, "driver-image")
	copyTo := func(from, to string) {
		b.t.Helper()
		text, err := os.ReadFile(from)
		if err != nil {
			b.t.Fatal(err)
		}
		to = filepath.Join(dir, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			b.t.Fatal(err)
		}
		if err := os.WriteFile(to, text, 0o755); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, name := range []string{"mount", "umount", "losetup"} {
		path, err := exec.LookPath(name)
		if err != nil {
			b.t.Skip(err)
		}
		copyTo(path, "/bin/"+name)
		for _, word := range strings.Fields(b.run("ldd", path)) {
			if strings.HasPrefix(word, "/") {
				copyTo(word, word)
			}
		}
	}
	copyTo(b.program(), "/hostpathplugin")
	copyTo(filepath.Join(b.work, "image", "box"), "/box")
	b.run(b.yare, "image", "build-from", dir, "--name", *clusterName, "--tag", "driver:1", "--entrypoint", "/hostpathplugin")
}

const driverSet = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: driver}
spec:
  selector: {matchLabels: {app: driver}}
  template:
    metadata: {labels: {app: driver}}
    spec:
      terminationGracePeriodSeconds: 2
      automountServiceAccountToken: false
      containers:
      - name: driver
        image: driver:1
        args: [--drivername=` + driverName + `, --v=5, "--endpoint=unix:///csi/csi.sock", --nodeid=the-node, --statedir=/csi-data-dir]
        securityContext: {privileged: true}
        env: [{name: PATH, value: /bin}]
        volumeMounts:
        - {name: socket, mountPath: /csi}
        - {name: pods, mountPath: /var/lib/kubelet/pods, mountPropagation: Bidirectional}
        - {name: plugins, mountPath: /var/lib/kubelet/plugins, mountPropagation: Bidirectional}
        - {name: data, mountPath: /csi-data-dir}
        - {name: dev, mountPath: /dev}
      - name: register
        image: driver:1
        command: [/box, register, ` + driverName + `, /var/lib/kubelet/plugins/csi-hostpath/csi.sock]
        volumeMounts:
        - {name: registry, mountPath: /registration}
      volumes:
      - {name: socket, hostPath: {path: /var/lib/kubelet/plugins/csi-hostpath, type: DirectoryOrCreate}}
      - {name: pods, hostPath: {path: /var/lib/kubelet/pods, type: DirectoryOrCreate}}
      - {name: plugins, hostPath: {path: /var/lib/kubelet/plugins, type: Directory}}
      - {name: registry, hostPath: {path: /var/lib/kubelet/plugins_registry, type: Directory}}
      - {name: data, hostPath: {path: /var/lib/kubelet/csi-data, type: DirectoryOrCreate}}
      - {name: dev, hostPath: {path: /dev, type: Directory}}
`
