// Package follow keeps what a part of the API server derives from stored objects (an index of role bindings, the
// addresses in use) exactly as new as what the store has published, without a goroutine: the state catches up when it is
// needed. It replaces informers where a stale answer would be a wrong one.
package follow

import (
	"context"
	"errors"
	"fmt"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// State is what is derived. Its methods are called by CatchUp only.
type State interface {
	// Reset forgets everything.
	Reset()
	// Change takes in one change: old is nil for a new object, now for a deleted one.
	Change(k *api.Kind, now, old api.Object)
}

// Follower drives a State. It is guarded by its owner's lock.
type Follower struct {
	store   *store.Store
	state   State
	kinds   []*api.Kind
	watches []*store.Watch // one per kind; nil before the first CatchUp and after a gap
	rev     api.Revision
	past    context.Context // has ended: reads take what is there and never wait
}

// New returns a Follower of the objects of kinds.
func New(s *store.Store, state State, kinds ...*api.Kind) *Follower {
	return &Follower{store: s, state: state, kinds: kinds, past: ended{}}
}

// Current says whether the state is as new as the store. It may be called under a read lock.
func (f *Follower) Current() bool { return f.watches != nil && f.rev == f.store.Revision() }

// CatchUp brings the state to what the store has published when it is called, or later.
func (f *Follower) CatchUp() error {
	if f.Current() {
		return nil
	}
	rev := f.store.Revision()
	if f.watches != nil {
		err := f.advance()
		if err == nil {
			f.rev = rev
			return nil
		}
		if !errors.Is(err, store.ErrSlow) && !errors.Is(err, store.ErrCompacted) {
			return err
		}
	}
	return f.rebuild(rev)
}

func (f *Follower) advance() error {
	for i, w := range f.watches {
		evs, _, err := w.Next(f.past)
		if err != nil {
			if errors.Is(err, context.Canceled) {
				continue // nothing new
			}
			return err
		}
		for _, ev := range evs {
			f.apply(f.kinds[i], ev)
		}
	}
	return nil
}

func (f *Follower) apply(k *api.Kind, ev store.Event) {
	var now, old api.Object
	if ev.Old != nil {
		old = ev.Old.Object
	}
	if !ev.Deleted {
		now = ev.Entry.Object
	} else if old == nil {
		old = ev.Entry.Object
	}
	if now != nil || old != nil {
		f.state.Change(k, now, old)
	}
}

func (f *Follower) rebuild(rev api.Revision) error {
	f.watches = nil
	f.state.Reset()
	var watches []*store.Watch
	for _, k := range f.kinds {
		snap := f.store.Snapshot(k)
		for e := range snap.All("", api.Key{}) {
			f.state.Change(k, e.Object, nil)
		}
		w, err := f.store.Watch(k, snap.Revision(), 0)
		if err != nil {
			return fmt.Errorf("follow %v: %w", k, err)
		}
		watches = append(watches, w)
	}
	f.watches, f.rev = watches, rev
	return nil
}
