package criserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/image"
	"github.com/yare-dev/yare/linux/apparmor"
	"github.com/yare-dev/yare/linux/netns"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/ocitest"
	"github.com/yare-dev/yare/oci/shim"
)

const testImage = "example.com/busybox:1"

// loopNetwork gives each sandbox a namespace with a loopback and a made-up
// address: what a CRI server sees of a network.
type loopNetwork struct {
	dir string

	mu      sync.Mutex
	n       int
	pods    map[string]bool
	fail    error
	keep    error // of Teardown
	endless bool  // a Teardown was given all the time in the world
	left    error // of Prune
	last    cni.Pod
}

func (l *loopNetwork) NewNamespace(context.Context) (string, error) {
	l.mu.Lock()
	l.n++
	path := filepath.Join(l.dir, fmt.Sprintf("%s%d", newID()[:8], l.n))
	l.mu.Unlock()
	return path, netns.New(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
}

func (l *loopNetwork) DeleteNamespace(_ context.Context, path string) error {
	if path == "" {
		return nil
	}
	return netns.Delete(path)
}

func (l *loopNetwork) Setup(_ context.Context, p cni.Pod) (*cni.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return nil, l.fail
	}
	l.pods[p.ID], l.last = true, p
	return &cni.Result{IPs: []cni.IP{{Address: netip.MustParsePrefix("192.0.2.7/32")}}}, nil
}

func (l *loopNetwork) Check(context.Context, cni.Pod) error { return nil }
func (l *loopNetwork) Status(context.Context) error         { return nil }

func (l *loopNetwork) Teardown(ctx context.Context, p cni.Pod) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := ctx.Deadline(); !ok {
		l.endless = true
	}
	if l.keep != nil {
		return l.keep
	}
	delete(l.pods, p.ID)
	return nil
}

func (l *loopNetwork) setKeep(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.keep = err
}

func (l *loopNetwork) Prune(_ context.Context, live []cni.Pod) error {
	keep := map[string]bool{}
	for _, p := range live {
		keep[p.NetNS] = true
	}
	paths, err := netns.List(l.dir)
	for _, p := range paths {
		if !keep[p] {
			err = errors.Join(err, netns.Delete(p))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(err, l.left)
}

// harness is a Server with everything of its own, checked for leaks at the end.
type harness struct {
	testing.TB
	*cri.Client
	server *Server
	dir    string
	cgroup string
	cfg    Config
	deps   Deps
	net    *loopNetwork
	stop   func()
	pods   []string
	// handler is the pods' runtime; empty: ours.
	handler string
}

func newHarness(t testing.TB) *harness {
	t.Helper()
	ocitest.Root(t)
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{TB: t, dir: dir, cgroup: ocitest.Cgroup(t), handler: handlerOfTest(t)}
	t.Cleanup(func() { h.checkLeaks() })
	t.Cleanup(func() {
		if err := apparmor.Remove(h.cfg.AppArmorProfile); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(filepath.Join(dir, "netns"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.configure(ocitest.Init(t))
	images := h.deps.Images
	root := ocitest.Rootfs(t)
	for file, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\n",
		"etc/group":  "root:x:0:\nstaff:x:50:alice\n",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Join(root, "etc"), 0o755), os.WriteFile(filepath.Join(root, file), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "garbage"), []byte{1, 2, 3, 4}, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := images.BuildFromDir(t.Context(), root, testImage, image.ConfigOptions{Cmd: []string{"sleep", "1000"}, Env: []string{"IMAGE=yes"}}); err != nil {
		t.Fatal(err)
	}
	h.start()
	t.Cleanup(h.tearDown)
	return h
}

// configure fills in what a Server in h.dir stands on.
func (h *harness) configure(init *oci.Init) {
	h.Helper()
	log := slog.New(slog.NewTextHandler(h.Output(), nil))
	images, err := image.Open(image.Config{Dir: filepath.Join(h.dir, "images")}, log)
	if err != nil {
		h.Fatal(err)
	}
	h.net = &loopNetwork{dir: filepath.Join(h.dir, "netns"), pods: map[string]bool{}}
	h.deps = Deps{Images: images, Network: h.net, Init: init, Log: log}
	h.cfg = Config{Dir: filepath.Join(h.dir, "cri"), RunDir: filepath.Join(h.dir, "r"), Socket: filepath.Join(h.dir, "cri.sock"), CgroupParent: h.cgroup,
		AppArmorProfile: "yare-test-" + filepath.Base(h.dir)}
	if h.handler != "" {
		h.cfg.Handlers = hostHandlers()
	}
}

// start runs a new Server on the same folders.
func (h *harness) start() {
	h.Helper()
	s, err := New(h.cfg, h.deps)
	if err != nil {
		h.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		h.Fatalf("server ended: %v", err)
	}
	h.server, h.Client = s, cri.InProcess(s)
	h.stop = func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			h.Errorf("server ended with %v", err)
		}
	}
}

// removeAll removes every sandbox.
func (h *harness) removeAll() {
	h.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	list, err := h.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		h.Error(err)
	}
	for _, sb := range list.GetItems() {
		if _, err := h.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb.Id}); err != nil {
			h.Errorf("remove sandbox: %v", err)
		}
	}
}

func (h *harness) tearDown() {
	h.removeAll()
	h.stop()
	for _, pod := range h.pods {
		// The pod's cgroup is the kubelet's to remove; it must be empty.
		g, err := cgroup.Open(h.cgroup + "/" + pod)
		if err == nil {
			err = g.Remove()
		}
		if err != nil {
			h.Error(err)
		}
	}
}

// checkLeaks runs last: nothing in the kernel or on disk may speak of the test.
func (h *harness) checkLeaks() {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		h.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, h.dir) {
			h.Errorf("mount left: %s", line)
		}
	}
	for _, d := range []string{"netns", "r", "cri/sandboxes", "cri/containers", "images/snapshots", "images/tmp"} {
		left, err := os.ReadDir(filepath.Join(h.dir, d))
		if err != nil {
			h.Error(err)
		}
		for _, e := range left {
			h.Errorf("left behind: %s/%s", d, e.Name())
		}
	}
	if len(h.net.pods) != 0 {
		h.Errorf("networks left: %v", h.net.pods)
	}
	if !h.Failed() {
		os.RemoveAll(h.dir)
	}
}

func (h *harness) podConfig(name string) *runtimeapi.PodSandboxConfig {
	h.pods = append(h.pods, name)
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: filepath.Join(h.dir, "logs", name),
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.43.0.10"}, Searches: []string{"svc.cluster.local"}},
		Labels:       map[string]string{"pod": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    h.cgroup + "/" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
}

func (h *harness) runPod(name string, change ...func(*runtimeapi.PodSandboxConfig)) string {
	h.Helper()
	config := h.podConfig(name)
	for _, c := range change {
		c(config)
	}
	r, err := h.Runtime.RunPodSandbox(h.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: h.handler})
	if err != nil {
		h.Fatal(err)
	}
	return r.PodSandboxId
}

func (h *harness) containerConfig(name string, cmd ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: testImage},
		Command:  cmd,
		LogPath:  name + ".log",
		Labels:   map[string]string{"container": name},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

func (h *harness) create(pod string, config *runtimeapi.ContainerConfig) string {
	h.Helper()
	r, err := h.Runtime.CreateContainer(h.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config})
	if err != nil {
		h.Fatal(err)
	}
	return r.ContainerId
}

func (h *harness) startContainer(id string) {
	h.Helper()
	if _, err := h.Runtime.StartContainer(h.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		h.Fatal(err)
	}
}

func (h *harness) run(pod, name string, cmd ...string) string {
	h.Helper()
	id := h.create(pod, h.containerConfig(name, cmd...))
	h.startContainer(id)
	return id
}

func (h *harness) status(id string) *runtimeapi.ContainerStatus {
	h.Helper()
	r, err := h.Runtime.ContainerStatus(h.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		h.Fatal(err)
	}
	return r.Status
}

// exited waits for a container's end.
func (h *harness) exited(id string) *runtimeapi.ContainerStatus {
	h.Helper()
	c, err := h.server.findContainer(id)
	if err != nil {
		h.Fatal(err)
	}
	if err := c.wait(h.Context(), 10*time.Second); err != nil {
		h.Fatal(err)
	}
	return h.status(id)
}

func (h *harness) exec(id string, cmd ...string) (out string, code int32) {
	h.Helper()
	r, err := h.Runtime.ExecSync(h.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 10})
	if err != nil {
		h.Fatalf("exec %v: %v", cmd, err)
	}
	return string(r.Stdout) + string(r.Stderr), r.ExitCode
}

func (h *harness) wantExec(id, want string, cmd ...string) {
	h.Helper()
	if out, code := h.exec(id, cmd...); code != 0 || out != want {
		h.Errorf("%v: %q, code %d, want %q", cmd, out, code, want)
	}
}

// client is a sandbox's connection to its shim.
func (h *harness) client(sb *sandbox) *shim.Client {
	h.Helper()
	c, err := sb.client()
	if err != nil {
		h.Fatal(err)
	}
	return c
}
