package cgroup_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/cgroup/cgrouptest"
	"github.com/yare-dev/yare/oci/ocitest"
)

func TestCreateTwiceAndRemoveTwice(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	g, err := cgroup.Open(ocitest.Cgroup(t) + "/a/b")
	if err != nil {
		t.Fatal(err)
	}
	limit := int64(100)
	for range 2 {
		if err := g.Create(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} { // without which nobody could be in it
		if dir, v1 := g.Dirs()["cpuset"]; v1 {
			host, err := os.ReadFile(filepath.Join(dir, "../../..", name))
			if b, e := os.ReadFile(filepath.Join(dir, name)); err != nil || e != nil || string(b) != string(host) {
				t.Errorf("%s: got %q, %v; the host's is %q, %v", name, b, e, host, err)
			}
		}
	}
	if s, err := g.Stats(); err != nil || s.Pids.Limit != 100 {
		t.Errorf("got %+v, %v", s, err)
	} else if _, err := os.Stat(filepath.Join(g.Dirs()[""], "io.pressure")); g.Unified() && err == nil && (s.IOPSI == nil || s.CPU.PSI == nil || s.Memory.PSI == nil) {
		t.Errorf("the kernel measures pressure, but not we: %+v", s)
	}
	parent, err := cgroup.Open(g.Path() + "/..")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := parent.Remove(); err != nil { // with what is below
			t.Error(err)
		}
	}
}

// A group is destroyed with what is in it, at once if that is nothing, and with groups below it.
func TestDestroy(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	path := ocitest.Cgroup(t)
	for name, below := range map[string]string{"empty": "", "with a group below": "/below"} {
		g, err := cgroup.Open(path + "/c")
		if err != nil {
			t.Fatal(err)
		}
		b, err := cgroup.Open(path + "/c" + below)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.Create(nil); err != nil {
			t.Fatal(name, err)
		}
		for range 2 {
			if err := g.Destroy(t.Context()); err != nil {
				t.Error(name, err)
			}
		}
		for _, dir := range g.Dirs() {
			if _, err := os.Lstat(dir); err == nil {
				t.Errorf("%s: %s is left", name, dir)
			}
		}
	}
}

// Who enters a frozen group stands still, as does who waits for it: none is made below one, and none that is there is taken.
func TestFrozen(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	parent, err := cgroup.Open(ocitest.Cgroup(t) + "/parent")
	if err != nil {
		t.Fatal(err)
	}
	below, err := cgroup.Open(parent.Path() + "/below")
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Create(nil); err != nil {
		t.Fatal(err)
	}
	for controller, f := range map[string]struct{ name, frozen, thawed string }{
		"": {"cgroup.freeze", "1", "0"}, "freezer": {"freezer.state", "FROZEN", "THAWED"},
	} {
		dir, ok := parent.Dirs()[controller]
		if !ok {
			continue
		}
		write := func(state string) {
			if err := os.WriteFile(filepath.Join(dir, f.name), []byte(state), 0); err != nil {
				t.Error(err)
			}
		}
		write(f.frozen)
		for _, g := range []*cgroup.Group{parent, below} {
			if err := g.Create(nil); !errors.Is(err, cgroup.ErrFrozen) {
				t.Errorf("%s, frozen by %s: got %v", g.Path(), f.name, err)
			}
		}
		write(f.thawed)
		if err := below.Create(nil); err != nil {
			t.Error(err)
		}
		if err := below.Remove(); err != nil {
			t.Error(err)
		}
	}
	if err := parent.Remove(); err != nil {
		t.Error(err)
	}
}

func TestUnifiedNeedsV2(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	g, err := cgroup.Open(ocitest.Cgroup(t))
	if err != nil {
		t.Fatal(err)
	}
	if g.Unified() {
		return
	}
	if err := g.Create(&specs.LinuxResources{Unified: map[string]string{"memory.high": "1"}}); err == nil {
		t.Error("unified limits were taken without v2")
	}
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
}

// start starts a process that lives until the test's end.
func start(t testing.TB, dir int) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: dir >= 0, CgroupFD: max(dir, 0)}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestKillWithoutV2 is about groups of other runtimes on a hybrid host, which have no directory in v2.
func TestKillWithoutV2(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	g, err := cgroup.Open(ocitest.Cgroup(t) + "/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := g.Dirs()[""]; !ok || g.Unified() {
		t.Skip("the host is not hybrid")
	}
	if err := g.Create(nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(g.Dirs()[""]); err != nil {
		t.Fatal(err)
	}
	cmd := start(t, -1)
	for controller, dir := range g.Dirs() {
		if controller == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Error(err)
		}
	}
	if pids, err := g.Pids(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Errorf("got %v, %v, want %d", pids, err, cmd.Process.Pid)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
	parent, err := cgroup.Open(g.Path() + "/..")
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Remove(); err != nil {
		t.Error(err)
	}
}

// TestKillUnfreezable has a task in the freezer that cannot be frozen: the others are killed.
func TestKillUnfreezable(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	g, err := cgroup.Open(ocitest.Cgroup(t) + "/a")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Create(nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Remove() })
	if dir, ok := g.Dirs()[""]; ok && !g.Unified() { // which would kill by itself
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	cgrouptest.Unfreezable(t, g)
	cmd := start(t, -1)
	if err := os.WriteFile(filepath.Join(g.Dirs()["freezer"], "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
		t.Error(err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Error(err)
		cmd.Process.Kill()
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
}

// TestEntryOfDividedGroup is about containers whose program has made groups of its own and left that which it was
// given: nobody may be born in that any more.
func TestEntryOfDividedGroup(t *testing.T) {
	t.Parallel()
	ocitest.Root(t)
	g, err := cgroup.Open(ocitest.Cgroup(t) + "/c")
	if err != nil {
		t.Fatal(err)
	}
	if !g.Unified() {
		return
	}
	if err := g.Create(nil); err != nil {
		t.Fatal(err)
	}
	dir := g.Dirs()[""]
	for range 2 { // the first finds it whole
		e, err := g.Entry()
		if err != nil {
			t.Fatal(err)
		}
		cmd := start(t, e.Dir)
		e.Close()
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait(); g.Remove() })
		if err := os.Mkdir(filepath.Join(dir, "leaf"), 0o755); err == nil {
			if err := os.WriteFile(filepath.Join(dir, "leaf", "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+pids"), 0); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
		if want := "0::" + g.Path() + "/leaf\n"; err != nil || string(b) != want {
			t.Errorf("a process is in %s, %v; want %s", b, err, want)
		}
	}
}

// BenchmarkJoin compares ways into a group: birth there, as package launch does it, with a move after birth.
func BenchmarkJoin(b *testing.B) {
	ocitest.Root(b)
	g, err := cgroup.Open(ocitest.Cgroup(b) + "/c")
	if err != nil {
		b.Fatal(err)
	}
	if err := g.Create(nil); err != nil {
		b.Fatal(err)
	}
	defer g.Remove()
	e, err := g.Entry()
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	for name, dir := range map[string]int{"born": e.Dir, "moved": -1} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				cmd := start(b, dir)
				if dir < 0 {
					if err := os.WriteFile(filepath.Join(g.Dirs()[""], "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
						b.Fatal(err)
					}
				}
				b.StopTimer()
				cmd.Process.Kill()
				cmd.Wait()
				b.StartTimer()
			}
		})
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	ocitest.Root(b)
	path := ocitest.Cgroup(b) + "/c"
	for b.Loop() {
		g, err := cgroup.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		if err := g.Create(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}}); err != nil {
			b.Fatal(err)
		}
		if err := g.Remove(); err != nil {
			b.Fatal(err)
		}
	}
}
