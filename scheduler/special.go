package scheduler

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/scheduler/cluster"
	"github.com/yare-dev/yare/scheduler/plugins"
)

// Special claims: those that the scheduler makes for pods' extended resources, where classes of devices serve these (KEP-5004). They are made when
// a node was chosen. Their devices are promised to their name before, so that these are nobody else's until the claim has come by the watch.

// Names that the API server generates have so many letters, the last ones by chance.
const (
	longestName = 63
	byChance    = 5
)

// named returns a claim that is to be made with a name, and the UID that stands for it until it is.
func named(c *resourcev1.ResourceClaim) *resourcev1.ResourceClaim {
	out := c.DeepCopy()
	base := c.GenerateName
	out.Name = base[:min(len(base), longestName-byChance)] + rand.String(byChance)
	out.UID = cluster.Unmade(api.KeyOf(out))
	return out
}

// unmade says whether a claim is still to be made.
func unmade(c *resourcev1.ResourceClaim) bool { return c.UID == cluster.Unmade(api.KeyOf(c)) }

// make writes a claim of which there is only the name. An answer that was lost is no second claim: the name is the same.
func (s *Scheduler) make(ctx context.Context, c *resourcev1.ResourceClaim) (*resourcev1.ResourceClaim, error) {
	for i := range unanswered {
		o := c.DeepCopy()
		o.UID = ""
		got, err := client.Create(ctx, s.c.Client, o)
		if err == nil {
			return got, nil
		}
		if apierrors.IsAlreadyExists(err) && i > 0 {
			got, err = client.Get[*resourcev1.ResourceClaim](ctx, s.c.Client, api.KeyOf(c))
			if err == nil && cluster.SpecialFor(got) == cluster.SpecialFor(c) {
				return got, nil
			}
		}
		if err == nil || apierrors.ReasonForError(err) != metav1.StatusReasonUnknown || !pause(ctx, firstPause<<i) {
			return nil, fmt.Errorf("make the claim for extended resources: %w", err)
		}
	}
	return nil, fmt.Errorf("make the claim for extended resources: no answer in %d attempts", unanswered)
}

// tell writes to a pod's status which claim has its extended resources.
func (s *Scheduler) tell(ctx context.Context, p *corev1.Pod, r plugins.Reservation) error {
	return s.status(ctx, p, func(p *corev1.Pod) {
		p.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: r.Claim.Name, RequestMappings: r.Mappings}
	})
}

// unmake gives a special claim's devices back and deletes it: its pod gets another one. It returns the claim as it was last. That the finalizer goes is the
// controller's, which finds that nobody uses it.
func (s *Scheduler) unmake(ctx context.Context, c *resourcev1.ResourceClaim) *resourcev1.ResourceClaim {
	now, err := mutateClaim(ctx, s.c.Client, c, func(c *resourcev1.ResourceClaim) {
		c.Status.Allocation, c.Status.ReservedFor, c.Status.Devices = nil, nil, nil
	})
	if err == nil {
		c = now
		err = s.c.Client.Delete(ctx, c, client.DeleteOptions{AnyRevision: true})
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		// The pod is tried again and finds it, or is gone, and the controller deletes it.
		s.c.Log.Warn("a claim for extended resources stays of a pod that was not bound", "claim", api.KeyOf(c), "err", err)
	}
	return c
}

// deallocate has a claim give its devices back, unless something changed in it meanwhile: then the pod it is for is tried again anyway.
func (s *Scheduler) deallocate(ctx context.Context, c *resourcev1.ResourceClaim) error {
	if cluster.SpecialFor(c) != "" {
		s.unmake(ctx, c)
		return nil
	}
	_, err := client.Mutate(ctx, s.c.Client, c, "status", func(c *resourcev1.ResourceClaim) {
		c.Status.Allocation, c.Status.ReservedFor, c.Status.Devices = nil, nil, nil
	})
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("deallocate claim %s: %w", api.KeyOf(c), err)
}

// asksForDevices says whether p has claims for devices, or asks for what classes of them may serve.
func asksForDevices(p *corev1.Pod) bool {
	if len(p.Spec.ResourceClaims) > 0 {
		return true
	}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for name := range list[i].Resources.Requests {
				if api.Extended(name) {
					return true
				}
			}
		}
	}
	return false
}

// forgetUnseen drops a promise to a claim that has never come, of a pod that is gone.
func (s *Scheduler) forgetUnseen(pod types.UID) plugins.Change {
	uid, ok := s.unseen[pod]
	if !ok {
		return 0
	}
	delete(s.unseen, pod)
	return freed(s.cluster.Devices.Withdraw(uid))
}
