package resources

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/yare-dev/yare/linux"
)

// Groups makes and removes cgroups below a root in all hierarchies of the host. Its methods may be called
// concurrently.
type Groups struct {
	root        string
	hierarchies []linux.Hierarchy
}

// NewGroups returns Groups for the part of each hierarchy below root ("" or "/some/path"), to which every path that is
// given to its methods must belong.
func NewGroups(root string) (*Groups, error) {
	hs, err := linux.Hierarchies()
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	return &Groups{root: root, hierarchies: hs}, nil
}

// Ensure makes the group path, with those above it, and gives it the limits.
func (g *Groups) Ensure(path string, l Limits) error {
	if err := g.owns(path); err != nil {
		return err
	}
	for _, h := range g.hierarchies {
		has := controllers(h)
		if len(has) == 0 {
			continue
		}
		dir := filepath.Join(h.Root, path)
		if err := make1(h, dir); err != nil {
			return fmt.Errorf("make cgroup %s: %w", dir, err)
		}
		for _, v := range values(h.Unified(), has, l) {
			err := os.WriteFile(filepath.Join(dir, v.file), []byte(v.text), 0)
			if err != nil && !(v.optional && errors.Is(err, fs.ErrNotExist)) {
				return fmt.Errorf("set %s of cgroup %s: %w", v.file, dir, err)
			}
		}
	}
	return nil
}

// Remove removes the group path and empty groups below it in every hierarchy. It is not an error if there is none;
// a group that still has processes is one.
func (g *Groups) Remove(path string) error {
	if err := g.owns(path); err != nil {
		return err
	}
	if path == g.root {
		return fmt.Errorf("remove cgroup %s: it is the root", path)
	}
	var errs []error
	for _, h := range g.hierarchies {
		if err := removeTree(filepath.Join(h.Root, path)); err != nil {
			errs = append(errs, fmt.Errorf("remove cgroup: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Pods returns the UIDs that have a group below root/kubepods.
func (g *Groups) Pods() map[string]string {
	found := map[string]string{}
	for _, h := range g.hierarchies {
		for _, class := range []string{"", "/burstable", "/besteffort"} {
			parent := g.root + "/kubepods" + class
			entries, err := os.ReadDir(filepath.Join(h.Root, parent))
			if err != nil {
				continue
			}
			for _, e := range entries {
				if uid, ok := strings.CutPrefix(e.Name(), "pod"); ok && e.IsDir() {
					found[uid] = parent + "/" + e.Name()
				}
			}
		}
	}
	return found
}

func (g *Groups) owns(path string) error {
	if filepath.Clean(path) != path || path != g.root && !strings.HasPrefix(path, g.root+"/") {
		return fmt.Errorf("cgroup %q is not below %q", path, g.root)
	}
	return nil
}

// controllers returns those of the hierarchy that Limits speak of. On a hybrid host the v2 hierarchy has only what no v1
// hierarchy has taken.
func controllers(h linux.Hierarchy) (names []string) {
	names = slices.Clone(h.Controllers)
	if h.Unified() {
		b, err := os.ReadFile(filepath.Join(h.Root, "cgroup.controllers"))
		if err != nil {
			return nil
		}
		names = strings.Fields(string(b))
	}
	return slices.DeleteFunc(names, func(c string) bool {
		return !slices.Contains([]string{"cpu", "memory", "pids", "hugetlb"}, c)
	})
}

func make1(h linux.Hierarchy, dir string) error {
	if !h.Unified() {
		return os.MkdirAll(dir, 0o755)
	}
	// In v2 a group's controllers are those that its parent passes on.
	for up := filepath.Dir(dir); strings.HasPrefix(up, h.Root); up = filepath.Dir(up) {
		if _, err := os.Stat(up); err == nil {
			break
		}
		if err := make1(h, up); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), "cgroup.controllers"))
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(b)) {
		// One that cannot be passed on (busy, threaded) shows when its file is missing.
		_ = os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.subtree_control"), []byte("+"+c), 0)
	}
	return nil
}

// value is one file of a group. An optional one may be missing, where the kernel was built without it.
type value struct {
	file, text string
	optional   bool
}

// values returns what Limits come to in a hierarchy that has these controllers.
func values(v2 bool, has []string, l Limits) (vs []value) {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	set := func(controller, v1File, v1Text, v2File, v2Text string, optional bool) {
		switch {
		case !slices.Contains(has, controller):
		case v2:
			vs = append(vs, value{v2File, v2Text, optional})
		default:
			vs = append(vs, value{v1File, v1Text, optional})
		}
	}
	if l.Shares != 0 {
		set("cpu", "cpu.shares", number(l.Shares), "cpu.weight", number(Weight(l.Shares)), false)
	}
	if l.Quota != 0 {
		most := number(l.Quota)
		if l.Quota < 0 {
			most = "max"
		}
		set("cpu", "cpu.cfs_quota_us", number(l.Quota), "cpu.max", most+" "+number(period), true)
	}
	if l.Memory > 0 {
		set("memory", "memory.limit_in_bytes", number(l.Memory), "memory.max", number(l.Memory), false)
	}
	if l.High != 0 && v2 && slices.Contains(has, "memory") {
		high := number(l.High)
		if l.High < 0 {
			high = "max"
		}
		vs = append(vs, value{"memory.high", high, false})
	}
	if l.Pids > 0 {
		set("pids", "pids.max", number(l.Pids), "pids.max", number(l.Pids), false)
	}
	for _, p := range l.Hugepages {
		n := strconv.FormatUint(p.Limit, 10)
		set("hugetlb", "hugetlb."+p.PageSize+".limit_in_bytes", n, "hugetlb."+p.PageSize+".max", n, true)
	}
	return vs
}

// removeTree removes a group after those below it. rmdir is the only thing that works in cgroupfs, and refuses groups
// with processes, so nothing alive can be lost.
func removeTree(dir string) error {
	err := syscall.Rmdir(dir)
	if err == nil || err == syscall.ENOENT {
		return nil
	}
	entries, rerr := os.ReadDir(dir)
	if rerr != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := syscall.Rmdir(dir); err != nil && err != syscall.ENOENT {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}
