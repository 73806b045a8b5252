package run

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// quiet is for how long after a garbage collection nothing was collected again when memory is given back.
const quiet = 5 * time.Second

// GiveBack returns a component that gives memory back to the system when a burst of work is over. The runtime keeps as much
// as the next burst would need, which is as much again as is in use, and does so for ever when nothing happens. It waits for
// the end of a collection, the sign that much was allocated, and costs nothing while there is none.
//
// While a burst lasts, it lets a small heap grow further than to twice its size before the next collection, which costs by
// what is in use and not by what is not.
func GiveBack() Component { return giveBack{} }

type giveBack struct{}

// Name is the component's name.
func (giveBack) Name() string { return "memory" }

// A burst is collections within oftener of each other; then there are garbage bytes between two, where that is not less than
// the heap has in use. With more, what stays of a burst lies so far apart that little can be given back: 128 MB for 16 made
// creates 5 % faster, and what 20,000 ConfigMaps took afterwards twice as much.
const (
	oftener = time.Second
	garbage = 16 << 20
)

// Rest gives back what a burst of work or the start needed and rest does not: memory that nothing is in, and pages of the program's
// file, which are the page cache's again and come back from there.
func Rest() {
	debug.FreeOSMemory()
	maps, err := os.ReadFile("/proc/self/smaps")
	program, linkErr := os.Readlink("/proc/self/exe")
	if err != nil || linkErr != nil {
		return
	}
	var from, to uintptr
	ours := false
	for line := range strings.Lines(string(maps)) {
		var start, end uintptr
		var rights, path, kilobytes string
		if n, _ := fmt.Sscanf(line, "%x-%x %s %s %s %s %s", &start, &end, &rights, new(string), new(string), new(string), &path); n >= 3 {
			from, to, ours = start, end, n == 7 && path == program && rights[1] == '-'
		} else if n, _ := fmt.Sscanf(line, "Anonymous: %s kB", &kilobytes); n == 1 && ours && kilobytes == "0" {
			// What was written before it became read-only, as a dynamic linker does, is anonymous: it is not in the file.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_DONTNEED) // refused, they stay
		}
	}
}

// Run gives memory back until ctx ends.
func (giveBack) Run(ctx context.Context, ready func()) error {
	ready()
	collected := make(chan struct{}, 1)
	watchCollections(ctx, collected)
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	usual := debug.SetGCPercent(100)
	debug.SetGCPercent(usual)
	defer debug.SetGCPercent(usual)
	own := false // the last collection was that of giving back
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
			now := time.Now()
			if !own {
				timer.Reset(quiet)
				if now.Sub(last) < oftener {
					debug.SetGCPercent(growth(usual, inUse()))
				}
			}
			own, last = false, now
		case <-timer.C:
			own = true
			debug.SetGCPercent(usual)
			Rest()
		}
	}
}

// growth returns by how many percent a heap with that many bytes in use may grow during a burst.
func growth(usual int, live uint64) int {
	if usual < 0 || live == 0 { // collections are switched off, or there was none
		return usual
	}
	return max(usual, min(int(garbage*100/live), 1000))
}

// inUse returns how many bytes the last collection found in use.
func inUse() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	if sample[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return sample[0].Value.Uint64()
}

// watchCollections tells of the end of every garbage collection, until ctx ends: an object that nobody holds is collected.
func watchCollections(ctx context.Context, collected chan<- struct{}) {
	type sign struct{ _ [16]byte }
	runtime.AddCleanup(new(sign), func(struct{}) {
		if ctx.Err() != nil {
			return
		}
		watchCollections(ctx, collected) // first: who is told may collect at once
		select {
		case collected <- struct{}{}:
		default:
		}
	}, struct{}{})
}
