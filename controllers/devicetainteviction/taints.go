package devicetainteviction

import (
	"slices"
	"sync"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
)

// pool and device are the names by which claims know what they have.
type pool struct{ driver, name string }

type device struct {
	pool pool
	name string
}

func poolOf(s *resourcev1.ResourceSlice) pool { return pool{s.Spec.Driver, s.Spec.Pool.Name} }

func deviceOf(r *resourcev1.DeviceRequestAllocationResult) device {
	return device{pool{r.Driver, r.Pool}, r.Device}
}

// evicts says whether the slice has devices with NoExecute taints.
func evicts(s *resourcev1.ResourceSlice) bool {
	return s != nil && slices.ContainsFunc(s.Spec.Devices, func(d resourcev1.Device) bool {
		return slices.ContainsFunc(d.Taints, func(t resourcev1.DeviceTaint) bool { return t.Effect == resourcev1.DeviceTaintEffectNoExecute })
	})
}

// pools finds the slices of a pool, since a claim is looked at whenever it changes. The slices are those of the client, not copies.
type pools struct {
	mu     sync.Mutex
	slices map[pool]map[string]*resourcev1.ResourceSlice // by name
}

func newPools() *pools { return &pools{slices: map[pool]map[string]*resourcev1.ResourceSlice{}} }

// change takes in that a slice was before, and is after; nil where there is none.
func (p *pools) change(before, after *resourcev1.ResourceSlice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if before != nil {
		of := poolOf(before)
		delete(p.slices[of], before.Name)
		if len(p.slices[of]) == 0 {
			delete(p.slices, of)
		}
	}
	if after != nil {
		of := poolOf(after)
		if p.slices[of] == nil {
			p.slices[of] = map[string]*resourcev1.ResourceSlice{}
		}
		p.slices[of][after.Name] = after
	}
}

// taints returns the taints that d's driver has put on it.
func (p *pools) taints(d device) (out []resourcev1.DeviceTaint) {
	p.mu.Lock()
	defer p.mu.Unlock()
	newest := int64(-1)
	for _, s := range p.slices[d.pool] {
		newest = max(newest, s.Spec.Pool.Generation)
	}
	for _, s := range p.slices[d.pool] {
		if s.Spec.Pool.Generation != newest {
			continue
		}
		for i := range s.Spec.Devices {
			if s.Spec.Devices[i].Name == d.name {
				out = append(out, s.Spec.Devices[i].Taints...)
			}
		}
	}
	return out
}

// selected is how many of the devices that drivers offer the rule taints.
func (p *pools) selected(r *resourcev1.DeviceTaintRule) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for of, list := range p.slices {
		for _, s := range list {
			for i := range s.Spec.Devices {
				if taints(r, device{of, s.Spec.Devices[i].Name}) {
					n++
				}
			}
		}
	}
	return n
}

// taints says whether the rule puts its taint on the device. One without a selector does so on none, one with an empty selector on all.
func taints(r *resourcev1.DeviceTaintRule, d device) bool {
	s := r.Spec.DeviceSelector
	is := func(want *string, have string) bool { return want == nil || *want == have }
	return s != nil && is(s.Driver, d.pool.driver) && is(s.Pool, d.pool.name) && is(s.Device, d.name)
}

// selects says whether the claim has a device that the rule taints.
func selects(r *resourcev1.DeviceTaintRule, c *resourcev1.ResourceClaim) bool {
	return selected(r, c) > 0
}

// selected is how many of the claim's devices the rule taints.
func selected(r *resourcev1.DeviceTaintRule, c *resourcev1.ResourceClaim) (n int) {
	if c == nil || c.Status.Allocation == nil {
		return 0
	}
	for i := range c.Status.Allocation.Devices.Results {
		if taints(r, deviceOf(&c.Status.Allocation.Devices.Results[i])) {
			n++
		}
	}
	return n
}

// until returns when tolerations end to bear a NoExecute taint, nil if never.
func until(t *resourcev1.DeviceTaint, ts []resourcev1.DeviceToleration) *time.Time {
	var at time.Time
	if t.TimeAdded != nil {
		at = t.TimeAdded.Time
	}
	var least *int64
	for i := range ts {
		if !resourceclaim.ToleratesTaint(ts[i], *t) {
			continue
		}
		s := ts[i].TolerationSeconds
		if s == nil {
			return nil
		}
		if least == nil || *s < *least {
			least = s
		}
	}
	if least != nil && *least > 0 {
		// No time is so far that a Duration could not hold the seconds until then, but a toleration may say such a number.
		at = at.Add(time.Duration(min(*least, int64(longest/time.Second))) * time.Second)
	}
	return &at
}

// longest is a hundred years.
const longest = 100 * 365 * 24 * time.Hour

// due returns when the pods of a claim are to be evicted, nil if never, and the rules that ask for it at that time or have done so before.
func due(c *resourcev1.ResourceClaim, published func(device) []resourcev1.DeviceTaint, rules []*resourcev1.DeviceTaintRule) (first *time.Time, by []*resourcev1.DeviceTaintRule) {
	note := func(t *resourcev1.DeviceTaint, ts []resourcev1.DeviceToleration) bool {
		if t.Effect != resourcev1.DeviceTaintEffectNoExecute {
			return false
		}
		at := until(t, ts)
		if at != nil && (first == nil || at.Before(*first)) {
			first = at
		}
		return at != nil
	}
	for i := range c.Status.Allocation.Devices.Results {
		r := &c.Status.Allocation.Devices.Results[i]
		of := deviceOf(r)
		for _, t := range published(of) {
			note(&t, r.Tolerations)
		}
		for _, rule := range rules {
			if taints(rule, of) && note(&rule.Spec.Taint, r.Tolerations) && !slices.Contains(by, rule) {
				by = append(by, rule)
			}
		}
	}
	return first, by
}
