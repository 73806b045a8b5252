package linux

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Hierarchy is one mounted cgroup file system.
type Hierarchy struct {
	// Root is the directory where it is mounted.
	Root string
	// Controllers of a v1 hierarchy ("cpu", "cpuacct", "name=systemd"). Empty
	// for v2.
	Controllers []string
}

// Unified reports whether it is the v2 hierarchy.
func (h Hierarchy) Unified() bool { return len(h.Controllers) == 0 }

// Unified reports whether the v2 hierarchy has the controllers: no v1 one is mounted.
func Unified(hierarchies []Hierarchy) bool {
	return len(hierarchies) > 0 && !slices.ContainsFunc(hierarchies, func(h Hierarchy) bool { return !h.Unified() })
}

// mounted are the host's hierarchies. They are read once: to find them takes reading all mounts of the host, and every pod has some.
var mounted struct {
	sync.Mutex
	known []Hierarchy
}

// Hierarchies returns the cgroup file systems that are mounted from their own root, each once, in order of mounting. They are shared
// and read-only. One that is unmounted is noticed by its root, one that is mounted after the first call is not: the host's are there
// before anything that makes groups.
func Hierarchies() ([]Hierarchy, error) {
	mounted.Lock()
	defer mounted.Unlock()
	gone := func(h Hierarchy) bool {
		var fs unix.Statfs_t
		err := unix.Statfs(h.Root, &fs)
		return err != nil || fs.Type != unix.CGROUP_SUPER_MAGIC && fs.Type != unix.CGROUP2_SUPER_MAGIC
	}
	if mounted.known != nil && !slices.ContainsFunc(mounted.known, gone) {
		return mounted.known, nil
	}
	b, err := ReadFile(unix.AT_FDCWD, "/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	mounted.known = parseHierarchies(b)
	return mounted.known, nil
}

func parseHierarchies(mountinfo []byte) []Hierarchy {
	var found []Hierarchy
	for line := range bytes.Lines(mountinfo) {
		if !bytes.Contains(line, []byte(" - cgroup")) { // most are others: every pod has some
			continue
		}
		before, after, ok := strings.Cut(string(line), " - ")
		fields, fs := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 6 || len(fs) < 3 || fields[3] != "/" {
			continue
		}
		h := Hierarchy{Root: Unescape(fields[4])}
		switch fs[0] {
		case "cgroup2":
		case "cgroup":
			h.Controllers = v1Controllers(fs[2])
			if len(h.Controllers) == 0 {
				continue
			}
		default:
			continue
		}
		if !slices.ContainsFunc(found, func(f Hierarchy) bool { return slices.Equal(f.Controllers, h.Controllers) }) {
			found = append(found, h)
		}
	}
	return found
}

func v1Controllers(options string) (names []string) {
	for _, o := range strings.Split(options, ",") {
		switch o {
		case "rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode", "favordynmods", "nofavordynmods":
		default:
			if !strings.HasPrefix(o, "release_agent=") {
				names = append(names, o)
			}
		}
	}
	return names
}

// Unescape undoes the octal escapes of /proc/<pid>/mountinfo.
func Unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// OOMKilled reports whether the kernel has killed a process of a cgroup for want of memory, by the file in which it counts
// that: v2's memory.events, v1's memory.oom_control. No file is none.
func OOMKilled(file string) bool {
	if file == "" {
		return false
	}
	b, err := ReadFile(unix.AT_FDCWD, file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if count, ok := strings.CutPrefix(line, "oom_kill "); ok {
			return strings.TrimSpace(count) != "0"
		}
	}
	return false
}
