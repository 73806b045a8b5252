// Package devicetainteviction deletes pods whose devices have NoExecute taints that their claims do not tolerate, or not any longer. It replaces
// upstream's device taint eviction controller (KEP-5055).
//
//	ResourceSlice ── taints of drivers ──┐
//	DeviceTaintRule ── of administrators ┴─> devices of a claim's allocation ──> the pods that it is reserved for
//
// A device is named by driver, pool and name. Of a pool only what its newest generation says counts. How long a taint is tolerated is measured from its
// timeAdded, by the clock of the wall: it is what drivers and administrators write.
//
// Invariants:
//   - Only pods that have a node are deleted; what waits for one is the scheduler's, which does not reserve tainted devices.
//   - Without taints a claim costs a look into the slices of its pools. Nothing runs where no claim is reserved.
package devicetainteviction

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// A key is a claim or a rule.
const (
	claimKey = "claim:"
	ruleKey  = "rule:"
)

type controller struct {
	reconcile.Deps
	pools    *pools
	progress *progress
	wake     func(api.Key)
}

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := &controller{Deps: d.Named("device-taint-eviction-controller"), pools: newPools(), progress: newProgress()}
	k := reconcile.NewKeyed(c.Deps, reconcile.Keyed{
		Controller: "device-taint-eviction-controller",
		Sources: []reconcile.Source{
			reconcile.Changed(wakenByClaim, api.DeviceTaintRuleKind),
			reconcile.Changed(c.wakenBySlice, api.ResourceClaimKind),
			reconcile.Changed(wakenByRule, api.ResourceClaimKind),
			reconcile.Changed(wakenByPod),
		},
		Write: reconcile.Writes{
			api.PodKind:             {"delete", "update/status"},
			api.DeviceTaintRuleKind: {"update/status"},
		},
		Run: c.run,
	})
	c.wake = k.Wake
	return k
}

func claimOf(c *resourcev1.ResourceClaim) api.Key {
	return api.Key{Namespace: c.Namespace, Name: claimKey + c.Name}
}

func ruleOf(r *resourcev1.DeviceTaintRule) api.Key { return api.Key{Name: ruleKey + r.Name} }

// reserved says whether pods use devices by the claim.
func reserved(c *resourcev1.ResourceClaim) bool {
	return c != nil && c.Status.Allocation != nil && len(c.Status.ReservedFor) > 0
}

// wakenByClaim returns the key of a claim that is in use, and those of the rules that tell how many such there are.
func wakenByClaim(ctx context.Context, d reconcile.Deps, before, after *resourcev1.ResourceClaim) (keys []api.Key) {
	if !reserved(before) && !reserved(after) || before != nil && after != nil && equality.Semantic.DeepEqual(before.Status, after.Status) {
		return nil
	}
	if reserved(after) {
		keys = append(keys, claimOf(after))
	}
	rules, err := client.List[*resourcev1.DeviceTaintRule](ctx, d.Client, client.Query{})
	if err != nil {
		d.Log.Warn("list device taint rules", "err", err)
	}
	for _, r := range rules {
		if r.Spec.Taint.Effect == resourcev1.DeviceTaintEffectNoExecute && (selects(r, before) || selects(r, after)) {
			keys = append(keys, ruleOf(r))
		}
	}
	return keys
}

// wakenBySlice returns the keys of the claims that have devices of a pool whose NoExecute taints may have changed.
func (c *controller) wakenBySlice(ctx context.Context, d reconcile.Deps, before, after *resourcev1.ResourceSlice) []api.Key {
	c.pools.change(before, after)
	if !evicts(before) && !evicts(after) || before != nil && after != nil && equality.Semantic.DeepEqual(before.Spec, after.Spec) {
		return nil
	}
	return claimsWith(ctx, d, func(of device) bool {
		return before != nil && of.pool == poolOf(before) || after != nil && of.pool == poolOf(after)
	})
}

// wakenByRule returns the key of the rule, and those of the claims that have devices which it taints or did.
func wakenByRule(ctx context.Context, d reconcile.Deps, before, after *resourcev1.DeviceTaintRule) (keys []api.Key) {
	if before != nil && after != nil && equality.Semantic.DeepEqual(before.Spec, after.Spec) {
		return nil
	}
	rule := after
	if rule == nil {
		rule = before
	}
	keys = []api.Key{ruleOf(rule)}
	if after == nil || after.Spec.Taint.Effect != resourcev1.DeviceTaintEffectNoExecute {
		return keys // what waits for its time looks again then
	}
	return append(keys, claimsWith(ctx, d, func(of device) bool { return taints(after, of) })...)
}

// wakenByPod returns the keys of the claims of a pod that was given its node: until then it was left alone.
func wakenByPod(_ context.Context, _ reconcile.Deps, before, after *corev1.Pod) (keys []api.Key) {
	if before == nil || after == nil || before.Spec.NodeName != "" || after.Spec.NodeName == "" {
		return nil
	}
	for name := range resourceclaim.PodClaims(after) {
		keys = append(keys, api.Key{Namespace: after.Namespace, Name: claimKey + name})
	}
	return keys
}

// claimsWith returns the keys of the claims in use that have a device for which match holds.
func claimsWith(ctx context.Context, d reconcile.Deps, match func(device) bool) (keys []api.Key) {
	claims, err := client.List[*resourcev1.ResourceClaim](ctx, d.Client, client.Query{})
	if err != nil {
		d.Log.Warn("list claims of devices", "err", err)
		return nil
	}
	for _, claim := range claims {
		if reserved(claim) && slices.ContainsFunc(claim.Status.Allocation.Devices.Results, func(r resourcev1.DeviceRequestAllocationResult) bool {
			return match(deviceOf(&r))
		}) {
			keys = append(keys, claimOf(claim))
		}
	}
	return keys
}

func (c *controller) run(ctx context.Context, log *slog.Logger, key api.Key) (reconcile.Result, error) {
	if name, ok := strings.CutPrefix(key.Name, ruleKey); ok {
		return c.runRule(ctx, name)
	}
	claim, err := client.Get[*resourcev1.ResourceClaim](ctx, c.Client, api.Key{Namespace: key.Namespace, Name: strings.TrimPrefix(key.Name, claimKey)})
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get claim: %w", err)
	}
	if !reserved(claim) {
		return reconcile.Result{}, nil
	}
	rules, err := client.List[*resourcev1.DeviceTaintRule](ctx, c.Client, client.Query{})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list device taint rules: %w", err)
	}
	at, by := due(claim, c.pools.taints, rules)
	if at == nil {
		return reconcile.Result{}, nil
	}
	if left := time.Until(*at); left > 0 {
		return reconcile.Result{After: left}, nil
	}
	return reconcile.Result{}, c.evictAll(ctx, log, claim, by)
}

// evictAll deletes the pods that use the claim. By are the rules that ask for it.
func (c *controller) evictAll(ctx context.Context, log *slog.Logger, claim *resourcev1.ResourceClaim, by []*resourcev1.DeviceTaintRule) error {
	var errs []error
	for _, r := range claim.Status.ReservedFor {
		p, err := c.user(ctx, claim.Namespace, r)
		if err != nil {
			errs = append(errs, err)
		}
		if p == nil || p.Spec.NodeName == "" {
			continue
		}
		log.Info("evicting pod", "pod", api.KeyOf(p).String())
		if err := c.evict(ctx, p); err != nil {
			errs = append(errs, fmt.Errorf("evict pod %s: %w", p.Name, err))
			continue
		}
		for _, rule := range by {
			c.progress.count(rule)
			c.wake(ruleOf(rule))
		}
	}
	return errors.Join(errs...)
}

// user returns the pod behind a reservation, nil if there is none that runs or will.
func (c *controller) user(ctx context.Context, namespace string, r resourcev1.ResourceClaimConsumerReference) (*corev1.Pod, error) {
	if r.APIGroup != "" || r.Resource != "pods" {
		return nil, nil
	}
	p, err := client.Get[*corev1.Pod](ctx, c.Client, api.Key{Namespace: namespace, Name: r.Name})
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("get pod %s: %w", r.Name, err)
	}
	if err != nil || p.UID != r.UID || !api.PodActive(p) {
		return nil, nil
	}
	return p, nil
}

// evict says in the pod's status why it ends, and deletes it.
func (c *controller) evict(ctx context.Context, p *corev1.Pod) error {
	c.Events.Event(p, corev1.EventTypeNormal, "DeviceTaintManagerEviction", "Marking for deletion")
	marked, err := client.Mutate(ctx, c.Client, p, "status", func(p *corev1.Pod) {
		api.SetPodCondition(&p.Status, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByDeviceTaintManager",
			Message: "Device Taint manager: deleting due to NoExecute taint", LastTransitionTime: metav1.Now(), ObservedGeneration: p.Generation,
		})
	})
	if err != nil {
		return fmt.Errorf("mark pod: %w", err)
	}
	if err := c.Client.Delete(ctx, marked, client.DeleteOptions{AnyRevision: true}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete pod: %w", err)
	}
	return nil
}
