package store

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// ref is an item of a table's index tree: the object key has this value in field. Items change only when the value does,
// so that most updates leave the index alone.
type ref struct {
	field, value string
	key          api.Key
}

// ownerField is the index of owners' UIDs; no other index can have this name.
const ownerField = "\x00owner"

// version is a kind's objects at one revision.
type version struct {
	objects *btree.BTreeG[*Entry]
	refs    *btree.BTreeG[ref]
	broken  int          // entries of objects that cannot be read
	changed api.Revision // of the last change
}

// table is one kind: its objects, and the recent events that led to them.
type table struct {
	kind    *api.Kind
	indexes map[string]func(api.Object) string
	window  int

	// frozen is a copy of now, made by the first reader after a change.
	frozen atomic.Pointer[version]

	mu  sync.RWMutex
	now version
	// events hold every change after revision floor, oldest first; the first has number base. The array is appended to
	// and replaced, never changed in place, so that readers may keep slices of it.
	events []Event
	base   int64
	floor  api.Revision
	// gap says that history before this revision is not complete although the events are: a reload found only the
	// net changes.
	gap  api.Revision
	news chan struct{} // closed when events are appended
	gone bool          // the kind was removed

	// Of a kind that was added while the feed went on; guarded by Store.feeding.
	loading bool           // what exists is being read, and what changes meanwhile is kept in missed
	missed  []missedChange // in revision order
	since   api.Revision   // what exists was read at this revision: changes up to it are in it
}

func newTable(k *api.Kind, window int, indexes map[string]func(api.Object) string) *table {
	return &table{
		kind: k, window: window, indexes: indexes,
		now: version{
			objects: btree.NewBTreeGOptions(entryLess, btree.Options{NoLocks: true}),
			refs:    btree.NewBTreeGOptions(refLess, btree.Options{NoLocks: true}),
		},
		news: make(chan struct{}),
	}
}

func entryLess(a, b *Entry) bool { return a.Key.Compare(b.Key) < 0 }

func refLess(a, b ref) bool {
	if c := strings.Compare(a.value, b.value); c != 0 {
		return c < 0
	}
	if a.field != b.field {
		return a.field < b.field
	}
	return a.key.Compare(b.key) < 0
}

// key splits what follows the kind's prefix; nil where it is not the key of an object.
func (t *table) key(s string) (*table, api.Key) {
	ns, name, two := strings.Cut(s, "/")
	if two != t.kind.Namespaced || strings.Contains(name, "/") {
		return nil, api.Key{}
	}
	if !two {
		return t, api.Key{Name: s}
	}
	return t, api.Key{Namespace: ns, Name: name}
}

// freeze returns the current version for reading.
func (t *table) freeze() *version {
	if v := t.frozen.Load(); v != nil {
		return v
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.freezeLocked()
}

// Preconditions: t.mu is held for writing.
func (t *table) freezeLocked() *version {
	if v := t.frozen.Load(); v != nil {
		return v
	}
	v := t.now.copy()
	t.frozen.Store(&v)
	return &v
}

func (v *version) copy() version {
	return version{objects: v.objects.Copy(), refs: v.refs.Copy(), broken: v.broken, changed: v.changed}
}

// publish applies changes of one revision, or the net changes up to rev of a reload. An Entry of a deletion is
// recognised by Event.Deleted. It fills in Event.Old.
func (t *table) publish(rev api.Revision, evs []Event, reload bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.frozen.Store(nil)
	for _, ev := range evs {
		t.apply(ev)
	}
	t.now.changed = rev
	if reload {
		t.gap = rev
	}
	if n := len(t.events) - t.window; n > t.window {
		t.trim(n)
	}
	close(t.news)
	t.news = make(chan struct{})
}

// apply applies one change and notes what watchers have to see of it.
// Preconditions: t.mu is held for writing.
func (t *table) apply(ev Event) {
	if ev.Deleted {
		ev.Old, _ = t.now.objects.Delete(ev.Entry)
	} else {
		ev.Old, _ = t.now.objects.Set(ev.Entry)
	}
	if ev.Old != nil && ev.Old.err != nil {
		t.now.broken--
		ev.Old = nil
	}
	if !ev.Deleted && ev.Entry.err != nil {
		// To watchers, an object that became unreadable is gone.
		t.now.broken++
		if ev.Old != nil {
			ev.Entry, ev.Deleted = buried(ev.Old, ev.Entry.Revision), true
		}
	}
	if ev.Entry.err != nil || (ev.Deleted && ev.Old == nil) {
		return
	}
	t.reindex(ev)
	t.events = append(t.events, ev)
}

func (t *table) reindex(ev Event) {
	var old, now api.Object
	if ev.Old != nil {
		old = ev.Old.Object
	}
	if !ev.Deleted {
		now = ev.Entry.Object
	}
	key := ev.Entry.Key
	for field, f := range t.indexes {
		var was, is string
		if old != nil {
			was = f(old)
		}
		if now != nil {
			is = f(now)
		}
		t.refer(field, was, is, key)
	}
	was, is := owners(old), owners(now)
	if slices.EqualFunc(was, is, func(a, b metav1.OwnerReference) bool { return a.UID == b.UID }) {
		return
	}
	for _, o := range was {
		t.refer(ownerField, string(o.UID), "", key)
	}
	for _, o := range is {
		t.refer(ownerField, "", string(o.UID), key)
	}
}

func owners(o api.Object) []metav1.OwnerReference {
	if o == nil {
		return nil
	}
	return o.GetOwnerReferences()
}

func (t *table) refer(field, was, is string, key api.Key) {
	if was == is {
		return
	}
	if was != "" {
		t.now.refs.Delete(ref{field, was, key})
	}
	if is != "" {
		t.now.refs.Set(ref{field, is, key})
	}
}

// trim forgets the n oldest events.
// Preconditions: t.mu is held for writing.
func (t *table) trim(n int) {
	if n <= 0 {
		return
	}
	t.floor = t.events[n-1].Revision()
	t.base += int64(n)
	t.events = append(make([]Event, 0, len(t.events)-n+len(t.events)/2), t.events[n:]...)
}

// next returns the number of the event that comes next.
func (t *table) next() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.base + int64(len(t.events))
}

// expire forgets the events before number n.
func (t *table) expire(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.trim(int(n - t.base))
}

// oldest returns the revision after which the history is complete.
// Preconditions: t.mu is held.
func (t *table) oldest() api.Revision { return max(t.floor, t.gap) }
