package remote

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/tidwall/btree"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// table keeps what a watch tells, and over it what this client wrote and the watch has not told yet.
type table struct {
	c *Client
	w Watched

	mu      sync.Mutex
	up      bool // the first list is complete
	objects *btree.BTreeG[api.Object]
	rev     api.Revision
	own     map[api.Key]api.Object // newer than in objects
	gone    map[types.UID]bool     // deleted by this client, which the watch has not told yet
	dead    []types.UID            // of the last deletions that the watch told
	news    chan struct{}          // closed at the next event
	subs    map[*subscriber]struct{}
}

// subscriber is a Watch that is served from a table. Its queue grows while it does not read.
type subscriber struct {
	queue []client.Event
	wake  chan struct{}
}

func newTable(c *Client, w Watched) *table {
	less := func(a, b api.Object) bool { return api.KeyOf(a).Compare(api.KeyOf(b)) < 0 }
	return &table{
		c: c, w: w, objects: btree.NewBTreeGOptions(less, btree.Options{NoLocks: true}),
		own: map[api.Key]api.Object{}, gone: map[types.UID]bool{}, subs: map[*subscriber]struct{}{},
		news: make(chan struct{}),
	}
}

// table returns the table of a kind, nil if it is not watched.
func (c *Client) table(k *api.Kind) *table {
	for _, t := range c.tables {
		if t.w.Kind == k {
			return t
		}
	}
	return nil
}

// Name is the component's name.
func (c *Client) Name() string { return "client" }

// Run keeps the watched kinds in memory until ctx ends. It is ready when all are complete.
func (c *Client) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var watching, syncing sync.WaitGroup
	for _, t := range c.tables {
		syncing.Add(1)
		watching.Go(func() {
			if err := t.run(ctx, sync.OnceFunc(syncing.Done)); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("watch %v: %w", t.w.Kind, err))
			}
		})
	}
	watching.Go(func() {
		syncing.Wait()
		if ctx.Err() == nil {
			ready()
		}
		<-ctx.Done()
	})
	watching.Wait()
	c.http.CloseIdleConnections()
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return cause
	}
	return nil
}

func (t *table) run(ctx context.Context, synced func()) error {
	defer synced()
	for e, err := range t.c.watch(ctx, t.w.Kind, t.w.Query, 0) {
		if err != nil {
			return err
		}
		t.take(e)
		if e.Op == client.Synced {
			synced()
		}
	}
	return nil
}

// take notes what the watch tells.
func (t *table) take(e client.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.up || e.Op == client.Synced {
		t.rev = max(t.rev, e.Revision)
	}
	close(t.news)
	t.news = make(chan struct{})
	switch e.Op {
	case client.Synced:
		t.up = true
		return
	case client.Deleted:
		t.objects.Delete(e.Object)
		delete(t.gone, e.Object.GetUID())
		if t.dead = append(t.dead, e.Object.GetUID()); len(t.dead) > 2*maxDead {
			t.dead = slices.Clone(t.dead[maxDead:])
		}
	default:
		t.objects.Set(e.Object)
	}
	key := api.KeyOf(e.Object)
	if own := t.own[key]; own != nil && api.RevisionOf(own) <= e.Revision {
		delete(t.own, key)
	}
	for s := range t.subs {
		s.push(e)
	}
}

func (s *subscriber) push(e client.Event) {
	s.queue = append(s.queue, e)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// all says that the table has every object of the namespace.
func (t *table) all(namespace string) bool {
	q := t.w.Query
	return (q.Namespace == "" || q.Namespace == namespace) && (q.Labels == nil || q.Labels.Empty()) &&
		(q.Fields == nil || q.Fields.Empty()) && q.Owner == ""
}

// covers says whether what q selects can be selected from the table.
func (t *table) covers(q client.Query) bool {
	own := t.w.Query
	fields := q.Fields == nil || q.Fields.Empty()
	if own.Fields != nil && !own.Fields.Empty() {
		fields = q.Fields != nil && q.Fields.String() == own.Fields.String()
	}
	sameLabels := own.Labels == nil || own.Labels.Empty() || (q.Labels != nil && q.Labels.String() == own.Labels.String())
	return fields && sameLabels && (own.Namespace == "" || own.Namespace == q.Namespace) && (own.Owner == "" || own.Owner == q.Owner)
}

// selects says whether q, which the table covers, selects o.
func selects(q client.Query, o api.Object) bool {
	return (q.Namespace == "" || o.GetNamespace() == q.Namespace) &&
		(q.Labels == nil || q.Labels.Matches(labels.Set(o.GetLabels()))) && owned(o, q.Owner)
}

func (t *table) running() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.up
}

// current returns o or what this client made of it; nil where it is gone.
// Preconditions: t.mu is held.
func (t *table) current(key api.Key, o api.Object) api.Object {
	if own := t.own[key]; own != nil {
		o = own
	}
	if o != nil && t.gone[o.GetUID()] {
		return nil
	}
	return o
}

// get returns the object, or nil and whether that means that there is none.
func (t *table) get(key api.Key) (o api.Object, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.up {
		return nil, false
	}
	pivot := t.w.Kind.New()
	pivot.SetNamespace(key.Namespace)
	pivot.SetName(key.Name)
	o, _ = t.objects.Get(pivot)
	if o = t.current(key, o); o != nil {
		return o, true
	}
	return nil, t.all(key.Namespace)
}

// list returns what q, which the table covers, selects.
func (t *table) list(q client.Query) (os []api.Object, rev api.Revision, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.up {
		return nil, 0, false
	}
	all := t.objects
	if len(t.own) > 0 {
		all = all.Copy()
		for _, o := range t.own {
			all.Set(o)
		}
	}
	all.Scan(func(o api.Object) bool {
		if o = t.current(api.KeyOf(o), o); o != nil && selects(q, o) {
			os = append(os, o)
		}
		return true
	})
	return os, t.rev, true
}

// wrote notes what a write was answered with.
func (t *table) wrote(o api.Object) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, rev := api.KeyOf(o), api.RevisionOf(o)
	if rev <= t.rev {
		return // the watch has told of it, and of what came after
	}
	_, exists := t.objects.Get(o)
	// Of a selection only objects that are in it are noted: whether another belongs to it the watch will tell.
	if !exists && !t.all(key.Namespace) {
		return
	}
	if own := t.own[key]; own == nil || api.RevisionOf(own) < rev {
		t.own[key] = o
	}
}

// deleted notes that the object is gone; uid may be unknown.
func (t *table) deleted(key api.Key, uid types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pivot := t.w.Kind.New()
	pivot.SetNamespace(key.Namespace)
	pivot.SetName(key.Name)
	if o, exists := t.objects.Get(pivot); uid == "" && exists {
		uid = o.GetUID()
	}
	if own := t.own[key]; own != nil {
		if uid == "" {
			uid = own.GetUID()
		}
		delete(t.own, key)
	}
	if uid == "" || slices.Contains(t.dead, uid) {
		return
	}
	if len(t.gone) >= maxGone {
		// Objects that came and went while the watch was interrupted, so that it never told of them.
		clear(t.gone)
	}
	t.gone[uid] = true
}

const (
	maxDead = 256   // how many deletions may be told between a deletion by this client and its answer
	maxGone = 10000 // how many deletions by this client the watch may be behind
)

// caughtUp waits until the watch has told what this client wrote.
func (t *table) caughtUp(ctx context.Context) error {
	t.mu.Lock()
	var target api.Revision
	for _, o := range t.own {
		target = max(target, api.RevisionOf(o))
	}
	for t.rev < target {
		news := t.news
		t.mu.Unlock()
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		}
		t.mu.Lock()
	}
	t.mu.Unlock()
	return nil
}

// subscribe yields what the table has and gets.
func (t *table) subscribe(ctx context.Context, q client.Query) iter.Seq2[client.Event, error] {
	return func(yield func(client.Event, error) bool) {
		if t.caughtUp(ctx) != nil {
			return
		}
		s := &subscriber{wake: make(chan struct{}, 1)}
		t.mu.Lock()
		t.objects.Scan(func(o api.Object) bool {
			s.push(client.Event{Op: client.Added, Object: o, Revision: api.RevisionOf(o)})
			return true
		})
		s.push(client.Event{Op: client.Synced, Revision: t.rev})
		t.subs[s] = struct{}{}
		t.mu.Unlock()
		defer func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			delete(t.subs, s)
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.wake:
			}
			t.mu.Lock()
			queue := s.queue
			s.queue = nil
			t.mu.Unlock()
			for _, e := range queue {
				if e, ok := narrow(q, e); ok && !yield(e, nil) {
					return
				}
			}
		}
	}
}

// narrow makes of a table's event what a watch of q sees.
func narrow(q client.Query, e client.Event) (client.Event, bool) {
	if e.Op == client.Synced {
		return e, true
	}
	is := e.Op != client.Deleted && selects(q, e.Object)
	was := e.Op == client.Deleted && selects(q, e.Object)
	if e.Old != nil {
		was = selects(q, e.Old)
	}
	switch {
	case is && !was:
		e.Op, e.Old = client.Added, nil
	case is:
		e.Op = client.Modified
	case was:
		e.Op = client.Deleted
	}
	return e, is || was
}
