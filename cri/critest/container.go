package critest

import (
	"os"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// forever is a command that runs until it is killed.
func forever() []string { return []string{"sleep", "100000"} }

// config is a usual container's, with a name of its own.
func (t *T) config(cmd ...string) *runtimeapi.ContainerConfig {
	name := t.unique("c")
	return &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: name, Attempt: 2},
		Image:       &runtimeapi.ImageSpec{Image: t.images.box},
		Command:     cmd,
		LogPath:     name + ".log",
		Labels:      map[string]string{"container": name},
		Annotations: map[string]string{"note": "of " + name},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

// pods is a sandbox with the configuration that CreateContainer is told again.
type pods struct {
	id     string
	config *runtimeapi.PodSandboxConfig
}

// any is the shared pod.
func (t *T) any() pods {
	t.Helper()
	id, config := t.shared()
	return pods{id, config}
}

// own is a pod of the case's own, changed.
func (t *T) own(change ...func(*runtimeapi.PodSandboxConfig)) pods {
	t.Helper()
	id, config := t.newPod(change...)
	return pods{id, config}
}

// tryCreate creates a container, which may fail.
func (t *T) tryCreate(pod pods, config *runtimeapi.ContainerConfig) (string, error) {
	t.Helper()
	r, err := t.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod.id, Config: config, SandboxConfig: pod.config})
	if err != nil {
		return "", err
	}
	return r.ContainerId, nil
}

func (t *T) create(pod pods, config *runtimeapi.ContainerConfig) string {
	t.Helper()
	id, err := t.tryCreate(pod, config)
	if err != nil {
		t.Fatalf("create container: %v", err)
	}
	return id
}

func (t *T) tryStart(id string) error {
	_, err := t.Runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	return err
}

func (t *T) start(id string) {
	t.Helper()
	if err := t.tryStart(id); err != nil {
		t.Fatalf("start container: %v", err)
	}
}

// run creates and starts.
func (t *T) run(pod pods, config *runtimeapi.ContainerConfig) string {
	t.Helper()
	id := t.create(pod, config)
	t.start(id)
	return id
}

// runs is run, and fails at one of the two. It returns the error.
func (t *T) runs(pod pods, config *runtimeapi.ContainerConfig) error {
	t.Helper()
	id, err := t.tryCreate(pod, config)
	if err != nil {
		return err
	}
	return t.tryStart(id)
}

func (t *T) stop(id string, grace time.Duration) {
	t.Helper()
	if _, err := t.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(grace / time.Second)}); err != nil {
		t.Fatalf("stop container: %v", err)
	}
}

func (t *T) remove(id string) {
	t.Helper()
	if _, err := t.Runtime.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("remove container: %v", err)
	}
}

func (t *T) status(id string) *runtimeapi.ContainerStatus {
	t.Helper()
	r, err := t.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatalf("container status: %v", err)
	}
	return r.Status
}

// exited waits for a container's end.
func (t *T) exited(id string) *runtimeapi.ContainerStatus {
	t.Helper()
	var s *runtimeapi.ContainerStatus
	t.eventually("the container's end", func() bool {
		s = t.status(id)
		return s.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return s
}

// record is a line of a log.
type record struct {
	at           time.Time
	stream, tags string
	text         string
}

// logPath is where the container's log is.
func logPath(pod pods, config *runtimeapi.ContainerConfig) string {
	return filepath.Join(pod.config.LogDirectory, config.LogPath)
}

// readLog reads a log in CRI's format; a last line that is still being written is left out.
func (t *T) readLog(path string) []record {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []record
	for line := range strings.Lines(string(raw)) {
		if !strings.HasSuffix(line, "\n") {
			break
		}
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4)
		if len(f) != 4 {
			t.Fatalf("log line %q", line)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			t.Fatalf("log line %q: %v", line, err)
		}
		all = append(all, record{at, f[1], f[2], f[3]})
	}
	return all
}

// said is what a log has of a stream, whole lines again. Servers differ in whether they keep the carriage returns of a
// terminal's lines.
func said(log []record, stream string) string {
	var b strings.Builder
	for _, r := range log {
		if r.stream != stream {
			continue
		}
		b.WriteString(strings.TrimSuffix(r.text, "\r"))
		if r.tags == "F" {
			b.WriteString("\n")
		}
	}
	return b.String()
}

// finish runs a container to its end and returns the status and the log.
func (t *T) finish(pod pods, config *runtimeapi.ContainerConfig) (*runtimeapi.ContainerStatus, []record) {
	t.Helper()
	id := t.run(pod, config)
	s := t.exited(id)
	return s, t.readLog(logPath(pod, config))
}

// lag is how long a log may come after the end of its container: CRI asks for no order.
const lag = 3 * time.Second

// prints runs a container and compares what it printed.
func (t *T) prints(want string, pod pods, config *runtimeapi.ContainerConfig) {
	t.Helper()
	s, log := t.finish(pod, config)
	for end := time.Now().Add(lag); said(log, "stdout") != want && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		log = t.readLog(logPath(pod, config))
	}
	if got := said(log, "stdout"); got != want || s.ExitCode != 0 {
		t.Errorf("it printed %q, want %q; exit code %d, errors %q", got, want, s.ExitCode, said(log, "stderr"))
	}
}

// script is a container that runs a shell script.
func (t *T) script(lines ...string) *runtimeapi.ContainerConfig {
	return t.config("sh", "-c", strings.Join(lines, "\n"))
}

// exec runs a command in a container to its end.
func (t *T) exec(id string, cmd ...string) (stdout string, code int32) {
	t.Helper()
	r, err := t.Runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd})
	if err != nil {
		t.Fatalf("exec %v: %v", cmd, err)
	}
	return string(r.Stdout), r.ExitCode
}

func (t *T) wantExec(id, want string, cmd ...string) {
	t.Helper()
	if out, code := t.exec(id, cmd...); out != want || code != 0 {
		t.Errorf("%v: %q and exit code %d, want %q", cmd, out, code, want)
	}
}

// sleeper is a running container that does nothing.
func (t *T) sleeper(pod pods, change ...func(*runtimeapi.ContainerConfig)) string {
	t.Helper()
	c := t.config(forever()...)
	for _, f := range change {
		f(c)
	}
	return t.run(pod, c)
}

// security is the security context of a configuration.
func security(c *runtimeapi.ContainerConfig) *runtimeapi.LinuxContainerSecurityContext {
	return c.Linux.SecurityContext
}
