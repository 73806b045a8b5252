package store

import (
	"context"
	"fmt"
	"iter"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
)

// Snapshot is one kind at one revision. It costs nothing to take or keep, and it never changes.
type Snapshot struct {
	v   *version
	rev api.Revision
}

// Snapshot returns k's objects as last published. A kind that is not stored here has none.
func (s *Store) Snapshot(k *api.Kind) Snapshot {
	rev := s.Revision()
	t := s.held.Load().tables[k]
	if t == nil {
		return Snapshot{newTable(k, 0, nil).freeze(), rev}
	}
	v := t.freeze()
	return Snapshot{v, max(rev, v.changed)}
}

// SnapshotAt returns k's objects as they were at rev exactly: from the recent events, or else from the database.
// ErrFuture where rev was not reached yet, ErrCompacted where it is no longer kept.
func (s *Store) SnapshotAt(ctx context.Context, k *api.Kind, rev api.Revision) (Snapshot, error) {
	t, err := s.table(k)
	if err != nil {
		return Snapshot{}, err
	}
	if !s.has(t, rev) {
		return Snapshot{}, fmt.Errorf("list %v at revision %d: %w", k, rev, ErrFuture)
	}
	if v := t.still(rev); v != nil {
		return Snapshot{v, rev}, nil
	}
	v, err := s.pasts.get(ctx, t, rev, func() (*version, error) {
		if v := t.at(rev); v != nil {
			return v, nil
		}
		return s.fetch(ctx, t, rev)
	})
	if err != nil {
		return Snapshot{}, err
	}
	return Snapshot{v, rev}, nil
}

// has says whether readers may have seen rev: tables are published before the revision is, and a Snapshot is of its table.
func (s *Store) has(t *table, rev api.Revision) bool {
	if rev <= s.Revision() {
		return true
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	return rev <= t.now.changed
}

// still returns the current version where it is rev's as well, or nil.
func (t *table) still(rev api.Revision) *version {
	t.mu.Lock()
	defer t.mu.Unlock()
	if rev < t.now.changed {
		return nil
	}
	return t.freezeLocked()
}

// at returns the version of rev, nil where the recent events do not reach back that far. The feed does not wait for it.
func (t *table) at(rev api.Revision) *version {
	t.mu.Lock()
	if rev < t.oldest() || t.now.broken > 0 {
		t.mu.Unlock()
		return nil
	}
	events := t.events
	past := table{kind: t.kind, indexes: t.indexes, now: t.now.copy()}
	t.mu.Unlock()
	for i := len(events) - 1; i >= 0 && events[i].Revision() > rev; i-- {
		past.undo(events[i])
	}
	past.now.changed = rev
	return &past.now
}

// undo takes back one change.
func (t *table) undo(ev Event) {
	back := Event{Entry: ev.Old}
	if ev.Old == nil {
		back = Event{Entry: ev.Entry, Deleted: true}
		t.now.objects.Delete(ev.Entry)
	} else {
		t.now.objects.Set(ev.Old)
	}
	if !ev.Deleted {
		back.Old = ev.Entry
	}
	t.reindex(back)
}

// page is how many keys are read from the database at once.
const page = 2000

// fetch reads a kind at a revision from the database.
func (s *Store) fetch(ctx context.Context, t *table, rev api.Revision) (*version, error) {
	old := newTable(t.kind, 0, t.indexes)
	_, err := s.read(ctx, t, rev, func(key api.Key, kv KV) {
		old.apply(Event{Entry: load(t.kind, key, kv)})
	})
	if err != nil {
		return nil, err
	}
	old.now.changed = rev
	return old.freeze(), nil
}

// read calls each with everything in the database of t's kind at revision rev, or of now where that is zero, and returns the
// revision.
func (s *Store) read(ctx context.Context, t *table, rev api.Revision, each func(api.Key, KV)) (api.Revision, error) {
	from, end := t.kind.StorePrefix(), prefixEnd(t.kind.StorePrefix())
	for more := true; more; {
		begin := time.Now()
		kvs, left, at, err := s.b.Range(ctx, from, end, page, rev)
		s.asked.observe("list", t.kind, begin, err)
		if err != nil {
			return 0, fmt.Errorf("list %v at revision %d: %w", t.kind, rev, err)
		}
		if rev == 0 {
			rev = at
		}
		for _, kv := range kvs {
			if own, key := s.locate(kv.Key); own == t {
				each(key, kv)
			}
			from = kv.Key + "\x00"
		}
		more = left
	}
	return rev, nil
}

// prefixEnd returns the end of the range of keys that begin with prefix, which is not empty and does not end in 0xff.
func prefixEnd(prefix string) string {
	return prefix[:len(prefix)-1] + string(prefix[len(prefix)-1]+1)
}

// Revision returns the revision that the Snapshot is exact for.
func (s Snapshot) Revision() api.Revision { return s.rev }

// Changed returns the revision at which the kind changed last: Snapshots of the same are of the same objects.
func (s Snapshot) Changed() api.Revision { return s.v.changed }

// Len returns the number of objects.
func (s Snapshot) Len() int { return s.v.objects.Len() - s.v.broken }

// Get returns the object, nil when there is none. An object that cannot be read has an Entry with an Err.
func (s Snapshot) Get(key api.Key) *Entry {
	e, _ := s.v.objects.Get(&Entry{Key: key})
	return e
}

// All yields objects ordered by namespace and name: those of the namespace, or of all when it is empty; only those after
// the key after, unless it is zero. Objects that cannot be read are left out, so that one does not hide the others.
func (s Snapshot) All(namespace string, after api.Key) iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		from := after
		if from.Compare(api.Key{Namespace: namespace}) < 0 {
			from = api.Key{Namespace: namespace}
		}
		s.v.objects.Ascend(&Entry{Key: from}, func(e *Entry) bool {
			if namespace != "" && e.Key.Namespace != namespace {
				return false
			}
			if e.err != nil || (e.Key == after && after != api.Key{}) {
				return true
			}
			return yield(e)
		})
	}
}

// Owned yields the objects with an owner reference to uid, ordered by namespace and name.
func (s Snapshot) Owned(uid types.UID) iter.Seq[*Entry] { return s.Indexed(ownerField, string(uid)) }

// Indexed yields the objects with this value in an index of Options.Indexes, ordered by namespace and name. The empty
// value is not indexed.
func (s Snapshot) Indexed(field, value string) iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		s.v.refs.Ascend(ref{field: field, value: value}, func(r ref) bool {
			if r.field != field || r.value != value {
				return false
			}
			e, ok := s.v.objects.Get(&Entry{Key: r.key})
			return !ok || yield(e)
		})
	}
}
