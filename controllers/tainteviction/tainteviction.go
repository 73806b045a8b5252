// Package tainteviction deletes pods that do not tolerate their Node's NoExecute taints, or not any longer. It
// replaces upstream's taint-eviction controller.
//
// How long a pod has been on a tainted Node is measured from when this process saw it first, by the monotonic clock:
// a restart or a clock that jumps gives pods more time, never less.
package tainteviction

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct {
	reconcile.Deps

	mu   sync.Mutex
	seen map[api.Key]sighting // pods on tainted Nodes
}

type sighting struct {
	uid types.UID
	at  time.Time
}

// New returns the taint-eviction controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := &controller{Deps: d.Named("taint-eviction-controller"), seen: map[api.Key]sighting{}}
	return reconcile.New(c.Deps, reconcile.For[*corev1.Pod]{
		Controller: "taint-eviction-controller",
		Also: []reconcile.Source{reconcile.Changed(func(ctx context.Context, d reconcile.Deps, before, after *corev1.Node) []api.Key {
			if after == nil || before != nil && equality.Semantic.DeepEqual(noExecute(before), noExecute(after)) ||
				before == nil && len(noExecute(after)) == 0 {
				return nil
			}
			return podsOn(ctx, d, after.Name)
		}, api.PodKind)},
		Write:     reconcile.Writes{api.PodKind: {"delete", "update/status"}},
		Reconcile: c.reconcile,
		Gone: func(_ context.Context, _ *slog.Logger, key api.Key) (reconcile.Result, error) {
			c.forget(key)
			return reconcile.Result{}, nil
		},
	})
}

func podsOn(ctx context.Context, d reconcile.Deps, node string) []api.Key {
	pods, err := client.List[*corev1.Pod](ctx, d.Client, client.Query{Fields: fields.OneTermEqualSelector("spec.nodeName", node)})
	if err != nil {
		d.Log.Warn("list pods of a node", "node", node, "err", err)
		return nil
	}
	keys := make([]api.Key, len(pods))
	for i, p := range pods {
		keys[i] = api.KeyOf(p)
	}
	return keys
}

func (c *controller) forget(key api.Key) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, known := c.seen[key]
	delete(c.seen, key)
	return known
}

// since returns when p was first seen on a tainted Node.
func (c *controller) since(p *corev1.Pod, now time.Time) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.seen[api.KeyOf(p)]
	if !ok || s.uid != p.UID {
		s = sighting{p.UID, now}
		c.seen[api.KeyOf(p)] = s
	}
	return s.at
}

func (c *controller) reconcile(ctx context.Context, log *slog.Logger, p *corev1.Pod) (reconcile.Result, error) {
	if p.Spec.NodeName == "" || p.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	n, err := client.Get[*corev1.Node](ctx, c.Client, api.Key{Name: p.Spec.NodeName})
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil // podgc's
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get node: %w", err)
	}
	bound, forever := tolerated(p.Spec.Tolerations, noExecute(n))
	if forever {
		if c.forget(api.KeyOf(p)) {
			c.Events.Event(p, corev1.EventTypeNormal, "TaintManagerEviction", "Cancelling deletion of Pod "+api.KeyOf(p).String())
		}
		return reconcile.Result{}, nil
	}
	now := time.Now()
	if left := bound - now.Sub(c.since(p, now)); left > 0 {
		return reconcile.Result{After: left}, nil
	}
	log.Info("evicting pod", "pod", api.KeyOf(p).String(), "node", n.Name)
	return reconcile.Result{}, c.evict(ctx, p, now)
}

func (c *controller) evict(ctx context.Context, p *corev1.Pod, now time.Time) error {
	c.Events.Event(p, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod "+api.KeyOf(p).String())
	marked, err := client.Mutate(ctx, c.Client, p, "status", func(p *corev1.Pod) {
		p.Status.Conditions = slices.DeleteFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.DisruptionTarget })
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByTaintManager",
			Message: "Taint manager: deleting due to NoExecute taint", LastTransitionTime: metav1.NewTime(now), ObservedGeneration: p.Generation,
		})
	})
	if err != nil {
		return fmt.Errorf("mark pod: %w", err)
	}
	if err := c.Client.Delete(ctx, marked, client.DeleteOptions{AnyRevision: true}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete pod: %w", err)
	}
	c.forget(api.KeyOf(p))
	return nil
}

func noExecute(n *corev1.Node) []corev1.Taint {
	var out []corev1.Taint
	for _, t := range n.Spec.Taints {
		if t.Effect == corev1.TaintEffectNoExecute {
			out = append(out, t)
		}
	}
	return out
}

// tolerated returns for how long tolerations bear all of the taints: forever, or at most a bound, which is zero
// when one is not tolerated at all.
func tolerated(ts []corev1.Toleration, taints []corev1.Taint) (bound time.Duration, forever bool) {
	forever = true
	for i := range taints {
		t := api.Toleration(ts, &taints[i])
		if t == nil {
			return 0, false
		}
		if t.TolerationSeconds == nil {
			continue
		}
		d := max(0, time.Duration(*t.TolerationSeconds)*time.Second)
		if forever || d < bound {
			bound = d
		}
		forever = false
	}
	return bound, forever
}
