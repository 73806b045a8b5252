package volume

import (
	"sync"
	"testing"
)

// One at a time has a key, and nothing stays of keys that nobody has.
func TestLocks(t *testing.T) {
	var l locks
	var wg sync.WaitGroup
	counts := [3]int{}
	for i := range 300 {
		wg.Go(func() {
			defer l.lock(i % 3)()
			counts[i%3]++
		})
	}
	wg.Wait()
	if counts != [3]int{100, 100, 100} || len(l.all) != 0 {
		t.Error(counts, len(l.all))
	}
}
