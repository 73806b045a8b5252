// Package resourceclaim makes the ResourceClaims that pods ask for by a template, and lets go of devices that no pod uses any more. It
// replaces upstream's resource claim controller (KEP-4381).
//
//	pod ──> a claim for each entry with a template ──> pod.status.resourceClaimStatuses
//	    └─> a place in status.reservedFor, for pods that no scheduler placed
//
//	claim ──> reservations of pods that have ended or are gone: dropped
//	      ├─> the last one: deallocated, then let go by the finalizer
//	      └─> generated for a pod that has ended: deleted
//
// Vocabulary: a consumer is who is in a claim's status.reservedFor; a pod has ended when it is terminal, or is being deleted and has no node.
//
// Invariants:
//   - A claim is deallocated only when its last consumer goes. One that has an allocation and never had a consumer is left alone until it is
//     deleted: whoever allocates may add the consumer later.
//   - Deallocation is two writes, the status and then the finalizer. The second depends on the first's revision, so that it cannot take the
//     finalizer from a claim that the scheduler has allocated again in between.
//   - A claim is made at most once for an entry: one that was made and not recorded in the pod's status is found by its owner and annotation.
//
// Claims of pod groups (DRAWorkloadResourceClaims, not GA) do not exist here, since the API server refuses spec.schedulingGroup of pods.
// Consumers that are no pods are kept: nobody here knows whether they are done.
package resourceclaim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// A key is a pod or a claim.
const (
	podKey   = "pod:"
	claimKey = "claim:"
)

func podOf(namespace, name string) api.Key {
	return api.Key{Namespace: namespace, Name: podKey + name}
}

func claimOf(namespace, name string) api.Key {
	return api.Key{Namespace: namespace, Name: claimKey + name}
}

type controller struct {
	reconcile.Deps
	waiting *waiting
}

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("resource_claim"), newWaiting()}
	return reconcile.NewKeyed(c.Deps, reconcile.Keyed{
		Controller: "resourceclaim-controller",
		Sources: []reconcile.Source{
			reconcile.Changed(wakenByPod, api.ResourceClaimKind),
			reconcile.Changed(c.wakenByClaim),
			reconcile.Changed(c.wakenByTemplate),
		},
		Write: reconcile.Writes{
			api.ResourceClaimKind: {"create", "delete", "update", "update/status"},
			api.PodKind:           {"patch/status"},
		},
		Run: c.run,
	})
}

// wakenByPod returns the key of a pod that may need claims, and those of the claims of one that needs them no more. Pods without claims, and
// what changes of others from heartbeat to heartbeat, wake nobody.
func wakenByPod(ctx context.Context, d reconcile.Deps, before, after *corev1.Pod) []api.Key {
	if !hasClaims(before) && !hasClaims(after) {
		return nil
	}
	if before != nil && after != nil && before.UID == after.UID && done(before) == done(after) &&
		before.Spec.NodeName == after.Spec.NodeName && resourceclaim.PodStatusEqual(before.Status.ResourceClaimStatuses, after.Status.ResourceClaimStatuses) {
		return nil
	}
	last := after
	if last == nil {
		last = before
	}
	keys := []api.Key{podOf(last.Namespace, last.Name)}
	for _, p := range []*corev1.Pod{before, after} {
		if p != nil && (p != after || done(p)) {
			keys = append(keys, claimsOf(ctx, d, p)...)
		}
	}
	return keys
}

// hasClaims says whether p asks for devices, or got some for resources that a device class serves (KEP-5004).
func hasClaims(p *corev1.Pod) bool {
	return p != nil && (len(p.Spec.ResourceClaims) > 0 || p.Status.ExtendedResourceClaimStatus != nil)
}

// done says that p will not need its claims any more.
func done(p *corev1.Pod) bool {
	return api.PodTerminal(p) || p.DeletionTimestamp != nil && p.Spec.NodeName == ""
}

// claimsOf returns the keys of the claims that p names and of those that were made for it.
func claimsOf(ctx context.Context, d reconcile.Deps, p *corev1.Pod) (keys []api.Key) {
	for name := range resourceclaim.PodClaims(p) {
		keys = append(keys, claimOf(p.Namespace, name))
	}
	owned, err := client.List[*resourcev1.ResourceClaim](ctx, d.Client, client.Query{Namespace: p.Namespace, Owner: p.UID})
	if err != nil {
		d.Log.Warn("list claims of a pod", "pod", api.KeyOf(p).String(), "err", err)
	}
	for _, claim := range owned {
		keys = append(keys, claimOf(claim.Namespace, claim.Name))
	}
	return keys
}

// wakenByClaim returns the key of the claim, and of the pods that wait for it.
func (c controller) wakenByClaim(_ context.Context, _ reconcile.Deps, before, after *resourcev1.ResourceClaim) []api.Key {
	claim := after
	if claim == nil {
		claim = before
	}
	var keys []api.Key
	if before == nil || after == nil || offers(before, after) {
		keys = c.waiting.on(thing{api.ResourceClaimKind, api.KeyOf(claim)})
	}
	if after != nil {
		return append(keys, claimOf(claim.Namespace, claim.Name))
	}
	if name, _ := owner(claim); name != "" {
		keys = append(keys, podOf(claim.Namespace, name)) // it may want another one
	}
	return keys
}

// offers says that a claim can be reserved now for a pod for which it could not, or that somebody removed a reservation.
func offers(before, after *resourcev1.ResourceClaim) bool {
	return (before.Status.Allocation == nil) != (after.Status.Allocation == nil) ||
		slices.ContainsFunc(before.Status.ReservedFor, func(r resourcev1.ResourceClaimConsumerReference) bool {
			return !slices.Contains(after.Status.ReservedFor, r)
		})
}

// wakenByTemplate returns the keys of the pods that wait for the template.
func (c controller) wakenByTemplate(_ context.Context, _ reconcile.Deps, before, after *resourcev1.ResourceClaimTemplate) []api.Key {
	if before != nil {
		return nil // its spec never changes
	}
	return c.waiting.on(thing{api.ResourceClaimTemplateKind, api.KeyOf(after)})
}

// owner returns the pod that the claim was made for, if it was made for one.
func owner(claim *resourcev1.ResourceClaim) (name string, ref *metav1.OwnerReference) {
	ref = metav1.GetControllerOfNoCopy(claim)
	if ref == nil || ref.Kind != "Pod" || ref.APIVersion != "v1" {
		return "", nil
	}
	return ref.Name, ref
}

func (c controller) run(ctx context.Context, log *slog.Logger, key api.Key) (reconcile.Result, error) {
	if name, ok := strings.CutPrefix(key.Name, podKey); ok {
		return reconcile.Result{}, c.runPod(ctx, log, api.Key{Namespace: key.Namespace, Name: name})
	}
	name := strings.TrimPrefix(key.Name, claimKey)
	claim, err := client.Get[*resourcev1.ResourceClaim](ctx, c.Client, api.Key{Namespace: key.Namespace, Name: name})
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get claim: %w", err)
	}
	return reconcile.Result{}, c.claim(ctx, log, claim)
}
