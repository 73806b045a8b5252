package netpol

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/nft"
)

// Config says whom policies are enforced on.
type Config struct {
	// Table is the nftables table, of the inet family and nobody else's. It distinguishes the clusters of a host.
	Table string
	// Ranges are those that the built-in network of this node takes pods' addresses from: of these only those count that are attached.
	Ranges []netip.Prefix
	// Cluster are the addresses of all pods of the cluster.
	Cluster []netip.Prefix
	// DNS are the addresses of the cluster's DNS Service. As long as they do not lead to pods, these reach it whatever policies say.
	DNS []netip.Addr
}

// Validate returns all problems at once.
func (c Config) Validate() error {
	var errs []error
	if c.Table == "" {
		errs = append(errs, errors.New("table: is empty"))
	}
	for _, r := range slices.Concat(c.Ranges, c.Cluster) {
		if !r.IsValid() {
			errs = append(errs, errors.New("ranges, cluster: one is not valid"))
		}
	}
	return errors.Join(errs...)
}

// Deps are what an Enforcer needs.
type Deps struct {
	Client client.Reader
	// Attached lists the pods that the built-in network connects, as of now or a moment ago.
	Attached func() ([]Attachment, error)
	Log      *slog.Logger
}

// Enforcer holds this node's pods to the policies. It implements run.Component.
type Enforcer struct {
	c Config
	d Deps

	mu    sync.Mutex
	queue []request // what the network told, in its order
	wake  chan struct{}
}

// request is something that the network told.
type request struct {
	detach string // a sandbox, or
	attach *Attachment
	// inForce is closed when the kernel knows of attach, known when that is by what the policies say of the pod.
	inForce, known chan struct{}
}

// New returns an enforcer.
func New(c Config, d Deps) (*Enforcer, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("network policies: %w", err)
	}
	return &Enforcer{c: c, d: d, wake: make(chan struct{}, 1)}, nil
}

// Name implements run.Component.
func (e *Enforcer) Name() string { return "network-policies" }

// attachLimit bounds how long a pod waits for its rules, knownLimit how long then for the API to show it.
const (
	attachLimit = 10 * time.Second
	knownLimit  = time.Second
)

// Attach tells of a pod that is about to be connected, and returns when the kernel holds it to the policies, which is at once where
// there are none. It waits for Run to know them; when it gives up, with ctx's end or after ten seconds, the pod must not be connected. A pod that the API does not
// show is isolated if its namespace has policies; since it most likely will in a moment, that is waited for too, for a second.
func (e *Enforcer) Attach(ctx context.Context, a Attachment) error {
	r := request{attach: &a, inForce: make(chan struct{}), known: make(chan struct{})}
	e.tell(r)
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	select {
	case <-r.inForce:
	case <-ctx.Done():
		return fmt.Errorf("the pod's network policies are not in force yet: %w", ctx.Err())
	}
	late := time.NewTimer(knownLimit)
	defer late.Stop()
	select {
	case <-r.known:
	case <-late.C:
		e.d.Log.Warn("a pod that the API does not show is isolated", "pod", a.key())
	case <-ctx.Done():
	}
	return nil
}

// Detach tells that a sandbox is not connected any more. It does not wait: who is given an address next waits in its Attach, which comes
// after.
func (e *Enforcer) Detach(sandbox string) { e.tell(request{detach: sandbox}) }

func (e *Enforcer) tell(r request) {
	e.mu.Lock()
	e.queue = append(e.queue, r)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// told takes what was told since.
func (e *Enforcer) told() []request {
	e.mu.Lock()
	defer e.mu.Unlock()
	q := e.queue
	e.queue = nil
	return q
}

// Run implements run.Component, in the network namespace of the calling thread. It is ready when the kernel has what all
// policies of the start make. The table stays when it returns, and holds: Remove removes it.
func (e *Enforcer) Run(ctx context.Context, ready func()) error {
	conn, err := nft.Dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	mon, err := conn.Watch(e.c.Table)
	if err != nil {
		return err
	}
	defer mon.Close()
	attached, err := e.d.Attached()
	if err != nil {
		return fmt.Errorf("list the network's pods: %w", err)
	}
	foreign := make(chan struct{}, 1)
	l := &loop{e: e, kernel: kernel{conn, e.c.Table}, ready: ready, foreign: foreign, state: newState(e.c)}
	for i := range attached {
		l.state.attach(&attached[i])
	}
	return l.run(ctx, func(ctx context.Context) error { return mon.Signal(ctx, foreign) })
}

// Remove removes the table, and with it every trace of the policies.
func Remove(table string) error { return nft.Remove(table) }

// kernel is where the rules go.
type kernel struct {
	conn interface {
		Commit(*nft.Batch) error
		MakeWhole(name string, want *nft.Table) (because, err error)
	}
	table string
}

// loop is the state of Run; only its goroutine touches it.
type loop struct {
	e       *Enforcer
	kernel  kernel
	ready   func()
	foreign <-chan struct{} // somebody else changed the table
	state   *state

	group    sync.WaitGroup
	errs     chan error
	policies chan client.Event
	objects  chan client.Event  // of namespaces and pods; nil while nobody needs them
	leave    context.CancelFunc // ends objects
	missing  int                // kinds of which not all objects are known yet, but must be

	applied bool      // the kernel has had the whole table once
	again   bool      // the table may not be what it should
	waiting []request // for the next transaction
	unknown []request // in the kernel, but the API does not show them
}

// run does what Run says, beside what signals that somebody else changed the table.
func (l *loop) run(ctx context.Context, signal func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer l.group.Wait()
	defer cancel()
	l.errs = make(chan error)
	l.background(ctx, signal)
	l.policies, l.missing = make(chan client.Event, 256), 1
	l.follow(ctx, api.NetworkPolicyKind, l.policies)
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-l.errs:
			return err
		case c := <-l.policies:
			l.take(c, l.policies)
		case c := <-l.objects:
			l.take(c, l.objects)
		case <-l.e.wake:
		case <-l.foreign:
			l.again = true
		case <-retry.C:
		}
		for _, r := range l.e.told() {
			l.hear(r)
		}
		l.look(ctx)
		if l.missing > 0 {
			continue
		}
		if err := l.sync(); err != nil {
			l.e.d.Log.Error("network policies not applied, trying again", "err", err)
			l.again = true
			retry.Reset(time.Second)
		}
	}
}

// background runs what must not end before ctx.
func (l *loop) background(ctx context.Context, f func(context.Context) error) {
	l.group.Go(func() {
		err := f(ctx)
		if ctx.Err() != nil {
			return
		}
		select {
		case l.errs <- cmp.Or(err, errors.New("a watch ended")):
		case <-ctx.Done():
		}
	})
}

func (l *loop) follow(ctx context.Context, k *api.Kind, to chan<- client.Event) {
	l.background(ctx, func(ctx context.Context) error { return client.Follow(ctx, l.e.d.Client, k, client.Query{}, to) })
}

// look watches namespaces and pods as long as there is a policy.
func (l *loop) look(ctx context.Context) {
	switch needed := len(l.state.policies) > 0; {
	case needed && l.objects == nil && l.missing == 0:
		ctx, l.leave = context.WithCancel(ctx)
		l.objects, l.missing = make(chan client.Event, 256), 2
		l.follow(ctx, api.NamespaceKind, l.objects)
		l.follow(ctx, api.PodKind, l.objects)
	case !needed && l.objects != nil:
		l.leave()
		l.objects, l.missing = nil, 0
		l.state.forget()
	}
}

// take notes what an event changes, and those that wait behind it.
func (l *loop) take(e client.Event, more <-chan client.Event) {
	for {
		l.note(e)
		select {
		case e = <-more:
		default:
			return
		}
	}
}

func (l *loop) note(e client.Event) {
	if e.Op == client.Synced {
		l.missing--
		return
	}
	k, gone := api.KeyOf(e.Object), e.Op == client.Deleted
	switch o := e.Object.(type) {
	case *networkingv1.NetworkPolicy:
		if gone {
			o = nil
		}
		l.state.setPolicy(k, o)
	case *corev1.Namespace:
		now := labels.Set{}
		if len(o.Labels) > 0 {
			now = o.Labels
		}
		if gone {
			now = nil
		}
		l.state.setNamespace(o.Name, now)
	case *corev1.Pod:
		if gone {
			l.state.setPod(k, nil)
		} else {
			l.state.setPod(k, parsePod(o))
		}
	}
}

// hear notes what the network told.
func (l *loop) hear(r request) {
	if r.attach == nil {
		l.state.detach(r.detach)
		return
	}
	l.state.attach(r.attach)
	l.waiting = append(l.waiting, r)
}

// answer tells those whom they wait for that pods are in the kernel, and are known.
func (l *loop) answer() {
	for _, r := range l.waiting {
		close(r.inForce)
	}
	l.unknown = slices.DeleteFunc(append(l.unknown, l.waiting...), func(r request) bool {
		wait := l.state.attached[r.attach.Sandbox] == r.attach && l.state.isStranger(r.attach)
		if !wait {
			close(r.known)
		}
		return !wait
	})
	l.waiting = nil
}

// sync hands what changed to the kernel in one transaction.
func (l *loop) sync() error {
	start := time.Now()
	before := l.state.cutOff()
	batch := l.state.update()
	if now := l.state.cutOff(); len(now) > 0 && !maps.Equal(before, now) {
		l.e.d.Log.Warn("pods may do nothing: the network policies for them have more different ports and peers than a node holds for a namespace, or for all",
			"namespaces", slices.Sorted(maps.Keys(now)), "pods", len(l.state.over), "share", mostShare, "sets", mostSets)
	}
	if whole := l.again || !l.applied; whole {
		because, err := l.kernel.conn.MakeWhole(l.kernel.table, l.state.wanted())
		if because != nil {
			l.e.d.Log.Warn("replaced the whole table", "table", l.kernel.table, "err", because)
		}
		if err != nil {
			return err
		}
	} else if err := l.kernel.conn.Commit(batch); err != nil {
		return err
	}
	l.again = false
	l.answer()
	if !l.applied {
		l.applied = true
		l.ready()
	}
	if !batch.Empty() {
		l.e.d.Log.Debug("network policies applied", "messages", batch.Messages(), "took", time.Since(start))
	}
	return nil
}
