package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// leading is what works on one of several servers at a time: it waits for its lease, and where it loses that, it ends what it has made and waits
// again. Each time its writes are behind a fence of their own, so that what is still under way when another one leads comes to nothing.
//
// A server that is the only one has no lease. It takes it when the first other one is to be admitted, without a break: see share.
type leading struct {
	s    *server
	name string // of upstream's program, and so of the lease
	make func() (run.Component, error)

	once sync.Once
	held chan struct{} // closed once the lease was held
}

func (s *server) leading(name string, mk func() (run.Component, error)) *leading {
	l := &leading{s: s, name: name, make: mk, held: make(chan struct{})}
	s.leaders = append(s.leaders, l)
	return l
}

// Name is the lease's.
func (l *leading) Name() string { return l.name }

// Run is ready with what it leads, or at once where there are other servers.
func (l *leading) Run(ctx context.Context, ready func()) error {
	for ctx.Err() == nil {
		if err := l.lead(ctx, ready); err != nil {
			return err
		}
	}
	return nil
}

// lead is once through. The error is of what is led; losing the lease is none.
func (l *leading) lead(ctx context.Context, ready func()) error {
	fence := l.s.store.NewFence(l.name)
	alone := l.s.store.Exclusive()
	if !alone {
		ready()
	}
	held, release, err := l.hold(ctx, fence, alone)
	if err != nil {
		return nil // ctx ended
	}
	defer release()
	c, err := l.make()
	if err != nil {
		return err
	}
	if err := c.Run(fence.Context(held), ready); held.Err() == nil {
		if err == nil {
			err = run.ErrStopped
		}
		return err
	}
	if ctx.Err() == nil {
		l.s.log.Warn("not leading any more", "lease", l.name, "err", context.Cause(held))
	}
	return nil
}

// hold returns a context that ends when another server may lead.
func (l *leading) hold(ctx context.Context, fence *store.Fence, alone bool) (held context.Context, release func(), err error) {
	if !alone {
		return l.acquire(ctx, fence)
	}
	held, lose := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-l.s.shared:
		case <-held.Done():
			return
		}
		really, release, err := l.acquire(held, fence)
		if err != nil {
			return // held ended
		}
		defer release()
		<-really.Done()
		lose(context.Cause(really))
	})
	return held, func() { lose(nil); wg.Wait() }, nil
}

// acquire waits for the lease, and takes the fence.
func (l *leading) acquire(ctx context.Context, fence *store.Fence) (context.Context, func(), error) {
	host, err := os.Hostname()
	if err != nil {
		return nil, nil, err
	}
	identity := host + "_" + l.s.config.NodeName + "_" + rand.Text()
	lease := &client.Lease{Client: l.s.admin(), Key: api.Key{Namespace: metav1.NamespaceSystem, Name: l.name}, Identity: identity}
	for {
		if err := fence.Stand(ctx); err != nil {
			l.s.log.Warn("not standing for a lease", "lease", l.name, "err", err)
			if err := run.Pause(ctx, 2*time.Second); err != nil { // as Hold
				return nil, nil, err
			}
			continue
		}
		lead, release, err := lease.Hold(ctx)
		if err != nil {
			return nil, nil, err
		}
		held, err := fence.Take(lead, identity)
		if err != nil {
			release()
			l.s.log.Warn("not leading", "lease", l.name, "err", err)
			continue // unless ctx has ended
		}
		l.s.log.Info("leading", "lease", l.name, "identity", identity)
		l.once.Do(func() { close(l.held) })
		return held, release, nil
	}
}

// share makes ready for others who write: whoever leads because nobody else could holds his lease when it returns.
func (s *server) share(ctx context.Context) error {
	if !s.store.Exclusive() {
		return nil
	}
	s.sharing.Do(func() { close(s.shared) })
	for _, l := range s.leaders {
		select {
		case <-l.held:
		case <-ctx.Done():
			return fmt.Errorf("the lease %s is somebody else's: %w", l.name, context.Cause(ctx))
		}
	}
	return nil
}
