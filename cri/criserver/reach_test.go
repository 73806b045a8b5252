package criserver

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
)

// TestNotReached has a server not get to a shim that lives: the pod is what it was, calls that need the shim are to be made again, and when it is reached
// all goes on.
func TestNotReached(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	waits := h.create(pod, h.containerConfig("waits", "sh", "-c", "exit 3"))
	file := filepath.Join(h.server.shimDir(pod), "shim.json")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil { // what an open without descriptors left is no different for the server
		t.Fatal(err)
	}
	for range 2 { // the first is stopped while it tries
		h.stop()
		h.start()
	}
	if list, err := h.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}); err != nil || len(list.Items) != 1 || list.Items[0].State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("%v, %v", list, err)
	}
	if _, err := h.Runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{}); err != nil {
		t.Error(err)
	}
	if st := h.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%v", st)
	}
	if _, err := h.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}); cri.Code(err) != codes.Unavailable {
		t.Errorf("exec: %v", err)
	}
	_, err = h.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: waits})
	if st := h.status(waits); cri.Code(err) != codes.Unavailable || st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("start: %v, %v", err, st)
	}
	_, err = h.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: h.containerConfig("more", "true")})
	if cri.Code(err) != codes.Unavailable {
		t.Errorf("create: %v", err)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	sb, err := h.server.findSandbox(pod)
	if err == nil {
		err = h.server.tryReach(sb) // as it does by itself
	}
	if err != nil {
		t.Fatal(err)
	}
	h.wantExec(id, "hi\n", "echo", "hi")
	h.startContainer(waits)
	if st := h.exited(waits); st.ExitCode != 3 {
		t.Errorf("%v", st)
	}
}

// TestNotReachedStopped stops a sandbox whose shim is not reached.
func TestNotReachedStopped(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	sb, err := h.server.findSandbox(pod)
	if err != nil {
		t.Fatal(err)
	}
	pid := h.client(sb).Pid()
	h.stop()
	socket := filepath.Join(h.server.shimDir(pod), "shim.sock")
	if err := os.Remove(socket); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(socket, socket); err != nil { // connecting fails, and not because nobody is there
		t.Fatal(err)
	}
	h.start()
	if st := h.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%v", st)
	}
	if _, err := h.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		t.Error(err)
	}
	if st := h.status(id); st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("%v", st)
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("the shim lives: %v", err)
	}
}

// TestConnectionLost has a connection end whose shim lives: what happens meanwhile is known, and nothing else happens.
func TestConnectionLost(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	long := h.run(pod, "long", "sleep", "1000")
	id := h.create(pod, h.containerConfig("c", "sh", "-c", "read x </tmp/down; exit 3"))
	fifo := filepath.Join(h.server.images.Rootfs(id), "tmp/down")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	h.startContainer(id)
	sb, err := h.server.findSandbox(pod)
	if err != nil {
		t.Fatal(err)
	}
	lost, err := sb.client()
	if err != nil {
		t.Fatal(err)
	}
	if err := lost.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fifo, []byte("\n"), 0); err != nil {
		t.Fatal(err)
	}
	if st := h.exited(id); st.ExitCode != 3 {
		t.Errorf("%v", st)
	}
	if st := h.status(long); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("%v", st)
	}
	h.wantExec(long, "hi\n", "echo", "hi")
}
