package cgroup

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// mounted are the host's hierarchies.
var mounted hierarchies

// hierarchies are read once: to find them takes reading all mounts of the host, and every pod has some. One that is unmounted is
// noticed by its root, one that is mounted later is not: the host's are there before anything that makes groups.
type hierarchies struct {
	mu    sync.Mutex
	known []linux.Hierarchy
}

// list returns the hierarchies. They are shared and read-only.
func (h *hierarchies) list() ([]linux.Hierarchy, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range h.known {
		var fs unix.Statfs_t
		if err := unix.Statfs(k.Root, &fs); err != nil || fs.Type != unix.CGROUP_SUPER_MAGIC && fs.Type != unix.CGROUP2_SUPER_MAGIC {
			h.known = nil
			break
		}
	}
	if h.known != nil {
		return h.known, nil
	}
	var err error
	h.known, err = linux.Hierarchies()
	return h.known, err
}
