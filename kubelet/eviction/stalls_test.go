package eviction

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/yare-dev/yare/linux"
)

// Stalls end with their context, and say so where the kernel tells of none.
func TestStalls(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := NewStalls()
	var wg sync.WaitGroup
	var err error
	wg.Go(func() { err = s.Run(ctx) })
	cancel()
	wg.Wait()
	if err != nil && !errors.Is(err, linux.ErrNotSupported) {
		t.Error(err)
	}
	if err := s.watch(t.Context(), filepath.Join(t.TempDir(), "none"), memoryStalls); !errors.Is(err, linux.ErrNotSupported) {
		t.Error(err)
	}
}
