package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// Informers is the one watch per kind that all controllers of a process share, a run.Component. It
// passes changes on and keeps no objects.
type Informers struct {
	reader   client.Reader
	handlers map[*api.Kind][]func(client.Event) // fixed when Run begins
	synced   chan struct{}
	ctx      context.Context // Run's, set before the first handler is called

	defined   defined
	following sync.WaitGroup // the watches of what is defined
}

// NewInformers returns Informers without subscribers.
func NewInformers(r client.Reader) *Informers {
	return &Informers{reader: r, handlers: map[*api.Kind][]func(client.Event){}, synced: make(chan struct{})}
}

// Name is "informers".
func (i *Informers) Name() string { return "informers" }

// subscribe calls f with each change of kind, in order, from one goroutine per kind. Deletions carry the last
// state; Synced is not passed on. Preconditions: Run was not called.
func (i *Informers) subscribe(kind *api.Kind, f func(client.Event)) {
	i.handlers[kind] = append(i.handlers[kind], f)
}

// context is Run's context. It may only be used by handlers.
func (i *Informers) context() context.Context { return i.ctx }

// wait waits until all objects that existed at the start were passed on. It is false when ctx ends before.
func (i *Informers) wait(ctx context.Context) bool {
	select {
	case <-i.synced:
		return true
	case <-ctx.Done():
		return false
	}
}

// Run watches until ctx ends. It is ready when every object that existed was passed on.
func (i *Informers) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	i.ctx = ctx
	defer i.following.Wait() // after the cancellation below
	if err := i.preload(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	var watching, syncing sync.WaitGroup
	for _, k := range slices.SortedFunc(maps.Keys(i.handlers), func(a, b *api.Kind) int {
		return strings.Compare(a.String(), b.String())
	}) {
		syncing.Add(1)
		watching.Go(func() {
			synced := sync.OnceFunc(syncing.Done)
			defer synced() // after the cancellation: what failed is not taken for ready
			if err := i.watch(ctx, k, synced); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("watch %s: %w", k, err))
			}
		})
	}
	watching.Go(func() {
		syncing.Wait()
		if ctx.Err() == nil {
			close(i.synced)
			ready()
		}
	})
	watching.Wait()
	cancel(nil)
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return cause
	}
	return nil
}

func (i *Informers) watch(ctx context.Context, k *api.Kind, synced func()) error {
	for e, err := range i.reader.Watch(ctx, k, client.Query{}, 0) {
		switch {
		case err != nil:
			return err
		case e.Op == client.Synced:
			synced()
		default:
			for _, f := range i.handlers[k] {
				f(e)
			}
		}
	}
	<-ctx.Done()
	return nil
}
