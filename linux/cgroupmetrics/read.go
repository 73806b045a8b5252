package cgroupmetrics

import (
	"bytes"
	"math"
	"slices"
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
	// Inner says that all processes of the group are in groups below it, Host that it is the root of the host's hierarchies.
	Inner, Host bool

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
		r.memory2(main, given.Host)
		r.threads(at{main, ""})
		r.io2(main)
	} else {
		before := len(r.values)
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
		if len(r.values) == begun { // a hierarchy may not be mounted, or have no such group: but not all
			r.values = r.values[:before]
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
type limited struct{ quota, memory bool }

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
			r.add(cpuUsage, n*1000, total...)
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
		r.add(cpuUsage, n, total...)
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
