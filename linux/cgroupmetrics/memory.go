package cgroupmetrics

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// memory is what both versions have.
type memory struct{ usage, inactive, stack, slab, kernel uint64 }

func (r *Reader) workingSet(m memory) {
	r.add(memoryUsage, m.usage)
	r.add(memoryWorkingSet, m.usage-min(m.usage, m.inactive))
}

func (r *Reader) memory2(d dir, host bool) {
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
			r.failures(failure(key), n, n)
		}
	})
	if m.kernel == 0 { // before Linux 5.18
		m.kernel = m.stack + m.slab
	}
	var ok bool
	if m.usage, ok = r.number(d, "memory.current"); !ok {
		if host {
			r.hostMemory(m)
		}
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
	r.failures(minor, faults, allFaults)
	r.failures(majors, major, allMajor)
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

// failures are the labels of a kind of them, for the group alone and with those below it.
type failures [2][]string

func of(kind string) failures {
	return failures{{kind, "container"}, {kind, "hierarchy"}}
}

// Labels that do not change are made once.
var (
	total         = []string{"total"}
	minor, majors = of("pgfault"), of("pgmajfault")
)

func failure(key []byte) failures {
	if string(key) == "pgfault" {
		return minor
	}
	return majors
}

func (r *Reader) failures(kind failures, own, all uint64) {
	r.add(memoryFailures, own, kind[0]...)
	r.add(memoryFailures, all, kind[1]...)
}
