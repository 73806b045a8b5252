package criserver

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/cri/critest"
	"github.com/yare-dev/yare/oci/ocitest"
)

var allOfHandlers = flag.Bool("handlers", false, "run all of the suite with each handler, not only what touches the runtime")

// runtimes are those that tests find on the host.
var runtimes = []string{"runc", "crun"}

// hostHandlers are a configuration of the runtimes that the host has.
func hostHandlers() map[string]Handler {
	all := map[string]Handler{}
	for _, name := range runtimes {
		if path, err := exec.LookPath(name); err == nil {
			all[name] = Handler{Path: path}
		}
	}
	return all
}

// handlerOfTest is the handler of the tests below those of this file; "" for all others.
func handlerOfTest(t testing.TB) string {
	if parts := strings.Split(t.Name(), "/"); len(parts) > 1 && (parts[0] == "TestSuiteHandlers" || parts[0] == "TestHandlers") {
		return parts[1]
	}
	return ""
}

// needHandler skips the test where the host has no such runtime. It returns false when there is nothing left to do.
func needHandler(t *testing.T, name string) bool {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%v: see scripts/setup", err)
	}
	return name != "crun" || ocitest.OneHierarchy(t)
}

// runtimeGroups touch the runtime; the others are the same for every one, and are run by -handlers.
var runtimeGroups = []string{"StartContainer", "StopContainer", "RemoveContainer", "Process", "Security", "Namespaces", "Resources",
	"ExecSync", "Exec", "Attach", "Log", "Stats"}

// deviations are cases that cannot hold, by handler.
var deviations = map[string]map[string]string{
	"crun": {"Mounts/a recursive read-only folder does not": "Debian's crun 1.8 has no command that tells of its features, and so is not trusted to have this one"},
}

// TestSuiteHandlers runs the suite of CRI with the containers of other runtimes.
func TestSuiteHandlers(t *testing.T) {
	t.Parallel()
	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !needHandler(t, name) {
				return
			}
			h := newHarness(t)
			target := h.target(h.Client)
			target.Handler, target.Deviations = name, deviations[name]
			if !*allOfHandlers {
				target.Groups = runtimeGroups
				maps.DeleteFunc(target.Deviations, func(c, _ string) bool {
					group, _, _ := strings.Cut(c, "/")
					return !slices.Contains(runtimeGroups, group)
				})
			}
			critest.Run(t, target)
		})
	}
}

// TestHandlers holds pods of other runtimes to what ours are held to, also when a server or a shim is killed. StartFails is not here:
// their start does not wait for execve, so that what only the kernel finds wrong with a program is a container that ends at once.
func TestHandlers(t *testing.T) {
	t.Parallel()
	for _, name := range runtimes {
		t.Run(name, func(t *testing.T) {
			if !needHandler(t, name) {
				return
			}
			for name, test := range map[string]func(*testing.T){
				"QuickEnd": TestQuickEnd, "FailuresLeaveNothing": TestFailuresLeaveNothing, "Restart": TestRestart, "ShimKilled": TestShimKilled,
				"Killed": TestKilled,
			} {
				t.Run(name, test)
			}
		})
	}
}

// TestHandlerGone restarts the server without the handler of a pod that runs.
func TestHandlerGone(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if !needHandler(t, "runc") {
		return
	}
	h.handler = "runc"
	h.stop()
	h.configure(h.deps.Init)
	h.start()
	pod := h.runPod("p")
	id := h.run(pod, "c", "sleep", "1000")
	h.stop()
	h.cfg.Handlers = nil
	h.start()
	h.wantExec(id, "hi\n", "echo", "hi") // what was begun goes on
	_, err := h.Runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: h.containerConfig("d", "true")})
	if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `runtime handler "runc" is not configured`) {
		t.Errorf("a further container: %v", err)
	}
}

// TestStopWithoutSignal stops a container whose runtime cannot send a signal: it is killed, long before the time that it has to stop.
func TestStopWithoutSignal(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if !needHandler(t, "runc") {
		return
	}
	path := filepath.Join(t.TempDir(), "lame")
	if err := os.WriteFile(path, []byte("#!/bin/sh\ncase \" $* \" in *' kill '*) exit 1;; esac\nexec runc \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h.stop()
	h.handler, h.cfg.Handlers = "lame", map[string]Handler{"lame": {Path: path}}
	h.start()
	id := h.run(h.runPod("p"), "c", "sleep", "1000")
	if _, err := h.Runtime.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1 << 20}); err != nil {
		t.Error(err)
	}
	if s := h.exited(id); s.ExitCode != 137 {
		t.Errorf("it ended with %d", s.ExitCode)
	}
}

// TestStartFailsLater has a runtime fail, or take longer than its caller waits, and start the container all the same: one that the
// server calls ended does not run.
func TestStartFailsLater(t *testing.T) {
	t.Parallel()
	h := newHarness(t)
	if !needHandler(t, "runc") {
		return
	}
	fails, slow := filepath.Join(t.TempDir(), "fails"), filepath.Join(t.TempDir(), "slow")
	fifo := filepath.Join(t.TempDir(), "fifo")
	err := errors.Join(unix.Mkfifo(fifo, 0o600),
		os.WriteFile(fails, []byte("#!/bin/sh\nrunc \"$@\" || exit\ncase \" $* \" in *' start '*) exit 1;; esac\n"), 0o755),
		os.WriteFile(slow, []byte("#!/bin/sh\ncase \" $* \" in *' start '*) read x <"+fifo+";; esac\nexec runc \"$@\"\n"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	h.stop()
	h.cfg.Handlers = map[string]Handler{"fails": {Path: fails}, "slow": {Path: slow}}
	h.start()
	for name := range h.cfg.Handlers {
		h.handler = name
		id := h.create(h.runPod(name), h.containerConfig("c", "sleep", "1000"))
		c := h.server.containers[id]
		pid := c.pid
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			if name == "slow" {
				f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // opens when the runtime reads
				cancel()
				if err == nil {
					defer f.Close()
					<-c.exited
				}
			}
		}()
		_, err := h.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		cancel()
		if err == nil {
			t.Errorf("%s: no error", name)
		}
		if s := h.exited(id); s.ExitCode != exitStartError {
			t.Errorf("%s: it ended with %v", name, s)
		}
		for deadline := time.Now().Add(20 * time.Second); unix.Kill(pid, 0) == nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: process %d lives", name, pid)
			}
		}
	}
}

func TestHandlerRefusals(t *testing.T) {
	t.Parallel()
	can := &handler{features: &runtimeapi.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true, UserNamespaces: true}}
	cannot := &handler{features: &runtimeapi.RuntimeHandlerFeatures{}}
	pod := &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}}}}}
	container := &runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{{ContainerPath: "/data", RecursiveReadOnly: true}}}
	for name, h := range map[string]*handler{"built-in": nil, "able": can} {
		if err := errors.Join(h.takesPod("x", pod), h.takes("x", container)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for what, err := range map[string]error{"user namespaces": cannot.takesPod("old", pod), "recursive read-only": cannot.takes("old", container)} {
		if cri.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), `"old"`) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := errors.Join(cannot.takesPod("old", &runtimeapi.PodSandboxConfig{}), cannot.takes("old", &runtimeapi.ContainerConfig{})); err != nil {
		t.Errorf("a usual pod: %v", err)
	}
}

func TestCheckHandlers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		h    Handler
		want string // the beginning of the only problem; "" for none
	}{
		{"crun", Handler{Path: "/bin/sh"}, ""},
		{"g-visor2", Handler{Path: "/bin/sh", Options: []string{"--platform=systrap", "-x"}}, ""},
		{"Crun", Handler{Path: "/bin/sh"}, "Crun: not a name"},
		{"a.b", Handler{Path: "/bin/sh"}, "a.b: not a name"},
		{"", Handler{Path: "/bin/sh"}, ": not a name"},
		{strings.Repeat("a", 64), Handler{Path: "/bin/sh"}, strings.Repeat("a", 64) + ": not a name"},
		{"yare", Handler{Path: "/bin/sh"}, "yare: is the name"},
		{"crun", Handler{}, `crun.path: "" is not an absolute`},
		{"crun", Handler{Path: "bin/sh"}, `crun.path: "bin/sh" is not an absolute`},
		{"crun", Handler{Path: dir + "/none"}, "crun.path: stat"},
		{"crun", Handler{Path: dir}, "crun.path: " + dir + " is not a program"},
		{"crun", Handler{Path: text}, "crun.path: " + text + " is not a program"},
		{"crun", Handler{Path: "/bin/sh", Options: []string{"--a=b", "create"}}, `crun.options[1]: "create" is not an option`},
		{"crun", Handler{Path: "/bin/sh", Options: []string{"--"}}, `crun.options[0]: "--" is not an option`},
	} {
		var got []string
		CheckHandlers(map[string]Handler{c.name: c.h}, func(field, format string, args ...any) {
			got = append(got, fmt.Errorf(field+": "+format, args...).Error())
		})
		if c.want == "" && len(got) != 0 || c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], c.want)) {
			t.Errorf("%q %+v: %q, want %q", c.name, c.h, got, c.want)
		}
	}
}

func TestHandlerFeatures(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		told       string
		host       bool // has user namespaces
		rro, users bool
	}{
		{`{"ociVersionMin": "1.0.0", "mountOptions": ["ro", "rro"], "linux": {"namespaces": ["pid", "user"]}}`, true, true, false}, // runc 1.1
		{`{"mountOptions": ["ro", "rro"], "linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": true}}}}`, true, true, true},
		{`{"mountOptions": ["ro", "rro"], "linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": true}}}}`, false, true, false},
		{`{"linux": {"namespaces": ["pid"], "mountExtensions": {"idmap": {"enabled": true}}}}`, true, false, false},
		{`{"linux": {"namespaces": ["user"], "mountExtensions": {"idmap": {"enabled": false}}}}`, true, false, false},
		{`{}`, true, false, false},
	} {
		f, err := handlerFeatures([]byte(c.told), hostFacts{Users: c.host})
		if err != nil || f.RecursiveReadOnlyMounts != c.rro || f.UserNamespaces != c.users {
			t.Errorf("%s: %v, %v", c.told, f, err)
		}
	}
	if f, err := handlerFeatures([]byte("unknown command features"), hostFacts{}); err == nil || f.RecursiveReadOnlyMounts {
		t.Errorf("no JSON: %v, %v", f, err)
	}
}

// TestFeaturesOfBroken asks runtimes that do not end, leave a child with their output, or do not stop telling: the server starts.
func TestFeaturesOfBroken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	configured := map[string]Handler{}
	for name, script := range map[string]string{"hangs": "exec sleep 1000", "leaves": "sleep 60 & exit 0", "floods": "exec cat /dev/zero"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		configured[name] = Handler{Path: path}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for name, h := range openHandlers(ctx, configured, hostFacts{}, slog.New(slog.NewTextHandler(t.Output(), nil))) {
		if h.features.RecursiveReadOnlyMounts || h.features.UserNamespaces {
			t.Errorf("%s: %v", name, h.features)
		}
	}
}

// TestStatusTellsHandlers looks for every handler with what it told of itself.
func TestStatusTellsHandlers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "other")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n[ \"$*\" = '--deep features' ] && echo '{\"mountOptions\": [\"rro\"]}'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	h := newHarness(t)
	h.stop()
	h.cfg.Handlers = map[string]Handler{"other": {Path: path, Options: []string{"--deep"}}, "silent": {Path: "/bin/false"}}
	h.start()
	r, err := h.Runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range r.RuntimeHandlers[2:] {
		got = append(got, fmt.Sprintln(h.Name, h.Features.RecursiveReadOnlyMounts, h.Features.UserNamespaces))
	}
	if want := []string{"other true false\n", "silent false false\n"}; !slices.Equal(got, want) {
		t.Errorf("handlers %q, want %q", got, want)
	}
}
