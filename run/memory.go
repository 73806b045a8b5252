package run

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

// quiet is for how long after a garbage collection nothing was collected again when memory is given back.
const quiet = 5 * time.Second

// GiveBack returns a component that gives memory back to the system when a burst of work is over. The runtime keeps as much
// as the next burst would need, which is as much again as is in use, and does so for ever when nothing happens. It waits for
// the end of a collection, the sign that much was allocated, and costs nothing while there is none.
func GiveBack() Component { return giveBack{} }

type giveBack struct{}

// Name is the component's name.
func (giveBack) Name() string { return "memory" }

// Run gives memory back until ctx ends.
func (giveBack) Run(ctx context.Context, ready func()) error {
	ready()
	collected := make(chan struct{}, 1)
	watchCollections(ctx, collected)
	timer := time.NewTimer(quiet)
	defer timer.Stop()
	own := false // the last collection was that of giving back
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
			if !own {
				timer.Reset(quiet)
			}
			own = false
		case <-timer.C:
			own = true
			debug.FreeOSMemory()
		}
	}
}

// watchCollections tells of the end of every garbage collection, until ctx ends: an object that nobody holds is collected.
func watchCollections(ctx context.Context, collected chan<- struct{}) {
	type sign struct{ _ [16]byte }
	runtime.AddCleanup(new(sign), func(struct{}) {
		if ctx.Err() != nil {
			return
		}
		select {
		case collected <- struct{}{}:
		default:
		}
		watchCollections(ctx, collected)
	}, struct{}{})
}
