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

// A small heap may grow by what is garbage between two collections, a large one by its own size, as ever.
func TestGrowth(t *testing.T) {
	for _, tt := range []struct {
		usual int
		live  uint64
		want  int
	}{
		{100, garbage / 2, 200},
		{100, 1 << 30, 100},
		{100, 1 << 10, 1000},
		{300, 128 << 20, 300},
		{-1, 64 << 20, -1},
		{100, 0, 100},
	} {
		if got := growth(tt.usual, tt.live); got != tt.want {
			t.Errorf("growth(%d, %d) = %d, want %d", tt.usual, tt.live, got, tt.want)
		}
	}
}

// The program goes on after it has given back pages of its file, also where a dynamic linker has written to some (the race detector's).
func TestRest(t *testing.T) {
	Rest()
	if runtime.Version() == "" || growth(100, 0) != 100 {
		t.Error("the program is not what it was")
	}
}
