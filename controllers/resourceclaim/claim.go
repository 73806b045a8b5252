package resourceclaim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// claim drops consumers that have ended, deallocates when none is left, and deletes what was made for a pod that has ended.
func (c controller) claim(ctx context.Context, log *slog.Logger, claim *resourcev1.ResourceClaim) error {
	valid, err := c.consumers(ctx, claim)
	if err != nil {
		return err
	}
	held := slices.Contains(claim.Finalizers, resourcev1.Finalizer)
	unused := len(valid) == 0
	switch {
	case len(valid) < len(claim.Status.ReservedFor):
		log.Debug("consumers are gone", "before", len(claim.Status.ReservedFor), "now", len(valid))
		claim, err = c.release(ctx, claim, valid, unused && held)
	case unused && held && claim.DeletionTimestamp != nil:
		claim, err = c.release(ctx, claim, nil, true)
	}
	if err != nil || !unused || claim.DeletionTimestamp != nil {
		return err
	}
	over, err := c.ownerIsDone(ctx, claim)
	if err != nil || !over {
		return err
	}
	log.Debug("deleting the claim of a pod that has ended")
	if err := c.Client.Delete(ctx, claim, client.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete claim: %w", err)
	}
	return nil
}

// release leaves the claim to these consumers, and deallocates it if told to.
func (c controller) release(ctx context.Context, claim *resourcev1.ResourceClaim, valid []resourcev1.ResourceClaimConsumerReference,
	deallocate bool) (*resourcev1.ResourceClaim, error) {
	claim, err := client.Mutate(ctx, c.Client, claim, "status", func(claim *resourcev1.ResourceClaim) {
		claim.Status.ReservedFor = valid
		if deallocate {
			claim.Status.Allocation, claim.Status.Devices = nil, nil
		}
	})
	if err != nil {
		return claim, fmt.Errorf("release claim: %w", err)
	}
	if !deallocate {
		return claim, nil
	}
	claim, err = client.Mutate(ctx, c.Client, claim, "", func(claim *resourcev1.ResourceClaim) {
		claim.Finalizers = slices.DeleteFunc(claim.Finalizers, func(f string) bool { return f == resourcev1.Finalizer })
	})
	if err != nil {
		return claim, fmt.Errorf("remove finalizer: %w", err)
	}
	return claim, nil
}

// consumers returns those of the claim's consumers that have not ended.
func (c controller) consumers(ctx context.Context, claim *resourcev1.ResourceClaim) (valid []resourcev1.ResourceClaimConsumerReference, err error) {
	for _, r := range claim.Status.ReservedFor {
		if r.APIGroup == "" && r.Resource == "pods" {
			p, err := c.pod(ctx, api.Key{Namespace: claim.Namespace, Name: r.Name}, r.UID)
			if err != nil {
				return nil, err
			}
			if p == nil || p.UID != r.UID || done(p) {
				continue
			}
		}
		valid = append(valid, r)
	}
	return valid, nil
}

// ownerIsDone says whether the claim was made for a pod that has ended. What was made for one that is gone is the garbage collector's, unless
// another pod has its name by now.
func (c controller) ownerIsDone(ctx context.Context, claim *resourcev1.ResourceClaim) (bool, error) {
	name, ref := owner(claim)
	if ref == nil {
		return false, nil
	}
	p, err := c.pod(ctx, api.Key{Namespace: claim.Namespace, Name: name}, ref.UID)
	return p != nil && (p.UID != ref.UID || done(p)), err
}

// pod returns the pod of that name, nil if there is none. When it is not the one of that UID this is certain: a claim may be seen before
// the pod that it is for.
func (c controller) pod(ctx context.Context, key api.Key, uid types.UID) (*corev1.Pod, error) {
	p, err := client.Get[*corev1.Pod](ctx, c.Client, key)
	if apierrors.IsNotFound(err) || err == nil && p.UID != uid {
		p, err = client.Get[*corev1.Pod](client.Live(ctx), c.Client, key)
	}
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("get pod %s: %w", key, err)
	}
	return p, nil
}
