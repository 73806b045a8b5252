package runtimepeers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// limit is how long one command may take while a hundred containers start.
const limit = 2 * time.Minute

// ctrd is a containerd with folders of its own.
type ctrd struct {
	testing.TB
	address, log string
}

const configuration = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "%[1]s/c.sock"
[ttrpc]
  address = "%[1]s/t.sock"
`

func newContainerd(t testing.TB) *ctrd {
	t.Helper()
	dir, err := os.MkdirTemp("", "yare-peer-") // short: sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	c := &ctrd{t, dir + "/c.sock", dir + "/log"}
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, configuration, dir), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(c.log)
	if err != nil {
		t.Fatal(err)
	}
	server := exec.Command("containerd", "--config", config)
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.removeAll()
		_ = server.Process.Signal(os.Interrupt)
		_ = server.Wait()
		log.Close()
		if text, err := os.ReadFile(c.log); t.Failed() && err == nil {
			t.Logf("containerd: %s", text)
		}
		leaks(t, dir, "/yare-peer/")
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	ready := time.Now().Add(time.Minute)
	for exec.Command("ctr", "--address", c.address, "version").Run() != nil {
		if time.Now().After(ready) {
			t.Fatal("containerd is not ready after a minute")
		}
	}
	archive := c.archive(dir)
	must(t, c.line("image", "import", archive)...)
	return c
}

// archive makes an image of the root file system, in the form that `docker save` writes.
func (c *ctrd) archive(dir string) string {
	c.Helper()
	layer := rootfs(c)
	digest := strings.Fields(must(c, "sha256sum", layer))[0]
	box := filepath.Join(dir, "image")
	config := fmt.Sprintf(`{"architecture":"%s","os":"linux","config":{"Cmd":["sh"],"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}`,
		strings.TrimSpace(must(c, "dpkg", "--print-architecture")), digest)
	manifest := fmt.Sprintf(`[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]`, image)
	must(c, "mkdir", box)
	must(c, "cp", layer, box+"/layer.tar")
	for name, text := range map[string]string{"config.json": config, "manifest.json": manifest} {
		if err := os.WriteFile(filepath.Join(box, name), []byte(text), 0o600); err != nil {
			c.Fatal(err)
		}
	}
	must(c, "tar", "-C", box, "-cf", dir+"/image.tar", "config.json", "manifest.json", "layer.tar")
	return dir + "/image.tar"
}

func (c *ctrd) line(args ...string) []string {
	return append([]string{"ctr", "--address", c.address}, args...)
}

// start is the line that runs a container with our runtime.
func (c *ctrd) start(name string, options []string, args ...string) []string {
	line := c.line("run", "--runc-binary", program(c), "--cgroup", "/yare-peer/"+name)
	return append(append(append(line, options...), image, name), args...)
}

func (c *ctrd) removeAll() {
	c.Helper()
	for _, name := range strings.Fields(must(c, c.line("tasks", "list", "--quiet")...)) {
		run(c, limit, c.line("tasks", "delete", "--force", name)...)
	}
	for _, name := range strings.Fields(must(c, c.line("containers", "list", "--quiet")...)) {
		run(c, limit, c.line("containers", "delete", name)...)
	}
	must(c, "sh", "-c", "for d in /sys/fs/cgroup/*/yare-peer; do test ! -d $d || rmdir $d; done")
}

func TestContainerd(t *testing.T) {
	c := newContainerd(t)
	expect(t, 0, "hello\n", c.start("a", []string{"--rm"}, "echo", "hello")...)
	expect(t, 7, "", c.start("a", []string{"--rm"}, "sh", "-c", "exit 7")...)
	if r := run(t, limit, c.start("a", []string{"--rm"}, "nosuch")...); r.code == 0 || !strings.Contains(r.err, "executable file not found") {
		t.Errorf("missing program: %+v", r)
	}
	log := filepath.Join(t.TempDir(), "log")
	must(t, c.start("b", []string{"--detach", "--memory-limit", "67108864", "--log-uri", "file://" + log},
		"sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done")...)
	expect(t, 0, "0\n", c.line("tasks", "exec", "--exec-id", "1", "b", "sh", "-c", "id -u")...)
	expect(t, 5, "", c.line("tasks", "exec", "--exec-id", "2", "b", "sh", "-c", "exit 5")...)
	if text, err := os.ReadFile("/sys/fs/cgroup/memory/yare-peer/b/memory.limit_in_bytes"); err != nil || string(text) != "67108864\n" {
		t.Errorf("limit: %q, %v", text, err)
	}
	must(t, c.line("tasks", "pause", "b")...)
	if got := must(t, c.line("tasks", "list")...); !strings.Contains(got, "PAUSED") {
		t.Errorf("paused: %s", got)
	}
	must(t, c.line("tasks", "resume", "b")...)
	must(t, c.line("tasks", "kill", "--signal", "SIGTERM", "b")...)
	for end := time.Now().Add(limit); !strings.Contains(must(t, c.line("tasks", "list")...), "STOPPED"); {
		if time.Now().After(end) {
			t.Fatal("it does not stop")
		}
	}
	if r := run(t, limit, c.line("tasks", "delete", "b")...); !strings.Contains(r.err, "exit code 3") {
		t.Errorf("exit code: %+v", r)
	}
	if text, err := os.ReadFile(log); err != nil || string(text) != "up\nbye\n" {
		t.Errorf("log: %q, %v", text, err)
	}
}

func TestContainerdMany(t *testing.T) {
	c := newContainerd(t)
	together(func(i int) {
		if r := run(t, limit, c.start(fmt.Sprint("c", i), []string{"--detach"}, "sleep", "1000")...); r.code != 0 {
			t.Errorf("container %d: %s", i, r.err)
		}
	})
	if got := strings.Count(must(t, c.line("tasks", "list")...), "RUNNING"); got != *many {
		t.Errorf("%d containers run, want %d", got, *many)
	}
	expect(t, 0, "in\n", c.line("tasks", "exec", "--exec-id", "1", fmt.Sprint("c", *many-1), "echo", "in")...)
}
