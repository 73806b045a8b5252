package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/run"
)

// retryAfter is how long the feed waits before it takes up a broken watch again.
const retryAfter = 100 * time.Millisecond

// Run loads everything, calls ready, and feeds the tables until ctx ends. A watch that breaks is taken up where it
// broke; where that revision was compacted meanwhile, everything is loaded again and compared.
func (s *Store) Run(ctx context.Context, ready func()) error {
	if err := s.retrying(ctx, "loading failed", func() error { return s.load(ctx, false) }); err != nil {
		return nil // ctx ended
	}
	ready()
	var wg sync.WaitGroup
	defer wg.Wait()
	if s.o.Keep > 0 {
		wg.Go(func() { s.compact(ctx) })
	}
	// Everything is watched, not /registry/ alone, so that every revision of the database is seen here and Sync needs no
	// other sign of progress.
	err := s.retrying(ctx, "watch broke", func() error {
		err := s.b.Watch(ctx, "", s.Revision(), s.feed)
		if errors.Is(err, ErrCompacted) {
			s.o.Log.Warn("watch was compacted, loading everything again", "revision", s.Revision())
			err = s.load(ctx, true)
		}
		if err == nil {
			err = errWatchAgain
		}
		return err
	})
	if s.detect != nil {
		return s.detect.check()
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// errWatchAgain makes retrying start over at once.
var errWatchAgain = errors.New("watch again")

// retrying calls f until it succeeds or ctx ends, which is the only error.
func (s *Store) retrying(ctx context.Context, what string, f func() error) error {
	for {
		err := f()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errWatchAgain) {
			continue
		}
		s.o.Log.Warn(what, "err", err, "again_in", retryAfter)
		if err := run.Pause(ctx, retryAfter); err != nil {
			return err
		}
	}
}

// feed publishes the changes of one revision.
func (s *Store) feed(rev api.Revision, changes []Change) error {
	s.feeding.Lock()
	defer s.feeding.Unlock()
	// Almost always one change of one kind; lease expiry deletes many keys at once.
	if len(changes) == 1 {
		if t, key := s.locate(changes[0].Key); t != nil {
			if !t.late(rev, key, &changes[0]) {
				ev := s.event(t, key, &changes[0])
				t.publish(rev, []Event{ev}, false)
				s.tell(changes[0].Key, ev.Entry)
			}
		}
		s.reached(rev)
		return nil
	}
	byTable := map[*table][]Event{}
	for i := range changes {
		if t, key := s.locate(changes[i].Key); t != nil && !t.late(rev, key, &changes[i]) {
			ev := s.event(t, key, &changes[i])
			s.tell(changes[i].Key, ev.Entry)
			byTable[t] = append(byTable[t], ev)
		}
	}
	for t, evs := range byTable {
		t.publish(rev, evs, false)
	}
	s.reached(rev)
	return nil
}

// event makes the Event of a change. Only the feed writes tables, so it reads them without a lock.
func (s *Store) event(t *table, key api.Key, c *Change) Event {
	if c.Value == nil {
		e := &Entry{Key: key, Revision: c.Modified}
		if old, ok := t.now.objects.Get(e); ok {
			e = buried(old, c.Modified)
		}
		return Event{Entry: e, Deleted: true}
	}
	var e *Entry
	if o := s.match(c); o != nil {
		e = entry(o, key, c.Modified)
	} else if e = load(t.kind, key, c.KV); e.err != nil {
		s.o.Log.Error("unreadable object", "key", c.Key, "err", e.err)
	}
	e.stale = c.Stale
	s.detect.add(e)
	return Event{Entry: e}
}

// load reads everything at one revision. The first time it fills the tables; again, it publishes the differences.
func (s *Store) load(ctx context.Context, again bool) error {
	s.feeding.Lock()
	defer s.feeding.Unlock()
	tables := s.held.Load().tables
	found := make(map[*table][]Event, len(tables))
	var at api.Revision
	from, end := root, prefixEnd(root)
	for more := true; more; {
		kvs, left, rev, err := s.b.Range(ctx, from, end, page, at)
		if err != nil {
			return fmt.Errorf("load: %w", err)
		}
		if at == 0 {
			at = rev
		}
		for i := range kvs {
			s.found(found, &kvs[i], again)
			from = kvs[i].Key + "\x00"
		}
		more = left
	}
	for _, t := range tables {
		switch {
		case t.loading:
		case again:
			t.publish(at, t.diff(found[t], at), true)
		default:
			t.fill(found[t], at)
		}
	}
	s.skipped = at
	s.reached(at)
	return nil
}

// found adds what was read to the table's events, unless it is what is published already.
func (s *Store) found(found map[*table][]Event, kv *KV, again bool) {
	t, key := s.locate(kv.Key)
	if t == nil || t.loading {
		return
	}
	if again {
		if e, ok := t.now.objects.Get(&Entry{Key: key}); ok && e.Revision == kv.Modified {
			found[t] = append(found[t], Event{Entry: e})
			return
		}
	}
	ev := s.event(t, key, &Change{*kv})
	s.tell(kv.Key, ev.Entry)
	found[t] = append(found[t], ev)
}

// fill makes evs the first content.
func (t *table) fill(evs []Event, at api.Revision) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.frozen.Store(nil)
	for _, ev := range evs {
		t.apply(ev)
	}
	t.events, t.floor, t.now.changed = nil, at, at
}

// diff returns the changes from what is published to all, which is everything that exists at revision at. Objects
// that are gone were deleted at an unknown revision, and are told to be gone as of at; those that others have taken the place of, before
// these.
func (t *table) diff(all []Event, at api.Revision) []Event {
	exists := make(map[api.Key]bool, len(all))
	var evs []Event
	for _, ev := range all {
		exists[ev.Entry.Key] = true
		old, ok := t.now.objects.Get(ev.Entry)
		if ok && old.Revision == ev.Entry.Revision {
			continue
		}
		if ok && old.err == nil && ev.Entry.err == nil && old.Object.GetUID() != ev.Entry.Object.GetUID() {
			// A revision of its own, so that nobody goes on after it without the other.
			evs = append(evs, Event{Entry: buried(old, ev.Revision()-1), Deleted: true})
		}
		evs = append(evs, ev)
	}
	sort.SliceStable(evs, func(i, j int) bool { return evs[i].Revision() < evs[j].Revision() })
	t.now.objects.Scan(func(e *Entry) bool {
		if !exists[e.Key] {
			evs = append(evs, Event{Entry: buried(e, at), Deleted: true})
		}
		return true
	})
	return evs
}

// keepSteps is how many steps Keep is looked at in: nothing is kept for longer than Keep and one step.
const keepSteps = 5

// mark is how far the history went at some time.
type mark struct {
	rev    api.Revision
	events map[*table]int64
}

func (s *Store) mark() mark {
	tables := s.held.Load().tables
	m := mark{rev: s.Revision(), events: make(map[*table]int64, len(tables))}
	for _, t := range tables {
		m.events[t] = t.next()
	}
	return m
}

// compact forgets revisions and events that are older than Keep, until ctx ends.
func (s *Store) compact(ctx context.Context) {
	tick := time.NewTicker(s.o.Keep / keepSteps)
	defer tick.Stop()
	marks := []mark{s.mark()}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		marks = append(marks, s.mark())
		if len(marks) <= keepSteps {
			s.pasts.sweep(0)
			continue
		}
		old := marks[0]
		s.pasts.sweep(old.rev)
		marks = slices.Delete(marks, 0, 1)
		for t, n := range old.events {
			t.expire(n)
		}
		if err := s.b.Compact(ctx, old.rev); err != nil && !errors.Is(err, ErrCompacted) && ctx.Err() == nil {
			s.o.Log.Warn("compacting failed", "revision", old.rev, "err", err)
		}
	}
}
