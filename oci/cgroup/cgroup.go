// Package cgroup makes, limits, measures and removes a container's cgroup on
// unified (v2), legacy (v1) and hybrid hosts. It replaces runc's cgroup
// managers; the knobs themselves are written by opencontainers/cgroups.
//
// # Vocabulary
//
//   - hierarchy: one mounted cgroup file system. A v2 host has one; a hybrid
//     host has one per v1 controller plus an empty v2 one.
//   - group: a container's directory, of the same path, in every hierarchy.
//
// # Joining without waiting
//
// Writing a pid to cgroup.procs waits for an RCU grace period (11 ms), because
// the kernel must hold off the forks of the whole thread group. A group is
// therefore never joined by writing another's pid. On v2 the child is cloned
// into the group; on v1 the forking thread moves itself ("0" to the tasks
// file), for which the kernel takes no such lock, and the child inherits; the
// thread is then thrown away. Package launch does it with what [Group.Entry]
// returns.
package cgroup

import (
	"context"
	"errors"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Group is one cgroup path in all hierarchies. Its methods may be called from
// any goroutine.
type Group struct{ path string }

// Open returns the group of a path below the hierarchies' roots, such as
// "/kubepods/pod1/c1". It touches nothing; the group need not exist.
func Open(path string) (*Group, error) { return nil, errors.ErrUnsupported }

// Path returns the path below the hierarchies' roots.
func (g *Group) Path() string { return g.path }

// Create makes the group and sets its limits; nil sets none. Missing parents
// are made. An existing group that has processes is an error.
func (g *Group) Create(r *specs.LinuxResources) error { return errors.ErrUnsupported }

// Update sets the given limits in place and leaves the others as they are.
func (g *Group) Update(r *specs.LinuxResources) error { return errors.ErrUnsupported }

// Freeze stops all processes of the group; it returns when they have stopped.
func (g *Group) Freeze() error { return errors.ErrUnsupported }

// Thaw is Freeze's opposite.
func (g *Group) Thaw() error { return errors.ErrUnsupported }

// Frozen reports whether Freeze is in force.
func (g *Group) Frozen() (bool, error) { return false, errors.ErrUnsupported }

// Pids returns the processes of the group and of those below it.
func (g *Group) Pids() ([]int, error) { return nil, errors.ErrUnsupported }

// Kill ends all processes of the group and of those below it (cgroup.kill, or
// freeze, SIGKILL, thaw on v1) and returns when none is left. No group is no
// error.
func (g *Group) Kill(ctx context.Context) error { return errors.ErrUnsupported }

// Remove removes the group and those below it. It must be empty. No group is
// no error.
func (g *Group) Remove() error { return errors.ErrUnsupported }

// Stats measures the group.
func (g *Group) Stats() (*Stats, error) { return nil, errors.ErrUnsupported }

// Stats are a group's counters at a moment. Sizes are in bytes, times as
// durations since the group was made.
type Stats struct {
	At     time.Time
	CPU    CPUStats
	Memory MemoryStats
	Pids   PidsStats
	IO     []IOStats
}

// CPUStats is the processor time used.
type CPUStats struct {
	Usage, User, System       time.Duration
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
	PSI                       *PSI // nil where the kernel has none
}

// MemoryStats is the memory charged.
type MemoryStats struct {
	Usage       uint64 // everything charged, page cache included
	WorkingSet  uint64 // Usage less inactive file pages
	Anon        uint64 // anonymous memory ("rss")
	Cache       uint64 // file pages
	Mapped      uint64 // file pages mapped into processes
	Swap        uint64
	Limit       uint64 // 0: unlimited
	Faults      uint64
	MajorFaults uint64
	OOMKills    uint64
	Kernel      uint64
	PSI         *PSI
}

// PidsStats counts processes and threads.
type PidsStats struct{ Current, Limit uint64 }

// IOStats is one block device's traffic.
type IOStats struct {
	Major, Minor                         uint64
	ReadBytes, WriteBytes, Reads, Writes uint64
}

// PSI is pressure stall information: shares of time in percent, and totals.
type PSI struct{ Some, Full PSILine }

// PSILine is one line of it.
type PSILine struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}
