package criserver

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/cri/critest"
)

// revision is the minor release of Kubernetes whose CRI the server speaks: that of k8s.io/cri-api.
const revision = 37

// TestSuiteInProcess runs the suite of CRI as the kubelet of the same process sees the server.
func TestSuiteInProcess(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	critest.Run(t, h.target(h.Client))
}

// TestSuiteOverTheSocket runs it as a foreign kubelet does.
func TestSuiteOverTheSocket(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	remote, err := cri.Dial(t.Context(), "unix://"+h.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remote.Close() })
	critest.Run(t, h.target(remote))
}

// target is the server as the suite knows it. Its folder is a mount whose propagation is shared, as a kubelet's are.
func (h *harness) target(c *cri.Client) critest.Target {
	h.Helper()
	dir := filepath.Join(h.dir, "shared")
	if err := os.Mkdir(dir, 0o755); err != nil {
		h.Fatal(err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			h.Error(err)
		}
	})
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		h.Fatal(err)
	}
	return critest.Target{Client: c, Dir: dir, CgroupParent: h.cgroup, Revision: revision}
}
