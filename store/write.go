package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/yare-dev/yare/api"
)

// pending is a write under way. The feed, which sees the write's change before or after the database answers the writer,
// publishes the writer's object and notes here what it published under the key.
type pending struct {
	object api.Object
	bytes  []byte // nil for a deletion
	taken  bool   // object was published
	seen   []*Entry
}

// waiter waits for a revision to be published.
type waiter struct {
	rev  api.Revision
	done chan struct{}
}

// Create stores the new object o, which belongs to the Store from now on, and returns when it is durable and
// published. ErrConflict when it exists. It is removed after ttl unless that is zero.
func (s *Store) Create(ctx context.Context, k *api.Kind, o api.Object, ttl time.Duration) (*Entry, error) {
	return s.put(ctx, "create", k, o, 0, ttl)
}

// Update replaces the object of o's name by o, which belongs to the Store from now on. The present one must be of
// revision want, which is not zero, else ErrConflict.
func (s *Store) Update(ctx context.Context, k *api.Kind, o api.Object, want api.Revision, ttl time.Duration) (*Entry, error) {
	if want <= 0 {
		return nil, fmt.Errorf("update %v %v: %w: no revision given", k, api.KeyOf(o), ErrConflict)
	}
	return s.put(ctx, "update", k, o, want, ttl)
}

func (s *Store) put(ctx context.Context, verb string, k *api.Kind, o api.Object, want api.Revision, ttl time.Duration) (*Entry, error) {
	key := api.KeyOf(o)
	if _, err := s.table(k); err != nil {
		return nil, err
	}
	api.TruncateTimes(o)
	data, err := stored(k, o)
	if err != nil {
		return nil, err
	}
	path := k.StoreKey(key)
	p := s.begin(path, &pending{object: o, bytes: data})
	defer s.end(path, p)
	begin := time.Now()
	rev, err := s.b.Put(ctx, path, data, want, ttl)
	s.asked.observe(verb, k, begin, err)
	if err != nil {
		s.refused(ctx, rev, err)
		return nil, fmt.Errorf("%s %v %v: %w", verb, k, key, err)
	}
	e, err := s.written(ctx, p, rev)
	if err != nil {
		return nil, fmt.Errorf("%s %v %v: %w", verb, k, key, err)
	}
	if e == nil {
		// The feed never saw this revision: it jumped over it by a reload.
		e = entry(k.New(), key, rev)
		if e.Object, err = decode(k, key, data); err != nil {
			return nil, err
		}
		e.Object.SetResourceVersion(rev.String())
	}
	return e, nil
}

// Delete removes the object, which must be of revision want, else ErrConflict; ErrNotFound when there is none. It
// returns the last state with the revision of the deletion.
func (s *Store) Delete(ctx context.Context, k *api.Kind, key api.Key, want api.Revision) (*Entry, error) {
	t, err := s.table(k)
	if err != nil {
		return nil, err
	}
	last := Snapshot{v: t.freeze()}.Get(key)
	path := k.StoreKey(key)
	p := s.begin(path, &pending{})
	defer s.end(path, p)
	begin := time.Now()
	rev, err := s.b.Delete(ctx, path, want)
	s.asked.observe("delete", k, begin, err)
	s.refused(ctx, rev, err)
	if err != nil {
		return nil, fmt.Errorf("delete %v %v: %w", k, key, err)
	}
	e, err := s.written(ctx, p, rev)
	if err != nil {
		return nil, fmt.Errorf("delete %v %v: %w", k, key, err)
	}
	switch {
	case e != nil:
		return e, nil
	case last != nil && last.Revision == want:
		return buried(last, rev), nil
	}
	return nil, fmt.Errorf("delete %v %v: done at revision %d, but its last state is not known", k, key, rev)
}

// refused waits until the state because of which the database refused a write is published. Who leads no more learns of it.
func (s *Store) refused(ctx context.Context, rev api.Revision, err error) {
	met(ctx, err)
	if rev > 0 && (errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrOvertaken)) {
		_ = s.Wait(ctx, rev) // when ctx ends first, that is what the caller meets next
	}
}

// begin announces a write to the feed.
func (s *Store) begin(path string, p *pending) *pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[path] = append(s.pending[path], p)
	return p
}

func (s *Store) end(path string, p *pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ps := s.pending[path]
	for i := range ps {
		if ps[i] == p {
			ps = append(ps[:i], ps[i+1:]...)
			break
		}
	}
	if len(ps) == 0 {
		delete(s.pending, path)
		return
	}
	s.pending[path] = ps
}

// match returns the object that a writer gave for this change, nil when the change is not of a write under way here.
func (s *Store) match(c *Change) api.Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pending[c.Key] {
		if !p.taken && p.bytes != nil && bytes.Equal(p.bytes, c.Value) {
			p.taken = true
			return p.object
		}
	}
	return nil
}

// tell gives the writers of a key what was published for it.
func (s *Store) tell(path string, e *Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pending[path] {
		p.seen = append(p.seen, e)
	}
}

// written waits until rev is published and returns p's Entry, nil if the feed did not see it.
func (s *Store) written(ctx context.Context, p *pending, rev api.Revision) (*Entry, error) {
	if err := s.Wait(ctx, rev); err != nil {
		return nil, fmt.Errorf("written as revision %d, but not seen in time: %w", rev, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range p.seen {
		if e.Revision == rev {
			return e, nil
		}
	}
	return nil, nil
}

// Wait waits until revision rev is published.
func (s *Store) Wait(ctx context.Context, rev api.Revision) error {
	if s.Revision() >= rev {
		return nil
	}
	s.mu.Lock()
	if s.Revision() >= rev {
		s.mu.Unlock()
		return nil
	}
	w := waiter{rev, make(chan struct{})}
	s.waiters = append(s.waiters, w)
	s.mu.Unlock()
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.waiters {
		if s.waiters[i] == w {
			s.waiters = append(s.waiters[:i], s.waiters[i+1:]...)
			break
		}
	}
	return fmt.Errorf("wait for revision %d: %w", rev, ctx.Err())
}

// reached publishes the revision itself, after everything of it is in the tables, and wakes who waits for it.
func (s *Store) reached(rev api.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rev.Store(int64(rev))
	left := s.waiters[:0]
	for _, w := range s.waiters {
		if w.rev <= rev {
			close(w.done)
		} else {
			left = append(left, w)
		}
	}
	s.waiters = left
}

// Sync waits until the tables are at least as new as every write that was acknowledged anywhere before the call.
func (s *Store) Sync(ctx context.Context) error {
	if s.b.Exclusive() {
		// A write here is acknowledged after it is published, and there are no others.
		return nil
	}
	rev, err := s.b.Revision(ctx)
	if err != nil {
		return fmt.Errorf("read the current revision: %w", err)
	}
	return s.Wait(ctx, rev)
}
