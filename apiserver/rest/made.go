package rest

import (
	"context"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// Readable says whether objects of the kind can be read, stored or made.
func (a Any) Readable() bool { return a.r.answer == nil }

// madeOne is Get of a kind whose objects are made when somebody asks.
func (p *Pipeline) madeOne(ctx context.Context, r *Request) (*store.Entry, error) {
	for _, o := range r.Any.r.made(ctx, Wanted{Key: r.Key}) {
		if api.KeyOf(o) == r.Key {
			return r.madeEntry(o), nil
		}
	}
	return nil, r.notFound()
}

// madeAll is List of such a kind. Its objects have no revision.
func (p *Pipeline) madeAll(ctx context.Context, r *Request, sel *selector) *Page {
	page := &Page{}
	for _, o := range r.Any.r.made(ctx, Wanted{sel.key, sel.Labels}) {
		if sel.match(o) {
			page.Entries = append(page.Entries, r.madeEntry(o))
		}
	}
	return page
}

func (r *Request) madeEntry(o api.Object) *store.Entry {
	o.GetObjectKind().SetGroupVersionKind(r.Any.Kind.GVK())
	return &store.Entry{Object: o, Key: api.KeyOf(o)}
}
