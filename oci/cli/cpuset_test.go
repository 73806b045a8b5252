package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/linux"
)

// cpusets is where v1's cpuset hierarchy is mounted, if there is one for itself.
func cpusets(t *testing.T) string {
	t.Helper()
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hierarchies {
		if slices.Equal(h.Controllers, []string{"cpuset"}) {
			return h.Root
		}
	}
	return ""
}

// withoutCgroups is a container that does not see its groups.
func withoutCgroups(s *specs.Spec) {
	s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "cgroup" })
}

// On v1 a container is not restricted to processors until that is asked for. Then it is with all its processes, those that
// are born meanwhile or come later too.
func TestProcessorsLater(t *testing.T) {
	t.Parallel()
	root := cpusets(t)
	b, _ := running(t, withoutCgroups)
	if root == "" {
		return
	}
	dir := filepath.Join(root, b.cgroup, "c")
	missing := func() {
		t.Helper()
		if _, err := os.Lstat(filepath.Dir(dir)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("there is a group: %v", err)
		}
	}
	missing()
	for range 5 {
		b.do("exec", "--detach", "c", "sh", "-c", "while :; do sleep 0.001; done")
	}
	all := func(group string) {
		t.Helper()
		var pids []int
		if err := json.Unmarshal([]byte(b.do("ps", "--format", "json", "c")), &pids); err != nil || len(pids) < 6 {
			t.Errorf("ps: %v, %v", pids, err)
		}
		for _, pid := range pids {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			lives := strings.Contains(string(text), ":freezer:"+b.cgroup+"/c\n") // who has ended is in no v1 group
			if err == nil && lives && !strings.Contains(string(text), ":cpuset:"+group+"\n") {
				t.Errorf("process %d is not in %s: %s", pid, group, text)
			}
		}
	}
	all("/")
	if _, stderr, code := b.try("update", "--cpuset-cpus", "4000", "c"); code != 1 || !strings.Contains(stderr, "cpuset.cpus") {
		t.Errorf("exit code %d, errors %q", code, stderr)
	}
	b.do("update", "--memory", "64m", "c")
	b.do("events", "--stats", "c")
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("there is a group: %v", err)
	}
	b.do("update", "--cpuset-cpus", "0", "c")
	all(b.cgroup + "/c")
	b.do("events", "--stats", "c")
	if out := b.do("exec", "c", "grep", "Cpus_allowed_list", "/proc/self/status"); out != "Cpus_allowed_list:\t0\n" {
		t.Error(out)
	}
	b.do("delete", "--force", "c")
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

// Whose group is below one of the cpuset hierarchy, or is asked for, or is seen by the container, has one at once.
func TestProcessorsAtOnce(t *testing.T) {
	t.Parallel()
	root := cpusets(t)
	if root == "" {
		return
	}
	for name, change := range map[string]func(*specs.Spec){
		"shown": func(*specs.Spec) {},
		"asked": func(s *specs.Spec) {
			withoutCgroups(s)
			s.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "0"}
		},
		"namespace": func(s *specs.Spec) {
			withoutCgroups(s)
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
		},
		"below": func(s *specs.Spec) {
			withoutCgroups(s)
			if err := os.Mkdir(filepath.Join(root, filepath.Dir(s.Linux.CgroupsPath)), 0o755); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, pid := running(t, change)
			if text := read(t, fmt.Sprintf("/proc/%d/cgroup", pid)); !strings.Contains(text, ":cpuset:"+b.cgroup+"/c\n") {
				t.Errorf("it is in %s", text)
			}
		})
	}
}
