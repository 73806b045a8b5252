package criserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
)

func TestLifecycle(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("web")
	st, err := h.Runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Status.Network.Ip != "192.0.2.7" {
		t.Fatalf("sandbox status %v, %v", st, err)
	}
	id := h.create(pod, h.containerConfig("main", "sh", "-c", "echo started; echo oops >&2; trap 'exit 3' TERM; while :; do sleep 0.05; done"))
	if s := h.status(id); s.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("after create: %v", s.State)
	}
	h.startContainer(id)
	if s := h.status(id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.StartedAt < s.CreatedAt || s.User.Linux.Uid != 0 {
		t.Errorf("after start: %v", s)
	}
	h.wantExec(id, "web\n", "hostname")
	h.wantExec(id, "yes\n", "sh", "-c", "echo $IMAGE")
	h.wantExec(id, "search svc.cluster.local\nnameserver 10.43.0.10\n", "cat", "/etc/resolv.conf")
	if out, code := h.exec(id, "sh", "-c", "exit 42"); code != 42 {
		t.Errorf("exit 42: %q, %d", out, code)
	}
	if _, err := h.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	if s := h.status(id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 3 || s.Reason != "Error" {
		t.Errorf("after stop: %v", s)
	}
	log, err := os.ReadFile(filepath.Join(h.dir, "logs/web/main.log"))
	if err != nil || !strings.Contains(string(log), " stdout F started\n") || !strings.Contains(string(log), " stderr F oops\n") {
		t.Errorf("log %q, %v", log, err)
	}
	if _, err := h.Runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	_, err = h.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if cri.Code(err) != codes.NotFound {
		t.Errorf("status of a removed container: %v", err)
	}
	for range 2 {
		if _, err := h.Runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := h.Runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}, LabelSelector: map[string]string{"pod": "web"},
	}})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("stopped sandboxes: %v, %v", list, err)
	}
}

// TestOverTheSocket does the same through gRPC, once.
func TestOverTheSocket(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	remote, err := cri.Dial(t.Context(), "unix://"+h.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer remote.Close()
	local := h.Client
	h.Client = remote
	id := h.run(h.runPod("p"), "c", "sleep", "100")
	h.wantExec(id, "hi\n", "echo", "hi")
	if _, err := h.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if s := h.exited(id); s.ExitCode != 137 {
		t.Errorf("killed: %v", s)
	}
	h.Client = local
}

func TestUser(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	c := h.containerConfig("c", "sleep", "100")
	c.Linux.SecurityContext.RunAsUsername = "alice"
	c.Linux.SecurityContext.SupplementalGroups = []int64{2000}
	id := h.create(pod, c)
	h.startContainer(id)
	h.wantExec(id, "1000 1001 1001 50 2000 /home/alice\n", "sh", "-c", "echo $(id -u) $(id -g) $(id -G) $HOME")
	u := h.status(id).User.Linux
	if u.Uid != 1000 || u.Gid != 1001 || len(u.SupplementalGroups) != 3 {
		t.Errorf("status user %v", u)
	}
}

func TestStartFails(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.create(pod, h.containerConfig("c", "/garbage"))
	_, err := h.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "garbage") {
		t.Errorf("start: %v", err)
	}
	if s := h.status(id); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != exitStartError || s.Reason != "StartError" || s.Message == "" {
		t.Errorf("status %v", s)
	}
}

// TestQuickEnd holds the server to more than CRI asks for: when a container has ended its log is whole, though it is more
// than a pipe holds, and its end is not before its start, however quick it was.
func TestQuickEnd(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	for i := range 5 {
		name := fmt.Sprint("c", i)
		id := h.run(pod, name, "sh", "-c", "busybox seq 1 20000; exit 3")
		s := h.exited(id)
		if s.StartedAt < s.CreatedAt || s.FinishedAt < s.StartedAt || s.ExitCode != 3 {
			t.Errorf("%v", s)
		}
		if log, err := os.ReadFile(s.LogPath); err != nil || !strings.HasSuffix(string(log), " stdout F 20000\n") {
			t.Errorf("log of %d bytes, %v", len(log), err)
		}
		_, err := h.Runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 256}})
		if cri.Code(err) != codes.FailedPrecondition {
			t.Errorf("update of an exited container: %v", err)
		}
	}
}

// TestFailuresLeaveNothing makes each step fail; the harness looks for leaks.
func TestFailuresLeaveNothing(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	h.net.fail = errors.New("no addresses")
	_, err := h.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: h.podConfig("p")})
	if err == nil || !strings.Contains(err.Error(), "no addresses") {
		t.Fatalf("run: %v", err)
	}
	h.net.fail = nil
	pod := h.runPod("p") // the name is free again
	for name, c := range map[string]*runtimeapi.ContainerConfig{
		"program":    {Command: []string{"/no/such/program"}},
		"image":      {Image: &runtimeapi.ImageSpec{Image: "missing"}},
		"user":       {Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nobody-here"}}},
		"capability": {Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"NO_SUCH"}}}}},
		"device":     {Devices: []*runtimeapi.Device{{HostPath: "/dev/no-such", ContainerPath: "/dev/x", Permissions: "r"}}},
	} {
		c.Metadata = &runtimeapi.ContainerMetadata{Name: name}
		if c.Image == nil {
			c.Image = &runtimeapi.ImageSpec{Image: testImage}
		}
		if _, err := h.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c}); err == nil {
			t.Errorf("%s: create succeeded", name)
		}
	}
	left, err := os.ReadDir(h.server.containerDir(""))
	if err != nil || len(left) != 0 {
		t.Errorf("container records left: %v, %v", left, err)
	}
	_, err = h.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: h.podConfig("p")})
	if cri.Code(err) != codes.AlreadyExists {
		t.Errorf("the same pod twice: %v", err)
	}
}

func TestExecTimeout(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	id := h.run(h.runPod("p"), "c", "sleep", "100")
	_, err := h.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "50"}, Timeout: 1})
	if cri.Code(err) != codes.DeadlineExceeded {
		t.Errorf("exec: %v", err)
	}
}

// TestRestart lets the server go and come again: containers live on, exits that
// happened meanwhile are known, half-made things are gone.
func TestRestart(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	long := h.run(pod, "long", "sleep", "1000")
	short := h.run(pod, "short", "sh", "-c", "sleep 0.3; exit 9")
	c, err := h.server.findContainer(long)
	if err != nil {
		t.Fatal(err)
	}
	pid := c.pid
	h.stop()
	half := newID()
	if err := os.Mkdir(filepath.Join(h.cfg.Dir, "containers", half), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := h.deps.Images.Mount(t.Context(), testImage, half); err != nil {
		t.Fatal(err)
	}
	if _, err := h.net.NewNamespace(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // the exit must happen without a server
	h.start()
	if c, err = h.server.findContainer(long); err != nil || c.pid != pid {
		t.Fatalf("pid %d, was %d, %v", c.pid, pid, err)
	}
	h.wantExec(long, "hi\n", "echo", "hi")
	if s := h.status(short); s.ExitCode != 9 || s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("short: %v", s)
	}
	if _, err := os.Stat(filepath.Join(h.cfg.Dir, "containers", half)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half-made container: %v", err)
	}
	if _, err := h.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: long}); err != nil {
		t.Error(err)
	}
}

// TestShimKilled checks that a dead shim's containers are failed at once.
func TestShimKilled(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	sb, err := h.server.findSandbox(pod)
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(sb.shim.Pid())
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if s := h.exited(id); s.ExitCode != 137 {
		t.Errorf("container %v", s)
	}
	sb.op.Lock() // the clean-up holds it
	defer sb.op.Unlock()
	if rec := sb.record(); !rec.Stopped {
		t.Error("the sandbox is still ready")
	}
}

func TestEvents(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	stream, err := h.Runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for h.server.events.idle() {
		time.Sleep(time.Millisecond)
	}
	pod := h.runPod("p")
	id := h.run(pod, "c", "true")
	const created, started, stopped = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	for _, want := range []struct {
		id   string
		what runtimeapi.ContainerEventType
	}{{pod, created}, {pod, started}, {id, created}, {id, started}, {id, stopped}} {
		e, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if e.ContainerId != want.id || e.ContainerEventType != want.what || e.PodSandboxStatus.Id != pod {
			t.Errorf("event %v of %s, want %v of %s", e.ContainerEventType, e.ContainerId, want.what, want.id)
		}
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sh", "-c", "dd if=/dev/zero of=/file bs=4096 count=100 2>/dev/null; sleep 100")
	h.exec(id, "sh", "-c", "while ! test -s /file; do sleep 0.01; done; sync")
	st, err := h.Runtime.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil {
		t.Fatal(err)
	}
	if st.Stats.Cpu.UsageCoreNanoSeconds.Value == 0 || st.Stats.Memory.WorkingSetBytes.Value == 0 || st.Stats.WritableLayer.UsedBytes.Value < 4096 {
		t.Errorf("stats %v", st.Stats)
	}
	ps, err := h.Runtime.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil || ps.Stats.Linux.Process.ProcessCount.Value < 2 || len(ps.Stats.Linux.Containers) != 1 {
		t.Errorf("sandbox stats %v, %v", ps, err)
	}
	ms, err := h.Runtime.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(ms.PodMetrics) != 1 || len(ms.PodMetrics[0].ContainerMetrics) != 1 {
		t.Errorf("metrics %v, %v", ms, err)
	}
}

func TestSharedNamespaces(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	config := func(name string, mode runtimeapi.NamespaceMode, target string) *runtimeapi.ContainerConfig {
		c := h.containerConfig(name, "sleep", "777")
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: mode, TargetId: target}
		return c
	}
	a := h.create(pod, config("a", runtimeapi.NamespaceMode_POD, ""))
	h.startContainer(a)
	b := h.create(pod, config("b", runtimeapi.NamespaceMode_POD, ""))
	h.startContainer(b)
	if out, _ := h.exec(a, "sh", "-c", "ps | grep -c '[s]leep 777'"); out != "2\n" {
		t.Errorf("with one PID namespace a sees %q sleeps, want 2", out)
	}
	h.exec(a, "sh", "-c", "echo shared > /dev/shm/x")
	h.wantExec(b, "shared\n", "cat", "/dev/shm/x")
	own := h.create(pod, config("own", runtimeapi.NamespaceMode_CONTAINER, ""))
	h.startContainer(own)
	if out, _ := h.exec(own, "sh", "-c", "ps | grep -c '[s]leep 777'"); out != "1\n" {
		t.Errorf("with its own PID namespace a container sees %q sleeps", out)
	}
	debug := h.create(pod, config("debug", runtimeapi.NamespaceMode_TARGET, own))
	h.startContainer(debug)
	if out, _ := h.exec(debug, "sh", "-c", "ps | grep -c '[s]leep 777'"); out != "2\n" {
		t.Errorf("with the target's PID namespace a container sees %q sleeps", out)
	}
}

// TestCheckpointRefused: what is left out says so, whatever it is asked about.
func TestCheckpointRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	_, container := h.Runtime.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: filepath.Join(h.dir, "x")})
	_, whole := h.Runtime.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, ContainerIds: []string{id}})
	_, restore := h.Runtime.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{})
	for _, err := range []error{container, whole, restore} {
		if cri.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "on purpose") {
			t.Errorf("%v", err)
		}
	}
}
