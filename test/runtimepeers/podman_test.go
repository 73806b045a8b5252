package runtimepeers

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// podman is Podman with storage and state of its own.
type podman struct {
	testing.TB
	args []string
}

func newPodman(t testing.TB) *podman {
	t.Helper()
	dir := t.TempDir()
	// Its locks are usually in one shared file of the whole host.
	conf := filepath.Join(dir, "containers.conf")
	text := "[engine]\nlock_type=\"file\"\n[containers]\ndefault_ulimits=[\"nofile=1024:1024\",\"nproc=4096:4096\"]\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := &podman{t, []string{"env", "CONTAINERS_CONF=" + conf, "podman", "--root", dir + "/root", "--runroot", dir + "/run", "--tmpdir", dir + "/tmp",
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", program(t)}}
	t.Cleanup(func() {
		must(t, p.line("rm", "--force", "--all", "--time", "0")...)
		must(t, p.line("rmi", "--force", "--all")...)
		// Podman mounts its storage on itself for good, also in the cleanup that each container's conmon runs after the removal.
		for end := time.Now().Add(time.Minute); len(processes(dir)) > 0 && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		run(t, limit, "umount", dir+"/root/overlay")                      // unless the last of them has done so
		run(t, limit, "sh", "-c", "rmdir /sys/fs/cgroup/*/libpod_parent") // the parent of all of Podman's: gone where it is empty
		leaks(t, dir, "libpod_parent/libpod-")
	})
	must(t, p.line("import", "--change", `CMD ["sh"]`, rootfs(t), image)...)
	return p
}

func (p *podman) line(args ...string) []string {
	return append(p.args[:len(p.args):len(p.args)], args...)
}

func TestPodman(t *testing.T) {
	p := newPodman(t)
	expect(t, 0, "hello\n", p.line("run", "--rm", "--network", "none", image, "echo", "hello")...)
	expect(t, 7, "", p.line("run", "--rm", "--network", "host", image, "sh", "-c", "exit 7")...)
	if r := run(t, limit, p.line("run", "--rm", "--network", "none", image, "nosuch")...); r.code != 127 || !strings.Contains(r.err, "not found") {
		t.Errorf("missing program: %+v", r)
	}
	if r := run(t, limit, p.line("run", "--rm", "--tty", "--network", "none", image, "sh", "-c", "ls /dev/console")...); r.code != 0 || r.out != "/dev/console\r\n" {
		t.Errorf("terminal: %+v", r)
	}
	must(t, p.line("run", "--detach", "--name", "a", "--network", "none", "--memory", "64m", "--pids-limit", "50", image,
		"sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done")...)
	expect(t, 0, "0\n50\n67108864\n", p.line("exec", "a", "sh", "-c", "id -u; cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory/memory.limit_in_bytes")...)
	expect(t, 5, "", p.line("exec", "--user", "7", "a", "sh", "-c", "exit 5")...)
	must(t, p.line("pause", "a")...)
	expect(t, 0, "paused\n", p.line("inspect", "--format", "{{.State.Status}}", "a")...)
	must(t, p.line("unpause", "a")...)
	must(t, p.line("stop", "--time", "20", "a")...)
	expect(t, 0, "exited 3\n", p.line("inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "a")...)
	expect(t, 0, "up\nbye\n", p.line("logs", "a")...)
	must(t, p.line("rm", "a")...)
}

func TestPodmanMany(t *testing.T) {
	p := newPodman(t)
	together(func(i int) {
		if r := run(t, limit, p.line("run", "--detach", "--name", fmt.Sprint("c", i), "--network", "none", image, "sleep", "1000")...); r.code != 0 {
			t.Errorf("container %d: %s", i, r.err)
		}
	})
	if got := len(strings.Fields(must(t, p.line("ps", "--quiet")...))); got != *many {
		t.Errorf("%d containers run, want %d", got, *many)
	}
	expect(t, 0, "in\n", p.line("exec", fmt.Sprint("c", *many-1), "echo", "in")...)
}
