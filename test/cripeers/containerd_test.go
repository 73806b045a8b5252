package cripeers

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/cri/critest"
	"github.com/yare-dev/yare/linux/netns"
	"github.com/yare-dev/yare/test/peers/host"
)

// sandboxImage is what containerd's sandboxes are made of.
const sandboxImage = "sandbox:1"

// configuration of containerd 1.6. The folder, the host's address, the registry's address.
const configuration = `version = 2
root = "%[1]s/root"
state = "/run/containerd"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
address = "%[1]s/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "%[3]s/` + sandboxImage + `"
stream_server_address = "%[2]s"
stream_server_port = "0"
restrict_oom_score_adj = true
stats_collect_period = 1
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "%[1]s/cni"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
`

const network = `{"cniVersion": "1.0.0", "name": "pods", "plugins": [
 {"type": "ptp", "ipam": {"type": "host-local", "dataDir": "/run/cni-addresses", "ranges": [[{"subnet": "10.244.0.0/22"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

// revision is the minor release of Kubernetes whose CRI containerd 1.6 speaks.
const revision = 23

func TestContainerd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("starts containerd, as root")
	}
	h := newHost(t, "critest")
	target := critest.Target{
		Dir: filepath.Join(h.Dir, "volumes"), CgroupParent: h.CgroupRoot(), Sandbox: sandboxImage, Revision: revision, Deviations: deviations(),
		Registry: listen(t, h), Guarded: listen(t, h),
	}
	write(t, filepath.Join(h.Dir, "c.toml"), fmt.Sprintf(configuration, h.Dir, h.Address, target.Registry.Addr()))
	write(t, filepath.Join(h.Dir, "cni/10-pods.conflist"), network)
	if err := os.Mkdir(target.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("containerd")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Start("containerd", nil, program, "--config", filepath.Join(h.Dir, "c.toml")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if target.Client, err = cri.Dial(ctx, filepath.Join(h.Dir, "c.sock")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { target.Close() })
	critest.Run(t, target)
}

// newHost is a host of the test's own, in a folder with a short name: sockets are in it.
func newHost(t *testing.T, name string) *host.Host {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	h, err := host.New(t.Context(), name, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range h.Started() {
				t.Logf("%s:\n%s", p.Name, p.Tail(60))
			}
		}
		if err := h.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return h
}

// listen listens on the host's loopback, where registries may do without TLS.
func listen(t *testing.T, h *host.Host) (l net.Listener) {
	t.Helper()
	err := netns.Do(h.Network(), func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// deviations are what containerd 1.6 of Debian does otherwise, case by case, with the reasons.
func deviations() map[string]string {
	const (
		filter  = "it does not look at the filter of images"
		message = "it keeps 16 MiB of each stream, which is more than its own messages may have"
	)
	return map[string]string{
		"User/the image says who it is":                          "the groups of a user that the image names are root's",
		"Security/a privileged container may write to /sys":      "its sandbox's own container mounts /sys read-only first, which every later mount of the same network namespace then is",
		"ExecSync/more than 16 MiB is cut, and no error":         message,
		"ExecSync/more than 16 MiB of both streams is cut":       message,
		"Stats/exited containers are not listed":                 "it lists them too",
		"Images/a name that is not there finds none in the list": filter,
		"Images/one is found in the list by its name":            filter,
	}
}
