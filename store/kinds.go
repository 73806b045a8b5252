package store

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/yare-dev/yare/api"
)

// kinds is the set of tables. It never changes: Add and Remove replace it.
type kinds struct {
	tables map[*api.Kind]*table
	paths  map[string]*table // by Kind.Prefix
}

func newKinds(tables []*table) *kinds {
	ks := &kinds{make(map[*api.Kind]*table, len(tables)), make(map[string]*table, len(tables))}
	for _, t := range tables {
		ks.tables[t.kind], ks.paths[t.kind.Prefix] = t, t
	}
	return ks
}

// Kinds returns the kinds that are stored here, in no order.
func (s *Store) Kinds() []*api.Kind { return slices.Collect(maps.Keys(s.held.Load().tables)) }

// missedChange is a change that came while its table was being read.
type missedChange struct {
	key api.Key
	c   Change
}

// Add begins to hold the objects of kind k; ErrTaken where another kind has its Prefix. It returns when everything that exists is published:
// then k can be read, watched and written like any other.
func (s *Store) Add(ctx context.Context, k *api.Kind) error {
	t := newTable(k, s.o.Window, s.o.Indexes[k])
	t.loading = true
	if err := s.hold(t); err != nil {
		return err
	}
	for {
		var found []missedChange
		at, err := s.read(ctx, t, 0, func(key api.Key, kv KV) { found = append(found, missedChange{key, Change{kv}}) })
		if err != nil {
			s.Remove(k)
			return err
		}
		if s.install(t, found, at) {
			return s.Wait(ctx, at)
		}
	}
}

// hold adds a table to the set.
func (s *Store) hold(t *table) error {
	s.feeding.Lock()
	defer s.feeding.Unlock()
	ks := s.held.Load()
	if ks.paths[t.kind.Prefix] != nil {
		return fmt.Errorf("store %v at %s: %w", t.kind, t.kind.StorePrefix(), ErrTaken)
	}
	s.held.Store(newKinds(append(slices.Collect(maps.Values(ks.tables)), t)))
	return nil
}

// install publishes what was found at a revision and what changed since. It does not where changes since then were not seen.
func (s *Store) install(t *table, found []missedChange, at api.Revision) bool {
	s.feeding.Lock()
	defer s.feeding.Unlock()
	if at < s.skipped {
		t.missed = nil
		return false
	}
	evs := make([]Event, len(found))
	for i := range found {
		evs[i] = s.event(t, found[i].key, &found[i].c)
	}
	t.fill(evs, at)
	t.loading, t.since = false, at
	for i := range t.missed {
		if m := &t.missed[i]; m.c.Modified > at {
			t.publish(m.c.Modified, []Event{s.event(t, m.key, &m.c)}, false)
		}
	}
	t.missed = nil
	return true
}

// late says that a change must not be published now: the table was read after it, or is being read.
// Preconditions: Store.feeding is held.
func (t *table) late(rev api.Revision, key api.Key, c *Change) bool {
	if t.loading {
		t.missed = append(t.missed, missedChange{key, *c})
		return true
	}
	return rev <= t.since
}

// Remove ends what Add began: k's objects are no longer held, in memory that is, and its watches end. It is nothing for a kind that is
// not stored here.
func (s *Store) Remove(k *api.Kind) {
	s.feeding.Lock()
	defer s.feeding.Unlock()
	tables := maps.Clone(s.held.Load().tables)
	t := tables[k]
	if t == nil {
		return
	}
	delete(tables, k)
	s.held.Store(newKinds(slices.Collect(maps.Values(tables))))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.gone = true
	close(t.news)
	t.news = make(chan struct{})
}
