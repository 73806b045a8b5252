package store

import (
	"context"
	"slices"
	"sync"

	"github.com/yare-dev/yare/api"
)

// pastsKept is how many versions of the past are kept, of all kinds together.
const pastsKept = 8

// pasts are the versions of the past that were asked for last: a list is read in pages, all at one revision, and each would make the same
// anew.
type pasts struct {
	mu   sync.Mutex
	kept []*past // the one that was asked for last comes last
}

// past is one of them.
type past struct {
	t     *table
	rev   api.Revision
	asked bool          // since the last sweep
	done  chan struct{} // closed when v is made, or failed to be
	v     *version      // nil where it failed
}

// get returns t's version of rev, which make makes where nobody has, or does just now.
func (p *pasts) get(ctx context.Context, t *table, rev api.Revision, make func() (*version, error)) (*version, error) {
	for {
		one, ours := p.find(t, rev)
		if ours {
			return p.make(one, make)
		}
		select {
		case <-one.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if one.v != nil {
			return one.v, nil
		} // else whoever made it may have failed for a reason of its own
	}
}

// find returns the one of t and rev, and whether it is the caller's to make.
func (p *pasts) find(t *table, rev api.Revision) (one *past, ours bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.kept, func(one *past) bool { return one.t == t && one.rev == rev })
	if ours = i < 0; ours {
		one = &past{t: t, rev: rev, done: make(chan struct{})}
		if len(p.kept) == pastsKept {
			p.kept = slices.Delete(p.kept, 0, 1)
		}
	} else {
		one = p.kept[i]
		p.kept = slices.Delete(p.kept, i, i+1)
	}
	one.asked = true
	p.kept = append(p.kept, one)
	return one, ours
}

func (p *pasts) make(one *past, make func() (*version, error)) (v *version, err error) {
	defer func() {
		if one.v = v; v == nil {
			p.mu.Lock()
			p.kept = slices.DeleteFunc(p.kept, func(other *past) bool { return other == one })
			p.mu.Unlock()
		}
		close(one.done)
	}()
	return make()
}

// sweep forgets those that nobody has asked for since the last time, and those before revision oldest.
func (p *pasts) sweep(oldest api.Revision) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept = slices.DeleteFunc(p.kept, func(one *past) bool { return !one.asked || one.rev < oldest })
	for _, one := range p.kept {
		one.asked = false
	}
}
