// Package cgroup makes, limits, measures and removes a container's cgroup on
// unified (v2), legacy (v1) and hybrid hosts. It replaces runc's cgroup
// managers; the knobs themselves are written by opencontainers/cgroups.
//
// # Vocabulary
//
//   - hierarchy: one mounted cgroup file system. A v2 host has one; a hybrid
//     host has one per v1 controller plus an empty v2 one.
//   - group: a container's directory, of the same path, in every hierarchy;
//     in v1's cpuset hierarchy perhaps not ([Group.Frugal]).
//
// # Joining without waiting
//
// Writing a pid to cgroup.procs waits for an RCU grace period (11 ms), because
// the kernel must hold off the forks of the whole thread group. A group is
// therefore never joined by writing another's pid. On v2 the child is cloned
// into the group; on v1 a thread moves itself ("0" to the tasks file), for which
// the kernel takes no such lock: the forking one, whose child inherits it and
// which is then thrown away, or the child itself, which has but one. Package
// launch does it with what [Group.Entry] returns.
//
// A group that systemd makes, a unit, needs a process from its beginning: one that
// sleeps there until the container is born, and is moved by systemd.
package cgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules for both managers
	"github.com/opencontainers/cgroups/manager"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Group is one cgroup path in all hierarchies. Its methods may be called from
// any goroutine.
type Group struct {
	path string
	// dirs are the group's directories by controller; "" is the v2 one.
	dirs    map[string]string
	unified bool // v2 has the controllers
	// frugal: see Frugal.
	frugal bool
	// unit is what systemd needs to know; nil: the group is ours.
	unit *cgroups.Cgroup

	mu      sync.Mutex
	manager cgroups.Manager // made on first need
}

// Open returns the group of a path below the hierarchies' roots, such as
// "/kubepods/pod1/c1", or of a systemd unit (see [Unit]). It touches nothing; the
// group need not exist.
func Open(name string) (*Group, error) {
	if Unit(name) {
		return openUnit(name)
	}
	name = path.Clean("/" + name)
	if name == "/" {
		return nil, errors.New("open cgroup /: it belongs to the host")
	}
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		return nil, err
	}
	g := &Group{path: name, dirs: map[string]string{}, unified: true}
	for _, h := range hierarchies {
		dir := filepath.Join(h.Root, name)
		if h.Unified() {
			g.dirs[""] = dir
		}
		for _, c := range h.Controllers {
			g.dirs[c] = dir
			g.unified = false
		}
	}
	if len(g.dirs) == 0 {
		return nil, fmt.Errorf("open cgroup %s: no cgroup file system is mounted", name)
	}
	return g, nil
}

// Path returns the path below the hierarchies' roots.
func (g *Group) Path() string { return g.path }

// Dirs returns the group's directory by controller name; "" is that of v2.
// Read only.
func (g *Group) Dirs() map[string]string { return g.dirs }

// Unified reports whether the v2 hierarchy has the controllers.
func (g *Group) Unified() bool { return g.unified }

// Preconditions: g.mu is held.
func (g *Group) open() (cgroups.Manager, error) {
	if g.manager != nil {
		return g.manager, nil
	}
	config := cgroups.Cgroup{Path: g.path}
	if g.unit != nil {
		config = *g.unit
	}
	config.Resources = &cgroups.Resources{SkipDevices: true}
	m, err := manager.NewWithPaths(&config, g.dirs)
	if err != nil {
		return nil, fmt.Errorf("open cgroup %s: %w", g.path, err)
	}
	g.manager = m
	return m, nil
}

// with calls f with the manager, one at a time.
func (g *Group) with(verb string, f func(cgroups.Manager) error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	m, err := g.open()
	if err == nil {
		err = f(m)
	}
	if err != nil {
		return fmt.Errorf("%s cgroup %s: %w", verb, g.path, err)
	}
	return nil
}

// ErrInUse says that a group that is to be made has processes already.
var ErrInUse = errors.New("it has processes")

// ErrFrozen says that a group that is to be made is frozen, or one above it.
var ErrFrozen = errors.New("it is frozen")

// Create makes the group and sets its limits; nil sets none. Missing parents
// are made. An existing group that has processes is ErrInUse, and one in which
// they would stand still ErrFrozen.
func (g *Group) Create(r *specs.LinuxResources) error {
	e, err := g.Begin()
	if err != nil {
		return err
	}
	defer e.Close()
	return g.Finish(e, r)
}

// Begin is the part of Create that must come before a process is born in the
// group, of which Finish is the rest. Meanwhile the entry has only the v2
// directory, if there is one.
func (g *Group) Begin() (*Entry, error) {
	if err := g.makeV2(); err != nil {
		return nil, err
	}
	return g.birthplace()
}

// Finish makes the v1 directories, which processes enter later, adds them to the
// entry and sets the limits.
func (g *Group) Finish(e *Entry, r *specs.LinuxResources) error {
	cpuset := !g.frugal || setsCPUs(r) || g.confined()
	if err := g.makeV1(cpuset); err != nil {
		return fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	if err := g.limit(r); err != nil {
		return err
	}
	return g.openTasks(e)
}

// makeV2 makes the v2 directory.
func (g *Group) makeV2() error {
	if err := g.unused(); err != nil {
		return err
	}
	dir, ok := g.dirs[""]
	switch {
	case g.unified: // also enables the controllers on the way down
		if err := g.with("create", func(m cgroups.Manager) error { return m.Apply(-1) }); err != nil {
			return err
		}
	case !ok:
		return nil
	default:
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	return g.moving("", "cgroup.events", "frozen 1")
}

func (g *Group) unused() error {
	if pids, err := g.Pids(); err == nil && len(pids) > 0 {
		return fmt.Errorf("create cgroup %s: %w", g.path, ErrInUse)
	}
	return nil
}

// moving makes sure that who enters the group goes on: in a frozen one, or one below such, it would stand still, and whoever
// waits for it.
func (g *Group) moving(controller, name, frozen string) error {
	dir, ok := g.dirs[controller]
	if !ok {
		return nil
	}
	state, err := linux.ReadFile(unix.AT_FDCWD, filepath.Join(dir, name))
	if err == nil && bytes.Contains(state, []byte(frozen)) {
		err = fmt.Errorf("create cgroup %s: %w: thaw it, or take another", g.path, ErrFrozen)
	}
	return err
}

// limit sets a new group's limits, if there are any.
func (g *Group) limit(r *specs.LinuxResources) error {
	if err := g.moving("freezer", "freezer.state", "F"); err != nil || r == nil { // FREEZING, FROZEN
		return err
	}
	return g.with("create", func(m cgroups.Manager) error {
		res, err := resources(r, g.unified)
		if err != nil {
			return err
		}
		return g.set(m, res)
	})
}

// probed orders the first Set of the process before all others: in it the library notes, for the whole process and without a lock,
// what the kernel calls the weight of block devices.
var probed sync.Once

func (g *Group) set(m cgroups.Manager, r *cgroups.Resources) (err error) {
	if g.unit != nil {
		tellNoSwap(r)
	}
	first := false
	probed.Do(func() { first, err = true, m.Set(r) })
	if !first {
		err = m.Set(r)
	}
	return err
}

// makeV1 makes the directories of the v1 hierarchies, or those but cpuset's.
func (g *Group) makeV1(cpuset bool) error {
	for controller, dir := range g.dirs {
		if controller == "" || controller == "cpuset" && !cpuset {
			continue
		}
		if err := makeDir(dir); err != nil {
			return err
		}
		if controller == "cpuset" {
			if err := fillCPUSet(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func makeDir(dir string) error {
	err := unix.Mkdir(dir, 0o755) // the parents are there, mostly
	if err == unix.ENOENT {
		err = os.MkdirAll(dir, 0o755)
	}
	if err == unix.EEXIST {
		return nil
	}
	return linux.Wrap("make", dir, err)
}

// Update sets the given limits in place and leaves the others as they are.
// Device rules cannot be updated.
func (g *Group) Update(r *specs.LinuxResources) error {
	return g.with("update", func(m cgroups.Manager) error {
		res, err := resources(r, g.unified)
		if err != nil {
			return err
		}
		res.SkipDevices = true
		if g.unified {
			if err := g.keepHalf(res); err != nil {
				return err
			}
		}
		if setsCPUs(r) {
			return g.confine(func() error { return g.set(m, res) })
		}
		return g.set(m, res)
	})
}

// keepHalf completes a quota without a period, or the reverse: v2 has one file
// for both.
func (g *Group) keepHalf(r *cgroups.Resources) error {
	if (r.CpuQuota == 0) == (r.CpuPeriod == 0) {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(g.dirs[""], "cpu.max"))
	if err != nil {
		return err
	}
	quota, period, err := parseCPUMax(string(b))
	if r.CpuQuota == 0 {
		r.CpuQuota = quota
	} else {
		r.CpuPeriod = period
	}
	return err
}

// parseCPUMax reads "50000 100000" or "max 100000"; no quota is -1.
func parseCPUMax(text string) (quota int64, period uint64, err error) {
	first, second, _ := strings.Cut(strings.TrimSpace(text), " ")
	if quota = -1; first != "max" {
		if quota, err = strconv.ParseInt(first, 10, 64); err != nil {
			return 0, 0, fmt.Errorf("parse cpu.max: %w", err)
		}
	}
	if period, err = strconv.ParseUint(second, 10, 64); err != nil {
		return 0, 0, fmt.Errorf("parse cpu.max: %w", err)
	}
	return quota, period, nil
}

// Freeze stops all processes of the group; it returns when they have stopped.
func (g *Group) Freeze() error {
	return g.with("freeze", func(m cgroups.Manager) error { return m.Freeze(cgroups.Frozen) })
}

// Thaw is Freeze's opposite.
func (g *Group) Thaw() error {
	return g.with("thaw", func(m cgroups.Manager) error { return m.Freeze(cgroups.Thawed) })
}

// Frozen reports whether Freeze is in force.
func (g *Group) Frozen() (frozen bool, err error) {
	err = g.with("read state of", func(m cgroups.Manager) error {
		state, err := m.GetFreezerState()
		frozen = state == cgroups.Frozen
		return err
	})
	return frozen, err
}

// roll is the directory whose processes are the group's. On v2 only what was
// born in the group is in it, and it is exact. On v1 so is a launcher while one
// of its threads is in the group to fork from there.
func (g *Group) roll() (dir string, exact bool) {
	if dir, exact = g.dirs[""]; exact && !g.unified {
		// Other runtimes do without it on a hybrid host.
		_, err := os.Lstat(dir)
		exact = !errors.Is(err, os.ErrNotExist)
	}
	if exact {
		return dir, true
	}
	for _, c := range []string{"freezer", "pids", "cpu", "memory"} {
		if dir = g.dirs[c]; dir != "" {
			break
		}
	}
	return dir, false
}

// Pids returns the processes of the group and of those below it.
func (g *Group) Pids() ([]int, error) {
	dir, exact := g.roll()
	pids, err := cgroups.GetAllPids(dir)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil || exact {
		return pids, err
	}
	// A launcher is told by its leader not being in the group.
	return slices.DeleteFunc(pids, func(pid int) bool { return !g.leads(pid) }), nil
}

// leads tells whether the leader of a process is in the group or below it.
func (g *Group) leads(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		_, in, _ := strings.Cut(strings.TrimSpace(line), ":/")
		if in = "/" + in; in == g.path || strings.HasPrefix(in, g.path+"/") {
			return true
		}
	}
	return false
}

// Kill ends all processes of the group and of those below it (cgroup.kill, or
// freeze, SIGKILL, thaw on v1) and returns when none is left. No group is no
// error.
func (g *Group) Kill(ctx context.Context) error {
	for {
		pids, err := g.Pids()
		if err != nil || len(pids) == 0 {
			return err
		}
		if err := g.killOnce(pids); err != nil {
			return err
		}
		if err := gone(ctx, pids); err != nil {
			return fmt.Errorf("kill cgroup %s: %w", g.path, err)
		}
	}
}

// Signal sends a signal to all processes of the group and of those below it.
// SIGKILL is [Group.Kill].
func (g *Group) Signal(ctx context.Context, sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return g.Kill(ctx)
	}
	pids, err := g.Pids()
	if err != nil {
		return fmt.Errorf("signal cgroup %s: %w", g.path, err)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signal process %d of cgroup %s: %w", pid, g.path, err)
		}
	}
	return nil
}

func (g *Group) killOnce(pids []int) error {
	if dir, ok := g.dirs[""]; ok {
		// Also kills what forks meanwhile. The v2 part of a hybrid host has it too.
		if err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0); err == nil {
			return g.thawIfFrozen()
		}
	}
	// A frozen group cannot fork, so the list is complete.
	if err := g.Freeze(); err != nil {
		return err
	}
	all, err := g.Pids()
	if err == nil {
		pids = all
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	return g.Thaw()
}

// thawIfFrozen lets the processes of a v1 freezer die.
func (g *Group) thawIfFrozen() error {
	if g.unified {
		return nil // v2 kills frozen processes
	}
	if frozen, err := g.Frozen(); err != nil || !frozen {
		return nil
	}
	return g.Thaw()
}

// gone waits for processes to have ended, by pidfd.
func gone(ctx context.Context, pids []int) error {
	for _, pid := range pids {
		fd, err := linux.OpenPid(pid)
		if err != nil {
			continue // ended
		}
		err = pollUntil(ctx, fd)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

func pollUntil(ctx context.Context, pidfd int) error {
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 100)
		if n > 0 || (err != nil && err != unix.EINTR) {
			return err
		}
	}
}

// Destroy is Kill and Remove.
func (g *Group) Destroy(ctx context.Context) error {
	if g.unit == nil && g.removeEmpty() {
		return nil
	}
	if err := g.Kill(ctx); err != nil {
		return err
	}
	return g.Remove()
}

// removeEmpty removes the group if there is nothing in it, as mostly when its
// container has ended.
func (g *Group) removeEmpty() bool {
	roll, _ := g.roll()
	if err := unix.Rmdir(roll); err != nil && err != unix.ENOENT {
		return false // nothing has changed: Kill finds its processes
	}
	for _, dir := range g.dirs {
		if err := unix.Rmdir(dir); err != nil && err != unix.ENOENT {
			return false
		}
	}
	return true
}

// Remove removes the group and those below it. It must be empty. No group is
// no error.
func (g *Group) Remove() error {
	if g.unit != nil {
		return g.with("remove", cgroups.Manager.Destroy)
	}
	seen := map[string]bool{}
	var errs []error
	for _, dir := range g.dirs {
		if !seen[dir] {
			seen[dir] = true
			errs = append(errs, cgroups.RemovePath(dir))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", g.path, err)
	}
	return nil
}

// OOMFile returns the file in which the kernel counts the group's OOM kills,
// on a line "oom_kill <n>".
func (g *Group) OOMFile() string {
	if g.unified {
		return filepath.Join(g.dirs[""], "memory.events")
	}
	if dir, ok := g.dirs["memory"]; ok {
		return filepath.Join(dir, "memory.oom_control")
	}
	return ""
}
