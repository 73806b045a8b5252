package criserver

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
)

// TestDeadNotDismantled has a shim die whose network cannot be taken down: the sandbox is not ready, also to the next server, which serves all calls
// without that shim, and it goes when the network does.
func TestDeadNotDismantled(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	waiting := h.create(pod, h.containerConfig("waits", "sleep", "1000"))
	h.net.setKeep(errors.New("the network stays"))
	sb, err := h.server.findSandbox(pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(h.client(sb).Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	h.exited(id)
	sb.op.Lock() // the clean-up holds it
	cleaned := sb.record()
	sb.op.Unlock()
	if !cleaned.Dead {
		t.Error("a sandbox without a shim is not known for dead")
	}
	for _, when := range []string{"same server", "next server"} {
		sb, err := h.server.findSandbox(pod)
		if err != nil {
			t.Fatal(err)
		}
		if rec := sb.record(); rec.Stopped || rec.state() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("%s: stopped %v, state %v", when, rec.Stopped, rec.state())
		}
		if st := h.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("%s: %v", when, st)
		}
		if _, err := h.Runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		_, err = h.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: h.containerConfig("more", "true")})
		if cri.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: create: %v", when, err)
		}
		if _, err := h.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: waiting}); cri.Code(err) != codes.FailedPrecondition {
			t.Errorf("%s: start: %v", when, err)
		}
		if _, err := h.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err == nil {
			t.Errorf("%s: stopped, though the network stays", when)
		}
		h.stop()
		h.start()
	}
	h.net.setKeep(nil)
	if _, err := h.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
}

// TestRemoveOfRunning removes a container that has ended as far as we know, because its start failed, and runs all the same.
func TestRemoveOfRunning(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.create(pod, h.containerConfig("c", "sleep", "1000"))
	c, err := h.server.findContainer(id)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.client(c.sandbox).Start(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	h.server.started(c, true)
	if st := h.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Fatal(st)
	}
	if _, err := h.Runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Error(err)
	}
}

// TestStopped has a server find a stopped sandbox with a container whose end could not be written down.
func TestStopped(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	if _, err := h.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Fatal(err)
	}
	h.stop()
	file := filepath.Join(h.server.containerDir(id), "container.json")
	rec, err := readRecord[containerRecord](file)
	if err == nil {
		rec.Finished = 0
		err = writeRecord(file, rec)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.start()
	if st := h.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("%v", st)
	}
	if _, err := h.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		t.Error(err)
	}
}

// TestStopInterrupted has a server die between the two steps of a stop, when the sandbox is not ready any more and all of it is still there: the next one goes on.
func TestStopInterrupted(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	sb, err := h.server.findSandbox(pod)
	if err == nil {
		err = sb.condemn()
	}
	if err != nil {
		t.Fatal(err)
	}
	pid := h.client(sb).Pid()
	h.stop()
	h.start()
	if sb, err = h.server.findSandbox(pod); err != nil || !sb.record().Stopped {
		t.Errorf("not stopped, %v", err)
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("the shim: %v", err)
	}
	if st := h.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 137 {
		t.Errorf("%v", st)
	}
}
