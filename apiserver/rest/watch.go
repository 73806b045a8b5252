package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// WatchOptions are the options of a watch.
type WatchOptions struct {
	Selection
	// Version is resourceVersion as the client gave it: empty and "0" begin with what exists, a revision with the
	// changes after it.
	Version string
	// Initial is sendInitialEvents; nil where the client did not give it.
	Initial *bool
	// Mark ends the initial events with a bookmark.
	Mark bool
	// Bookmarks allows events without an object that tell of progress.
	Bookmarks bool
}

// Event is one event of a watch. A bookmark has no Entry.
type Event struct {
	Type     watch.EventType
	Entry    *store.Entry
	Old      *store.Entry // the state before; nil where there was none
	Revision api.Revision
	// Complete marks the bookmark that ends the initial events.
	Complete bool
}

// Watch is one client's view of a kind's changes. It belongs to one goroutine and holds nothing that has to be given
// back.
type Watch struct {
	p         *Pipeline
	ctx       context.Context // of the conversions of custom resources
	r         *Request
	sel       *selector
	feed      *store.Watch
	bookmarks bool
	first     []Event      // what exists at the beginning; told before feed is read
	failed    error        // found by Ready, told by Next
	told      api.Revision // everything up to here was considered
	mark      time.Time    // when the next bookmark is due; zero until the first event is waited for
	shown     api.Revision // the last revision that the client can know
}

// bookmarkEvery is how often a client that allows it learns of the revision while nothing changes.
const bookmarkEvery = time.Minute

// lastMark is how long before the end of a watch it learns of it once more.
const lastMark = 2 * time.Second

// slow is how many events a reader may be behind before it is cut off; it then lists again.
const slow = 10000

// Watch begins a watch.
func (p *Pipeline) Watch(ctx context.Context, r *Request, q WatchOptions) (*Watch, error) {
	r = r.inside()
	sel, err := r.compile(q.Selection)
	if err != nil {
		return nil, err
	}
	rev, err := parseVersion(q.Version)
	if err != nil {
		return nil, err
	}
	w := &Watch{p: p, ctx: ctx, r: r, sel: sel, bookmarks: q.Bookmarks}
	state := rev == 0
	if q.Initial != nil {
		state = *q.Initial
	}
	switch {
	case q.Version == "":
		err = storeError(p.store.Sync(ctx), r)
	case rev > 0:
		err = p.reach(ctx, q.Version)
	}
	if err != nil {
		return nil, err
	}
	from := rev
	if state || rev == 0 {
		snap := p.store.Snapshot(r.Any.Kept())
		from = snap.Revision()
		if state {
			if err := w.initial(snap, q.Mark); err != nil {
				return nil, err
			}
		}
	}
	if err := p.store.Wait(ctx, from); err != nil {
		return nil, storeError(err, r)
	}
	w.told, w.shown = from, rev
	if q.Mark && len(w.first) > 0 {
		w.shown = from
	}
	if w.feed, err = p.store.Watch(r.Any.Kept(), from, slow); err != nil {
		if errors.Is(err, store.ErrCompacted) {
			return nil, apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", from, p.store.Revision()))
		}
		return nil, versionError(err, r, from, p.store.Revision())
	}
	return w, nil
}

func (w *Watch) initial(snap store.Snapshot, mark bool) error {
	var failed error
	for e := range w.p.showing(w.ctx, w.r, w.sel.outward(w.sel.candidates(snap, w.r.Any.Kind.Namespaced, api.Key{})), &failed) {
		if w.sel.match(e.Object) {
			w.first = append(w.first, Event{Type: watch.Added, Entry: e, Revision: e.Revision})
		}
	}
	if mark {
		w.first = append(w.first, Event{Type: watch.Bookmark, Revision: snap.Revision(), Complete: true})
	}
	return failed
}

// Next waits for events and returns them. The error is ctx's, or one of the API after which the watch is over, or io.EOF where the kind
// is no more, or has become another: whoever is still interested begins anew after Told.
func (w *Watch) Next(ctx context.Context) ([]Event, error) {
	events, err := w.next(ctx)
	if w.r.form == nil {
		return events, err
	}
	for i := range events { // the slice is this watch's own
		events[i].Entry, events[i].Old = w.r.show(events[i].Entry), w.r.show(events[i].Old)
	}
	return events, err
}

// next is Next in the form that the pipeline has.
func (w *Watch) next(ctx context.Context) ([]Event, error) {
	c := w.r.Any.r.custom
	if c == nil {
		return w.wait(ctx)
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.Serving, cancel)()
	events, err := w.wait(inner)
	if err != nil && ctx.Err() == nil && c.Serving.Err() != nil {
		return nil, io.EOF
	}
	return events, err
}

func (w *Watch) wait(ctx context.Context) ([]Event, error) {
	if w.failed != nil {
		return nil, w.failed
	}
	if first := w.first; first != nil {
		w.first = nil
		return first, nil
	}
	for {
		until, cancel := ctx, func() {}
		if w.bookmarks {
			if w.mark.IsZero() {
				w.mark = nextMark(ctx)
			}
			until, cancel = context.WithDeadline(ctx, w.mark)
		}
		events, rev, err := w.feed.Next(until)
		cancel()
		switch {
		case errors.Is(err, store.ErrRemoved):
			return nil, io.EOF
		case errors.Is(err, store.ErrSlow):
			return nil, apierrors.NewResourceExpired("too old resource version: the watch fell too far behind")
		case err != nil && ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil && !errors.Is(err, context.DeadlineExceeded):
			return nil, apierrors.NewInternalError(err)
		}
		if events, err = w.showing(events); err != nil {
			return nil, err
		}
		w.told = rev
		if out := w.selected(events); len(out) > 0 {
			w.shown = out[len(out)-1].Revision
			return out, nil
		}
		// What passes by unselected must not put off the bookmark, which tells of just that.
		if w.bookmarks && !time.Now().Before(w.mark) {
			w.mark = nextMark(ctx)
			if rev > w.shown {
				w.shown = rev
				return []Event{{Type: watch.Bookmark, Revision: rev}}, nil
			}
		}
	}
}

// Ready returns the events that are there, without waiting. That the watch is over is told by Next.
func (w *Watch) Ready() []Event {
	if c := w.r.Any.r.custom; w.first != nil || c != nil && c.Serving.Err() != nil {
		return nil // Next has them, or what there is to say
	}
	events, rev, err := w.feed.Ready()
	if err != nil {
		return nil
	}
	if events, err = w.showing(events); err != nil {
		w.failed = err
		return nil
	}
	w.told = rev
	out := w.selected(events)
	if len(out) > 0 {
		w.shown = out[len(out)-1].Revision
	}
	return out
}

// showing returns the events of a custom kind as the request's version has them.
func (w *Watch) showing(events []store.Event) ([]store.Event, error) {
	if w.r.Any.r.custom == nil || len(events) == 0 {
		return events, nil
	}
	es := make([]*store.Entry, 0, 2*len(events))
	for _, ev := range events {
		es = append(es, ev.Entry, ev.Old)
	}
	es, err := w.p.shown(w.ctx, w.r, es)
	if err != nil {
		return nil, err
	}
	out := make([]store.Event, len(events))
	for i, ev := range events {
		out[i] = store.Event{Entry: es[2*i], Old: es[2*i+1], Deleted: ev.Deleted}
	}
	return out, nil
}

// nextMark is when a bookmark is due: every minute, and shortly before the end, from where the client then goes on.
func nextMark(ctx context.Context) time.Time {
	now := time.Now()
	at := now.Add(bookmarkEvery)
	if end, ok := ctx.Deadline(); ok {
		if last := end.Add(-lastMark); last.After(now) && last.Before(at) {
			return last
		}
	}
	return at
}

// Told returns the revision up to which Next has told everything.
func (w *Watch) Told() api.Revision { return w.told }

// selected translates changes into those of the selection: an object that no longer matches is deleted from it.
func (w *Watch) selected(events []store.Event) []Event {
	out := make([]Event, 0, len(events))
	for _, ev := range events {
		is := !ev.Deleted && w.sel.match(ev.Entry.Object)
		was := ev.Old != nil && w.sel.match(ev.Old.Object)
		e := Event{Entry: ev.Entry, Old: ev.Old, Revision: ev.Revision()}
		switch {
		case is && was:
			e.Type = watch.Modified
		case is:
			e.Type = watch.Added
		case was && ev.Deleted:
			e.Type = watch.Deleted
		case was:
			e.Type, e.Entry = watch.Deleted, left(ev.Old, ev.Revision())
		default:
			continue
		}
		out = append(out, e)
	}
	return out
}

// left is the last state of an object in a selection that it left at rev. It shares all but its version with e's.
func left(e *store.Entry, rev api.Revision) *store.Entry {
	return &store.Entry{Object: api.AtRevision(e.Object, rev), Key: e.Key, Revision: rev}
}

// Bookmark returns the object of a bookmark event.
func (ev Event) Bookmark(k *api.Kind) api.Object {
	o := k.New()
	o.SetResourceVersion(ev.Revision.String())
	if ev.Complete {
		o.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	return o
}
