package scheduler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/scheduler/cluster"
	"github.com/yare-dev/yare/scheduler/plugins"
)

// deviceKinds are the kinds that takeDevices takes in. They are watched from the first pod on that has claims for devices, or asks for extended
// resources, and waits for a node; placing is halted until all that there is has arrived.
func deviceKinds() []*api.Kind {
	return []*api.Kind{api.DeviceClassKind, api.ResourceSliceKind, api.DeviceTaintRuleKind, api.ResourceClaimKind}
}

// takeDevices takes in a change of devices and of the claims for them.
func (s *Scheduler) takeDevices(o api.Object, deleted bool, now time.Time) plugins.Change {
	d := &s.cluster.Devices
	switch o := o.(type) {
	case *resourcev1.ResourceClaim:
		if deleted {
			change := freed(d.RemoveClaim(o))
			if cluster.SpecialFor(o) != "" {
				s.queue.wakeThose(func(it *item) bool { return uses(it.pod, o) }, now) // it gets another one
			}
			return change
		}
		return freed(s.takeClaim(o, now))
	case *resourcev1.ResourceSlice:
		d.SetSlice(o, deleted)
	case *resourcev1.DeviceClass:
		s.cluster.SetDeviceClass(o, deleted)
		return plugins.Devices | plugins.Classes
	case *resourcev1.DeviceTaintRule:
		d.SetRule(o, deleted)
	}
	return plugins.Devices
}

func freed(some bool) plugins.Change {
	if some {
		return plugins.Devices
	}
	return 0
}

// takeClaim takes in a claim and wakes the pods that use it. It says whether devices became free.
func (s *Scheduler) takeClaim(c *resourcev1.ResourceClaim, now time.Time) bool {
	differs, freed := s.cluster.Devices.SetClaim(c)
	if differs {
		s.queue.wakeThose(func(it *item) bool { return uses(it.pod, c) }, now)
	}
	return freed
}

// uses says whether a pod names a claim, or has it for its extended resources.
func uses(p *corev1.Pod, c *resourcev1.ResourceClaim) bool {
	if p.Namespace != c.Namespace {
		return false
	}
	if cluster.SpecialFor(c) == p.UID {
		return true
	}
	for name := range resourceclaim.PodClaims(p) {
		if name == c.Name {
			return true
		}
	}
	return false
}

// allotting is what is being written to the claims of a pod. Until it is settled the devices count as taken.
type allotting struct {
	pod     *corev1.Pod
	reserve []plugins.Reservation
	seen    []*resourcev1.ResourceClaim // as they are after the write, whether it failed or not; nil where that is not known
}

// allot has reservations count at once: nobody else gets the devices.
func (s *Scheduler) allot(p *corev1.Pod, a *plugins.Allotment) *allotting {
	if a == nil || len(a.Reserve) == 0 {
		return nil
	}
	for i := range a.Reserve {
		r := &a.Reserve[i]
		if r.Claim.Name == "" {
			r.Claim = named(r.Claim)
		}
		if r.Allocation != nil {
			s.cluster.Devices.Promise(r.Claim.UID, r.Allocation)
		}
	}
	return &allotting{p, a.Reserve, make([]*resourcev1.ResourceClaim, len(a.Reserve))}
}

// writeClaims writes what was allotted, all or nothing. That it could not is told in an event: it may be for the pod's owner to mend, such as a quota.
func (s *Scheduler) writeClaims(ctx context.Context, a *allotting) error {
	if a == nil {
		return nil
	}
	err := s.tryClaims(ctx, a)
	if err != nil {
		s.releaseClaims(ctx, a)
		if ctx.Err() == nil {
			s.c.Events.Event(a.pod, corev1.EventTypeWarning, "FailedScheduling", err.Error())
		}
	}
	return err
}

func (s *Scheduler) tryClaims(ctx context.Context, a *allotting) error {
	for i, r := range a.reserve {
		var err error
		if a.seen[i], err = s.reserve(ctx, a.pod, r); err != nil {
			return fmt.Errorf("reserve claim %s: %w", api.KeyOf(r.Claim), err)
		}
		if r.Mappings == nil {
			continue
		}
		if err = s.tell(ctx, a.pod, r); err != nil {
			return fmt.Errorf("tell of claim %s in the pod's status: %w", api.KeyOf(r.Claim), err)
		}
	}
	return nil
}

// releaseClaims takes back that the pod uses claims, as far as it was written. Their devices they keep, until these are in the way or
// the claim is not used anymore.
func (s *Scheduler) releaseClaims(ctx context.Context, a *allotting) {
	if a == nil {
		return
	}
	for i, c := range a.seen {
		if c != nil && cluster.SpecialFor(c) == a.pod.UID {
			a.seen[i] = s.unmake(ctx, c)
			continue
		}
		if c == nil || !resourceclaim.IsReservedForPod(a.pod, c, false) {
			continue
		}
		got, err := mutateClaim(ctx, s.c.Client, c, func(c *resourcev1.ResourceClaim) {
			c.Status.ReservedFor = slices.DeleteFunc(c.Status.ReservedFor, func(r resourcev1.ResourceClaimConsumerReference) bool { return r.UID == a.pod.UID })
		})
		if err != nil {
			// The pod is tried again and finds its reservation, or is gone, and the controller takes it back.
			s.c.Log.Warn("a claim stays reserved for a pod that was not bound", "claim", api.KeyOf(c), "pod", api.KeyOf(a.pod), "err", err)
			continue
		}
		a.seen[i] = got
	}
}

// settle takes in what became of an allotment: from then on the claims themselves say what they have.
func (s *Scheduler) settle(a *allotting, now time.Time) {
	if a == nil {
		return
	}
	some := false
	for i, r := range a.reserve {
		c := a.seen[i]
		if c != nil {
			// One that is gone already must not come back.
			known := s.cluster.Devices.Claims[api.KeyOf(c)]
			if known != nil && known.UID == c.UID {
				some = s.takeClaim(c, now) || some
			}
			if known == nil && unmade(r.Claim) && c.Status.Allocation != nil {
				s.unseen[a.pod.UID] = r.Claim.UID // it has the devices, and is on its way here
				continue
			}
			some = s.cluster.Devices.Withdraw(c.UID) || some
		}
		if r.Allocation != nil {
			some = s.cluster.Devices.Withdraw(r.Claim.UID) || some
		}
	}
	s.queue.wake(freed(some), now)
}

// How often a write is tried to which there was no answer, and the first pause before that.
const (
	unanswered = 6
	firstPause = 100 * time.Millisecond
)

// reserve writes to a claim that the pod uses it, and its allocation if it has none. It returns the claim as it is then also when that failed: a
// write may have been done whose answer was lost, and then nobody else may get the devices.
func (s *Scheduler) reserve(ctx context.Context, p *corev1.Pod, r plugins.Reservation) (*resourcev1.ResourceClaim, error) {
	c := r.Claim
	if unmade(c) {
		made, err := s.make(ctx, c)
		if err != nil {
			return nil, err
		}
		c, r.Claim = made, made
	}
	for lost := 0; ; {
		got, err := s.tryReserve(ctx, p, c, r.Allocation)
		if err == nil {
			return got, nil
		}
		if errors.As(err, new(changed)) {
			return c, err
		}
		now, e := s.look(ctx, r.Claim)
		if e != nil {
			return nil, errors.Join(err, e)
		}
		c = now
		again := apierrors.IsConflict(err)
		if apierrors.ReasonForError(err) == metav1.StatusReasonUnknown {
			lost++
			again = lost < unanswered && pause(ctx, firstPause<<lost)
		}
		if !again {
			return c, err
		}
	}
}

// changed is why a claim cannot be written to anymore as was meant.
type changed string

// Error is part of error.
func (c changed) Error() string { return string(c) }

// look returns a claim as it is now.
func (s *Scheduler) look(ctx context.Context, c *resourcev1.ResourceClaim) (now *resourcev1.ResourceClaim, err error) {
	for i := range unanswered {
		now, err = client.Get[*resourcev1.ResourceClaim](ctx, s.c.Client, api.KeyOf(c))
		switch {
		case err == nil && now.UID != c.UID:
			return nil, changed("it is another one of the name by now")
		case err == nil:
			return now, nil
		case apierrors.ReasonForError(err) != metav1.StatusReasonUnknown || !pause(ctx, firstPause<<i):
			return nil, err
		}
	}
	return nil, err
}

// pause waits, and says whether to go on.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// tryReserve is reserve for the claim as c is.
func (s *Scheduler) tryReserve(ctx context.Context, p *corev1.Pod, c *resourcev1.ResourceClaim, a *resourcev1.AllocationResult) (*resourcev1.ResourceClaim, error) {
	ours := a != nil && c.Status.Allocation != nil && equality.Semantic.DeepEqual(a.Devices, c.Status.Allocation.Devices)
	switch {
	case c.DeletionTimestamp != nil:
		return nil, changed("it is being deleted")
	case a != nil && c.Status.Allocation != nil && !ours:
		return nil, changed("it was allocated elsewhere in the meantime")
	case a == nil && c.Status.Allocation == nil:
		return nil, changed("it was deallocated in the meantime")
	}
	var err error
	if a != nil && !ours && !slices.Contains(c.Finalizers, resourcev1.Finalizer) {
		// It keeps the claim while its devices are in use, so it has to be there first.
		if c, err = client.Mutate(ctx, s.c.Client, c, "", func(c *resourcev1.ResourceClaim) {
			c.Finalizers = append(c.Finalizers, resourcev1.Finalizer)
		}); err != nil {
			return nil, err
		}
	}
	now := metav1.NewTime(time.Now())
	return client.Mutate(ctx, s.c.Client, c, "status", func(c *resourcev1.ResourceClaim) {
		if a != nil && !ours {
			c.Status.Allocation = a.DeepCopy()
			c.Status.Allocation.AllocationTimestamp = &now
		}
		if !resourceclaim.IsReservedForPod(p, c, false) {
			c.Status.ReservedFor = append(c.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p.Name, UID: p.UID})
		}
	})
}

// mutateClaim changes a claim's status, whatever was written to it meanwhile. For one that is gone it returns c.
func mutateClaim(ctx context.Context, w client.Client, c *resourcev1.ResourceClaim, change func(*resourcev1.ResourceClaim)) (*resourcev1.ResourceClaim, error) {
	for now := c; ; {
		got, err := client.Mutate(ctx, w, now, "status", change)
		if apierrors.IsNotFound(err) {
			return c, nil
		}
		if !apierrors.IsConflict(err) {
			return got, err
		}
		if now, err = client.Get[*resourcev1.ResourceClaim](ctx, w, api.KeyOf(c)); apierrors.IsNotFound(err) || err == nil && now.UID != c.UID {
			return c, nil
		}
		if err != nil {
			return nil, err
		}
	}
}
