package criserver

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux"
)

// TestListedLayers has lists of stats tell of layers what the last walk has found, and the stats of one container what there is.
func TestListedLayers(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	listed := func() uint64 {
		t.Helper()
		c, err := h.Runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
		if err != nil || len(c.Stats) != 1 {
			t.Fatal(c, err)
		}
		p, err := h.Runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
		if err != nil || len(p.Stats) != 1 || len(p.Stats[0].Linux.Containers) != 1 {
			t.Fatal(p, err)
		}
		of, ofPod := c.Stats[0].WritableLayer, p.Stats[0].Linux.Containers[0].WritableLayer
		if of.UsedBytes.Value != ofPod.UsedBytes.Value || of.Timestamp != ofPod.Timestamp {
			t.Errorf("%v, and of the pod %v", of, ofPod)
		}
		return of.UsedBytes.Value
	}
	before := listed()
	if out, code := h.exec(id, "sh", "-c", "busybox dd if=/dev/zero of=/written bs=1M count=8 2>/dev/null"); code != 0 {
		t.Fatal(out)
	}
	if got := listed(); got != before {
		t.Errorf("walked again: %d, before %d", got, before)
	}
	h.server.layers.next = time.Time{} // as if a minute had passed
	if got := listed(); got < 8<<20 {
		t.Errorf("a minute later: %d", got)
	}
	h.server.layers.next = time.Now().Add(time.Hour)
	h.wantExec(id, "", "busybox", "rm", "/written")
	one, err := h.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil || one.Stats.WritableLayer.UsedBytes.Value >= 8<<20 {
		t.Errorf("alone: %v, %v", one, err)
	}
}

// TestStopDuringStart stops a container whose start is under way: it is stopped when it has been started.
func TestStopDuringStart(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.create(pod, h.containerConfig("c", "sleep", "1000"))
	c, err := h.server.findContainer(id)
	if err != nil {
		t.Fatal(err)
	}
	c.op.Lock() // as StartContainer does
	c.mu.Lock()
	c.starting = true
	c.mu.Unlock()
	stopped := make(chan error, 1)
	go func() {
		_, err := h.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id})
		stopped <- err
	}()
	if err := h.client(c.sandbox).Start(t.Context(), id); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	err = c.change(func(r *containerRecord) { r.Started = now() })
	c.mu.Unlock()
	if err != nil {
		t.Error(err)
	}
	h.server.started(c, false)
	c.op.Unlock()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if st := h.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("%v", st)
	}
}

func TestVanished(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{linux.Wrap("read", "memory.stat", unix.ENODEV): true, linux.Wrap("open", "memory.stat", unix.ENOENT): true, unix.EIO: false, nil: false} {
		if vanished(err) != want {
			t.Errorf("%v: %v", err, !want)
		}
	}
}
