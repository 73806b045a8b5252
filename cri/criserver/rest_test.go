package criserver

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/oci/cgroup"
)

// TestNothingOutlives has containers end whose PID namespaces are not theirs, and leave processes behind: these end too, also where no server was
// there to see the end, or one was killed when it had.
func TestNothingOutlives(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	for _, mode := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE} {
		for _, when := range []string{"seen", "unseen", "recorded"} {
			config := h.containerConfig(mode.String()+when, "sh", "-c", "sleep 1000 & echo >/tmp/up; read x </tmp/down; exit 3")
			config.Linux.SecurityContext.NamespaceOptions.Pid = mode
			id := h.create(pod, config)
			root := h.server.images.Rootfs(id)
			for _, name := range []string{"up", "down"} {
				if err := unix.Mkfifo(filepath.Join(root, "tmp", name), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			h.startContainer(id)
			if _, err := os.ReadFile(filepath.Join(root, "tmp/up")); err != nil {
				t.Fatal(err)
			}
			c, err := h.server.findContainer(id)
			if err != nil {
				t.Fatal(err)
			}
			if when == "recorded" { // its processes are not known to be others' until there is a next server
				c.mu.Lock()
				c.rec.SharesPID = false
				c.mu.Unlock()
			}
			if when == "unseen" {
				h.stop()
			}
			if err := os.WriteFile(filepath.Join(root, "tmp/down"), []byte("\n"), 0); err != nil {
				t.Fatal(err)
			}
			switch when {
			case "seen":
				h.exited(id)
			case "unseen":
				h.fileAppears(filepath.Join(h.server.shimDir(pod), id, "exit"))
				h.start()
			case "recorded":
				h.exited(id)
				h.stop()
				rec := c.record()
				rec.SharesPID = true
				if err := writeRecord(c.file, rec); err != nil {
					t.Fatal(err)
				}
				h.start()
			}
			if s := h.exited(id); s.ExitCode != 3 {
				t.Errorf("%s, %s: %v", mode, when, s)
			}
			h.stop() // which waits for all that it has begun
			group, err := cgroup.Open(c.record().Cgroup)
			if err != nil {
				t.Fatal(err)
			}
			if pids, err := group.Pids(); err != nil || len(pids) != 0 {
				t.Errorf("%s, %s: alive are %v, %v", mode, when, pids, err)
			}
			h.start()
		}
	}
}

// fileAppears waits for what another process makes.
func (h *harness) fileAppears(path string) {
	h.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(path); err == nil {
			return
		}
		if time.Now().After(deadline) {
			h.Fatalf("%s does not appear", path)
		}
	}
}
