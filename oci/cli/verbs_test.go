package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/yare-dev/yare/linux"
)

// limit reads a value of the container's group, by its name in v1 or v2.
func (b *box) limit(controller, v1, v2 string) string {
	b.Helper()
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		b.Fatal(err)
	}
	for _, h := range hierarchies {
		for _, name := range []string{v1, v2} {
			if text, err := os.ReadFile(filepath.Join(h.Root, b.cgroup, "c", name)); err == nil {
				return strings.TrimSpace(string(text))
			}
		}
	}
	b.Fatalf("no %s group of %s has %s or %s", controller, b.cgroup, v1, v2)
	return ""
}

func TestUpdateAndEvents(t *testing.T) {
	t.Parallel()
	b, _ := running(t, nil)
	b.do("update", "--memory", "64m", "--pids-limit", "33", "--cpu-quota", "50000", "--cpu-period", "100000", "c")
	if got := b.limit("memory", "memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("memory %s", got)
	}
	if got := b.limit("pids", "pids.max", "pids.max"); got != "33" {
		t.Errorf("pids %s", got)
	}
	if _, stderr, code := b.feed(`{"pids":{"limit":44}}`, "update", "--resources", "-", "c"); code != 0 {
		t.Error(stderr)
	}
	if got := b.limit("pids", "pids.max", "pids.max"); got != "44" {
		t.Errorf("pids %s", got)
	}
	if got := b.limit("memory", "memory.limit_in_bytes", "memory.max"); got != "67108864" {
		t.Errorf("memory %s after an update of something else", got)
	}
	var event struct {
		Type, ID string
		Data     struct {
			Memory struct{ Usage struct{ Usage, Limit uint64 } }
			Pids   struct{ Current, Limit uint64 }
		}
	}
	if err := json.Unmarshal([]byte(b.do("events", "--stats", "c")), &event); err != nil {
		t.Fatal(err)
	}
	if event.Type != "stats" || event.ID != "c" || event.Data.Pids.Current != 1 || event.Data.Pids.Limit != 44 ||
		event.Data.Memory.Usage.Usage == 0 || event.Data.Memory.Usage.Limit != 64<<20 {
		t.Errorf("%+v", event)
	}
	c := b.command("events", "--interval", "10ms", "c")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for d, n := json.NewDecoder(out), 0; n < 3; n++ {
		if err := d.Decode(&event); err != nil {
			t.Fatal(err)
		}
	}
	b.do("kill", "c", "9")
	if err := c.Wait(); err != nil {
		t.Errorf("events do not end with the container: %v", err)
	}
}

func TestSpec(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil, "true")
	dir := t.TempDir()
	b.do("spec", "--bundle", dir)
	s := new(specs.Spec)
	if err := json.Unmarshal([]byte(read(t, filepath.Join(dir, "config.json"))), s); err != nil {
		t.Fatal(err)
	}
	if s.Version != specs.Version || s.Root.Path != "rootfs" || !s.Process.Terminal {
		t.Errorf("%+v", s)
	}
	if _, stderr, code := b.try("spec", "-b", dir); code != 1 || !strings.Contains(stderr, "exists") {
		t.Errorf("a second spec: %d %s", code, stderr)
	}
	// It runs as it is, once there is a root file system.
	var made specs.Spec
	if err := json.Unmarshal([]byte(read(t, filepath.Join(b.bundle, "config.json"))), &made); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(made.Root.Path, filepath.Join(dir, "rootfs")); err != nil {
		t.Fatal(err)
	}
	s.Linux.CgroupsPath = b.cgroup + "/c"
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	out, stderr, code := b.feed("hostname; exit 2\n", "run", "-b", dir, "c")
	if code != 2 || !strings.Contains(out, "yare\r\n") {
		t.Errorf("exit code %d, output %q, errors %q", code, out, stderr)
	}
}

func TestFeaturesAndVersion(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil, "true")
	f := new(features.Features)
	if err := json.Unmarshal([]byte(b.do("features")), f); err != nil || f.OCIVersionMax != specs.Version || len(f.Linux.Namespaces) < 6 {
		t.Errorf("%+v, %v", f, err)
	}
	if got := b.do("--version"); got != "yare oci version test\nspec: "+specs.Version+"\n" {
		t.Errorf("%q", got)
	}
}

// What goes wrong is told on standard error and in the log, in the form and the words that containerd looks for.
func TestErrors(t *testing.T) {
	t.Parallel()
	b, _ := running(t, nil)
	empty := t.TempDir()
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"state of nothing", []string{"state", "x"}, "does not exist"},
		{"kill of nothing", []string{"kill", "x"}, "does not exist"},
		{"delete of nothing", []string{"delete", "x"}, "does not exist"},
		{"create twice", []string{"create", "-b", b.bundle, "c"}, "already exists"},
		{"no bundle", []string{"create", "-b", empty, "y"}, "config.json"},
		{"bad identifier", []string{"create", "-b", b.bundle, "a/b"}, "invalid identifier"},
		{"start twice", []string{"start", "c"}, "it is running"},
		{"delete of what runs", []string{"delete", "c"}, "it is running"},
		{"resume of what runs", []string{"resume", "c"}, "it is running"},
		{"signal", []string{"kill", "c", "NOPE"}, "unknown"},
		{"console socket without terminal", []string{"create", "--console-socket", "/nowhere", "-b", b.bundle, "y"}, "console socket"},
		{"group in use", []string{"create", "-b", b.bundle, "y"}, "it has processes"},
		{"update file", []string{"update", "-r", "/nowhere", "c"}, "/nowhere"},
		{"list format", []string{"list", "-f", "yaml"}, "must be table or json"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "log.json")
			out, stderr, code := b.try(append([]string{"--log", log, "--log-format", "json"}, tt.args...)...)
			if code != 1 || out != "" || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, output %q, errors %q", code, out, stderr)
			}
			var entry struct{ Level, Msg, Time string }
			if err := json.Unmarshal([]byte(read(t, log)), &entry); err != nil {
				t.Fatal(err)
			}
			if entry.Level != "error" || !strings.Contains(entry.Msg, tt.want) || entry.Time == "" {
				t.Errorf("logged: %+v", entry)
			}
		})
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--log-format", "xml", "list"}, "must be text or json"},
		{[]string{"--systemd-cgroup", "create", "-b", b.bundle, "other"}, "slice:prefix:name"},
		{[]string{"--rootless=true", "list"}, "not supported"},
		{[]string{"start"}, "accepts 1 arg"},
		{[]string{"update", "--memory", "many", "c"}, "not an amount of memory"},
	} {
		if _, stderr, code := b.try(tt.args...); code != 1 || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: exit code %d, errors %q", tt.args, code, stderr)
		}
	}
}

// TestUnits is about hosts that systemd does not run: paths of its form are refused.
func TestUnits(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		return
	}
	for path, want := range map[string]string{
		"system.slice:yare:c": "need a host that systemd runs", "a:b": "not of the form", "a.slice:b:c/d": "not of the form", "noslice:b:c": "invalid slice",
	} {
		b := newBox(t, func(s *specs.Spec) { s.Linux.CgroupsPath = path }, "true")
		if _, stderr, code := b.try("--systemd-cgroup", "run", "-b", b.bundle, "c"); code == 0 || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, errors %q", path, code, stderr)
		}
		if _, stderr, code := b.try("run", "-b", b.bundle, "c"); code == 0 || !strings.Contains(stderr, "slice:prefix:name") {
			t.Errorf("%s without the flag: exit code %d, errors %q", path, code, stderr)
		}
	}
}

// A container whose pid cannot be told is taken back.
func TestNoPidFile(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil, "true")
	for _, verb := range []string{"create", "run"} {
		if _, stderr, code := b.try(verb, "--pid-file", "/nowhere/pid", "-b", b.bundle, "c"); code != 1 || !strings.Contains(stderr, "/nowhere/pid") {
			t.Errorf("%d %s", code, stderr)
		}
		if out := b.do("list", "-q"); out != "" {
			t.Errorf("left: %s", out)
		}
	}
}

// containerd takes a kill of what has ended for done if the runtime says so in these words.
func TestKillOfWhatHasEnded(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil, "true")
	b.do("run", "--keep", "-b", b.bundle, "c")
	if _, stderr, code := b.try("kill", "c", "KILL"); code != 1 || !strings.Contains(stderr, "container not running") {
		t.Errorf("%d %s", code, stderr)
	}
	b.do("kill", "--all", "c", "KILL")
	b.do("delete", "c")
}

func TestMemory(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "-1": -1, "1000": 1000, "4k": 4096, "64m": 64 << 20, "1G": 1 << 30, "2gb": 2 << 30, "1t": 1 << 40} {
		var b memory
		if err := b.Set(text); err != nil || int64(b) != want {
			t.Errorf("%s: %d, %v", text, b, err)
		}
	}
	for _, text := range []string{"", "m", "-2", "-1k", "1x", "9999999t", "1.5g"} {
		var b memory
		if b.Set(text) == nil {
			t.Errorf("%q is taken for %d", text, b)
		}
	}
}

// Checkpoints are refused, and the log says so where a caller looks.
func TestAbsentVerbs(t *testing.T) {
	t.Parallel()
	b := newBox(t, nil, "true")
	for _, verb := range []string{"checkpoint", "restore"} {
		log := filepath.Join(t.TempDir(), "log")
		_, stderr, code := b.try("--log", log, "--log-format", "json", verb, "--image-path", "/x", "c")
		if code != 1 || !strings.Contains(stderr, verb+" is not supported") {
			t.Errorf("%s: exit code %d, %q", verb, code, stderr)
		}
		var line struct{ Level, Msg string }
		if err := json.Unmarshal([]byte(read(t, log)), &line); err != nil || line.Level != "error" || !strings.Contains(line.Msg, "not supported") {
			t.Errorf("%s: log %+v, %v", verb, line, err)
		}
	}
}

// Warnings are told when all went well. Podman finds out by words on the standard error what went wrong: there is the error
// alone.
func TestWarnings(t *testing.T) {
	b := newBox(t, func(s *specs.Spec) {
		s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_NOPE")
	}, "true")
	if _, stderr, code := b.try("run", "-b", b.bundle, "c"); code != 0 || strings.Count(stderr, "CAP_NOPE") != 1 {
		t.Errorf("exit code %d, errors %q", code, stderr)
	}
	for _, tt := range []struct {
		flags []string
		told  bool
	}{{nil, false}, {[]string{"--debug"}, true}} {
		b.write(func(s *specs.Spec) {
			s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_NOPE")
		}, "missing")
		_, stderr, code := b.try(append(tt.flags, "create", "-b", b.bundle, "c")...)
		if code != 1 || !strings.Contains(stderr, "not found") || strings.Contains(stderr, "CAP_NOPE") != tt.told {
			t.Errorf("%v: exit code %d, errors %q", tt.flags, code, stderr)
		}
	}
}

// The command line is read as runc's is, and those who ask how it goes are told.
func TestCommandLine(t *testing.T) {
	t.Parallel()
	line := func(args ...string) (string, error) {
		var out strings.Builder
		c := newCommand("oci", "v", nil)
		c.out = &out
		err := c.run(t.Context(), args)
		return out.String(), err
	}
	for _, args := range [][]string{nil, {"help"}, {"--help"}, {"--root", "/r", "-h"}} {
		out, err := line(args...)
		if err != nil || !strings.Contains(out, "--systemd-cgroup") {
			t.Errorf("%q: %v, %s", args, err, out)
		}
		for _, v := range verbs {
			if strings.Contains(out, "\n  "+v.name+" ") == v.absent {
				t.Errorf("%q: %s", args, out)
			}
		}
	}
	for _, args := range [][]string{{"help", "run"}, {"run", "--help"}, {"--root", "/r", "run", "x", "-dh"}} {
		out, err := line(args...)
		if err != nil || !strings.Contains(out, "oci run <id> [flags]\n") || !strings.Contains(out, "-d, --detach") || !strings.Contains(out, "--root string") {
			t.Errorf("%q: %v, %s", args, err, out)
		}
	}
	root := t.TempDir()
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"ru"}, `unknown command "ru"`},
		{[]string{"--nope", "list"}, "unknown flag: --nope"},
		{[]string{"list", "--nope"}, "unknown flag: --nope"},
		{[]string{"list", "x"}, "accepts 0 arg(s), received 1"},
		{[]string{"kill"}, "accepts between 1 and 2 arg(s), received 0"},
		{[]string{"kill", "a", "b", "c"}, "received 3"},
		{[]string{"exec", "-d"}, "requires at least 1 arg(s), only received 0"},
		{[]string{"state", "x", "--root", root}, "container x: container does not exist"},              // a global flag, after all
		{[]string{"--root=" + root, "delete", "delete"}, "container delete: container does not exist"}, // a container may have a verb's name
		{[]string{"--root", root, "exec", "x", "ls", "--help"}, "container x: container does not exist"},
	} {
		if out, err := line(tt.args...); err == nil || !strings.Contains(err.Error(), tt.want) || out != "" {
			t.Errorf("%q: %v, %q", tt.args, err, out)
		}
	}
}
