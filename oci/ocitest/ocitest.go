// Package ocitest helps tests run real containers: the init program as it is
// in the source, a root file system of busybox, specs, and a check that nothing
// is left. It is imported by tests only.
package ocitest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
)

// BuiltInit is an environment variable with the path of an init program built before, for machines without Go.
const BuiltInit = "YARE_TEST_INIT"

// program builds the init once per test process.
var program = sync.OnceValues(func() ([]byte, error) {
	if path := os.Getenv(BuiltInit); path != "" {
		return os.ReadFile(path)
	}
	dir, err := os.MkdirTemp("", "yare-init-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "yare-init")
	if err := Build(path, Entry+" -s -w"); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// Entry is what tells the linker of the init's own entry, as the Makefile does. Without it the init is an ordinary program.
const Entry = "-E main.entry"

// Build builds the init program from the source at hand.
func Build(path, linkerFlags string) error {
	const init = "github.com/yare-dev/yare/oci/init"
	list := exec.Command("go", "list", "-deps", "-f", `{{$d := .Dir}}{{with .Module}}{{if .Main}}{{$d}}{{end}}{{end}}`, init)
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	dirs, err := list.Output()
	if err != nil {
		return fmt.Errorf("list sources of init: %w", err)
	}
	for _, dir := range strings.Fields(string(dirs)) {
		// Read, so that go test knows what its results depend on.
		files, _ := filepath.Glob(filepath.Join(dir, "*.[gs]*"))
		for _, f := range files {
			if _, err := os.ReadFile(f); err != nil {
				return err
			}
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags="+linkerFlags, "-o", path, init)
	cmd.Env = list.Env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build init: %w: %s", err, out)
	}
	return nil
}

// Root skips the test unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// Init returns the init program, built from the source at hand.
func Init(t testing.TB) *oci.Init {
	t.Helper()
	b, err := program()
	if err != nil {
		t.Fatal(err)
	}
	i, err := oci.NewInit(b)
	if errors.Is(err, linux.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	return i
}

// Program returns the init program's path in a new directory.
func Program(t testing.TB) string {
	t.Helper()
	b, err := program()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "yare-init")
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// Rootfs returns a new root file system with busybox.
func Rootfs(t testing.TB) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{"bin", "dev", "proc", "sys", "tmp", "etc", "root"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "echo", "sleep", "id", "ls", "true", "false", "hostname", "mount", "head",
		"touch", "grep", "stty", "tty", "readlink", "dd", "ps", "kill", "wc", "chmod", "mkdir", "env", "yes", "stat", "tail"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// Cgroup returns the path of a cgroup for the test's own, and removes it and
// checks that it is empty in the end.
func Cgroup(t testing.TB) string {
	t.Helper()
	path := fmt.Sprintf("/yare-test-%d-%s", os.Getpid(), strconv.FormatUint(uint64(len(t.Name()))<<32|uint64(hash(t.Name())), 36))
	t.Cleanup(func() {
		hierarchies, err := linux.Hierarchies()
		if err != nil {
			t.Error(err)
		}
		for _, h := range hierarchies {
			dir := filepath.Join(h.Root, path)
			children, _ := os.ReadDir(dir)
			for _, c := range children {
				if c.IsDir() {
					t.Errorf("cgroup left behind: %s", filepath.Join(dir, c.Name()))
				}
			}
			if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
				t.Errorf("remove %s: %v", dir, err)
			}
		}
	})
	return path
}

const oneHierarchy = "YARE_TEST_ONE_HIERARCHY"

// OneHierarchy makes sure that the test sees cgroup v1 or v2 but not both, as crun wants it. On a host with both it runs the test
// once more, in a process whose mount namespace has no v2, and returns false: there is nothing left to do.
func OneHierarchy(t *testing.T) bool {
	t.Helper()
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(hierarchies, linux.Hierarchy.Unified)
	if i < 0 || len(hierarchies) == 1 {
		return true
	}
	if os.Getenv(oneHierarchy) != "" {
		t.Fatal("cgroup v2 is still mounted")
	}
	var pattern []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	cmd := exec.CommandContext(t.Context(), "/bin/busybox", "sh", "-c", `busybox umount -l "$0" && exec "$@"`, hierarchies[i].Root,
		os.Args[0], "-test.run="+strings.Join(pattern, "/"), fmt.Sprint("-test.v=", testing.Verbose()), fmt.Sprint("-test.short=", testing.Short()))
	flag.Visit(func(f *flag.Flag) {
		if !strings.HasPrefix(f.Name, "test.") {
			cmd.Args = append(cmd.Args, "-"+f.Name+"="+f.Value.String())
		}
	})
	if end, ok := t.Deadline(); ok {
		cmd.Args = append(cmd.Args, "-test.timeout="+(time.Until(end)-time.Second).String()) // it is not to outlive us
	}
	cmd.Env = append(os.Environ(), oneHierarchy+"=1", BuiltInit+"="+Program(t))
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // its mounts are not ours
	if out, err := cmd.CombinedOutput(); err != nil || testing.Verbose() {
		t.Logf("%s", out)
		if err != nil {
			t.Error(err)
		}
	}
	return false
}

func hash(s string) uint32 {
	h := uint32(2166136261)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return h
}

// Spec is a usual container's, running args in root.
func Spec(root, cgroupPath string, args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin", "HOME=/root"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
				Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroupPath,
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace},
				{Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}},
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}
