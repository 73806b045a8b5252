package cripeers

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/cri/critest"
	"github.com/yare-dev/yare/test/peers/host"
)

// crictl is upstream's command, on the host of our server.
type crictl struct {
	testing.TB
	h       *host.Host
	program string
	box     string
}

// limit is how long one command may take.
const limit = 2 * time.Minute

func newCrictl(t *testing.T) *crictl {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("starts a runtime, as root")
	}
	program := filepath.Join(t.TempDir(), "crictl")
	build := exec.CommandContext(t.Context(), "go", "build", "-C", "crictl", "-o", program, "sigs.k8s.io/cri-tools/cmd/crictl")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build crictl: %v: %s", err, out)
	}
	yare, err := filepath.Abs("../../bin/yare")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(yare); err != nil {
		t.Fatalf("make build first: %v", err)
	}
	c := &crictl{TB: t, h: newHost(t, "crictl"), program: program}
	c.box = critest.Registry(t, listen(t, c.h))
	socket := filepath.Join(c.h.Dir, "cri.sock")
	_, err = c.h.Start("yare", nil, yare, "runtime", "--socket", socket, "--data-dir", filepath.Join(c.h.Dir, "data"), "--run-dir", "/run/yare-crictl",
		"--cgroup-parent", c.h.CgroupRoot()+"/runtime", "--pod-cidr", "10.244.0.0/24", "--cni-conf-dir", filepath.Join(c.h.Dir, "no-cni"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(c.h.Dir, "crictl.yaml"), fmt.Sprintf("runtime-endpoint: unix://%s\nimage-endpoint: unix://%s\ntimeout: 60\n", socket, socket))
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	client, err := cri.Dial(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	client.Close()
	return c
}

// command is crictl with arguments.
func (c *crictl) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := c.h.Command(append([]string{c.program, "--config", filepath.Join(c.h.Dir, "crictl.yaml")}, args...)...)
	run := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	run.WaitDelay = time.Second
	return run
}

// run runs crictl to its end, with a text to read.
func (c *crictl) run(in string, args ...string) (out string, err error) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), limit)
	defer cancel()
	cmd := c.command(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(in), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("crictl %s: %w: %s%s", strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

func (c *crictl) must(args ...string) string {
	c.Helper()
	out, err := c.run("", args...)
	if err != nil {
		c.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// shows checks that each of the texts is in what a command prints.
func (c *crictl) shows(texts []string, args ...string) {
	c.Helper()
	out := c.must(args...)
	for _, text := range texts {
		if !strings.Contains(out, text) {
			c.Errorf("crictl %s: no %q in %s", strings.Join(args, " "), text, out)
		}
	}
}

// configure writes a configuration in JSON, as crictl reads it.
func (c *crictl) configure(name string, v map[string]any) string {
	c.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		c.Fatal(err)
	}
	path := filepath.Join(c.h.Dir, name+".json")
	write(c.TB.(*testing.T), path, string(text))
	return path
}

// pod writes a pod's configuration.
func (c *crictl) pod() string {
	logs := filepath.Join(c.h.Dir, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		c.Fatal(err)
	}
	return c.configure("pod", map[string]any{
		"metadata": map[string]any{"name": "pod", "namespace": "default", "uid": "u1", "attempt": 1}, "hostname": "pod", "log_directory": logs,
		"linux": map[string]any{"cgroup_parent": c.h.CgroupRoot() + "/pod"},
	})
}

// container writes the configuration of one that runs a script in the box.
func (c *crictl) container(name, script string, more map[string]any) string {
	v := map[string]any{
		"metadata": map[string]any{"name": name}, "image": map[string]any{"image": c.box}, "command": []string{"sh", "-c", script},
		"log_path": name + ".log", "linux": map[string]any{},
	}
	for k, x := range more {
		v[k] = x
	}
	return c.configure(name, v)
}

// eventually asks again until a command shows the text.
func (c *crictl) eventually(text string, args ...string) {
	c.Helper()
	var out string
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if out = c.must(args...); strings.Contains(out, text) {
			return
		}
	}
	c.Errorf("crictl %s: no %q in %s", strings.Join(args, " "), text, out)
}

// TestCrictl uses the ordinary commands as an administrator does.
func TestCrictl(t *testing.T) {
	c := newCrictl(t)
	c.server()
	c.images()
	pod := c.pod()
	events := c.events()
	id := c.must("runp", pod)
	main := c.must("create", id, c.container("main", "echo out; echo err >&2; httpd -p 127.0.0.1:8080 -h /etc; trap 'exit 3' TERM; while :; do sleep 0.05; done", nil), pod)
	c.shows([]string{"CONTAINER_CREATED", `"name": "main"`}, "inspect", main)
	c.must("start", main)
	c.lists(id, main)
	c.sessions(id, main)
	c.measures(id, main)
	c.attaches(id, pod)
	c.must("stop", "--timeout", "60", main)
	c.shows([]string{"CONTAINER_EXITED", `"exitCode": 3`}, "inspect", main)
	c.must("rm", main)
	if out, err := c.run("", "inspect", main); err == nil {
		t.Errorf("inspect of a removed container: %s", out)
	}
	c.must("stopp", id)
	c.shows([]string{"SANDBOX_NOTREADY"}, "inspectp", id)
	c.must("rmp", id)
	if out := c.must("pods", "--quiet"); out != "" {
		t.Errorf("pods left: %s", out)
	}
	for _, text := range []string{"CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT"} {
		events(text)
	}
	c.must("rmi", c.box)
	if out := c.must("images", "--quiet"); out != "" {
		t.Errorf("images left: %s", out)
	}
}

// TestCrictlRun is the shortest way: one command makes a pod and a container.
func TestCrictlRun(t *testing.T) {
	c := newCrictl(t)
	id := c.must("run", "--with-pull", c.container("one", "exec sleep 1000", nil), c.pod())
	c.shows([]string{"one", "Running"}, "ps")
	c.must("rm", "--force", id)
	c.must("rmp", "--force", "--all")
	c.must("rmi", "--prune")
}

func (c *crictl) server() {
	c.Helper()
	c.shows([]string{"RuntimeName:  yare", "RuntimeApiVersion:  v1"}, "version")
	c.shows([]string{"RuntimeReady", "NetworkReady"}, "info")
	c.shows([]string{"CGROUPFS"}, "runtime-config")
}

func (c *crictl) images() {
	c.Helper()
	c.must("pull", c.box)
	name, _, _ := strings.Cut(c.box, "/box")
	c.shows([]string{name + "/box", "1"}, "images")
	c.shows([]string{c.box, "imageSpec"}, "inspecti", c.box)
	c.shows([]string{`"usedBytes"`, `"mountpoint"`}, "imagefsinfo")
}

func (c *crictl) lists(pod, container string) {
	c.Helper()
	c.shows([]string{pod[:13], "Ready", "pod"}, "pods")
	c.shows([]string{container[:13], "Running", "main", pod[:13]}, "ps")
	c.shows([]string{container}, "ps", "--all", "--quiet", "--pod", pod, "--name", "main")
	c.shows([]string{"SANDBOX_READY", `"ip": "10.244.0.`}, "inspectp", pod)
}

func (c *crictl) sessions(pod, container string) {
	c.Helper()
	c.shows([]string{"synchronous"}, "exec", "--sync", container, "echo", "synchronous")
	if out, err := c.run("given", "exec", "--interactive", container, "sh", "-c", "cat; exit 0"); err != nil || out != "given" {
		c.Errorf("exec: %q, %v", out, err)
	}
	if _, err := c.run("", "exec", container, "sh", "-c", "exit 5"); err == nil || !strings.Contains(err.Error(), "exit code 5") {
		c.Errorf("exec's code: %v", err)
	}
	c.shows([]string{"streamed"}, "exec", container, "echo", "streamed")
	c.eventually("out", "logs", container)
	c.shows([]string{"out"}, "logs", "--tail", "10", "--timestamps", container)
	ctx, cancel := context.WithTimeout(c.Context(), limit)
	defer cancel()
	forward := c.command(ctx, "port-forward", pod, "18080:8080")
	var said bytes.Buffer
	forward.Stdout, forward.Stderr = &said, &said
	if err := forward.Start(); err != nil {
		c.Fatal(err)
	}
	got := ""
	for !strings.HasPrefix(got, "root:") && ctx.Err() == nil {
		out, _ := c.h.Command("busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:18080/passwd").Output()
		got = string(out)
	}
	_ = forward.Process.Signal(os.Interrupt)
	_ = forward.Wait()
	if !strings.HasPrefix(got, "root:") {
		c.Errorf("forwarded: %q; %s", got, said.String())
	}
}

func (c *crictl) measures(pod, container string) {
	c.Helper()
	c.shows([]string{container[:13], "main"}, "stats")
	c.shows([]string{pod[:13], "pod"}, "statsp")
	c.shows([]string{"container_memory_working_set_bytes"}, "metricsp")
	c.must("update", "--memory", "67108864", "--cpu-quota", "50000", "--cpu-period", "100000", container)
	c.shows([]string{`"memoryLimitInBytes": "67108864"`, `"cpuQuota": "50000"`}, "inspect", container)
}

func (c *crictl) attaches(pod, podConfig string) {
	c.Helper()
	id := c.must("create", pod, c.container("reader", "while read line; do echo got $line; done", map[string]any{"stdin": true, "stdin_once": true}), podConfig)
	c.must("start", id)
	if out, err := c.run("a\nb\n", "attach", "--stdin", id); err != nil || out != "got a\ngot b\n" {
		c.Errorf("attach: %q, %v", out, err)
	}
	c.eventually("CONTAINER_EXITED", "inspect", id)
}

// events listens until the test ends; the function that it returns waits for a text.
func (c *crictl) events() func(text string) {
	c.Helper()
	ctx, cancel := context.WithCancel(c.Context())
	path := filepath.Join(c.h.Dir, "events")
	f, err := os.Create(path)
	if err != nil {
		c.Fatal(err)
	}
	cmd := c.command(ctx, "events")
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() {
		cancel()
		_ = cmd.Wait()
		f.Close()
	})
	return func(text string) {
		c.Helper()
		for end := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
			raw, err := os.ReadFile(path)
			if err == nil && strings.Contains(string(raw), text) {
				return
			}
			if err != nil || time.Now().After(end) {
				c.Errorf("events: no %s in %s, %v", text, raw, err)
				return
			}
		}
	}
}
