package aggregator

import (
	"context"
	"reflect"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// How often servers are asked, and what bounds the work.
const (
	checkPeriod = 30 * time.Second
	firstRetry  = 250 * time.Millisecond // after a failure; doubles up to checkPeriod
	atOnce      = 8                      // servers that are asked at the same time
)

// worker is the state of Run, of one goroutine but for the channels.
type worker struct {
	*Aggregator
	poke   chan struct{}     // something has changed
	done   chan result       // a check has ended
	places chan struct{}     // of checks that go on
	checks map[string]*check // by name of the APIService
	wg     sync.WaitGroup
	// builtIn are the names of the APIServices of built-in versions.
	builtIn map[string]bool
	begun   bool            // registered once
	looked  [2]api.Revision // of definitions and APIServices when they were registered last
}

// check is what is known of a remote APIService.
type check struct {
	of       *Service
	sum      api.Revision // of what is behind it
	running  bool
	failures int
	next     time.Time // when it is to be checked at the latest
}

// result is how a check ended: whether the server is well.
type result struct {
	name string
	well bool
}

// Run registers what this server serves, and checks what others do, until ctx ends.
func (a *Aggregator) Run(ctx context.Context, ready func()) error {
	w := &worker{Aggregator: a, poke: make(chan struct{}, 1), done: make(chan result), places: make(chan struct{}, atOnce),
		checks: map[string]*check{}, builtIn: map[string]bool{}}
	for _, s := range builtin.LocalAPIServices() {
		w.builtIn[s.Name] = true
	}
	defer w.wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	w.follow(ctx, api.APIServiceKind, api.CustomResourceDefinitionKind)
	first := true
	stopBehind := context.CancelFunc(nil) // while there are remote APIServices
	for {
		next := checkPeriod
		if err := w.register(ctx); err != nil && ctx.Err() == nil {
			a.d.Log.Warn("APIServices not registered", "err", err)
			next = time.Second
		} else if w.State() == nil {
			next = 0 // nothing is to be done before something changes
		}
		if first {
			first = false
			ready()
		}
		switch state := w.State(); {
		case state != nil && stopBehind == nil:
			stopBehind = w.followed(ctx, api.ServiceKind, api.EndpointSliceKind)
		case state == nil && stopBehind != nil:
			stopBehind()
			stopBehind = nil
		}
		if due := w.begin(ctx); due > 0 {
			next = min(next, due)
		}
		if err := w.wait(ctx, next); err != nil {
			return err
		}
	}
}

// followed is follow until stop is called, or ctx ends.
func (w *worker) followed(ctx context.Context, kinds ...*api.Kind) (stop context.CancelFunc) {
	ctx, stop = context.WithCancel(ctx)
	w.follow(ctx, kinds...)
	return stop
}

// follow pokes when an object of the kinds changes, until ctx ends.
func (w *worker) follow(ctx context.Context, kinds ...*api.Kind) {
	for _, k := range kinds {
		w.wg.Go(func() {
			for ctx.Err() == nil {
				watch, err := w.d.Store.Watch(k, w.d.Store.Revision(), 0)
				// What changed before the watch began is looked for once, too.
				for err == nil {
					select {
					case w.poke <- struct{}{}:
					default: // it has not looked since the last time
					}
					_, _, err = watch.Next(ctx)
				}
				if ctx.Err() == nil {
					_ = run.Pause(ctx, time.Second)
				}
			}
		})
	}
}

// wait returns when there may be something to do: after d at the latest, unless that is zero.
func (w *worker) wait(ctx context.Context, d time.Duration) error {
	var timer <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.poke:
	case <-timer:
	case r := <-w.done:
		w.ended(r)
	}
	return nil
}

func (w *worker) ended(r result) {
	c := w.checks[r.name]
	if c == nil {
		return
	}
	c.running = false
	period := checkPeriod
	if r.well {
		c.failures = 0
	} else {
		period = min(firstRetry<<min(c.failures, 10), checkPeriod)
		c.failures++
	}
	c.next = time.Now().Add(period)
}

// begin starts the checks that are due, and returns when the next one is: zero for never.
func (w *worker) begin(ctx context.Context) (next time.Duration) {
	state := w.State()
	seen := map[string]bool{}
	now := time.Now()
	if state != nil {
		for _, svc := range state.remote {
			seen[svc.Name] = true
			if left := w.beginOne(ctx, svc, now); left > 0 && (next == 0 || left < next) {
				next = left
			}
		}
	}
	for name, c := range w.checks {
		if !seen[name] && !c.running {
			delete(w.checks, name)
			w.forget(name)
		}
	}
	return next
}

// beginOne starts the check of svc if it is due, and returns for how long it is not.
func (w *worker) beginOne(ctx context.Context, svc *Service, now time.Time) time.Duration {
	c := w.checks[svc.Name]
	if c == nil {
		c = &check{}
		w.checks[svc.Name] = c
	}
	if c.running {
		return 0
	}
	b := behindOf(w.d.Store, svc)
	changed := c.of == nil || c.of.UID != svc.UID || !reflect.DeepEqual(c.of.Spec, svc.Spec) || c.sum != b.sum
	if !changed && now.Before(c.next) {
		return c.next.Sub(now)
	}
	if changed {
		c.failures = 0
	}
	select {
	case w.places <- struct{}{}:
	default:
		return 0 // when one of the others has ended
	}
	c.of, c.sum, c.running = svc, b.sum, true
	w.wg.Go(func() {
		well := false
		run.Guard(w.d.Log, "check of an aggregated API server", func() { well = w.check(ctx, svc, b) })
		<-w.places
		select {
		case w.done <- result{svc.Name, well}:
		case <-ctx.Done():
		}
	})
	return 0
}

// check finds out whether svc is available and what its server serves, and says so in its status. It returns whether there is
// no reason to look again soon.
func (w *worker) check(ctx context.Context, svc *Service, b behind) bool {
	v := judge(svc, b)
	asked := v == verdict{}
	var err error
	if asked {
		v = passed
		if err = w.ask(ctx, svc); err != nil {
			if ctx.Err() != nil {
				return false
			}
			v = unavailable("FailedDiscoveryCheck", "%s", err)
		}
	}
	// Before the status says that it is available, so that who waits for that finds its kinds.
	if v == passed {
		err = w.discover(ctx, svc)
	} else {
		w.stale(svc)
	}
	return w.write(ctx, svc, v) && (!asked || err == nil)
}

// write says in the status what was found, where it does not say so already, and returns whether it does now.
func (w *worker) write(ctx context.Context, svc *Service, v verdict) bool {
	w.meter.available(svc, v)
	if same(svc, v) {
		return true
	}
	_, err := client.Mutate(ctx, w.d.Client, svc, "status", func(s *Service) { apply(s, v, time.Now()) })
	switch {
	case err == nil || apierrors.IsNotFound(err):
		return true
	case !apierrors.IsConflict(err) && ctx.Err() == nil:
		w.d.Log.Warn("status of an APIService not written", "apiservice", svc.Name, "err", err)
	}
	return false // somebody else has changed it
}
