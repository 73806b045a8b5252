package dra

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/registrar"
)

// Ready reports whether all that the pod claims is prepared.
func (s *Set) Ready(pod *corev1.Pod) bool {
	all := entries(pod)
	if len(all) == 0 {
		return true
	}
	held := s.held(pod.UID)
	for i := range all {
		name, _, err := resourceclaim.Name(pod, &all[i])
		if err != nil {
			return false
		}
		if name == nil { // it needs none
			continue
		}
		if r := named(held, pod.Namespace, *name); r == nil || !r.ready(s.config.Boot) {
			return false
		}
	}
	return true
}

// entries are those of the pod for claims, and one without a name for the claim that the scheduler made for its extended resources (KEP-5004).
func entries(pod *corev1.Pod) []corev1.PodResourceClaim {
	s := pod.Status.ExtendedResourceClaimStatus
	if s == nil {
		return pod.Spec.ResourceClaims
	}
	return append(slices.Clip(pod.Spec.ResourceClaims), corev1.PodResourceClaim{ResourceClaimName: &s.ResourceClaimName})
}

func named(records []*record, namespace, name string) *record {
	for _, r := range records {
		if r.Namespace == namespace && r.Name == name {
			return r
		}
	}
	return nil
}

// Prepare has drivers prepare what the pod claims. After an error it is to be called again, or Release.
func (s *Set) Prepare(ctx context.Context, pod *corev1.Pod) error {
	claims, err := s.claims(ctx, pod)
	if err != nil || len(claims) == 0 {
		return err
	}
	uids := slices.Collect(maps.Keys(claims))
	unlock, err := s.lock(ctx, uids)
	if err != nil {
		return err
	}
	defer unlock()
	calls := map[string][]*drapb.Claim{}
	for _, claim := range claims {
		for _, name := range s.missing(claim) {
			if s.driver(name) == nil {
				return notRegistered(name)
			}
			calls[name] = append(calls[name], &drapb.Claim{Namespace: claim.Namespace, Name: claim.Name, Uid: string(claim.UID)})
		}
	}
	for _, claim := range claims {
		if err := s.enter(pod.UID, claim); err != nil {
			return err
		}
	}
	err = each(calls, func(driver string, claims []*drapb.Claim) error { return s.prepare(ctx, driver, claims) })
	if len(calls) > 0 {
		s.keepHealth() // of devices that are used from now on
	}
	return err
}

func notRegistered(driver string) error {
	return fmt.Errorf("DRA driver %s is not registered: it has to run on this node", driver)
}

// claims reads the pod's claims, by UID, and refuses those that it may not use yet, or not at all.
func (s *Set) claims(ctx context.Context, pod *corev1.Pod) (map[types.UID]*resourcev1.ResourceClaim, error) {
	out := map[types.UID]*resourcev1.ResourceClaim{}
	all := entries(pod)
	for i := range all {
		entry := &all[i]
		name, owned, err := resourceclaim.Name(pod, entry)
		if err != nil {
			return nil, fmt.Errorf("resource claim of the pod's entry %s: %w", entry.Name, err)
		}
		if name == nil {
			continue
		}
		claim, err := client.Get[*resourcev1.ResourceClaim](client.Live(ctx), s.config.Client, api.Key{Namespace: pod.Namespace, Name: *name})
		if err != nil {
			return nil, fmt.Errorf("fetch ResourceClaim %s referenced by pod %s: %w", *name, pod.Name, err)
		}
		if owned || entry.Name == "" {
			if err := resourceclaim.IsForPod(pod, claim, false); err != nil {
				return nil, err
			}
		}
		switch {
		case claim.Status.Allocation == nil:
			return nil, fmt.Errorf("ResourceClaim %s is not allocated", claim.Name)
		case !resourceclaim.IsReservedForPod(pod, claim, false):
			return nil, fmt.Errorf("pod %s (%s) is not allowed to use ResourceClaim %s (%s): it is not reserved for it", pod.Name, pod.UID, claim.Name, claim.UID)
		}
		if r := s.record(claim.UID); r != nil && r.Allocation != allocationOf(claim.Status.Allocation) {
			return nil, fmt.Errorf("ResourceClaim %s was allocated anew, and what it had before is still prepared for %d pods that have ended", claim.Name, len(r.Pods))
		}
		out[claim.UID] = claim
	}
	return out, nil
}

func (s *Set) record(claim types.UID) *record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.records[claim]
}

// driversOf returns the drivers that serve the claim's devices.
func driversOf(claim *resourcev1.ResourceClaim) map[string]bool {
	out := map[string]bool{}
	for i := range claim.Status.Allocation.Devices.Results {
		out[claim.Status.Allocation.Devices.Results[i].Driver] = true
	}
	return out
}

// missing returns the drivers that have not prepared the claim.
func (s *Set) missing(claim *resourcev1.ResourceClaim) (names []string) {
	r := s.record(claim.UID)
	for name := range driversOf(claim) {
		if r == nil || r.Boot != s.config.Boot || r.Drivers[name] == nil || !r.Drivers[name].Prepared {
			names = append(names, name)
		}
	}
	return names
}

// enter notes that the pod uses the claim, and that drivers will be called for it.
func (s *Set) enter(pod types.UID, claim *resourcev1.ResourceClaim) error {
	r := s.record(claim.UID)
	if r == nil {
		r = &record{UID: claim.UID, Namespace: claim.Namespace, Name: claim.Name, Boot: s.config.Boot, Allocation: allocationOf(claim.Status.Allocation)}
	} else if r.ready(s.config.Boot) && slices.Contains(r.Pods, pod) && len(r.Drivers) == len(driversOf(claim)) {
		return nil
	}
	next := r.clone()
	if next.Boot != s.config.Boot {
		next.Boot = s.config.Boot
		for _, p := range next.Drivers {
			p.Prepared = false
		}
	}
	if !slices.Contains(next.Pods, pod) {
		next.Pods = append(next.Pods, pod)
	}
	for name := range driversOf(claim) {
		if next.Drivers[name] == nil {
			next.Drivers[name] = &portion{}
		}
	}
	return s.put(next)
}

// prepare has one driver prepare the claims, and notes what it says. The claims are locked.
func (s *Set) prepare(ctx context.Context, name string, claims []*drapb.Claim) error {
	d := s.driver(name)
	if d == nil {
		return notRegistered(name)
	}
	limited, done := s.limited(ctx, "NodePrepareResources", name, claims)
	answer, err := d.client.NodePrepareResources(limited, &drapb.NodePrepareResourcesRequest{Claims: claims})
	done()
	if err != nil {
		return fmt.Errorf("NodePrepareResources of the DRA driver %s: %w", name, registrar.Short(err))
	}
	var errs []error
	for _, c := range claims {
		devices, err := answered(answer.Claims[c.Uid])
		if err != nil {
			errs = append(errs, fmt.Errorf("NodePrepareResources of the DRA driver %s failed for ResourceClaim %s: %w", name, c.Name, err))
			continue
		}
		errs = append(errs, s.change(types.UID(c.Uid), func(r *record) { r.Drivers[name] = &portion{Prepared: true, Devices: devices} }))
	}
	return errors.Join(errs...)
}

// answered returns what the driver says of one claim, if it can be used.
func answered(r *drapb.NodePrepareResourceResponse) (out []device, err error) {
	switch {
	case r == nil:
		return nil, errors.New("the driver's answer says nothing of it")
	case r.Error != "":
		return nil, errors.New(registrar.Cut(r.Error))
	}
	for _, d := range r.Devices {
		if d.GetPoolName() == "" || d.GetDeviceName() == "" {
			return nil, errors.New("the driver's answer has a device without pool_name or device_name")
		}
		for _, id := range d.CdiDeviceIds {
			if id == "" || len(id) > registrar.MaxText {
				return nil, fmt.Errorf("the driver's answer has a name of %d bytes in cdi_device_ids of device %.200q: 1 to %d", len(id), d.DeviceName, registrar.MaxText)
			}
		}
		out = append(out, device{Requests: d.RequestNames, Pool: d.PoolName, Name: d.DeviceName, CDI: d.CdiDeviceIds, Share: d.ShareId})
	}
	return out, nil
}

// Release gives back what the pod has claimed, of which nothing runs any more: what no other pod of the node uses is unprepared. After an error it is
// to be called again.
func (s *Set) Release(ctx context.Context, pod types.UID) error {
	held := s.held(pod)
	if len(held) == 0 {
		return nil
	}
	uids := make([]types.UID, len(held))
	for i, r := range held {
		uids[i] = r.UID
	}
	unlock, err := s.lock(ctx, uids)
	if err != nil {
		return err
	}
	defer unlock()
	calls, last := map[string][]*drapb.Claim{}, map[types.UID]bool{}
	for _, uid := range uids {
		r := s.record(uid) // as others have left it
		if len(r.Pods) > 1 {
			if err := s.change(uid, func(r *record) { r.Pods = slices.DeleteFunc(r.Pods, func(p types.UID) bool { return p == pod }) }); err != nil {
				return err
			}
			continue
		}
		last[uid] = true
		if err := s.unsettle(r); err != nil {
			return err
		}
		for name := range r.Drivers {
			calls[name] = append(calls[name], &drapb.Claim{Namespace: r.Namespace, Name: r.Name, Uid: string(uid)})
		}
	}
	errs := []error{each(calls, func(driver string, claims []*drapb.Claim) error { return s.unprepare(ctx, driver, claims) })}
	for uid := range last {
		if len(s.record(uid).Drivers) == 0 {
			errs = append(errs, s.forget(uid))
		}
	}
	return errors.Join(errs...)
}

// unsettle notes that the claim may be prepared no more.
func (s *Set) unsettle(r *record) error {
	for _, p := range r.Drivers {
		if p.Prepared {
			return s.change(r.UID, func(r *record) {
				for _, p := range r.Drivers {
					p.Prepared = false
				}
			})
		}
	}
	return nil
}

// unprepare has one driver take back the claims, which forget it then. The claims are locked.
func (s *Set) unprepare(ctx context.Context, name string, claims []*drapb.Claim) error {
	d := s.driver(name)
	if d == nil {
		return notRegistered(name)
	}
	limited, done := s.limited(ctx, "NodeUnprepareResources", name, claims)
	answer, err := d.client.NodeUnprepareResources(limited, &drapb.NodeUnprepareResourcesRequest{Claims: claims})
	done()
	if err != nil {
		return fmt.Errorf("NodeUnprepareResources of the DRA driver %s: %w", name, registrar.Short(err))
	}
	var errs []error
	for _, c := range claims {
		r, ok := answer.Claims[c.Uid] // an entry without a value is a success
		switch {
		case !ok:
			err = errors.New("the driver's answer says nothing of it")
		case r.GetError() != "":
			err = errors.New(registrar.Cut(r.Error))
		default:
			errs = append(errs, s.change(types.UID(c.Uid), func(r *record) { delete(r.Drivers, name) }))
			continue
		}
		errs = append(errs, fmt.Errorf("NodeUnprepareResources of the DRA driver %s failed for ResourceClaim %s: %w", name, c.Name, err))
	}
	return errors.Join(errs...)
}
