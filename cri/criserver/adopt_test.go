package criserver

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/cgroup/cgrouptest"
)

// TestAdoptFreezing has a server find a container that its predecessor has begun to freeze, with a task that cannot be frozen: it goes on, and the server too.
func TestAdoptFreezing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	c, err := h.server.findContainer(id)
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	defer h.start() // before the clean-up
	group, err := cgroup.Open(c.record().Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	release := cgrouptest.Unfreezable(t, group)
	file := filepath.Join(group.Dirs()["freezer"], "freezer.state")
	if err := os.WriteFile(file, []byte("FROZEN"), 0); err != nil {
		t.Fatal(err)
	}
	h.start()
	if state, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(state)) != "THAWED" {
		t.Errorf("%s, %v", state, err)
	}
	h.wantExec(id, "hi\n", "echo", "hi")
	release()
	h.stop()
}

// TestAdoptIncomplete: what an interrupted call has left is given its time to go, and no more.
func TestAdoptIncomplete(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	sb, err := h.server.findSandbox(pod)
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	rec := sb.record()
	rec.Complete = false
	if err := writeRecord(sb.file, rec); err != nil {
		t.Fatal(err)
	}
	h.start()
	if _, err := h.server.findSandbox(pod); err == nil {
		t.Error("it is there")
	}
	if len(h.net.pods) != 0 || h.net.endless {
		t.Errorf("networks %v; one was waited for without end: %v", h.net.pods, h.net.endless)
	}
}

// TestPruneLeft has a network not let go of a sandbox that is gone: the server serves, and tries again.
func TestPruneLeft(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.stop()
	h.net.pods["gone"] = true
	h.net.left = &cni.LeftError{Pods: []cni.Pod{{ID: "gone"}}, Err: errors.New("the plugin failed")}
	h.start()
	h.runPod("p")
	deadline := time.Now().Add(10 * time.Second)
	for left := true; left; runtime.Gosched() {
		h.net.mu.Lock()
		left = h.net.pods["gone"]
		h.net.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatal("it is not tried again")
		}
	}
	h.net.left = nil
}
