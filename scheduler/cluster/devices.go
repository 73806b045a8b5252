package cluster

import (
	"cmp"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/dynamic-resource-allocation/structured"

	"github.com/yare-dev/yare/api"
)

// Devices is what the scheduler knows of claims for devices (KEP-4381), of their classes, and of the devices that drivers offer.
type Devices struct {
	// Claims, Classes and Taken are for reading; the methods keep them.
	Claims  map[api.Key]*resourcev1.ResourceClaim
	Classes map[string]*resourcev1.DeviceClass
	// Taken is what claims have, or were given by allocations that are being written.
	Taken structured.AllocatedState
	// Changed counts changes, Grown those after which a claim may get what it could not get before.
	Changed, Grown uint64
	// Now is when the pod that is placed was taken up: what waits for a driver does so for a limited time.
	Now time.Time
	// Ended says why a search for devices is of no use anymore. It may be nil.
	Ended func() error
	// Judged is kept by plugins: what the claims of the pod that is placed can get, by node.
	Judged any
	// Barren is kept by plugins: which nodes had nothing when Grown was what it is.
	Barren any

	pending map[types.UID]*resourcev1.AllocationResult // chosen, and not known to be written yet
	counted map[types.UID]*resourcev1.AllocationResult // what is in Taken
	slices  map[string]*resourcev1.ResourceSlice
	rules   map[string]*resourcev1.DeviceTaintRule
	serving map[corev1.ResourceName]*resourcev1.DeviceClass // which classes stand for extended resources; nil: to be worked out
	special map[types.UID]map[api.Key]bool                  // claims for extended resources, by pod

	stale      bool // the following do not reflect slices and rules
	everywhere []*resourcev1.ResourceSlice
	on         map[string][]*resourcev1.ResourceSlice // by node name
}

func newDevices() Devices {
	return Devices{
		Claims: map[api.Key]*resourcev1.ResourceClaim{}, Classes: map[string]*resourcev1.DeviceClass{},
		Taken: structured.AllocatedState{AllocatedDevices: sets.New[structured.DeviceID](),
			AllocatedSharedDeviceIDs: sets.New[structured.SharedDeviceID](), AggregatedCapacity: structured.NewConsumedCapacityCollection()},
		pending: map[types.UID]*resourcev1.AllocationResult{}, counted: map[types.UID]*resourcev1.AllocationResult{},
		slices: map[string]*resourcev1.ResourceSlice{}, rules: map[string]*resourcev1.DeviceTaintRule{},
		special: map[types.UID]map[api.Key]bool{},
	}
}

// SetClaim takes in a claim as the API has it. It says whether that makes a difference to pods that use it, and whether devices became
// free. What is older than what is known already, from the answer to a write, is left out.
func (d *Devices) SetClaim(c *resourcev1.ResourceClaim) (differs, freed bool) {
	key := api.KeyOf(c)
	old := d.Claims[key]
	if old != nil && old.UID == c.UID && older(c, old) {
		return false, false
	}
	d.Changed++
	if old != nil && old.UID != c.UID {
		delete(d.pending, old.UID)
		freed = d.count(old.UID, nil)
		d.went(key, old)
	}
	if old == nil || old.UID != c.UID {
		d.come(key, c)
	}
	d.Claims[key] = c
	want := c.Status.Allocation
	if want != nil {
		delete(d.pending, c.UID)
	} else {
		want = d.pending[c.UID] // our own first write, of the finalizer, shows none
	}
	differs = old == nil || old.UID != c.UID || !sameToPods(old, c)
	return differs, d.count(c.UID, want) || freed
}

// RemoveClaim forgets a claim, and says whether devices became free.
func (d *Devices) RemoveClaim(c *resourcev1.ResourceClaim) (freed bool) {
	if old := d.Claims[api.KeyOf(c)]; old == nil || old.UID != c.UID {
		return false
	}
	d.Changed++
	delete(d.Claims, api.KeyOf(c))
	d.went(api.KeyOf(c), c)
	delete(d.pending, c.UID)
	return d.count(c.UID, nil)
}

// older says whether a was written before b. Both are the same object.
func older(a, b *resourcev1.ResourceClaim) bool {
	order, err := resourceversion.CompareResourceVersion(a.ResourceVersion, b.ResourceVersion)
	return err == nil && order < 0
}

// sameToPods says that nothing changed in a claim that pods which use it wait for.
func sameToPods(a, b *resourcev1.ResourceClaim) bool {
	return (a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) && (a.Status.Allocation == nil) == (b.Status.Allocation == nil) &&
		slices.Equal(a.Status.ReservedFor, b.Status.ReservedFor) && slices.EqualFunc(a.Status.Devices, b.Status.Devices, sameConditions)
}

func sameConditions(a, b resourcev1.AllocatedDeviceStatus) bool {
	return a.Driver == b.Driver && a.Pool == b.Pool && a.Device == b.Device && slices.Equal(a.Conditions, b.Conditions)
}

// Promise counts an allocation that is about to be written to a claim.
func (d *Devices) Promise(claim types.UID, a *resourcev1.AllocationResult) {
	d.Changed++
	d.pending[claim] = a
	d.count(claim, a)
}

// Pending says whether an allocation is being written to a claim.
func (d *Devices) Pending(claim types.UID) bool { return d.pending[claim] != nil }

// Withdraw takes a promise back that could not be written, and says whether devices became free. One that has shown in its claim is none anymore.
func (d *Devices) Withdraw(claim types.UID) (freed bool) {
	if d.pending[claim] == nil {
		return false
	}
	d.Changed++
	delete(d.pending, claim)
	return d.count(claim, nil)
}

// count makes Taken reflect that a claim has want, and says whether that frees devices.
func (d *Devices) count(claim types.UID, want *resourcev1.AllocationResult) (freed bool) {
	old := d.counted[claim]
	if old == want {
		return false
	}
	if old != nil && want != nil && equality.Semantic.DeepEqual(old.Devices.Results, want.Devices.Results) {
		d.counted[claim] = want // what was promised was written
		return false
	}
	d.take(old, false)
	if old != nil {
		d.Grown++
	}
	if want == nil {
		delete(d.counted, claim)
		return true
	}
	d.take(want, true)
	d.counted[claim] = want
	return false
}

func (d *Devices) take(a *resourcev1.AllocationResult, taken bool) {
	if a == nil {
		return
	}
	for i := range a.Devices.Results {
		r := &a.Devices.Results[i]
		if r.AdminAccess != nil && *r.AdminAccess {
			continue // beside whoever uses the device
		}
		id := structured.MakeDeviceID(r.Driver, r.Pool, r.Device)
		switch {
		case r.ShareID == nil && taken:
			d.Taken.AllocatedDevices.Insert(id)
		case r.ShareID == nil:
			d.Taken.AllocatedDevices.Delete(id)
		case taken:
			d.Taken.AllocatedSharedDeviceIDs.Insert(structured.MakeSharedDeviceID(id, r.ShareID))
			if r.ConsumedCapacity != nil {
				d.Taken.AggregatedCapacity.Insert(structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity))
			}
		default:
			d.Taken.AllocatedSharedDeviceIDs.Delete(structured.MakeSharedDeviceID(id, r.ShareID))
			if r.ConsumedCapacity != nil {
				d.Taken.AggregatedCapacity.Remove(structured.NewDeviceConsumedCapacity(id, r.ConsumedCapacity))
			}
		}
	}
}

// SetClass takes in a class, or that it is gone.
func (d *Devices) SetClass(c *resourcev1.DeviceClass, deleted bool) {
	d.Changed++
	d.Grown++
	d.serving = nil
	set(d.Classes, c.Name, c, deleted)
}

// SetSlice takes in devices of a driver, or that they are gone.
func (d *Devices) SetSlice(s *resourcev1.ResourceSlice, deleted bool) {
	d.Changed++
	d.Grown++
	d.stale = true
	set(d.slices, s.Name, s, deleted)
}

// SetRule takes in a rule that taints devices, or that it is gone.
func (d *Devices) SetRule(r *resourcev1.DeviceTaintRule, deleted bool) {
	d.Changed++
	d.Grown++
	d.stale = true
	set(d.rules, r.Name, r, deleted)
}

func set[K comparable, V any](m map[K]V, k K, v V, deleted bool) {
	if deleted {
		delete(m, k)
	} else {
		m[k] = v
	}
}

// Slices returns the slices of pools that only some nodes have and this is one of them, and of those that other nodes may have too, tainted as
// rules say. A pool is always whole, since the allocator has to know whether it is complete.
func (d *Devices) Slices(node string) (own, everywhere []*resourcev1.ResourceSlice) {
	if d.stale {
		d.sort()
	}
	return d.on[node], d.everywhere
}

// pool is a driver's pool of devices.
type pool struct{ driver, name string }

func (d *Devices) sort() {
	d.stale, d.everywhere, d.on = false, nil, map[string][]*resourcev1.ResourceSlice{}
	pools := map[pool][]*resourcev1.ResourceSlice{}
	for _, s := range d.slices {
		p := pool{s.Spec.Driver, s.Spec.Pool.Name}
		pools[p] = append(pools[p], d.tainted(s))
	}
	order := slices.SortedFunc(maps.Keys(pools), func(a, b pool) int { return cmp.Or(cmp.Compare(a.driver, b.driver), cmp.Compare(a.name, b.name)) })
	for _, p := range order {
		all := pools[p]
		slices.SortFunc(all, func(a, b *resourcev1.ResourceSlice) int { return cmp.Compare(a.Name, b.Name) })
		nodes := sets.New[string]()
		for _, s := range all {
			if s.Spec.NodeName == nil {
				nodes = nil
				break
			}
			nodes.Insert(*s.Spec.NodeName)
		}
		if nodes == nil {
			d.everywhere = append(d.everywhere, all...)
		}
		for n := range nodes {
			d.on[n] = append(d.on[n], all...)
		}
	}
}

// tainted returns a slice with the taints of the rules that select its devices (KEP-5055).
func (d *Devices) tainted(s *resourcev1.ResourceSlice) *resourcev1.ResourceSlice {
	out := s
	for _, name := range slices.Sorted(maps.Keys(d.rules)) {
		r := &d.rules[name].Spec
		sel := r.DeviceSelector
		if sel == nil || sel.Driver != nil && *sel.Driver != s.Spec.Driver || sel.Pool != nil && *sel.Pool != s.Spec.Pool.Name {
			continue // without a selector it is for no device
		}
		for i := range s.Spec.Devices {
			if sel.Device != nil && *sel.Device != s.Spec.Devices[i].Name {
				continue
			}
			if out == s {
				out = s.DeepCopy()
			}
			out.Spec.Devices[i].Taints = append(out.Spec.Devices[i].Taints, r.Taint)
		}
	}
	return out
}
