package critest

import (
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type containerConfig = runtimeapi.ContainerConfig

const (
	created = runtimeapi.ContainerState_CONTAINER_CREATED
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED
)

func createCases() []Case {
	return []Case{
		{"the container is created, and does not run", 0, createState},
		{"each container has an ID of its own", 0, createIDs},
		{"the same name and attempt again is refused", 0, createTwice},
		{"another attempt is another container", 0, createAttempt},
		{"the same name in another sandbox is another container", 0, createElsewhere},
		{"a sandbox that is not there is refused", 0, createNoSandbox},
		{"a configuration without metadata is refused", 0, createNoMetadata},
		{"an image that is not there is refused", 0, createNoImage},
		{"no command anywhere is refused", 0, createNoCommand},
		{"the image may be named by its ID", 0, createByID},
		{"the image may be named by its digest", 0, createByDigest},
		{"a failed creation leaves its name free", 0, createFailedName},
		{"what the program writes elsewhere is its own", 0, createLayers},
	}
}

func createState(t *T) {
	s := t.status(t.create(t.any(), t.config(forever()...)))
	if s.State != created || s.CreatedAt <= 0 || s.StartedAt != 0 || s.FinishedAt != 0 {
		t.Errorf("%v", s)
	}
}

func createIDs(t *T) {
	a, b := t.create(t.any(), t.config(forever()...)), t.create(t.any(), t.config(forever()...))
	if a == b || a == "" || strings.ContainsAny(a, "/ ") {
		t.Errorf("%q and %q", a, b)
	}
}

func createTwice(t *T) {
	pod, c := t.any(), t.config(forever()...)
	t.create(pod, c)
	_, err := t.tryCreate(pod, clone(c))
	t.refused("the second creation", err)
}

func createAttempt(t *T) {
	pod, c := t.any(), t.config(forever()...)
	t.create(pod, c)
	again := clone(c)
	again.Metadata.Attempt++
	t.create(pod, again)
}

func createElsewhere(t *T) {
	c := t.config(forever()...)
	t.create(t.any(), c)
	t.create(t.own(), clone(c))
}

func createNoSandbox(t *T) {
	_, err := t.tryCreate(pods{"0123456789abcdef", t.sandboxConfig()}, t.config(forever()...))
	t.refused("a container in no sandbox", err, codes.NotFound)
}

func createNoMetadata(t *T) {
	c := t.config(forever()...)
	c.Metadata = nil
	_, err := t.tryCreate(t.any(), c)
	t.refused("a container without metadata", err)
}

func createNoImage(t *T) {
	c := t.config(forever()...)
	c.Image = &runtimeapi.ImageSpec{Image: t.images.open + "/never-pulled:1"}
	_, err := t.tryCreate(t.any(), c)
	t.refused("a container without an image", err, codes.NotFound)
}

func createNoCommand(t *T) {
	c := t.config()
	t.with(t.images.bare)(c)
	t.refused("a container without a command", t.runs(t.any(), c))
}

func createByID(t *T) {
	c := t.script("echo $IMAGE")
	c.Image = &runtimeapi.ImageSpec{Image: t.pull(t.images.box)}
	t.prints("yes\n", t.any(), c)
}

func createByDigest(t *T) {
	c := t.script("echo $IMAGE")
	c.Image = &runtimeapi.ImageSpec{Image: strings.TrimSuffix(t.images.box, ":1") + "@" + t.images.digest(t.TB, t.images.box)}
	t.prints("yes\n", t.any(), c)
}

func createFailedName(t *T) {
	c := t.config(forever()...)
	security(c).RunAsUsername = "nobody-here"
	_, err := t.tryCreate(t.any(), clone(c))
	t.refused("an unknown user", err)
	security(c).RunAsUsername = ""
	t.create(t.any(), c)
}

func createLayers(t *T) {
	pod := t.any()
	t.prints("mine\n", pod, t.script("echo mine > /work/file; cat /work/file"))
	t.prints("", pod, t.script("cat /work/file 2>/dev/null || true"))
}

func startCases() []Case {
	return []Case{
		{"the container runs", 0, startState},
		{"a container that is not there is not found", 0, startUnknown},
		{"a running container cannot be started", 0, startRunning},
		{"an exited container cannot be started", 0, startExited},
		{"a removed container cannot be started", 0, startRemoved},
		{"a program that is not there fails", 0, startNoProgram},
		{"a file that is no program fails, or ends at once", 0, startGarbage},
		{"a folder as a program fails", 0, startFolder},
		{"many start at once", 0, startMany},
	}
}

func startState(t *T) {
	s := t.status(t.sleeper(t.any()))
	if s.State != running || s.StartedAt < s.CreatedAt || s.FinishedAt != 0 {
		t.Errorf("%v", s)
	}
}

func startUnknown(t *T) {
	t.refused("the start of nothing", t.tryStart("0123456789abcdef"), codes.NotFound)
}

func startRunning(t *T) {
	id := t.sleeper(t.any())
	t.refused("the second start", t.tryStart(id))
	if s := t.status(id); s.State != running {
		t.Errorf("%v", s)
	}
}

func startExited(t *T) {
	id := t.run(t.any(), t.config("true"))
	t.exited(id)
	t.refused("the second start", t.tryStart(id))
}

func startRemoved(t *T) {
	id := t.create(t.any(), t.config("true"))
	t.remove(id)
	t.refused("the start of a removed container", t.tryStart(id), codes.NotFound)
}

// Servers find it out when they create or when they start: the kubelet takes either.
func startNoProgram(t *T) {
	err := t.runs(t.any(), t.config("/no/such/program"))
	t.refused("a program that is not there", err)
	if err != nil && !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("the error does not name it: %v", err)
	}
}

func startGarbage(t *T) {
	id := t.create(t.any(), t.config("/bin/garbage"))
	err := t.tryStart(id)
	s := t.exited(id)
	if s.ExitCode == 0 || s.FinishedAt == 0 || s.Reason == "Completed" {
		t.Errorf("%v", s)
	}
	if err != nil && (s.Reason != "StartError" || s.Message == "") {
		t.Errorf("%v after %v", s, err)
	}
}

func startFolder(t *T) { t.refused("a folder as a program", t.runs(t.any(), t.config("/bin"))) }

func startMany(t *T) {
	pod := t.own()
	var ids []string
	for range 5 {
		ids = append(ids, t.create(pod, t.script("exit 7")))
	}
	errs := make(chan error)
	for _, id := range ids {
		go func() { errs <- t.tryStart(id) }()
	}
	for range ids {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	for _, id := range ids {
		if s := t.exited(id); s.ExitCode != 7 {
			t.Errorf("%v", s)
		}
	}
}

func stopCases() []Case {
	return []Case{
		{"the program is asked first, and its code kept", 0, stopAsks},
		{"what does not listen is killed after the grace period", 0, stopKills},
		{"without a grace period it is killed at once", 0, stopAtOnce},
		{"the image's signal is sent", 0, stopImageSignal},
		{"the container's own signal goes before the image's", 33, stopOwnSignal},
		{"it may be repeated", 0, stopTwice},
		{"an exited container may be stopped", 0, stopExited},
		{"a created container may be stopped", 0, stopCreated},
		{"a container that was removed may be stopped", 32, stopRemoved},
		{"a shorter period overtakes a longer", 26, stopOvertakes},
		{"all processes of the container end", 0, stopAll},
	}
}

// listener says when it is ready, and leaves with a code when it is sent the signal.
func (t *T) listener(signal string) *containerConfig {
	return t.script("trap 'exit 42' "+signal, "touch /tmp/ready", "while :; do sleep 0.05; done")
}

// deaf is ready and ignores TERM.
func (t *T) deaf() *containerConfig {
	return t.script("trap '' TERM", "touch /tmp/ready", "while :; do sleep 0.05; done")
}

func (t *T) ready(id string) string {
	t.Helper()
	t.eventually("the container's readiness", func() bool {
		_, code := t.exec(id, "test", "-e", "/tmp/ready")
		return code == 0
	})
	return id
}

func (t *T) wantCode(id string, code int32) {
	t.Helper()
	if s := t.exited(id); s.ExitCode != code {
		t.Errorf("%v, want exit code %d", s, code)
	}
}

func stopAsks(t *T) {
	id := t.ready(t.run(t.any(), t.listener("TERM")))
	t.stop(id, patience)
	if s := t.status(id); s.State != exited || s.ExitCode != 42 {
		t.Errorf("%v", s)
	}
}

func stopKills(t *T) {
	id := t.ready(t.run(t.any(), t.deaf()))
	t.stop(id, time.Second)
	if s := t.status(id); s.State != exited || s.ExitCode != 137 {
		t.Errorf("%v", s)
	}
}

func stopAtOnce(t *T) {
	id := t.ready(t.run(t.any(), t.listener("TERM")))
	t.stop(id, 0)
	if s := t.status(id); s.State != exited || s.ExitCode != 137 {
		t.Errorf("%v", s)
	}
}

func stopImageSignal(t *T) {
	c := t.listener("USR1")
	t.with(t.images.app)(c)
	id := t.ready(t.run(t.any(), c))
	t.stop(id, patience)
	t.wantCode(id, 42)
}

func stopOwnSignal(t *T) {
	c := t.listener("USR2")
	t.with(t.images.app)(c)
	c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR2
	id := t.ready(t.run(t.any(), c))
	t.stop(id, patience)
	if s := t.exited(id); s.ExitCode != 42 || s.StopSignal != runtimeapi.Signal_SIGNAL_SIGUSR2 {
		t.Errorf("%v", s)
	}
}

func stopTwice(t *T) {
	id := t.sleeper(t.any())
	for range 3 {
		t.stop(id, 0)
	}
	t.wantCode(id, 137)
}

func stopExited(t *T) {
	id := t.run(t.any(), t.script("exit 3"))
	t.wantCode(id, 3)
	t.stop(id, patience)
	t.wantCode(id, 3)
}

func stopCreated(t *T) { t.stop(t.create(t.any(), t.config("true")), 0) }

func stopRemoved(t *T) {
	id := t.create(t.any(), t.config("true"))
	t.remove(id)
	t.stop(id, 0)
}

func stopOvertakes(t *T) {
	id := t.ready(t.run(t.any(), t.deaf()))
	done := make(chan error, 1)
	go func() {
		_, err := t.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 100_000})
		done <- err
	}()
	t.stop(id, time.Second)
	if err := <-done; err != nil {
		t.Error(err)
	}
	t.wantCode(id, 137)
}

func stopAll(t *T) {
	pod := t.own(func(c *sandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	c := t.script("sleep 98765 & touch /tmp/ready; exec sleep 98765")
	security(c).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	id := t.ready(t.run(pod, c))
	t.stop(id, 0)
	look := t.script("ps | grep -c '[s]leep 98765' || true")
	security(look).NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	t.prints("0\n", pod, look)
}

func removeCases() []Case {
	return []Case{
		{"a created container is gone", 0, removeCreated},
		{"an exited container is gone", 0, removeExited},
		{"a running container is killed and gone", 0, removeRunning},
		{"it may be repeated", 0, removeTwice},
		{"a container that never was is no error", 0, removeUnknown},
		{"the name is free again", 0, removeName},
		{"its log stays", 0, removeLog},
		{"its sandbox stays", 0, removeSandbox},
	}
}

func (t *T) gone(id string) {
	t.Helper()
	_, err := t.Runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	t.refused("the status of a removed container", err, codes.NotFound)
	if l := t.containers(&runtimeapi.ContainerFilter{Id: id}); len(l) != 0 {
		t.Errorf("%v", l)
	}
}

func removeCreated(t *T) {
	id := t.create(t.any(), t.config("true"))
	t.remove(id)
	t.gone(id)
}

func removeExited(t *T) {
	id := t.run(t.any(), t.config("true"))
	t.exited(id)
	t.remove(id)
	t.gone(id)
}

func removeRunning(t *T) {
	id := t.sleeper(t.any())
	t.remove(id)
	t.gone(id)
}

func removeTwice(t *T) {
	id := t.create(t.any(), t.config("true"))
	for range 3 {
		t.remove(id)
	}
}

func removeUnknown(t *T) { t.remove("0123456789abcdef") }

func removeName(t *T) {
	c := t.config("true")
	t.remove(t.create(t.any(), c))
	t.create(t.any(), clone(c))
}

func removeLog(t *T) {
	pod, c := t.any(), t.script("echo here")
	id := t.run(pod, c)
	t.exited(id)
	t.remove(id)
	if _, err := os.Stat(logPath(pod, c)); err != nil {
		t.Error(err)
	}
}

func removeSandbox(t *T) {
	pod := t.own()
	t.remove(t.sleeper(pod))
	if s := t.sandboxStatus(pod.id); s.State != runtimeapi.PodSandboxState_SANDBOX_READY || !proto.Equal(s.Metadata, pod.config.Metadata) {
		t.Errorf("%v", s)
	}
}
