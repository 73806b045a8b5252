package store

import (
	"context"
	"fmt"
	"sort"

	"github.com/yare-dev/yare/api"
)

// Event is one change of one object.
type Event struct {
	// Entry is the new state, or the last one with the revision of the deletion.
	Entry *Entry
	// Old is the state before, nil for a new object.
	Old     *Entry
	Deleted bool
}

// Revision returns the revision of the change.
func (e Event) Revision() api.Revision { return e.Entry.Revision }

// Watch reads a kind's events. It is a cursor in events that all readers share, so a reader costs nothing until it
// reads, and holds nothing that has to be given back. It belongs to one goroutine.
type Watch struct {
	s     *Store
	t     *table
	pos   int64 // number of the next event
	rev   api.Revision
	limit int64
}

// Watch returns a reader of k's events after revision from. ErrCompacted says that these are no longer all known,
// ErrFuture that from was not reached. A reader that falls more than limit events behind (0: as many as are kept)
// gets ErrSlow. After the last event of a kind that was removed comes ErrRemoved.
func (s *Store) Watch(k *api.Kind, from api.Revision, limit int) (*Watch, error) {
	t, err := s.table(k)
	if err != nil {
		return nil, err
	}
	if !s.has(t, from) {
		return nil, fmt.Errorf("watch %v from revision %d: %w", k, from, ErrFuture)
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if from < t.oldest() {
		return nil, fmt.Errorf("watch %v from revision %d: %w", k, from, ErrCompacted)
	}
	i := sort.Search(len(t.events), func(i int) bool { return t.events[i].Revision() > from })
	return &Watch{s: s, t: t, pos: t.base + int64(i), rev: from, limit: int64(limit)}, nil
}

// Next waits for events and returns all that are there, in a slice that is shared and read-only, and the revision up to
// which everything has been told. When ctx ends it returns ctx's error together with that revision, which may have
// advanced through changes of other kinds; the Watch can be used further.
func (w *Watch) Next(ctx context.Context) ([]Event, api.Revision, error) {
	for {
		events, news, err := w.ready()
		if len(events) > 0 || err != nil {
			return events, w.rev, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, w.told(), ctx.Err()
		}
	}
}

// Ready is Next without waiting: it returns what is there, which may be nothing.
func (w *Watch) Ready() ([]Event, api.Revision, error) {
	events, _, err := w.ready()
	return events, w.rev, err
}

// ready returns the events that are there, and what is closed when there are more.
func (w *Watch) ready() (found []Event, news <-chan struct{}, err error) {
	rev := w.s.Revision()
	w.t.mu.RLock()
	events, base, news, gone := w.t.events, w.t.base, w.t.news, w.t.gone
	w.t.mu.RUnlock()
	end := base + int64(len(events))
	if w.pos < base || (w.limit > 0 && end-w.pos > w.limit) {
		return nil, news, fmt.Errorf("watch %v: %w", w.t.kind, ErrSlow)
	}
	w.rev = max(w.rev, rev)
	if found = events[w.pos-base:]; len(found) > 0 {
		w.pos = end
		w.rev = max(w.rev, found[len(found)-1].Revision())
	} else if gone {
		return nil, news, fmt.Errorf("watch %v: %w", w.t.kind, ErrRemoved)
	}
	return found[:len(found):len(found)], news, nil
}

// told advances the progress to the published revision where no event is waiting.
func (w *Watch) told() api.Revision {
	rev := w.s.Revision()
	w.t.mu.RLock()
	defer w.t.mu.RUnlock()
	if w.pos == w.t.base+int64(len(w.t.events)) {
		w.rev = max(w.rev, rev)
	}
	return w.rev
}
