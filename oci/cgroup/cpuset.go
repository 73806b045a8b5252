package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Frugal has Create and Finish do without a group in v1's cpuset hierarchy while nothing is to be set there: for the first group
// that a host has there the kernel rewrites its own code on all processors, which takes it ten times as long as all other groups.
// The processes are in the nearest group above then, the root, as if there were one without restrictions. Who shows a container
// its groups needs them all. Where there is a group above, what that is restricted to may change, so ours is made; and if
// something is set later, by Update, too.
func (g *Group) Frugal() { g.frugal = true }

func setsCPUs(r *specs.LinuxResources) bool {
	return r != nil && r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != "")
}

// confined tells whether in v1's cpuset hierarchy there is the group, or one above it other than the root; or whether there is
// no such hierarchy for itself.
func (g *Group) confined() bool {
	dir, ok := g.dirs["cpuset"]
	if !ok {
		return true
	}
	for controller, other := range g.dirs {
		if controller != "cpuset" && other == dir {
			return true
		}
	}
	first, _, _ := strings.Cut(g.path[1:], "/")
	_, err := os.Lstat(filepath.Join(strings.TrimSuffix(dir, g.path), first))
	return !errors.Is(err, os.ErrNotExist)
}

// confine calls set, with a group in v1's cpuset hierarchy. One that there was not gets the processes after that.
func (g *Group) confine(set func() error) error {
	dir, ok := g.dirs["cpuset"]
	if _, err := os.Lstat(dir); !ok || !errors.Is(err, os.ErrNotExist) {
		return set()
	}
	if roll, _ := g.roll(); !exists(roll) {
		return set() // which says that there is no group
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	err := fillCPUSet(dir)
	if err == nil {
		err = set()
	}
	if err == nil {
		err = g.gather(dir)
	}
	if err != nil {
		_ = unix.Rmdir(dir) // as it was, unless there is somebody in it
	}
	return err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// gather moves the group's processes to its directory in one hierarchy. Those that are born meanwhile are where their parents
// were, so it ends when there are none left elsewhere.
func (g *Group) gather(dir string) error {
	for {
		all, err := g.Pids()
		if err != nil {
			return err
		}
		here, err := cgroups.GetAllPids(dir)
		if err != nil {
			return err
		}
		moved := 0
		for _, pid := range all {
			if slices.Contains(here, pid) {
				continue
			}
			err := linux.WriteFile(unix.AT_FDCWD, filepath.Join(dir, "cgroup.procs"), strconv.Itoa(pid))
			switch {
			case err == nil:
				moved++
			case !errors.Is(err, unix.ESRCH): // ended
				return err
			}
		}
		if moved == 0 {
			return nil
		}
	}
}

// Recheck is for who has launched a process into the group while another may have set its processors for the first time.
func (g *Group) Recheck(e *Entry) error {
	if e.missing == "" || !exists(e.missing) {
		return nil
	}
	return g.gather(e.missing)
}

// openAbove opens the tasks file of the nearest group above that there is, up to the root.
func (g *Group) openAbove(dir string) (int, error) {
	root := strings.TrimSuffix(dir, g.path)
	for {
		fd, err := unix.Open(filepath.Join(dir, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != unix.ENOENT || dir == root {
			return fd, err
		}
		dir = filepath.Dir(dir)
	}
}

// fillCPUSet copies what a new v1 cpuset group lacks from its parent, and first what that lacks: a group without processors and
// memory nodes lets nobody in.
func fillCPUSet(dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		if _, err := cpuSet(dir, name); err != nil {
			return err
		}
	}
	return nil
}

// cpuSet returns what a group has, or then gets.
func cpuSet(dir, name string) (string, error) {
	file := filepath.Join(dir, name)
	b, err := linux.ReadFile(unix.AT_FDCWD, file)
	if err != nil || len(strings.TrimSpace(string(b))) > 0 {
		return string(b), err
	}
	value, err := cpuSet(filepath.Dir(dir), name)
	if err != nil {
		return "", err
	}
	return value, linux.WriteFile(unix.AT_FDCWD, file, value)
}
