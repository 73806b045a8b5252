// Package memory is a store.Backend in memory with etcd's semantics, for tests. It blocks on channels only, so that it
// can be used in a testing/synctest bubble.
package memory

import (
	"bytes"
	"context"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/btree"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// Backend keeps every version of every key since the last compaction.
type Backend struct {
	shared bool

	mu        sync.Mutex
	keys      *btree.BTreeG[*history]
	rev       api.Revision
	compacted api.Revision
	log       []change      // every change after compacted
	news      chan struct{} // closed at the next change
}

// history is one key's versions, oldest first.
type history struct {
	key      string
	versions []store.KV // Value nil: deleted
}

type change struct {
	rev  api.Revision
	list []store.Change
}

// New returns an empty Backend at revision 1, as etcd has. Shared says that others write to it too, so that Exclusive
// is false.
func New(shared bool) *Backend {
	less := func(a, b *history) bool { return a.key < b.key }
	return &Backend{
		shared: shared, rev: 1, news: make(chan struct{}),
		keys: btree.NewBTreeGOptions(less, btree.Options{NoLocks: true}),
	}
}

// Exclusive is part of store.Backend.
func (b *Backend) Exclusive() bool { return !b.shared }

// Revision is part of store.Backend.
func (b *Backend) Revision(context.Context) (api.Revision, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rev, nil
}

// Range is part of store.Backend.
func (b *Backend) Range(ctx context.Context, from, end string, limit int, at api.Revision) ([]store.KV, bool, api.Revision, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, false, 0, ctx.Err()
	case at > b.rev:
		return nil, false, 0, store.ErrFuture
	case at == 0:
		at = b.rev
	case at < b.compacted:
		return nil, false, 0, store.ErrCompacted
	}
	var kvs []store.KV
	more := false
	b.keys.Ascend(&history{key: from}, func(h *history) bool {
		if h.key >= end {
			return false
		}
		kv, ok := h.at(at)
		if !ok {
			return true
		}
		if limit > 0 && len(kvs) == limit {
			more = true
			return false
		}
		kvs = append(kvs, kv)
		return true
	})
	return kvs, more, at, nil
}

// at returns the version that was current at rev.
func (h *history) at(rev api.Revision) (store.KV, bool) {
	i := sort.Search(len(h.versions), func(i int) bool { return h.versions[i].Modified > rev })
	if i == 0 || h.versions[i-1].Value == nil {
		return store.KV{}, false
	}
	return h.versions[i-1], true
}

// Put is part of store.Backend.
func (b *Backend) Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	h, ok := b.keys.Get(&history{key: key})
	if !ok {
		h = &history{key: key}
	}
	now, exists := h.at(b.rev)
	if now.Modified != want {
		return b.rev, store.ErrConflict
	}
	if err := b.condition(store.ConditionOf(ctx)); err != nil {
		return b.rev, err
	}
	kv := store.KV{Key: key, Value: append([]byte{}, value...), Created: now.Created, Modified: b.rev + 1}
	if !exists {
		kv.Created = kv.Modified
	}
	if !ok {
		b.keys.Set(h)
	}
	b.commit(h, kv)
	if ttl > 0 {
		time.AfterFunc(ttl, func() { b.expire(key, kv.Modified) })
	}
	return kv.Modified, nil
}

// Delete is part of store.Backend.
func (b *Backend) Delete(ctx context.Context, key string, want api.Revision) (api.Revision, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	h, ok := b.keys.Get(&history{key: key})
	if !ok {
		return b.rev, store.ErrNotFound
	}
	now, exists := h.at(b.rev)
	switch {
	case !exists:
		return b.rev, store.ErrNotFound
	case now.Modified != want:
		return b.rev, store.ErrConflict
	}
	if err := b.condition(store.ConditionOf(ctx)); err != nil {
		return b.rev, err
	}
	b.commit(h, store.KV{Key: key, Modified: b.rev + 1})
	return b.rev, nil
}

// condition says why c does not hold. Where it does, it writes what c says at the revision that the write will have; watches do not tell of it.
// Preconditions: b.mu is held.
func (b *Backend) condition(c store.Condition) (err error) {
	value := func(key string) string {
		if h, ok := b.keys.Get(&history{key: key}); ok {
			kv, _ := h.at(b.rev)
			return string(kv.Value)
		}
		return ""
	}
	if c.Key != "" && value(c.Key) != c.Value {
		return store.ErrFenced
	}
	if c.Prefix == "" {
		return nil
	}
	b.keys.Ascend(&history{key: c.Prefix}, func(h *history) bool {
		if !strings.HasPrefix(h.key, c.Prefix) {
			return false
		}
		if h.key != c.Own && len(h.versions) > 0 && h.versions[len(h.versions)-1].Modified > c.Since {
			err = store.ErrOvertaken
		}
		return err == nil
	})
	if err != nil {
		return err
	}
	h, ok := b.keys.Get(&history{key: c.Own})
	if !ok {
		h = &history{key: c.Own}
		b.keys.Set(h)
	}
	h.versions = append(h.versions, store.KV{Key: c.Own, Value: []byte{}, Created: b.rev + 1, Modified: b.rev + 1})
	return nil
}

// expire deletes a key whose time is over, unless it was written again.
func (b *Backend) expire(key string, rev api.Revision) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if h, ok := b.keys.Get(&history{key: key}); ok {
		if now, _ := h.at(b.rev); now.Modified == rev {
			b.commit(h, store.KV{Key: key, Modified: b.rev + 1})
		}
	}
}

// commit makes kv the next revision.
// Preconditions: b.mu is held.
func (b *Backend) commit(h *history, kv store.KV) {
	b.rev++
	h.versions = append(h.versions, kv)
	b.log = append(b.log, change{b.rev, []store.Change{{KV: kv}}})
	close(b.news)
	b.news = make(chan struct{})
}

// Watch is part of store.Backend.
func (b *Backend) Watch(ctx context.Context, prefix string, from api.Revision, emit func(api.Revision, []store.Change) error) error {
	for {
		b.mu.Lock()
		if from < b.compacted-1 {
			b.mu.Unlock()
			return store.ErrCompacted
		}
		i := sort.Search(len(b.log), func(i int) bool { return b.log[i].rev > from })
		changes, news := b.log[i:], b.news
		b.mu.Unlock()
		for _, c := range changes {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			from = c.rev
			if !strings.HasPrefix(c.list[0].Key, prefix) {
				continue
			}
			list := c.list[0]
			list.Value = bytes.Clone(list.Value)
			if err := emit(c.rev, []store.Change{list}); err != nil {
				return err
			}
		}
		if len(changes) > 0 {
			continue
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Compact is part of store.Backend.
func (b *Backend) Compact(_ context.Context, rev api.Revision) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case rev > b.rev:
		return store.ErrFuture
	case rev <= b.compacted:
		return store.ErrCompacted
	}
	b.compacted = rev
	i := sort.Search(len(b.log), func(i int) bool { return b.log[i].rev >= rev })
	b.log = append([]change(nil), b.log[i:]...)
	var gone []*history
	b.keys.Scan(func(h *history) bool {
		// What was current at rev stays, unless that is a deletion.
		i := sort.Search(len(h.versions), func(i int) bool { return h.versions[i].Modified > rev })
		if i > 0 && h.versions[i-1].Value != nil {
			i--
		}
		h.versions = append([]store.KV(nil), h.versions[i:]...)
		if len(h.versions) == 0 {
			gone = append(gone, h)
		}
		return true
	})
	for _, h := range gone {
		b.keys.Delete(h)
	}
	return nil
}
