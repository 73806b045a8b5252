// Package run starts and stops the parts of a process. It replaces the various health,
// lifecycle and leader-election set-ups of upstream's programs with one idiom.
//
// A Component blocks in Run. InOrder, Together and Leading combine components into
// components. A component that returns before it was told to stop ends its group, and so the process: the
// process is crash-only and is started again, while containers live on in their shims.
package run

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Component is one box of the architecture: etcd, the API server, a controller, the
// kubelet.
//
// Run blocks until ctx is cancelled or the component cannot go on. It calls ready once, when others
// may depend on it. When Run returns, nothing that it started is left: no goroutine, listener, mount or
// child process (containers and their shims excepted, which outlive us by design). The error is nil or ctx's after cancellation.
type Component interface {
	Name() string
	Run(ctx context.Context, ready func()) error
}

// Func makes a Component of a function.
func Func(name string, f func(ctx context.Context, ready func()) error) Component {
	return component{name, f}
}

type component struct {
	name string
	run  func(context.Context, func()) error
}

func (c component) Name() string                                { return c.name }
func (c component) Run(ctx context.Context, ready func()) error { return c.run(ctx, ready) }

// Pause waits for d. The error is ctx's, when it ends before.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ErrStopped says that a component returned without an error although it was not told to.
var ErrStopped = errors.New("stopped by itself")

// InOrder is a Component that starts each of cs when the one before is ready and stops them in
// reverse order. It is ready when the last one is. The first component to end ends all; its name opens the
// error.
func InOrder(name string, cs ...Component) Component {
	return Func(name, func(ctx context.Context, ready func()) error { return inOrder(ctx, cs, ready) })
}

// Together is a Component that starts all of cs at once and stops them at once. It is ready when all are.
func Together(name string, cs ...Component) Component {
	return Func(name, func(ctx context.Context, ready func()) error { return together(ctx, cs, ready) })
}

// Lease is held by at most one process of a group. client implements it over a Lease object.
type Lease interface {
	// Hold waits until the lease is held and returns a context that ends when it is lost or ctx ends.
	// release gives the lease back.
	Hold(ctx context.Context) (held context.Context, release func(), err error)
}

// Leading is a Component that runs c while it holds the lease. It is ready at once: whoever waits
// for a leader must not hinder the others. Losing the lease is an error, which ends the process, since c's
// writes could no longer be told from the next leader's.
func Leading(lease Lease, c Component) Component {
	return Func(c.Name(), func(ctx context.Context, ready func()) error {
		ready()
		held, release, err := lease.Hold(ctx)
		if err != nil {
			return err
		}
		defer release()
		if err := c.Run(held, func() {}); ctx.Err() == nil {
			if held.Err() != nil {
				return fmt.Errorf("lease lost: %w", context.Cause(held))
			}
			return err
		}
		return nil
	})
}

// child is one running component of a group.
type child struct {
	Component
	cancel context.CancelFunc
	done   chan struct{}
	ready  chan struct{}
}

// group runs children and notes which ended first.
type group struct {
	ctx  context.Context // not cancelled by the caller's: children are stopped one by one
	wg   sync.WaitGroup
	fail chan error // the first end that nobody asked for
}

func newGroup(ctx context.Context) *group {
	return &group{ctx: context.WithoutCancel(ctx), fail: make(chan error, 1)}
}

func (g *group) start(c Component) *child {
	ctx, cancel := context.WithCancel(g.ctx)
	ch := &child{Component: c, cancel: cancel, done: make(chan struct{}), ready: make(chan struct{})}
	var once sync.Once
	g.wg.Go(func() {
		defer close(ch.done)
		err := c.Run(ctx, func() { once.Do(func() { close(ch.ready) }) })
		if ctx.Err() != nil && (err == nil || errors.Is(err, ctx.Err())) {
			return
		}
		if err == nil {
			err = ErrStopped
		}
		select {
		case g.fail <- fmt.Errorf("%s: %w", c.Name(), err):
		default:
		}
	})
	return ch
}

func (g *group) stop(ch *child) {
	ch.cancel()
	<-ch.done
}

// err returns the failure seen so far, if any. Call it when all children are done.
func (g *group) err() error {
	select {
	case err := <-g.fail:
		return err
	default:
		return nil
	}
}

func inOrder(ctx context.Context, cs []Component, ready func()) error {
	g := newGroup(ctx)
	var started []*child
	stopAll := func() {
		for i := len(started) - 1; i >= 0; i-- {
			g.stop(started[i])
		}
	}
	for _, c := range cs {
		ch := g.start(c)
		started = append(started, ch)
		if ended, err := g.wait(ctx, ch.ready, stopAll); ended {
			return err
		}
	}
	return g.serve(ctx, ready, stopAll)
}

func together(ctx context.Context, cs []Component, ready func()) error {
	g := newGroup(ctx)
	var started []*child
	for _, c := range cs {
		started = append(started, g.start(c))
	}
	stopAll := func() {
		for _, ch := range started {
			ch.cancel()
		}
		g.wg.Wait()
	}
	for _, ch := range started {
		if ended, err := g.wait(ctx, ch.ready, stopAll); ended {
			return err
		}
	}
	return g.serve(ctx, ready, stopAll)
}

// serve waits for the end of the caller's context or of a child and stops everything.
func (g *group) serve(ctx context.Context, ready func(), stopAll func()) error {
	ready()
	_, err := g.wait(ctx, nil, stopAll)
	return err
}

// wait waits for goOn, unless the caller's context or a child ends before: then it stops everything.
func (g *group) wait(ctx context.Context, goOn <-chan struct{}, stopAll func()) (ended bool, err error) {
	select {
	case <-goOn:
		return false, nil
	case <-ctx.Done():
		stopAll()
		return true, g.err()
	case err := <-g.fail:
		stopAll()
		return true, err
	}
}

// Health knows which components of a process are ready: /readyz and `yare status` read it.
type Health struct {
	mu    sync.Mutex
	names []string
	state map[string]*atomic.Bool

	probes []probe
}

// NewHealth returns an empty Health.
func NewHealth() *Health { return &Health{state: map[string]*atomic.Bool{}} }

// Watch returns c, noting in h when it becomes ready and when it ends.
func (h *Health) Watch(c Component) Component {
	h.mu.Lock()
	defer h.mu.Unlock()
	up := new(atomic.Bool)
	if _, twice := h.state[c.Name()]; !twice {
		h.names = append(h.names, c.Name())
	}
	h.state[c.Name()] = up
	return Func(c.Name(), func(ctx context.Context, ready func()) error {
		defer up.Store(false)
		return c.Run(ctx, func() { up.Store(true); ready() })
	})
}

// Probe adds a check that is made anew each time it is asked for.
func (h *Health) Probe(name string, ok func() bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.probes = append(h.probes, probe{name, ok})
}

type probe struct {
	name string
	ok   func() bool
}

// Check is one line of /readyz?verbose.
type Check struct {
	Name  string
	Ready bool
	// Probe says that it is no component's: /healthz shows it as well.
	Probe bool
}

// Checks returns the components in the order in which they were given to Watch, then what was given to Probe.
func (h *Health) Checks() []Check {
	h.mu.Lock()
	defer h.mu.Unlock()
	var cs []Check
	for _, n := range h.names {
		cs = append(cs, Check{Name: n, Ready: h.state[n].Load()})
	}
	for _, p := range h.probes {
		cs = append(cs, Check{Name: p.name, Ready: p.ok(), Probe: true})
	}
	return cs
}
