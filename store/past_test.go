package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// counting counts how often a kind is read from the database, and takes its time for that.
type counting struct {
	store.Backend
	ranges atomic.Int32
	fails  atomic.Bool
}

func (b *counting) Range(ctx context.Context, from, end string, limit int, at api.Revision) ([]store.KV, bool, api.Revision, error) {
	if from == api.PodKind.StorePrefix() {
		b.ranges.Add(1)
		time.Sleep(time.Second)
		if b.fails.Load() {
			return nil, false, 0, errors.New("not now")
		}
	}
	return b.Backend.Range(ctx, from, end, limit, at)
}

// The pages of a list at one revision are of one version, which is read or made once, however many ask.
func TestPastOnce(t *testing.T) {
	t.Parallel()
	b := &counting{Backend: memory.New(true)}
	bubble(t, func() store.Backend { return b }, store.Options{Window: 1, Keep: 5 * time.Minute}, func(t *testing.T, s *store.Store) {
		ctx, ok := t.Context(), must[*store.Entry](t)
		first := ok(s.Create(ctx, api.PodKind, pod("ns", "a", ""), 0))
		for n := range 8 {
			ok(s.Create(ctx, api.PodKind, pod("ns", fmt.Sprint("b", n), ""), 0))
		}
		page := func() error {
			snap, err := s.SnapshotAt(ctx, api.PodKind, first.Revision)
			if err == nil && strings.Join(names(snap.All("", api.Key{})), " ") != "ns/a" {
				t.Errorf("%v", names(snap.All("", api.Key{})))
			}
			return err
		}
		b.fails.Store(true)
		if page() == nil {
			t.Error("an error of the database is none")
		}
		b.fails.Store(false)
		b.ranges.Store(0)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if err := page(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for range 10 {
			if err := page(); err != nil {
				t.Error(err)
			}
		}
		if n := b.ranges.Load(); n != 1 {
			t.Errorf("read %d times", n)
		}
		// Kept for a while only.
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if err := page(); err != nil || b.ranges.Load() != 2 {
			t.Errorf("read %d times, %v", b.ranges.Load(), err)
		}
	})
}

// BenchmarkPages lists a kind in pages of 500 at a revision some thousand events ago, while others write.
func BenchmarkPages(b *testing.B) {
	const objects, page = 5000, 500
	s := store.New(memory.New(false), api.Stored(), store.Options{Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(b.Context())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- s.Run(ctx, func() { close(up) }) }()
	<-up
	last := map[int]*store.Entry{}
	for n := range objects {
		e, err := s.Create(ctx, api.PodKind, pod("ns", fmt.Sprintf("p%05d", n), "n"), 0)
		if err != nil {
			b.Fatal(err)
		}
		last[n] = e
	}
	rev := s.Revision()
	for n := range objects {
		if _, err := s.Update(ctx, api.PodKind, pod("ns", fmt.Sprintf("p%05d", n), "m"), last[n].Revision, 0); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		var after api.Key
		for range objects / page {
			snap, err := s.SnapshotAt(ctx, api.PodKind, rev)
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for e := range snap.All("", after) {
				after = e.Key
				if n++; n == page {
					break
				}
			}
		}
	}
	cancel()
	<-done
}
