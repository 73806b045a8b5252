package rest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// forming are the entries that are being made a form of, so that all watchers of a version have an object converted once. The zero
// value is ready.
type forming struct {
	mu sync.Mutex
	by map[*store.Entry]*turn
}

// turn is what one request converts, while others may wait for it.
type turn struct {
	of   []*store.Entry
	done chan struct{} // closed at the end
	err  error         // of the conversion; nil also where only the request ended. It is read after done.
}

// claim takes those of the entries that have no form as k and that nobody converts yet, which are nil or to be released, and returns
// the turn of one of the others, nil where there is none.
func (f *forming) claim(k *api.Kind, es []*store.Entry) (own, other *turn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range es {
		switch t := f.by[e]; {
		case t == nil && e.Form(k) == nil:
			if own == nil {
				own = &turn{done: make(chan struct{})}
			}
			if f.by == nil {
				f.by = map[*store.Entry]*turn{}
			}
			f.by[e] = own
			own.of = append(own.of, e)
		case t != nil && t != own:
			other = t
		}
	}
	return own, other
}

// release ends a turn.
func (f *forming) release(t *turn, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range t.of {
		delete(f.by, e)
	}
	t.err = err
	close(t.done)
}

// within says that t is of no other entries than es: its error is theirs.
func (t *turn) within(es []*store.Entry) bool {
	return !slices.ContainsFunc(t.of, func(e *store.Entry) bool { return !slices.Contains(es, e) })
}

// shown returns entries of the store as the request's kind has them. Each is converted once, by whoever asks first.
func (p *Pipeline) shown(ctx context.Context, r *Request, es []*store.Entry) ([]*store.Entry, error) {
	c := r.Any.r.custom
	if c == nil {
		return es, nil
	}
	for {
		out, missing := formed(r.Any.Kind, es)
		if len(missing) == 0 {
			return out, nil
		}
		own, other := c.forming.claim(r.Any.Kind, missing)
		if own != nil { // before waiting for others, who may wait for this
			if err := c.take(ctx, r.Any.Kind, own); err != nil {
				return nil, err
			}
			continue
		}
		if other == nil { // all were made meanwhile
			continue
		}
		select {
		case <-other.done:
			if other.err != nil && other.within(missing) {
				return nil, other.err
			}
		case <-ctx.Done():
			return nil, storeError(ctx.Err(), r)
		}
	}
}

// formed returns the forms of es that there are, and those of es that have none. Entries of es may be nil.
func formed(k *api.Kind, es []*store.Entry) (out, missing []*store.Entry) {
	out = slices.Clone(es)
	for i, e := range out {
		if e == nil {
			continue
		}
		if out[i] = e.Form(k); out[i] == nil {
			missing = append(missing, e)
		}
	}
	return out, missing
}

// take makes the forms of a turn's entries, and ends it however that goes.
func (c *Custom) take(ctx context.Context, k *api.Kind, t *turn) error {
	var told error = errTurn // where the conversion panics
	defer func() {
		if ctx.Err() != nil {
			told = nil // whoever is next does it
		}
		c.forming.release(t, told)
	}()
	told = c.form(ctx, k, t.of)
	return told
}

// errTurn is the error of a conversion that did not come to an end.
var errTurn = apierrors.NewInternalError(errors.New("the conversion of the object did not end"))

// form makes the forms of es as k.
func (c *Custom) form(ctx context.Context, k *api.Kind, es []*store.Entry) error {
	os := make([]api.Object, len(es))
	for i, e := range es {
		os[i] = e.Object
	}
	converted, err := c.Convert(ctx, os, k.Version)
	if err != nil {
		return internal(err)
	}
	for i, e := range es {
		o := converted[i].DeepCopyObject().(api.Object)
		if err := c.Settle(o, true); err != nil {
			return apierrors.NewInternalError(fmt.Errorf("%v %q: %w", k, e.Key.String(), err))
		}
		if equality.Semantic.DeepEqual(o, os[i]) {
			o = os[i]
		}
		e.SetForm(k, o)
	}
	return nil
}
