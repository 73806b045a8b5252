package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Entry is how a child process is born in the group.
type Entry struct {
	// Tasks are the tasks files of the v1 hierarchies, opened for writing.
	Tasks []int
	// Dir is the v2 directory, or -1.
	Dir int

	missing string // the directory that there was not in cpuset's hierarchy
}

// Entry opens the group for launching into it. Close it after.
func (g *Group) Entry() (*Entry, error) {
	e, err := g.birthplace()
	if err != nil {
		return nil, err
	}
	if err := g.openTasks(e); err != nil {
		e.Close()
		return nil, err
	}
	return e, nil
}

// birthplace is Entry without the tasks files.
func (g *Group) birthplace() (*Entry, error) {
	dir, ok := g.dirs[""]
	if !ok {
		return &Entry{Dir: -1}, nil
	}
	name := g.habitable(dir)
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, linux.Wrap("open", name, err)
	}
	return &Entry{Dir: fd}, nil
}

// openTasks adds the tasks files to an entry.
func (g *Group) openTasks(e *Entry) error {
	seen := map[string]bool{}
	for controller, dir := range g.dirs {
		if controller == "" || seen[dir] {
			continue
		}
		seen[dir] = true
		name := filepath.Join(dir, "tasks")
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT && controller == "cpuset" {
			fd, err = g.openAbove(dir)
			e.missing = dir
		}
		if err != nil {
			return linux.Wrap("open", name, err)
		}
		e.Tasks = append(e.Tasks, fd)
	}
	return nil
}

// habitable is where processes may be born: the group's v2 directory, or, if the
// container has divided its group among groups of its own and so left it
// (systemd does), that of its oldest process.
func (g *Group) habitable(dir string) string {
	if !g.unified {
		return dir
	}
	divided, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil || len(strings.TrimSpace(string(divided))) == 0 {
		return dir
	}
	pids, err := g.Pids()
	if err != nil || len(pids) == 0 {
		return dir
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", slices.Min(pids)))
	_, in, ok := strings.Cut(strings.TrimSpace(string(b)), "0::")
	below, inside := strings.CutPrefix(in, g.path+"/")
	if err != nil || !ok || !inside || !filepath.IsLocal(below) {
		return dir
	}
	return filepath.Join(dir, below)
}

// Close closes the descriptors.
func (e *Entry) Close() {
	linux.CloseAll(e.Tasks...)
	linux.CloseAll(e.Dir)
	e.Tasks, e.Dir = nil, -1
}
