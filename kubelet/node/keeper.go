package node

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/run"
)

const (
	leaseEvery    = 10 * time.Second
	leaseSeconds  = 40
	statusEvery   = 10 * time.Second // looked at
	statusAtLeast = 5 * time.Minute  // written although nothing changed
	firstRetry    = 10 * time.Millisecond
	lastRetry     = time.Second
)

func same(a, b *corev1.NodeStatus) bool { return equality.Semantic.DeepEqual(a, b) }

// Keeper keeps the Node object and its Lease.
type Keeper struct {
	config  Config
	client  client.Client
	cri     *cri.Client
	log     *slog.Logger
	changed func() // the Node has changed
	node    atomic.Pointer[corev1.Node]
	poke    chan struct{}
	written time.Time
	retry   time.Duration
	cidr    string
}

// New returns a Keeper. Changed is called when the Node object has changed.
func New(c Config, api client.Client, runtime *cri.Client, log *slog.Logger, changed func()) *Keeper {
	return &Keeper{config: c, client: api, cri: runtime, log: log, changed: changed, poke: make(chan struct{}, 1), retry: firstRetry}
}

// Node returns the newest Node object, nil before it is registered. It is shared.
func (k *Keeper) Node() *corev1.Node { return k.node.Load() }

// Poke makes the Keeper look at the status now.
func (k *Keeper) Poke() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

// Run registers the node, calls registered, and keeps status and Lease until ctx ends.
func (k *Keeper) Run(ctx context.Context, registered func()) error {
	if err := k.persist(ctx, "register node", k.register); err != nil {
		return nil
	}
	registered()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.watch(ctx) })
	wg.Go(func() { k.leases(ctx) })
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-k.poke:
		}
		timer.Reset(k.look(ctx))
	}
}

// persist tries f until it succeeds or ctx ends.
func (k *Keeper) persist(ctx context.Context, what string, f func(context.Context) error) error {
	wait := firstRetry
	for {
		err := f(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if wait >= lastRetry {
			k.log.Warn("node is not registered yet", "step", what, "err", err)
		}
		if err := run.Pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, lastRetry)
	}
}

// register makes the Node object, or brings labels of an old one up to date.
func (k *Keeper) register(ctx context.Context) error {
	facts, err := Read(k.config.Root)
	if err != nil {
		return err
	}
	want := labels(k.config, facts)
	have, err := client.Get[*corev1.Node](ctx, k.client, api.Key{Name: k.config.Name})
	if apierrors.IsNotFound(err) {
		n := api.NodeKind.New().(*corev1.Node)
		n.Name, n.Labels, n.Spec.Taints = k.config.Name, want, slices.Clone(k.config.Taints)
		n.Status = Status(k.config, facts, k.runtime(ctx), &n.Status, time.Now())
		have, err = client.Create(ctx, k.client, n)
	}
	if err != nil {
		return fmt.Errorf("register node: %w", err)
	}
	have, err = client.Mutate(ctx, k.client, have, "", func(n *corev1.Node) {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		maps.Copy(n.Labels, want)
	})
	if err != nil {
		return fmt.Errorf("update labels: %w", err)
	}
	k.node.Store(have)
	return nil
}

// runtime asks the runtime how it is.
func (k *Keeper) runtime(ctx context.Context) Runtime {
	var rt Runtime
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if rt.Status, rt.Err = k.cri.Runtime.Status(ctx, &runtimeapi.StatusRequest{}); rt.Err != nil {
		return rt
	}
	v, err := k.cri.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		rt.Err = err
		return rt
	}
	rt.Version = v.RuntimeName + "://" + v.RuntimeVersion
	if list, err := k.cri.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{}); err == nil {
		if rt.Images = list.Images; k.config.Listed != nil {
			k.config.Listed(list.Images)
		}
	}
	return rt
}

// look writes the status if it has changed, and returns when to look again.
func (k *Keeper) look(ctx context.Context) time.Duration {
	facts, err := Read(k.config.Root)
	if err != nil {
		k.log.Warn("facts of the machine cannot be read", "err", err)
		return statusEvery
	}
	rt := k.runtime(ctx)
	node := k.node.Load()
	now := time.Now()
	want := Status(k.config, facts, rt, &node.Status, now)
	used, notKnown := k.config.InUse()
	if want.VolumesInUse = used; notKnown != nil {
		k.log.Warn("not all volumes that are in use are known: none is given back", "err", notKnown)
		want.VolumesInUse = slices.Compact(slices.Sorted(slices.Values(slices.Concat(used, node.Status.VolumesInUse))))
	}
	if differs(&want, &node.Status) || now.Sub(k.written) >= statusAtLeast {
		if err := k.write(ctx, node, want); err != nil {
			if ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) { // watch registers it again
				k.log.Warn("node status is not written", "err", err)
			}
			return k.backOff()
		}
		k.written = now
	}
	k.config.Reported(used)
	if NotReady(rt) != "" {
		return k.backOff() // the runtime has no event for becoming ready
	}
	k.retry = firstRetry
	return statusEvery
}

func (k *Keeper) backOff() time.Duration {
	wait := k.retry
	k.retry = min(2*k.retry, lastRetry)
	return wait
}

func (k *Keeper) write(ctx context.Context, node *corev1.Node, want corev1.NodeStatus) error {
	got, err := client.Mutate(ctx, k.client, node, "status", func(n *corev1.Node) { n.Status = want })
	if apierrors.IsConflict(err) {
		fresh, gerr := client.Get[*corev1.Node](ctx, k.client, api.KeyOf(node))
		if gerr != nil {
			return gerr
		}
		k.store(fresh)
		return err
	}
	if err != nil {
		return err
	}
	k.store(got)
	return nil
}

// store keeps the newest of what was read and written.
func (k *Keeper) store(n *corev1.Node) {
	for {
		have := k.node.Load()
		if have != nil && have.UID == n.UID && api.RevisionOf(have) >= api.RevisionOf(n) {
			return
		}
		if k.node.CompareAndSwap(have, n) {
			return
		}
	}
}

// watch follows the Node object, and tells the runtime the pods' address range.
func (k *Keeper) watch(ctx context.Context) {
	q := client.Query{Fields: fields.OneTermEqualSelector("metadata.name", k.config.Name)}
	for ctx.Err() == nil {
		for e, err := range k.client.Watch(ctx, api.NodeKind, q, 0) {
			if err != nil {
				k.log.Warn("node cannot be watched", "err", err)
				break
			}
			n, ok := e.Object.(*corev1.Node)
			if !ok {
				continue
			}
			if e.Op == client.Deleted { // somebody deleted the node: it comes back
				if k.persist(ctx, "register node again", k.register) == nil {
					k.Poke()
				}
				continue
			}
			k.store(n)
			k.tellRange(ctx, n)
			k.changed()
		}
		_ = run.Pause(ctx, lastRetry)
	}
}

func (k *Keeper) tellRange(ctx context.Context, n *corev1.Node) {
	if n.Spec.PodCIDR == "" || n.Spec.PodCIDR == k.cidr {
		return
	}
	cidrs := n.Spec.PodCIDR
	for i, c := range n.Spec.PodCIDRs {
		if i > 0 {
			cidrs += "," + c
		}
	}
	_, err := k.cri.Runtime.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidrs}}})
	if err != nil {
		k.log.Warn("runtime does not take the pod range", "cidr", cidrs, "err", err)
		return
	}
	k.cidr = n.Spec.PodCIDR
	k.Poke()
}

// leases renews the Lease. After a failure it tries again soon: forty seconds without make the node unknown.
func (k *Keeper) leases(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	wait := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err := k.renew(ctx); err != nil {
			if ctx.Err() == nil && wait >= lastRetry {
				k.log.Warn("lease is not renewed", "err", err)
			}
			timer.Reset(wait)
			wait = min(2*wait, lastRetry)
			continue
		}
		wait = firstRetry
		timer.Reset(leaseEvery)
	}
}

func (k *Keeper) renew(ctx context.Context) error {
	key := api.Key{Namespace: corev1.NamespaceNodeLease, Name: k.config.Name}
	now := metav1.NowMicro()
	seconds := int32(leaseSeconds)
	fill := func(l *coordinationv1.Lease) {
		l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &k.config.Name, &seconds, &now
		if n := k.node.Load(); n != nil {
			l.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}
		}
	}
	have, err := client.Get[*coordinationv1.Lease](ctx, k.client, key)
	if apierrors.IsNotFound(err) {
		l := api.LeaseKind.New().(*coordinationv1.Lease)
		l.Namespace, l.Name = key.Namespace, key.Name
		fill(l)
		_, err = client.Create(ctx, k.client, l)
		return err
	}
	if err != nil {
		return err
	}
	_, err = client.Mutate(ctx, k.client, have, "", fill)
	return err
}
