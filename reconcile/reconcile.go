// Package reconcile is the engine that every controller runs on. It replaces client-go's shared informers,
// work queues and listers, and the scaffolding that upstream repeats in each controller.
//
// A controller is a declaration and a decision:
//
//	reconcile.New(d, reconcile.For[*batchv1.Job]{
//		Controller: "ttl-after-finished-controller",
//		Write:      reconcile.Writes{api.JobKind: {"delete"}},
//		Reconcile:  c.reconcile,
//	})
//
//	one watch per kind ──> Informers ──> sources (owner, mapping) ──> keys ──> queue ──> workers ──> Reconcile
//
// Vocabulary: a source maps changes of a kind to the keys of the objects that they concern; a key wakes its
// controller; a declaration says what a controller reads and writes.
//
// Invariants:
//   - Reconcile is level-triggered: it gets the object as it is now and never learns what woke it.
//   - One key runs at most once at a time. A wake-up during its run makes it run again.
//   - Informers keep no objects. Reconcile reads through its Client, to which its own writes are visible
//     (package client), so that no run can act on a state before its key's last write, and no
//     controller counts expectations.
//   - Objects read are shared: client.Mutate clones.
//   - Lock order: queue.mu is a leaf.
package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/events"
)

// Deps is what controllers are given.
type Deps struct {
	Client    client.Client
	Informers *Informers
	Events    *events.Recorder // nil drops events
	Log       *slog.Logger
	Metrics   *Metrics // nil counts nothing
}

// Named returns d with controller as the source of events.
func (d Deps) Named(controller string) Deps {
	d.Events = d.Events.As(controller)
	return d
}

// Result says what comes after a run without an error.
type Result struct {
	// After runs the key again after that time at the latest. Zero: only when something changes.
	After time.Duration
}

// Sooner returns the Result that comes first.
func (r Result) Sooner(after time.Duration) Result {
	if after > 0 && (r.After == 0 || after < r.After) {
		r.After = after
	}
	return r
}

// For declares a controller of the kind of T. Reconcile is required.
type For[T api.Object] struct {
	Controller string // upstream's name
	// Heeds says whether an update of the object wakes it. Every one does when it is nil.
	Heeds func(before, after T) bool
	// Also lists what else wakes an object beside its own changes.
	Also []Source
	// Read lists kinds that are read but wake nobody.
	Read  []*api.Kind
	Write Writes
	// Workers is how many keys run at a time; 5 when zero.
	Workers int
	// Reconcile makes what o asks for so. It is called with the current object, and again with growing delays
	// while it returns errors. Conflicts and NotFounds are retried without being reported.
	Reconcile func(ctx context.Context, log *slog.Logger, o T) (Result, error)
	// Gone is called instead when there is no such object (any more). May be nil.
	Gone func(ctx context.Context, log *slog.Logger, key api.Key) (Result, error)
}

// Loop declares a controller that looks at everything at once, whatever woke it.
type Loop struct {
	Controller string
	Wake       []*api.Kind
	// Heeds says whether a change of an object wakes it. Every one does when it is nil.
	Heeds func(client.Event) bool
	Read  []*api.Kind
	Write Writes
	// Least is the least time between two runs, so that a storm of changes is looked at once.
	Least time.Duration
	Run   func(ctx context.Context, log *slog.Logger) (Result, error)
}

// Controller is a declared controller, a run.Component.
type Controller struct {
	Declaration
	deps    Deps
	workers int
	queue   *queue
	run     func(ctx context.Context, log *slog.Logger, key api.Key) (Result, error)
}

// Keyed declares a controller whose keys are its own: the sources make them, Run understands them.
type Keyed struct {
	Controller string
	Sources    []Source
	Read       []*api.Kind
	Write      Writes
	Workers    int
	Run        func(ctx context.Context, log *slog.Logger, key api.Key) (Result, error)
}

// New returns the controller and subscribes it to d.Informers, which must not run yet.
func New[T api.Object](d Deps, f For[T]) *Controller {
	kind := api.KindFor[T]()
	c := NewKeyed(d, Keyed{Controller: f.Controller, Read: append([]*api.Kind{kind}, f.Read...), Write: f.Write, Workers: f.Workers,
		Run: func(ctx context.Context, log *slog.Logger, key api.Key) (Result, error) {
			o, err := client.Get[T](ctx, d.Client, key)
			switch {
			case err == nil:
				return f.Reconcile(ctx, log, o)
			case apierrors.IsNotFound(err) && f.Gone != nil:
				return f.Gone(ctx, log, key)
			case apierrors.IsNotFound(err):
				return Result{}, nil
			}
			return Result{}, fmt.Errorf("get %s %s: %w", kind, key, err)
		}})
	d.Informers.subscribe(kind, func(e client.Event) {
		if f.Heeds == nil || e.Op == client.Deleted || e.Old == nil || f.Heeds(e.Old.(T), e.Object.(T)) {
			c.queue.add(api.KeyOf(e.Object))
		}
	})
	c.wakeBy(kind, f.Also)
	return c
}

// NewKeyed returns the controller and subscribes it to d.Informers, which must not run yet.
func NewKeyed(d Deps, f Keyed) *Controller {
	c := newController(d, f.Controller, f.Workers, f.Write)
	c.run = f.Run
	c.reads(f.Read...)
	c.wakeBy(nil, f.Sources)
	return c
}

// wakeBy subscribes c to sources; owner is c's kind.
func (c *Controller) wakeBy(owner *api.Kind, sources []Source) {
	for _, s := range sources {
		if s.defined != nil {
			c.wakeByDefined(s)
			continue
		}
		c.reads(s.kind)
		c.reads(s.lists...)
		keys := s.keys(c.deps, owner)
		c.deps.Informers.subscribe(s.kind, func(e client.Event) {
			for _, k := range keys(c.context(c.deps.Informers.context()), e) {
				c.queue.add(k)
			}
		})
	}
}

// wakeByDefined subscribes c to the objects of all kinds that are defined, which it may read: kinds that nobody knows beforehand are
// declared as every kind.
func (c *Controller) wakeByDefined(s Source) {
	c.reads(nil, api.CustomResourceDefinitionKind)
	c.deps.Informers.subscribeDefined(func(k *api.Kind, e client.Event) {
		ctx := c.context(c.deps.Informers.context())
		var keys []api.Key
		switch e.Op {
		case client.Synced:
			keys = s.defined(ctx, c.deps, k, nil, nil)
		case client.Deleted:
			keys = s.defined(ctx, c.deps, k, e.Object, nil)
		default:
			keys = s.defined(ctx, c.deps, k, e.Old, e.Object)
		}
		for _, key := range keys {
			c.queue.add(key)
		}
	})
}

// NewLoop returns the controller and subscribes it to d.Informers, which must not run yet.
func NewLoop(d Deps, l Loop) *Controller {
	c := newController(d, l.Controller, 1, l.Write)
	c.reads(l.Wake...)
	c.reads(l.Read...)
	all := api.Key{Name: "all"}
	for _, k := range l.Wake {
		d.Informers.subscribe(k, func(e client.Event) {
			if l.Heeds == nil || l.Heeds(e) {
				c.queue.addAfter(all, l.Least)
			}
		})
	}
	c.queue.add(all)
	c.run = func(ctx context.Context, log *slog.Logger, _ api.Key) (Result, error) { return l.Run(ctx, log) }
	return c
}

func newController(d Deps, name string, workers int, w Writes) *Controller {
	if workers == 0 {
		workers = 5
	}
	return &Controller{
		Declaration: Declaration{Controller: name, Writes: w}, deps: d, workers: workers, queue: newQueue(d.Metrics.of(name)),
	}
}

// Name returns the controller's name.
func (c *Controller) Name() string { return c.Controller }

// Wake makes key run soon.
func (c *Controller) Wake(key api.Key) { c.queue.add(key) }

// Run runs the workers once the informers are in sync, until ctx ends.
func (c *Controller) Run(ctx context.Context, ready func()) error {
	if !c.deps.Informers.wait(ctx) {
		return nil
	}
	ready()
	ctx = c.context(ctx)
	stop := context.AfterFunc(ctx, c.queue.close)
	defer stop()
	var wg sync.WaitGroup
	for range c.workers {
		wg.Go(func() {
			for {
				key, ok := c.queue.next()
				if !ok {
					return
				}
				c.one(ctx, key)
			}
		})
	}
	wg.Wait()
	return nil
}

// context returns ctx carrying c's declaration, by which tests check what is read and written.
func (c *Controller) context(ctx context.Context) context.Context {
	return withDeclaration(ctx, &c.Declaration)
}

// one runs key and decides when it runs next.
func (c *Controller) one(ctx context.Context, key api.Key) {
	begin := time.Now()
	worked := c.queue.counts.working()
	log := c.deps.Log.With("controller", c.Controller, "key", key.String())
	res, err := c.guarded(ctx, log, key)
	took := time.Since(begin)
	worked(err != nil || res.After > 0)
	switch {
	case err == nil:
		c.queue.done(key, res.After)
	case ctx.Err() != nil:
		c.queue.done(key, 0)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		log.Debug("namespace is being deleted", "err", err)
		c.queue.done(key, 0)
	default:
		delay := c.queue.failed(key)
		if expected(err) {
			log.Debug("run again", "err", err, "delay", delay)
		} else {
			log.Warn("reconcile", "err", err, "delay", delay, "took", took)
		}
	}
}

// expected says that err is part of a world that changes while one looks at it.
func expected(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsNotFound(err) || apierrors.IsAlreadyExists(err)
}

// guarded turns a panic into an error of the key.
func (c *Controller) guarded(ctx context.Context, log *slog.Logger, key api.Key) (res Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return c.run(ctx, log, key)
}
