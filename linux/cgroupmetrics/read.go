package cgroupmetrics

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Reader reads one group after the other. It is for one scrape, and for one goroutine: it keeps the names of devices.
type Reader struct {
	values  []Value
	buf     []byte
	devices map[string][]string
	// above are directories two levels above groups: from there, most groups are near, and the way from the root is most of what opening a file takes.
	above map[string]dir
}

// Close closes what a Reader keeps open. It can be used again.
func (r *Reader) Close() {
	for _, d := range r.above {
		d.close()
	}
	r.above = nil
}

// Start begins with the figures of something new. Values that were returned before are no longer valid.
func (r *Reader) Start() { r.values = r.values[:0] }

// Values returns what was read since Start, until the next one.
func (r *Reader) Values() []Value { return r.values }

func (r *Reader) add(metric int, v uint64, labels ...string) {
	r.values = append(r.values, Value{&table[metric], labels, v})
}

func (r *Reader) addIf(known bool, metric int, v uint64) {
	if known {
		r.add(metric, v)
	}
}

// Given is what a group was given, its limits, and what somebody keeps of them: they are a third of the files, and change only by who gives them, who
// then has a new Given made. Those that somebody else changes are seen after givenAge.
type Given struct {
	// Inner says that all processes of the group are in groups below it.
	Inner bool

	mu     sync.Mutex
	at     time.Time
	values []Value
}

const givenAge = 5 * time.Minute

// Group reads a group. One that is not there, or no longer, is an error that is fs.ErrNotExist.
func (r *Reader) Group(dirs map[string]string, given *Given) error {
	unified := len(dirs) == 1 && dirs[""] != ""
	name := dirs["memory"]
	if unified || name == "" {
		name = dirs[""]
	}
	main, err := r.open(name) // the directory of most files
	if err != nil && unified {
		return err
	}
	defer main.close()
	if unified {
		l := r.limits(given, func() { r.limits2(main) })
		r.cpu2(main, l)
		r.memory2(main)
		r.threads(at{main, ""})
		r.io2(main)
	} else {
		l := r.limits(given, func() { r.limits1(dirs, main) })
		begun := len(r.values)
		if dir := r.near(dirs["cpu"]); dir.prefix != "" && l.quota {
			r.cpu1(dir)
		}
		if dir := r.near(dirs["cpuacct"]); dir.prefix != "" {
			r.cpuacct1(dir)
		}
		if dirs["memory"] != "" && main >= 0 {
			r.memory1(main, l, given.Inner)
		}
		if dir := r.near(dirs["pids"]); dir.prefix != "" {
			r.threads(dir)
		}
		if dir := r.near(dirs["blkio"]); dir.prefix != "" {
			r.io1(dir)
		}
		if len(r.values) == begun && !l.cpu { // a hierarchy may not be mounted, or have no such group: but not all
			return linux.Wrap("open", name, unix.ENOENT)
		}
	}
	r.shared(dirs, main, unified, given)
	return nil
}

// shared reads what is the same in both versions: pressure, which v2 alone has, on a hybrid host too, and processes.
func (r *Reader) shared(dirs map[string]string, main dir, unified bool, given *Given) {
	v2 := main
	if !unified {
		var err error
		if v2, err = r.open(dirs[""]); err == nil { // who was born in a group is in its v2 part, if that is there
			defer v2.close()
		}
	}
	if v2 >= 0 {
		r.pressures(v2)
	}
	switch {
	case given.Inner:
		r.add(processes, 0)
		r.addIf(sized(), fileDescriptors, 0)
	case v2 >= 0:
		r.processes(at{v2, ""})
	default:
		for _, c := range []string{"cpu", "pids", "memory"} {
			if dirs[c] != "" && r.processes(r.near(dirs[c])) {
				return
			}
		}
	}
}

// limited is what limits say of other figures.
type limited struct{ cpu, quota, memory bool }

// limits adds the limits, which read reads unless they are known.
func (r *Reader) limits(given *Given, read func()) (l limited) {
	given.mu.Lock()
	defer given.mu.Unlock()
	if now := time.Now(); now.Sub(given.at) < givenAge {
		r.values = append(r.values, given.values...)
	} else {
		begun := len(r.values)
		read()
		if given.values = slices.Clone(r.values[begun:]); len(given.values) > 0 {
			given.at = now
		}
	}
	for _, v := range given.values {
		switch v.Metric {
		case &table[specPeriod]:
			l.cpu = true
		case &table[specQuota]:
			l.quota = true
		case &table[specMemory]:
			l.memory = v.Value > 0
		}
	}
	return l
}

// dir is a directory's descriptor.
type dir int

func open(from dir, path string) (dir, error) {
	fd, err := unix.Openat(int(from), path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return dir(fd), nil
}

// open opens a group's directory.
func (r *Reader) open(path string) (dir, error) {
	if path == "" {
		return -1, unix.ENOENT
	}
	from := r.near(path)
	d, err := open(from.dir, from.prefix)
	return d, linux.Wrap("open", path, err)
}

// near returns how to reach a group's directory; of none, nothing.
func (r *Reader) near(path string) at {
	path = strings.TrimSuffix(path, "/")
	cut := strings.LastIndexByte(path[:max(0, strings.LastIndexByte(path, '/'))], '/')
	if cut <= 0 {
		if path != "" {
			path += "/"
		}
		return at{unix.AT_FDCWD, path}
	}
	above, known := r.above[path[:cut]]
	if !known {
		var err error
		if above, err = open(unix.AT_FDCWD, path[:cut]); err != nil {
			return at{unix.AT_FDCWD, path + "/"}
		}
		if r.above == nil {
			r.above = map[string]dir{}
		}
		r.above[path[:cut]] = above
	}
	return at{above, path[cut+1:] + "/"}
}

func (d dir) close() {
	if d >= 0 {
		unix.Close(int(d))
	}
}

// at is where files are: what comes before their names, relative to a descriptor.
type at struct {
	dir
	prefix string
}

// file returns a file's text until the next call; nil: there is none, or no longer.
func (r *Reader) file(d dir, name string) []byte {
	fd, err := unix.Openat(int(d), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	if r.buf == nil {
		r.buf = make([]byte, 16<<10)
	}
	for n := 0; ; {
		if n == len(r.buf) {
			r.buf = append(r.buf, make([]byte, n)...)
		}
		m, err := unix.Read(fd, r.buf[n:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil
		case m == 0 || n == 0 && m < short:
			return r.buf[:n+m]
		default:
			n += m
		}
	}
}

// short is what the kernel gives of such files at once: less is all. Lists of many records it gives by the page, and a page may have room for one more.
const short = 2048

// unlimited is where the kernel's words for "no limit" begin: the largest page-aligned number on v1. cAdvisor shows them as 0.
const unlimited = 1 << 62

// number reads a file of one number; "max" is 0.
func (r *Reader) number(d dir, name string) (uint64, bool) {
	b := bytes.TrimSpace(r.file(d, name))
	if string(b) == "max" {
		return 0, true
	}
	n, ok := parse(b)
	if n >= unlimited {
		n = 0
	}
	return n, ok
}

func (r *Reader) addNumber(d dir, name string, metric int) {
	n, ok := r.number(d, name)
	r.addIf(ok, metric, n)
}

// parse reads a decimal number without an allocation.
func parse(b []byte) (n uint64, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' || n > (math.MaxUint64-9)/10 {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, len(b) > 0
}

// keyed calls f for each line "key number".
func keyed(b []byte, f func(key []byte, n uint64)) {
	for len(b) > 0 {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte{'\n'})
		key, value, _ := bytes.Cut(line, []byte{' '})
		if n, ok := parse(value); ok {
			f(key, n)
		}
	}
}

func (r *Reader) limits2(d dir) {
	first, second, _ := bytes.Cut(bytes.TrimSpace(r.file(d, "cpu.max")), []byte{' '})
	quota, ok := parse(first) // or "max"
	r.addIf(ok, specQuota, quota)
	period, ok := parse(second)
	r.addIf(ok, specPeriod, period)
	if weight, ok := r.number(d, "cpu.weight"); ok && weight > 0 {
		r.add(specShares, 2+(weight-1)*262142/9999) // as shares become weights, KEP-2254
	}
	r.addNumber(d, "memory.max", specMemory)
	r.addNumber(d, "memory.min", specReservation)
	r.addNumber(d, "memory.swap.max", specSwap)
	r.addNumber(d, "pids.max", threadsMax)
}

func (r *Reader) limits1(dirs map[string]string, memory dir) {
	if cpu, err := r.open(dirs["cpu"]); err == nil {
		r.addNumber(cpu, "cpu.shares", specShares)
		r.addNumber(cpu, "cpu.cfs_period_us", specPeriod)
		if quota, ok := r.number(cpu, "cpu.cfs_quota_us"); ok && quota > 0 { // or -1
			r.add(specQuota, quota)
		}
		cpu.close()
	}
	if dirs["memory"] != "" && memory >= 0 {
		r.addNumber(memory, "memory.limit_in_bytes", specMemory)
		r.addNumber(memory, "memory.soft_limit_in_bytes", specReservation)
		r.addNumber(memory, "memory.memsw.limit_in_bytes", specSwap)
	}
	if pids, err := r.open(dirs["pids"]); err == nil {
		r.addNumber(pids, "pids.max", threadsMax)
		pids.close()
	}
}

// cpu2 reads v2's. Who has no quota is not held back, and has no figures of that, as in cAdvisor.
func (r *Reader) cpu2(d dir, l limited) {
	keyed(r.file(d, "cpu.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "usage_usec":
			r.add(cpuUsage, n*1000, "total")
		case "user_usec":
			r.add(cpuUser, n*1000)
		case "system_usec":
			r.add(cpuSystem, n*1000)
		case "nr_periods":
			r.addIf(l.quota, cfsPeriods, n)
		case "nr_throttled":
			r.addIf(l.quota, cfsThrottledPeriods, n)
		case "throttled_usec":
			r.addIf(l.quota, cfsThrottled, n*1000)
		case "nr_bursts":
			r.addIf(l.quota, cfsBurstPeriods, n)
		case "burst_usec":
			r.addIf(l.quota, cfsBurst, n*1000)
		}
	})
}

// cpu1 is for groups with a quota.
func (r *Reader) cpu1(d at) {
	keyed(r.file(d.dir, d.prefix+"cpu.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "nr_periods":
			r.add(cfsPeriods, n)
		case "nr_throttled":
			r.add(cfsThrottledPeriods, n)
		case "throttled_time":
			r.add(cfsThrottled, n)
		case "nr_bursts":
			r.add(cfsBurstPeriods, n)
		case "burst_time":
			r.add(cfsBurst, n)
		}
	})
}

// tick is a unit of cpuacct.stat in nanoseconds: USER_HZ is 100 on every architecture that we know.
const tick = 1e9 / 100

func (r *Reader) cpuacct1(d at) {
	if n, ok := r.number(d.dir, d.prefix+"cpuacct.usage"); ok {
		r.add(cpuUsage, n, "total")
	}
	keyed(r.file(d.dir, d.prefix+"cpuacct.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "user":
			r.add(cpuUser, n*tick)
		case "system":
			r.add(cpuSystem, n*tick)
		}
	})
}

// memory is what both versions have.
type memory struct{ usage, inactive, stack, slab, kernel uint64 }

func (r *Reader) workingSet(m memory) {
	r.add(memoryUsage, m.usage)
	r.add(memoryWorkingSet, m.usage-min(m.usage, m.inactive))
}

func (r *Reader) memory2(d dir) {
	var m memory
	keyed(r.file(d, "memory.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "anon":
			r.add(memoryRSS, n)
		case "file":
			r.add(memoryCache, n)
		case "file_mapped":
			r.add(memoryMapped, n)
		case "active_file":
			r.add(memoryActiveFile, n)
		case "inactive_file":
			m.inactive = n
			r.add(memoryInactiveFile, n)
		case "kernel":
			m.kernel = n
		case "kernel_stack":
			m.stack = n
		case "slab":
			m.slab = n
		case "file_dirty":
			r.add(memoryDirty, n)
		case "file_writeback":
			r.add(memoryWriteback, n)
		case "pgscan":
			r.add(memoryScanned, n)
		case "pgsteal":
			r.add(memoryStolen, n)
		case "workingset_refault_file":
			r.add(memoryRefaultFile, n)
		case "workingset_refault_anon":
			r.add(memoryRefaultAnon, n)
		case "pgfault", "pgmajfault": // v2 counts for the group with those below it alone
			r.failures(string(key), n, n)
		}
	})
	if m.kernel == 0 { // before Linux 5.18
		m.kernel = m.stack + m.slab
	}
	var ok bool
	if m.usage, ok = r.number(d, "memory.current"); !ok {
		r.hostMemory(m)
		return
	}
	r.add(memoryKernel, m.kernel)
	r.workingSet(m)
	r.addNumber(d, "memory.peak", memoryMax)
	r.addNumber(d, "memory.swap.current", memorySwap)
	keyed(r.file(d, "memory.events"), func(key []byte, n uint64) {
		switch string(key) {
		case "high":
			r.add(memoryEventsHigh, n)
		case "max":
			r.add(memoryEventsMax, n)
			r.add(memoryFailcnt, n)
		case "oom_kill":
			r.add(oomEvents, n)
		}
	})
}

// hostMemory is for v2's root group, which counts no sum: it is what the machine does not have free.
func (r *Reader) hostMemory(m memory) {
	var total, free, swap, swapFree uint64
	for line := range bytes.Lines(r.file(unix.AT_FDCWD, "/proc/meminfo")) {
		key, value, _ := bytes.Cut(line, []byte{':'})
		n, ok := parse(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(value), []byte("kB"))))
		if !ok {
			continue
		}
		switch string(key) {
		case "MemTotal":
			total = n << 10
		case "MemFree":
			free = n << 10
		case "SwapTotal":
			swap = n << 10
		case "SwapFree":
			swapFree = n << 10
		}
	}
	if m.usage = total - free; m.usage > 0 && free <= total {
		r.workingSet(m)
		r.add(memorySwap, swap-min(swap, swapFree))
	}
}

func (r *Reader) memory1(d dir, l limited, inner bool) {
	var m memory
	var faults, major, allFaults, allMajor uint64
	keyed(r.file(d, "memory.stat"), func(key []byte, n uint64) {
		switch string(key) {
		case "total_rss":
			r.add(memoryRSS, n)
		case "total_cache":
			r.add(memoryCache, n)
		case "total_mapped_file":
			r.add(memoryMapped, n)
		case "total_swap":
			r.add(memorySwap, n)
		case "total_dirty":
			r.add(memoryDirty, n)
		case "total_writeback":
			r.add(memoryWriteback, n)
		case "total_active_file":
			r.add(memoryActiveFile, n)
		case "total_inactive_file":
			m.inactive = n
			r.add(memoryInactiveFile, n)
		case "pgfault":
			faults = n
		case "pgmajfault":
			major = n
		case "total_pgfault":
			allFaults = n
		case "total_pgmajfault":
			allMajor = n
		}
	})
	var ok bool
	if m.usage, ok = r.number(d, "memory.usage_in_bytes"); !ok {
		return // the group has gone meanwhile
	}
	r.failures("pgfault", faults, allFaults)
	r.failures("pgmajfault", major, allMajor)
	r.workingSet(m)
	r.addNumber(d, "memory.max_usage_in_bytes", memoryMax)
	if l.memory {
		r.addNumber(d, "memory.failcnt", memoryFailcnt)
	} else {
		r.add(memoryFailcnt, 0) // who has no limit does not hit it
	}
	r.addNumber(d, "memory.kmem.usage_in_bytes", memoryKernel)
	if inner { // v1 counts with the victim's own group
		r.add(oomEvents, 0)
		return
	}
	keyed(r.file(d, "memory.oom_control"), func(key []byte, n uint64) {
		if string(key) == "oom_kill" {
			r.add(oomEvents, n)
		}
	})
}

func (r *Reader) failures(kind string, own, all uint64) {
	r.add(memoryFailures, own, kind, "container")
	r.add(memoryFailures, all, kind, "hierarchy")
}

func (r *Reader) threads(d at) { r.addNumber(d.dir, d.prefix+"pids.current", threads) }

// processes counts those of the group itself, without groups below it, as cAdvisor does, and their descriptors.
func (r *Reader) processes(d at) bool {
	b := r.file(d.dir, d.prefix+"cgroup.procs")
	if b == nil {
		return false // v2 has none in a threaded group
	}
	var count, files uint64
	path := make([]byte, 0, 32)
	for line := range bytes.Lines(b) {
		count++
		if !sized() {
			continue
		}
		var st unix.Stat_t
		path = append(append(append(path[:0], "/proc/"...), bytes.TrimSpace(line)...), "/fd"...)
		if err := unix.Stat(string(path), &st); err == nil {
			files += uint64(st.Size)
		}
	}
	r.add(processes, count)
	r.addIf(sized(), fileDescriptors, files)
	return true
}

// sized tells whether the kernel says how many descriptors a process has without their being listed: as the size of /proc/<pid>/fd, since Linux 6.2.
var sized = sync.OnceValue(func() bool {
	var st unix.Stat_t
	return unix.Stat("/proc/self/fd", &st) == nil && st.Size > 0
})

// pressures reads v2's. A kernel that does not measure has no such files, or they cannot be read.
func (r *Reader) pressures(d dir) {
	for _, p := range []struct {
		file             string
		waiting, stalled int
	}{{"cpu.pressure", cpuWaiting, cpuStalled}, {"memory.pressure", memoryWaiting, memoryStalled}, {"io.pressure", ioWaiting, ioStalled}} {
		for line := range bytes.Lines(r.file(d, p.file)) {
			_, total, _ := bytes.Cut(bytes.TrimSpace(line), []byte("total="))
			n, ok := parse(total)
			switch {
			case !ok:
			case bytes.HasPrefix(line, []byte("some ")):
				r.add(p.waiting, n*1000)
			case bytes.HasPrefix(line, []byte("full ")):
				r.add(p.stalled, n*1000)
			}
		}
	}
}

// Limits adds the soft limit of open files of the process that a container began with.
func (r *Reader) Limits(pid int) {
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
