package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// Waits between attempts when the server cannot be reached.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = 5 * time.Second
)

// errStop says that the caller of a watch wants no more.
var errStop = errors.New("enough")

// watcher is one client.Watch: what it has told, so that a gap can be bridged by comparing.
type watcher struct {
	c     *Client
	kind  *api.Kind
	query client.Query
	yield func(client.Event, error) bool

	rev   api.Revision
	known map[api.Key]api.Object // nil while not known: a watch that began at a revision
	told  bool                   // Synced was yielded
}

// watch implements client.Reader.Watch by requests.
func (c *Client) watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	return func(yield func(client.Event, error) bool) {
		w := &watcher{c: c, kind: k, query: q, yield: yield, rev: from, told: from != 0}
		wait := firstPause
		for ctx.Err() == nil {
			before := w.rev
			err := w.run(ctx)
			switch {
			case errors.Is(err, errStop), ctx.Err() != nil:
				return
			case err != nil && refused(err):
				yield(client.Event{}, err)
				return
			case apierrors.IsResourceExpired(err), apierrors.IsGone(err):
				if w.known == nil && from != 0 {
					yield(client.Event{}, err) // there is nothing to compare with
					return
				}
				w.rev = 0
				continue
			}
			if w.rev != before {
				wait = firstPause
			}
			if err != nil {
				c.log.Warn("watch broke", "kind", k, "err", err, "again_in", wait)
				if run.Pause(ctx, wait/2+rand.N(wait)) != nil {
					return
				}
				wait = min(2*wait, lastPause)
			}
		}
	}
}

// refused says that trying again does not help.
func refused(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) || apierrors.IsNotFound(err) ||
		apierrors.IsBadRequest(err) || apierrors.IsMethodNotSupported(err)
}

// run lists if there is no revision to go on from, then watches until the connection ends.
func (w *watcher) run(ctx context.Context) error {
	if w.rev == 0 {
		if err := w.relist(ctx); err != nil {
			return err
		}
	}
	return w.follow(ctx)
}

func (w *watcher) emit(e client.Event) error {
	if !w.yield(e, nil) {
		return errStop
	}
	return nil
}

// relist yields the difference between what was told and what there is. It is told in the order of revisions, so that an
// event means, as in a watch, that everything before it was told.
func (w *watcher) relist(ctx context.Context) error {
	os, rev, err := w.c.list(ctx, w.kind, w.query)
	if err != nil {
		return err
	}
	var events []client.Event
	was := w.known
	w.known = make(map[api.Key]api.Object, len(os))
	for _, o := range os {
		key := api.KeyOf(o)
		w.known[key] = o
		old := was[key]
		delete(was, key)
		e := client.Event{Op: client.Added, Object: o, Revision: api.RevisionOf(o)}
		switch {
		case old != nil && old.GetUID() != o.GetUID():
			events = append(events, client.Event{Op: client.Deleted, Object: old, Old: old, Revision: e.Revision - 1})
		case old != nil && old.GetResourceVersion() == o.GetResourceVersion():
			continue
		case old != nil:
			e.Op, e.Old = client.Modified, old
		}
		events = append(events, e)
	}
	for _, old := range was {
		events = append(events, client.Event{Op: client.Deleted, Object: old, Old: old, Revision: rev})
	}
	if w.told {
		slices.SortStableFunc(events, func(a, b client.Event) int { return cmp.Compare(a.Revision, b.Revision) })
	}
	for _, e := range events {
		if err := w.emit(e); err != nil {
			return err
		}
	}
	w.rev = rev
	if !w.told {
		w.told = true
		return w.emit(client.Event{Op: client.Synced, Revision: rev})
	}
	return nil
}

// follow watches from w.rev on. It returns nil when the server ended the watch in order.
func (w *watcher) follow(ctx context.Context) error {
	v := values(w.query)
	v.Set("watch", "true")
	v.Set("resourceVersion", w.rev.String())
	v.Set("allowWatchBookmarks", "true")
	// Every few minutes anew, at different times, so that connections spread over servers.
	v.Set("timeoutSeconds", fmt.Sprint(300+rand.IntN(300)))
	t := target{w.kind, api.Key{Namespace: w.query.Namespace}, ""}
	r, err := w.c.send(ctx, http.MethodGet, t, v, "", nil, accept(w.kind, ";stream=watch"))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	ct := r.Header.Get("Content-Type")
	if r.StatusCode >= 300 {
		data, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			return fmt.Errorf("watch %v: %w", t, err)
		}
		err = status(r, data, "watch", t)
		if r.StatusCode == http.StatusTooManyRequests {
			if err := run.Pause(ctx, retryAfter(r)); err != nil {
				return err
			}
		}
		return err
	}
	next := frames(ct, r.Body)
	for {
		f, err := next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watch %v: %w", t, err)
		}
		if err := w.take(ct, f); err != nil {
			return err
		}
	}
}

// take yields one event.
func (w *watcher) take(contentType string, f frame) error {
	if f.op == string(watch.Error) {
		s := &metav1.Status{}
		if err := decode(contentType, f.object, s); err != nil {
			return err
		}
		return &apierrors.StatusError{ErrStatus: *s}
	}
	o := w.kind.New()
	if err := decode(contentType, f.object, o); err != nil {
		return err
	}
	o.GetObjectKind().SetGroupVersionKind(w.kind.GVK())
	w.rev = max(w.rev, api.RevisionOf(o))
	if f.op == string(watch.Bookmark) {
		return nil
	}
	key := api.KeyOf(o)
	e := client.Event{Object: o, Old: w.known[key], Revision: api.RevisionOf(o)}
	in := f.op != string(watch.Deleted) && owned(o, w.query.Owner)
	switch {
	case !in && w.query.Owner != "" && w.known != nil && e.Old == nil:
		return nil // never was in the selection
	case !in:
		e.Op = client.Deleted
		delete(w.known, key)
	case f.op == string(watch.Added), w.known != nil && e.Old == nil:
		e.Op, e.Old = client.Added, nil
	default:
		e.Op = client.Modified
	}
	if in && w.known != nil {
		w.known[key] = o
	}
	return w.emit(e)
}
