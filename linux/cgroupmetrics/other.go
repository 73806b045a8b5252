package cgroupmetrics

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Ulimits adds the soft limit of open files of the process that a container began with.
func (r *Reader) Ulimits(pid int) {
	var l unix.Rlimit
	if pid > 0 && unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &l) == nil && l.Cur != unix.RLIM_INFINITY {
		r.add(ulimits, l.Cur, "max_open_files")
	}
}

// Times adds when a container, or a group, was made, started and seen, in seconds since 1970; 0 is not known.
func (r *Reader) Times(created, started, seen int64) {
	r.addIf(created > 0, creationTime, uint64(created))
	r.addIf(started > 0, startTime, uint64(started))
	r.addIf(seen > 0, lastSeen, uint64(seen))
}

// Filesystem is one that is written to.
type Filesystem struct {
	Bytes, Inodes, InodesFree uint64
	Used                      uint64 // bytes, by everybody
	device                    []string
}

// Find returns the file system of a path.
func (r *Reader) Find(path string) (*Filesystem, error) {
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Statfs(path, &fs); err != nil {
		return nil, linux.Wrap("measure", path, err)
	}
	if err := unix.Stat(path, &st); err != nil {
		return nil, linux.Wrap("measure", path, err)
	}
	id := strconv.Itoa(int(unix.Major(st.Dev))) + ":" + strconv.Itoa(int(unix.Minor(st.Dev)))
	size := uint64(fs.Bsize)
	return &Filesystem{Bytes: fs.Blocks * size, Inodes: fs.Files, InodesFree: fs.Ffree, Used: (fs.Blocks - fs.Bfree) * size, device: r.device([]byte(id))}, nil
}

// Filesystem adds a file system, and how much of it those use whom the figures are of; nil: that is not known.
func (r *Reader) Filesystem(f *Filesystem, used *uint64) {
	r.add(fsInodesFree, f.InodesFree, f.device...)
	r.add(fsInodes, f.Inodes, f.device...)
	r.add(fsLimit, f.Bytes, f.device...)
	if used != nil {
		r.add(fsUsage, *used, f.device...)
	}
}

// Dirs returns the directories of a path in all hierarchies of the host.
func Dirs(hierarchies []linux.Hierarchy, path string) map[string]string {
	dirs := map[string]string{}
	for _, h := range hierarchies {
		if h.Unified() {
			dirs[""] = h.Root + path
		}
		for _, c := range h.Controllers {
			dirs[c] = h.Root + path
		}
	}
	return dirs
}
