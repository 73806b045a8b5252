package run

import (
	"runtime"
	"testing"
)

// Every collection is told of, not only the first.
func TestWatchCollections(t *testing.T) {
	collected := make(chan struct{}, 1)
	watchCollections(t.Context(), collected)
	for range 3 {
		runtime.GC()
		<-collected
	}
}
