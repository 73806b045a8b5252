package node

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// MemoryUse is what the machine has of memory, in bytes, and what of it is in use.
type MemoryUse struct {
	Total      int64
	Usage      int64 // by processes, and by files that are cached
	WorkingSet int64 // without what was read from files and not used lately
	Swap       int64 // that there is
}

// Available is what can be had before anything that is in use has to go.
func (m MemoryUse) Available() int64 { return max(0, m.Total-m.WorkingSet) }

// Memory reads it as the page "Node-pressure Eviction" says: of the root cgroup where memory is counted, and without any of /proc/meminfo.
func Memory() (MemoryUse, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return MemoryUse{}, fmt.Errorf("read memory: %w", err)
	}
	values := meminfo(b)
	m := MemoryUse{Total: values["MemTotal"], Swap: values["SwapTotal"]}
	if m.Total == 0 {
		return m, fmt.Errorf("read memory: /proc/meminfo has no MemTotal")
	}
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		return m, fmt.Errorf("read memory: %w", err)
	}
	for _, h := range hierarchies {
		if !h.Unified() && !slices.Contains(h.Controllers, "memory") {
			continue
		}
		if m.Usage, m.WorkingSet = cgroupMemory(h); m.Usage > 0 && !h.Unified() {
			return m, nil // on hosts with both, the controller is here
		}
	}
	if m.Usage == 0 {
		m.Usage = m.Total - values["MemAvailable"]
		m.WorkingSet = m.Usage
	}
	return m, nil
}

// cgroupMemory reads the use of a hierarchy's root; 0 where it does not count memory.
func cgroupMemory(h linux.Hierarchy) (usage, workingSet int64) {
	b, err := os.ReadFile(filepath.Join(h.Root, "memory.stat"))
	if err != nil {
		return 0, 0
	}
	stat := keyed(b)
	inactive := stat["total_inactive_file"]
	if h.Unified() {
		inactive = stat["inactive_file"]
		if usage = number(filepath.Join(h.Root, "memory.current")); usage == 0 { // the real root has no such file
			usage = stat["anon"] + stat["file"]
		}
	} else {
		usage = number(filepath.Join(h.Root, "memory.usage_in_bytes"))
	}
	return usage, max(0, usage-inactive)
}

// keyed parses lines of "name number".
func keyed(b []byte) map[string]int64 {
	out := map[string]int64{}
	for line := range bytes.Lines(b) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if n, err := strconv.ParseInt(value, 10, 64); err == nil {
			out[name] = n
		}
	}
	return out
}

// DiskUse is a file system, in bytes and inodes. Some have no limit of inodes: both are 0 then.
type DiskUse struct {
	Bytes, Free        int64
	Inodes, InodesFree int64
}

// Disk reads the file system that holds path, or will.
func Disk(path string) (DiskUse, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(existing(path), &fs); err != nil {
		return DiskUse{}, fmt.Errorf("read file system of %s: %w", path, err)
	}
	return DiskUse{Bytes: int64(fs.Blocks) * fs.Bsize, Free: int64(fs.Bavail) * fs.Bsize, Inodes: int64(fs.Files), InodesFree: int64(fs.Ffree)}, nil
}

// PIDs returns how many processes and threads there are, and how many there may be; 0 for what is not known.
func PIDs() (now, most int64) {
	most = number("/proc/sys/kernel/pid_max")
	if threads := number("/proc/sys/kernel/threads-max"); threads > 0 && threads < most {
		most = threads
	}
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		if fields := strings.Fields(string(b)); len(fields) > 3 {
			_, all, _ := strings.Cut(fields[3], "/")
			now, _ = strconv.ParseInt(all, 10, 64)
		}
	}
	return now, most
}
