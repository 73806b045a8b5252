// Package podgc removes pods that nobody else will: those of Nodes that do not exist, those that are being deleted
// before they were placed, those on Nodes that were taken out of service, and the oldest terminal ones above a
// threshold. It replaces upstream's pod garbage collector.
package podgc

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const (
	period     = 20 * time.Second
	quarantine = 40 * time.Second // for which a Node must be missing: it may be about to register again
	// Threshold is upstream's number of terminal pods that are kept.
	Threshold = 12500
)

type controller struct {
	reconcile.Deps
	threshold int
	missing   map[string]time.Time // Nodes that pods name, since when they were seen not to exist; only touched by run
}

// New returns the pod garbage collector. A threshold of 0 keeps all terminal pods.
func New(d reconcile.Deps, threshold int) *reconcile.Controller {
	c := controller{d, threshold, map[string]time.Time{}}
	return reconcile.NewLoop(d, reconcile.Loop{
		Controller: "pod-garbage-collector-controller",
		Wake:       []*api.Kind{api.PodKind, api.NodeKind},
		Write:      reconcile.Writes{api.PodKind: {"delete", "patch/status"}},
		Least:      period,
		Run:        c.run,
	})
}

func (c controller) run(ctx context.Context, log *slog.Logger) (reconcile.Result, error) {
	pods, err := client.List[*corev1.Pod](ctx, c.Client, client.Query{})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list pods: %w", err)
	}
	all, err := client.List[*corev1.Node](ctx, c.Client, client.Query{})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list nodes: %w", err)
	}
	nodes := map[string]*corev1.Node{}
	for _, n := range all {
		nodes[n.Name] = n
	}
	now := time.Now()
	gone, res := c.absent(pods, nodes, now)
	var errs []error
	for _, p := range doomed(pods, nodes, gone, c.threshold) {
		log.Info("deleting pod", "pod", api.KeyOf(p.pod).String(), "why", p.why)
		if err := c.remove(ctx, p); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete pod %s: %w", api.KeyOf(p.pod), err))
		}
	}
	return res, errors.Join(errs...)
}

// absent returns the Nodes that have been missing for long enough.
func (c controller) absent(pods []*corev1.Pod, nodes map[string]*corev1.Node, now time.Time) (map[string]bool, reconcile.Result) {
	named := map[string]bool{}
	for _, p := range pods {
		if n := p.Spec.NodeName; n != "" && nodes[n] == nil {
			named[n] = true
		}
	}
	for n := range c.missing {
		if !named[n] {
			delete(c.missing, n)
		}
	}
	var res reconcile.Result
	gone := map[string]bool{}
	for n := range named {
		since, ok := c.missing[n]
		if !ok {
			since = now
			c.missing[n] = now
		}
		if left := quarantine - now.Sub(since); left > 0 {
			res = res.Sooner(left)
		} else {
			gone[n] = true
		}
	}
	return gone, res
}

// remove marks p's pod as failed, unless it ended by itself, and deletes it without grace. Where a finalizer holds the pod,
// a Job's, it is the phase that says that it has ended: no kubelet will.
func (c controller) remove(ctx context.Context, p victim) error {
	pod := p.pod
	if !api.PodTerminal(pod) {
		marked, err := c.mark(ctx, p, time.Now())
		if err != nil {
			return err
		}
		pod = marked
	}
	zero := int64(0)
	return c.Client.Delete(ctx, pod, client.DeleteOptions{Grace: &zero, AnyRevision: true})
}

// mark says in the status of p's pod that it ended and, if it was disrupted, why. It is a patch, since that is what
// upstream's role allows.
func (c controller) mark(ctx context.Context, p victim, now time.Time) (*corev1.Pod, error) {
	pod := p.pod
	status := map[string]any{"phase": corev1.PodFailed}
	if p.disrupted {
		status["conditions"] = []corev1.PodCondition{{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC",
			Message: "PodGC: " + p.why, LastTransitionTime: metav1.NewTime(now), ObservedGeneration: pod.Generation,
		}}
	}
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": pod.UID, "resourceVersion": pod.ResourceVersion}, "status": status})
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	o, err := c.Client.Patch(ctx, api.PodKind, api.KeyOf(pod), client.Patch{Type: types.StrategicMergePatchType, Data: data, Sub: "status"})
	if err != nil {
		return nil, err
	}
	return o.(*corev1.Pod), nil
}

// victim is a pod to delete.
type victim struct {
	pod       *corev1.Pod
	why       string
	disrupted bool // it did not end by itself
}

// doomed returns the pods to delete.
func doomed(pods []*corev1.Pod, nodes map[string]*corev1.Node, gone map[string]bool, threshold int) []victim {
	var out []victim
	var ended []*corev1.Pod
	for _, p := range pods {
		node := nodes[p.Spec.NodeName]
		switch {
		case gone[p.Spec.NodeName]:
			out = append(out, victim{p, "node no longer exists", !api.PodTerminal(p)})
		case p.DeletionTimestamp != nil && p.Spec.NodeName == "":
			out = append(out, victim{p, "unscheduled and being deleted", false})
		case p.DeletionTimestamp != nil && node != nil && outOfService(node):
			out = append(out, victim{p, "node is out of service", !api.PodTerminal(p)})
		case api.PodTerminal(p) && p.DeletionTimestamp == nil:
			ended = append(ended, p)
		}
	}
	if threshold > 0 && len(ended) > threshold {
		slices.SortFunc(ended, func(a, b *corev1.Pod) int {
			return cmp.Or(evicted(b)-evicted(a), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
		for _, p := range ended[:len(ended)-threshold] {
			out = append(out, victim{p, "too many terminated pods", false})
		}
	}
	return out
}

// evicted pods go first.
func evicted(p *corev1.Pod) int {
	if p.Status.Phase == corev1.PodFailed && p.Status.Reason == "Evicted" {
		return 1
	}
	return 0
}

func outOfService(n *corev1.Node) bool {
	tainted := slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
	return tainted && !api.NodeReady(n)
}
