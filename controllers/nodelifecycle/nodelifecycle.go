// Package nodelifecycle notices Nodes that are silent or unwell and says so by conditions and taints. It
// replaces upstream's node lifecycle controller. Evicting pods from such Nodes is tainteviction's.
//
// Vocabulary: a heartbeat is a change of a Node's Lease or of its Ready condition's heartbeat time. A zone is the
// Nodes of one region and zone label. A zone is fully disrupted when none of its Nodes is ready, and partially when most
// are not.
//
// When a heartbeat came is measured by this process' monotonic clock and not by the times that are written in it,
// so that a clock that jumps, here or there, makes no Node look dead.
package nodelifecycle

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const (
	grace        = 40 * time.Second // without a heartbeat
	startupGrace = 60 * time.Second // for a Node that never reported
)

type controller struct {
	reconcile.Deps

	mu    sync.Mutex
	beats map[string]beat      // by Node
	next  map[string]time.Time // by zone: when the next Node may be tainted NoExecute
}

// beat is the last heartbeat of a Node.
type beat struct {
	uid         types.UID
	lease, node metav1.MicroTime // as written
	at          time.Time        // as seen
}

// New returns the node lifecycle controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := &controller{Deps: d.Named("node-controller"), beats: map[string]beat{}, next: map[string]time.Time{}}
	return reconcile.New(c.Deps, reconcile.For[*corev1.Node]{
		Controller: "node-lifecycle-controller",
		Also: []reconcile.Source{
			reconcile.Mapped(func(l *coordinationv1.Lease) []api.Key {
				if l.Namespace != corev1.NamespaceNodeLease {
					return nil
				}
				return []api.Key{{Name: l.Name}}
			}),
			// How disrupted the cluster is decides over the taints of all unready Nodes.
			reconcile.Changed(func(ctx context.Context, d reconcile.Deps, before, after *corev1.Node) []api.Key {
				if before != nil && after != nil && ready(before) == ready(after) {
					return nil
				}
				return unready(ctx, d)
			}),
		},
		Read:      []*api.Kind{api.PodKind},
		Write:     reconcile.Writes{api.NodeKind: {"update", "update/status"}, api.PodKind: {"update/status"}},
		Reconcile: c.reconcile,
		Gone: func(_ context.Context, _ *slog.Logger, key api.Key) (reconcile.Result, error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.beats, key.Name)
			return reconcile.Result{}, nil
		},
	})
}

func unready(ctx context.Context, d reconcile.Deps) []api.Key {
	all, err := client.List[*corev1.Node](ctx, d.Client, client.Query{})
	if err != nil {
		d.Log.Warn("list nodes", "err", err)
		return nil
	}
	var keys []api.Key
	for _, n := range all {
		if ready(n) != corev1.ConditionTrue {
			keys = append(keys, api.KeyOf(n))
		}
	}
	return keys
}

func (c *controller) reconcile(ctx context.Context, log *slog.Logger, n *corev1.Node) (reconcile.Result, error) {
	var res reconcile.Result
	now := time.Now()
	at, err := c.heartbeat(ctx, n, now)
	if err != nil {
		return res, err
	}
	patience := grace
	if api.NodeCondition(n, corev1.NodeReady) == nil {
		patience = startupGrace
	}
	if left := patience - now.Sub(at); left > 0 {
		res = res.Sooner(left)
	} else if n, err = c.silent(ctx, log, n, now); err != nil {
		return res, err
	}
	all, err := client.List[*corev1.Node](ctx, c.Client, client.Query{})
	if err != nil {
		return res, fmt.Errorf("list nodes: %w", err)
	}
	evict, left := c.mayEvict(n, all, now)
	if _, err := client.Mutate(ctx, c.Client, n, "", func(n *corev1.Node) { n.Spec.Taints = taints(n, evict, now) }); err != nil {
		return res, fmt.Errorf("write taints: %w", err)
	}
	if ready(n) == corev1.ConditionUnknown {
		if err := c.podsNotReady(ctx, n, now); err != nil {
			return res, err
		}
	}
	return res.Sooner(left), nil
}

// heartbeat returns when n's last heartbeat was seen.
func (c *controller) heartbeat(ctx context.Context, n *corev1.Node, now time.Time) (time.Time, error) {
	b := beat{uid: n.UID, at: now}
	l, err := client.Get[*coordinationv1.Lease](ctx, c.Client, api.Key{Namespace: corev1.NamespaceNodeLease, Name: n.Name})
	if err != nil && !apierrors.IsNotFound(err) {
		return now, fmt.Errorf("get lease: %w", err)
	}
	if err == nil && l.Spec.RenewTime != nil {
		b.lease = *l.Spec.RenewTime
	}
	if r := api.NodeCondition(n, corev1.NodeReady); r != nil {
		b.node = metav1.NewMicroTime(r.LastHeartbeatTime.Time)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.beats[n.Name]; ok && old.uid == b.uid && old.lease.Equal(&b.lease) && old.node.Equal(&b.node) {
		return old.at, nil
	}
	c.beats[n.Name] = b
	return now, nil
}

// silent makes the conditions of a Node without heartbeat Unknown.
func (c *controller) silent(ctx context.Context, log *slog.Logger, n *corev1.Node, now time.Time) (*corev1.Node, error) {
	was := ready(n)
	got, err := client.Mutate(ctx, c.Client, n, "status", func(n *corev1.Node) { unknown(n, now) })
	if err != nil {
		return n, fmt.Errorf("write conditions: %w", err)
	}
	if got != n {
		log.Info("node is silent", "node", n.Name)
		if was == corev1.ConditionTrue {
			c.Events.Event(n, corev1.EventTypeNormal, "NodeNotReady", "Node "+n.Name+" status is now: NodeNotReady")
		}
	}
	return got, nil
}

// mayEvict says whether n may carry a taint that evicts its pods, given how disrupted its zone is, and when to
// ask again if not now.
func (c *controller) mayEvict(n *corev1.Node, all []*corev1.Node, now time.Time) (bool, time.Duration) {
	if ready(n) == corev1.ConditionTrue || api.NodeCondition(n, corev1.NodeReady) == nil {
		return false, 0
	}
	rate, allDisrupted := evictionRate(n, all)
	switch {
	case allDisrupted: // it is more likely that it is us who are cut off
		return false, 0
	case evicting(n):
		return true, 0
	case rate == 0:
		return false, 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	z := zone(n)
	if left := c.next[z].Sub(now); left > 0 {
		return false, left
	}
	c.next[z] = now.Add(time.Duration(float64(time.Second) / rate))
	return true, 0
}

// podsNotReady marks the pods of a silent Node as not ready, so that they get no traffic.
func (c *controller) podsNotReady(ctx context.Context, n *corev1.Node, now time.Time) error {
	pods, err := client.List[*corev1.Pod](ctx, c.Client, client.Query{Fields: fields.OneTermEqualSelector("spec.nodeName", n.Name)})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	var errs []error
	for _, p := range pods {
		if !api.PodReady(p) {
			continue
		}
		_, err := client.Mutate(ctx, c.Client, p, "status", func(p *corev1.Pod) {
			r := api.PodCondition(p, corev1.PodReady)
			r.Status, r.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(now)
			r.ObservedGeneration = p.Generation
		})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("mark pod %s not ready: %w", api.KeyOf(p), err))
			continue
		}
		c.Events.Event(p, corev1.EventTypeWarning, "NodeNotReady", "Node is not ready")
	}
	return errors.Join(errs...)
}
