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
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/cri"
)

func TestStartFails(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	pod := h.runPod("p")
	id := h.create(pod, h.containerConfig("c", "/garbage"))
	_, err := h.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil || !strings.Contains(err.Error(), "garbage") {
		t.Errorf("start: %v", err)
	}
	s := h.status(id)
	if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != exitStartError || s.Reason != "StartError" || s.Message == "" {
		t.Errorf("status %v", s)
	}
	if text := status.Convert(err).Message(); text != s.Message || strings.Contains(text, id) {
		t.Errorf("start: %q, status: %q", text, s.Message)
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
	if got := status.Convert(err).Message(); got != "set up network: no addresses" {
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
		var told [2]string
		for i := range told {
			c.Metadata.Attempt = uint32(i)
			_, err := h.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c})
			told[i] = status.Convert(err).Message()
		}
		// What is told twice is one Event, so that it must not tell of the attempt.
		if told[0] == "" || told[0] != told[1] || strings.Contains(told[0], pod) || strings.Contains(told[0], "rpc error") {
			t.Errorf("%s: create: %q, then %q", name, told[0], told[1])
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

// TestBandwidth has the network told of a pod's limits; what cannot be one is refused by name.
func TestBandwidth(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	in, out := "kubernetes.io/ingress-bandwidth", "kubernetes.io/egress-bandwidth"
	h.runPod("p", func(c *runtimeapi.PodSandboxConfig) { c.Annotations = map[string]string{in: "10M", out: "1k"} })
	if b := h.net.last.Bandwidth; b == nil || *b != (cni.Bandwidth{IngressRate: 10e6, EgressRate: 1e3}) {
		t.Errorf("got %v", b)
	}
	h.runPod("plain")
	if b := h.net.last.Bandwidth; b != nil {
		t.Errorf("got %v", b)
	}
	for _, name := range []string{in, out} {
		for _, text := range []string{"999", "1001T", "-1M", "fast", ""} {
			config := h.podConfig("bad")
			config.Annotations = map[string]string{name: text}
			_, err := h.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), name) {
				t.Errorf("%s %q: %v", name, text, err)
			}
		}
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
	p, err := os.FindProcess(h.client(sb).Pid())
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
