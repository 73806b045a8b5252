package criserver

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
)

const usersAt = 20 * 65536 // on the host, of the test's user namespaces

// users puts a sandbox or a container into a user namespace of the sandbox's own.
func users(o *runtimeapi.NamespaceOption) {
	ids := []*runtimeapi.IDMapping{{ContainerId: 0, HostId: usersAt, Length: 65536}}
	o.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

func (h *harness) usersPod(name string, pid runtimeapi.NamespaceMode) string {
	h.Helper()
	return h.runPod(name, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = pid
		users(c.Linux.SecurityContext.NamespaceOptions)
	})
}

func (h *harness) usersContainer(name string, pid runtimeapi.NamespaceMode, cmd ...string) *runtimeapi.ContainerConfig {
	c := h.containerConfig(name, cmd...)
	c.Linux.SecurityContext.NamespaceOptions.Pid = pid
	users(c.Linux.SecurityContext.NamespaceOptions)
	return c
}

// A pod in a user namespace is root of its own files, volumes and namespaces, and nobody on the host.
func TestUserNamespace(t *testing.T) {
	// What the Go runtime makes of it in the server and the shim is not the container's. The whole process has it, and enough of it.
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	files.Cur = files.Max / 2
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	for _, pid := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_POD} {
		t.Run(pid.String(), func(t *testing.T) {
			t.Parallel()
			h := newHarness(t)
			volume := t.TempDir()
			if err := os.WriteFile(filepath.Join(volume, "old"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			pod := h.usersPod("p", pid)
			c := h.usersContainer("c", pid, "sh", "-c", "echo started > /dev/stdout; echo made > /vol/new; exec sleep 1000")
			o := c.Linux.SecurityContext.NamespaceOptions.UsernsOptions
			c.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/vol", UidMappings: o.Uids, GidMappings: o.Gids}}
			id := h.create(pod, c)
			h.startContainer(id)
			h.wantExec(id, "0 0 1310720 65536\n", "sh", "-c", "echo $(id -u) $(cat /proc/self/uid_map)")
			h.wantExec(id, "0 0 0 0\n", "sh", "-c", "echo $(stat -c %u /bin/busybox /vol/old /vol/new /dev/shm)")
			h.wantExec(id, "p\n", "hostname")
			h.wantExec(id, fmt.Sprintln(files.Cur), "sh", "-c", "ulimit -Sn")
			h.wantExec(id, "", "sh", "-c", "echo > /etc/new && echo > /bin/busybox.new && echo > /dev/shm/x && echo > /dev/null && ls /dev/mqueue /sys/fs/cgroup > /dev/null")
			if out, code := h.exec(id, "mount", "-t", "tmpfs", "none", "/tmp"); code == 0 {
				t.Errorf("root of the user namespace mounts without the capability: %q", out)
			}
			// On the host, what it wrote to the volume is root's, what it runs is nobody's.
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(volume, "new"), &st); err != nil || st.Uid != 0 {
				t.Errorf("new file in the volume is of %d, %v", st.Uid, err)
			}
			k, err := h.server.findContainer(id)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile("/proc/" + strconv.Itoa(k.pid) + "/status"); err != nil || !strings.Contains(string(b), "Uid:\t1310720\t1310720\t") {
				t.Errorf("on the host: %s, %v", b, err)
			}
			h.stop()
			h.start() // the namespaces are the sandbox's, not the server's
			first, _ := h.exec(id, "readlink", "/proc/self/ns/user")
			second := h.create(pod, h.usersContainer("second", pid, "sleep", "1000"))
			h.startContainer(second)
			h.wantExec(second, first, "readlink", "/proc/self/ns/user")
			log, err := os.ReadFile(filepath.Join(h.dir, "logs/p/c.log"))
			if err != nil || !strings.Contains(string(log), " stdout F started\n") {
				t.Errorf("log %q, %v", log, err)
			}
		})
	}
}

func TestUserNamespaceRefused(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	refused := func(name string, change func(*runtimeapi.NamespaceOption), why string) {
		t.Helper()
		config := h.podConfig(name)
		h.pods = h.pods[:len(h.pods)-1] // nothing is made
		users(config.Linux.SecurityContext.NamespaceOptions)
		change(config.Linux.SecurityContext.NamespaceOptions)
		_, err := h.Runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
		if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), why) {
			t.Errorf("%s: %v", name, err)
		}
	}
	refused("host-network", func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE }, "of its own")
	refused("host-pid", func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_NODE }, "of its own")
	refused("no-root", func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids = nil }, "must map 0")
	refused("target", func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Mode = runtimeapi.NamespaceMode_TARGET }, "mode TARGET")
	pod := h.usersPod("p", runtimeapi.NamespaceMode_CONTAINER)
	_, err := h.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: h.containerConfig("c", "true")})
	if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "must be the sandbox's") {
		t.Errorf("container in the host's: %v", err)
	}
	c := h.usersContainer("c", runtimeapi.NamespaceMode_CONTAINER, "true")
	c.Mounts = []*runtimeapi.Mount{{HostPath: "/proc", ContainerPath: "/vol", UidMappings: c.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids,
		GidMappings: c.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Gids}}
	if _, err = h.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c}); err == nil || !strings.Contains(err.Error(), "map ids of /proc") {
		t.Errorf("volume that cannot be mapped: %v", err)
	}
	st, err := h.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil || st.RuntimeHandlers[0].Features.UserNamespaces != mapsMounts() {
		t.Errorf("status %v, %v", st, err)
	}
}
