package plugins

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/dynamic-resource-allocation/cel"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	"k8s.io/dynamic-resource-allocation/structured"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// Reasons for which a node cannot have a pod's devices.
const (
	claimElsewhere = "resourceclaim not available on the node"
	noDevices      = "cannot allocate all claims"
	tooSlow        = "timed out trying to allocate devices"
)

// Limits of time, upstream's defaults (KEP-4381, KEP-5007). The first is for all nodes together: a search can be made to take
// very long by a claim, and other pods wait meanwhile.
const (
	searchTime = 10 * time.Second
	bindTime   = 10 * time.Minute
)

// ErrNotYet is the fault of a pod whose claims are being made for it, or allocated for another one: it is too early to say anything.
var ErrNotYet = errors.New("")

// deviceFeatures are those that upstream has on by default.
var deviceFeatures = structured.Features{
	AdminAccess: true, PrioritizedList: true, PartitionableDevices: true, DeviceTaints: true,
	DeviceBindingAndStatus: true, ConsumableCapacity: true, FractionalCapacityRange: true,
}

// selectors are compiled expressions, which are pure. Making the environment takes milliseconds: only once a claim is to be allocated.
var selectors = sync.OnceValue(func() *cel.Cache { return cel.NewCache(128, cel.Features{EnableConsumableCapacity: true}) })

// dynamicResources keeps a pod where the devices are that its claims have, or can get. It is the last one asked: it takes longest.
//
// Alone of all filters it looks at the clock, to end a search that takes too long.
var dynamicResources = Filter{
	Name:  "DynamicResources",
	Dear:  true,
	Wakes: NodeAdded | NodeLabels | NodeResources | Devices, // a node may come to offer extended resources itself
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		d, err := demandsOf(c, p)
		if d == nil || err != nil {
			return nil, err
		}
		return &Check{
			Pass: func(slot int) bool { return d.on(slot).why == "" },
			Why:  func(slot int) []string { return []string{d.on(slot).why} },
		}, nil
	},
}

// dynamicResourcesScore prefers nodes where requests with alternatives get those that they name first (KEP-4816).
var dynamicResourcesScore = Score{
	Name: "DynamicResources", Weight: 2, Scale: Up,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod, _ []int) func(int) int64 {
		d, err := demandsOf(c, p)
		if d == nil || err != nil || !slices.ContainsFunc(d.open, hasAlternatives) {
			return nil
		}
		return d.rank
	},
}

func hasAlternatives(c *resourcev1.ResourceClaim) bool {
	return slices.ContainsFunc(c.Spec.Devices.Requests, func(r resourcev1.DeviceRequest) bool { return len(r.FirstAvailable) > 0 })
}

// Allotment is what has to happen to claims for devices before a pod can be bound to the node that was chosen for it.
type Allotment struct {
	Reserve []Reservation
	// Until is set where drivers have to make devices ready first (KEP-5007): they may take so long.
	Until time.Time
}

// Reservation is a claim that has to be reserved for the pod, and the allocation that it has to be given, nil if it has one.
type Reservation struct {
	Claim      *resourcev1.ResourceClaim // one without a name has to be made
	Allocation *resourcev1.AllocationResult
	// Mappings are what the pod's status has to say of the claim for its extended resources.
	Mappings []corev1.ContainerExtendedResourceRequest
}

// DevicesOn returns what has to be done for p's claims on a node that passed. Nil: nothing, or p has none.
func DevicesOn(c *cluster.Cluster, p *cluster.Pod, slot int) *Allotment {
	d, err := demandsOf(c, p)
	if d == nil || err != nil {
		return nil
	}
	out := &Allotment{}
	wait := func(t time.Time) {
		if out.Until.IsZero() || t.Before(out.Until) {
			out.Until = t
		}
	}
	f := d.on(slot)
	for i, got := range f.allocations {
		r := Reservation{Claim: f.variant.open[i], Allocation: &got}
		if r.Claim == f.variant.special {
			r.Mappings = f.variant.mappings
		}
		out.Reserve = append(out.Reserve, r)
		if conditional(&got) {
			wait(c.Devices.Now.Add(bindTime))
		}
	}
	for _, h := range d.had {
		r := Reservation{Claim: h.ResourceClaim}
		if h.ResourceClaim == d.made && !d.said(f.variant) {
			r.Mappings = f.variant.mappings
		}
		if r.Mappings != nil || !resourceclaim.IsReservedForPod(p.Pod, h.ResourceClaim, false) {
			out.Reserve = append(out.Reserve, r)
		}
		if !h.ready {
			wait(h.until)
		}
	}
	if len(out.Reserve) == 0 && out.Until.IsZero() {
		return nil
	}
	return out
}

// Idle returns a claim of p that keeps it off nodes, and whose devices nobody else uses: p may fit when they are given back.
func Idle(c *cluster.Cluster, p *cluster.Pod) *resourcev1.ResourceClaim {
	d, err := demandsOf(c, p)
	if d == nil || err != nil {
		return nil
	}
	for _, claim := range d.elsewhere {
		if r := claim.Status.ReservedFor; len(r) == 0 || len(r) == 1 && r[0].UID == p.UID {
			return claim
		}
	}
	return nil
}

// demands are what a pod's claims for devices have and want, and what is known of nodes so far. They are worked out once per attempt to place
// the pod, and live in Devices.Judged: a search for devices is the dearest thing that a filter does.
type demands struct {
	c       *cluster.Cluster
	pod     *cluster.Pod
	changed uint64

	had       []allocated
	open      []*resourcev1.ResourceClaim // to be allocated
	found     map[int]finding             // by slot
	general   structured.Allocator        // for nodes without devices of their own
	left      time.Duration
	extras    []int                       // columns of extended resources that classes serve
	made      *resourcev1.ResourceClaim   // for them, in an attempt before; nil: none
	variants  map[string]*variant         // by what nodes lack of them
	fault     string                      // of the claims or their classes: no node will do
	elsewhere []*resourcev1.ResourceClaim // in had, not to be had on a node that was asked about
}

// allocated is a claim that has its devices.
type allocated struct {
	*resourcev1.ResourceClaim
	nodes  *nodeaffinity.NodeSelector // nil: all
	ready  bool                       // drivers have made the devices ready
	until  time.Time                  // where not ready: patience ends
	failed bool                       // they cannot, or took too long
}

// finding is what the claims can get on a node: allocations for those that are open, or why they cannot.
type finding struct {
	node        *corev1.Node
	variant     *variant
	allocations []resourcev1.AllocationResult // of variant.open
	why         string
}

// demandsOf returns what p's claims want, nil when it has none and needs none. An error says why no node will do.
func demandsOf(c *cluster.Cluster, p *cluster.Pod) (*demands, error) {
	extras := extras(c, p)
	if len(p.Spec.ResourceClaims)+len(extras) == 0 {
		return nil, nil
	}
	if d, ok := c.Devices.Judged.(*demands); ok && d.pod == p && d.changed == c.Devices.Changed {
		return d, nil
	}
	claims, err := deviceClaims(c, p)
	if len(claims)+len(extras) == 0 || err != nil {
		return nil, err
	}
	d := &demands{c: c, pod: p, changed: c.Devices.Changed, found: map[int]finding{}, left: searchTime, extras: extras, variants: map[string]*variant{}}
	if d.made = c.Devices.Special(p.UID); d.made != nil && len(extras) > 0 {
		switch {
		case d.made.DeletionTimestamp != nil:
			return nil, fmt.Errorf("resourceclaim %q is being deleted%w", d.made.Name, ErrNotYet)
		case d.made.Status.Allocation != nil:
			claims = append(claims, d.made)
		}
	}
	for _, claim := range claims {
		if claim.Status.Allocation == nil {
			if err := allocatable(c, claim); err != nil {
				return nil, err
			}
			d.open = append(d.open, claim)
			continue
		}
		if len(claim.Status.ReservedFor) >= resourcev1.ResourceClaimReservedForMaxSize && !resourceclaim.IsReservedForPod(p.Pod, claim, false) {
			return nil, errors.New("resourceclaim in use") // upstream tries, and is refused by the API again and again
		}
		a := allocated{ResourceClaim: claim}
		if s := claim.Status.Allocation.NodeSelector; s != nil {
			if a.nodes, err = nodeaffinity.NewNodeSelector(s); err != nil {
				return nil, fmt.Errorf("resourceclaim %q: status.allocation.nodeSelector: %w", claim.Name, err)
			}
		}
		a.bound(c.Devices.Now)
		d.had = append(d.had, a)
	}
	c.Devices.Judged = d
	return d, nil
}

// barren are the nodes that had nothing for claims, by what these want. What is allocated since then makes it no better. So of many pods that
// want the same and are woken by one device that became free, only the first ones search.
type barren struct {
	grown uint64
	nodes map[string]map[int]*corev1.Node // by slot
	slow  map[string]time.Time            // what took too long, and until when it is not tried again
}

// Limits of what is remembered.
const (
	maxBarren = 16
	maxSlow   = 1024
	slowTime  = 5 * time.Minute
)

// recall fills in what is known of claims that want what the open ones do.
func (d *demands) recall(v *variant) error {
	devices := &d.c.Devices
	b, ok := devices.Barren.(*barren)
	if !ok {
		b = &barren{slow: map[string]time.Time{}}
		devices.Barren = b
	}
	if b.nodes == nil || b.grown != devices.Grown || len(b.nodes) >= maxBarren {
		b.grown, b.nodes = devices.Grown, map[string]map[int]*corev1.Node{}
	}
	var key []byte
	for _, claim := range v.open {
		spec, err := claim.Spec.Marshal()
		if err != nil {
			return fmt.Errorf("encode the spec of resource claim %s: %w", api.KeyOf(claim), err)
		}
		key = append(binary.AppendUvarint(key, uint64(len(spec))), spec...)
	}
	v.wants = string(key)
	if v.barren = b.nodes[v.wants]; v.barren == nil {
		v.barren = map[int]*corev1.Node{}
		b.nodes[v.wants] = v.barren
	}
	v.slow = devices.Now.Before(b.slow[v.wants])
	return nil
}

// tookTooLong has no pod search for the same for a time, whatever becomes free: the scheduler does nothing else meanwhile.
func (d *demands) tookTooLong(v *variant) {
	d.fault = tooSlow
	slow := d.c.Devices.Barren.(*barren).slow
	if len(slow) >= maxSlow {
		clear(slow)
	}
	slow[v.wants] = d.c.Devices.Now.Add(slowTime)
}

// deviceClaims returns the claims of p, each once.
func deviceClaims(c *cluster.Cluster, p *cluster.Pod) (claims []*resourcev1.ResourceClaim, err error) {
	for i := range p.Spec.ResourceClaims {
		name, own, err := resourceclaim.Name(p.Pod, &p.Spec.ResourceClaims[i])
		switch {
		case errors.Is(err, resourceclaim.ErrClaimNotFound):
			return nil, fmt.Errorf("%w%w", err, ErrNotYet)
		case err != nil:
			return nil, err
		case name == nil:
			continue // it was found that none is needed
		}
		claim := c.Devices.Claims[api.Key{Namespace: p.Namespace, Name: *name}]
		switch {
		case claim == nil && own:
			return nil, fmt.Errorf("resourceclaim %q not found%w", *name, ErrNotYet)
		case claim == nil:
			return nil, fmt.Errorf("resourceclaim %q not found", *name)
		case claim.DeletionTimestamp != nil:
			return nil, fmt.Errorf("resourceclaim %q is being deleted", *name)
		}
		if own {
			if err := resourceclaim.IsForPod(p.Pod, claim, false); err != nil {
				return nil, err
			}
		}
		if !slices.Contains(claims, claim) {
			claims = append(claims, claim)
		}
	}
	return claims, nil
}

// allocatable says why a claim cannot be allocated whatever devices there are.
func allocatable(c *cluster.Cluster, claim *resourcev1.ResourceClaim) error {
	if c.Devices.Pending(claim.UID) {
		return fmt.Errorf("resource claim %s is in the process of being allocated%w", api.KeyOf(claim), ErrNotYet)
	}
	class := func(name, request string) error {
		if c.Devices.Classes[name] == nil {
			return fmt.Errorf("request %s: device class %s does not exist", request, name)
		}
		return nil
	}
	for _, r := range claim.Spec.Devices.Requests {
		if r.Exactly == nil && len(r.FirstAvailable) == 0 {
			return fmt.Errorf("resource claim %s, request %s: unknown request type", api.KeyOf(claim), r.Name)
		}
		if r.Exactly != nil {
			if err := class(r.Exactly.DeviceClassName, r.Name); err != nil {
				return err
			}
		}
		for _, s := range r.FirstAvailable {
			if err := class(s.DeviceClassName, r.Name+"/"+s.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// conditional says whether devices have to be made ready by their drivers before a pod is bound.
func conditional(a *resourcev1.AllocationResult) bool {
	return slices.ContainsFunc(a.Devices.Results, func(r resourcev1.DeviceRequestAllocationResult) bool { return len(r.BindingConditions) > 0 })
}

// bound fills in what drivers say of the claim's devices.
func (a *allocated) bound(now time.Time) {
	a.ready = true
	for i := range a.Status.Allocation.Devices.Results {
		r := &a.Status.Allocation.Devices.Results[i]
		if len(r.BindingConditions) == 0 {
			continue
		}
		said := a.said(r)
		holds := func(name string) bool { return meta.IsStatusConditionTrue(said, name) }
		if slices.ContainsFunc(r.BindingFailureConditions, holds) {
			a.failed = true
		}
		if slices.ContainsFunc(r.BindingConditions, func(name string) bool { return !holds(name) }) {
			a.ready = false
		}
	}
	if a.ready {
		return
	}
	a.until = now.Add(bindTime)
	if t := a.Status.Allocation.AllocationTimestamp; t != nil {
		a.until = t.Add(bindTime)
	}
	a.failed = a.failed || a.until.Before(now)
}

// said returns the conditions of one allocated device.
func (a *allocated) said(r *resourcev1.DeviceRequestAllocationResult) []metav1.Condition {
	for i := range a.Status.Devices {
		s := &a.Status.Devices[i]
		if s.Driver == r.Driver && s.Pool == r.Pool && s.Device == r.Device && (s.ShareID == nil || r.ShareID != nil && *s.ShareID == string(*r.ShareID)) {
			return s.Conditions
		}
	}
	return nil
}

// on says what the claims can get on a node.
func (d *demands) on(slot int) finding {
	n := d.c.Nodes[slot]
	f, ok := d.found[slot]
	if !ok || f.node != n {
		f = d.search(slot, n)
		d.found[slot] = f
	}
	return f
}

func (d *demands) search(slot int, n *corev1.Node) finding {
	f := finding{node: n}
	for _, a := range d.had {
		if a.failed || a.nodes != nil && !a.nodes.Match(n) {
			f.why = claimElsewhere
			if !slices.Contains(d.elsewhere, a.ResourceClaim) {
				d.elsewhere = append(d.elsewhere, a.ResourceClaim)
			}
		}
	}
	if f.why != "" {
		return f
	}
	v, err := d.variantOn(slot)
	if err != nil {
		f.why = err.Error()
		return f
	}
	f.variant, f.why = v, d.unfit(v)
	switch {
	case f.why != "" || len(v.open) == 0:
		return f
	case d.fault != "":
		f.why = d.fault
		return f
	case v.slow:
		f.why = tooSlow
		return f
	case v.barren[slot] == n:
		f.why = noDevices
		return f
	}
	begin := time.Now()
	got, err := d.allocate(span{begin.Add(d.left), d.c.Devices.Ended}, n, v.open)
	d.left -= time.Since(begin)
	switch {
	case errors.Is(err, structured.ErrFailedAllocationOnNode):
		f.why = err.Error()
	case errors.Is(err, context.DeadlineExceeded):
		d.tookTooLong(v)
		f.why = d.fault
	case err != nil:
		d.fault = err.Error()
		f.why = d.fault
	case len(got) != len(v.open):
		f.why = noDevices
		v.barren[slot] = n
	default:
		f.allocations = got
	}
	return f
}

// span is the context of a search, which looks whether it has ended: no timer is needed.
type span struct {
	until time.Time
	ended func() error // may be nil
}

// Deadline is part of context.Context.
func (s span) Deadline() (time.Time, bool) { return s.until, true }

// Done is part of context.Context.
func (s span) Done() <-chan struct{} { return nil }

// Value is part of context.Context.
func (s span) Value(any) any { return nil }

// Err is part of context.Context.
func (s span) Err() error {
	if s.ended != nil {
		if err := s.ended(); err != nil {
			return err
		}
	}
	if !time.Now().Before(s.until) {
		return context.DeadlineExceeded
	}
	return nil
}

// allocate searches devices for claims on a node.
func (d *demands) allocate(ctx context.Context, n *corev1.Node, open []*resourcev1.ResourceClaim) ([]resourcev1.AllocationResult, error) {
	own, everywhere := d.c.Devices.Slices(n.Name)
	a := d.general
	if a == nil || len(own) > 0 {
		var err error
		a, err = structured.NewAllocator(ctx, deviceFeatures, d.c.Devices.Taken, classes(d.c.Devices.Classes), slices.Concat(own, everywhere), selectors())
		if err != nil {
			return nil, err
		}
		if len(own) == 0 {
			d.general = a
		}
	}
	return a.Allocate(ctx, n, open)
}

// rank counts how early the alternatives are named that a node has.
func (d *demands) rank(slot int) (sum int64) {
	f := d.on(slot)
	for i, got := range f.allocations {
		for _, r := range f.variant.open[i].Spec.Devices.Requests {
			for j, s := range r.FirstAvailable {
				ref := resourceclaim.CreateSubRequestRef(r.Name, s.Name)
				if slices.ContainsFunc(got.Devices.Results, func(x resourcev1.DeviceRequestAllocationResult) bool { return x.Request == ref }) {
					sum += int64(resourcev1.FirstAvailableDeviceRequestMaxSize - j)
				}
			}
		}
	}
	return sum
}

// classes is what the allocator reads classes from.
type classes map[string]*resourcev1.DeviceClass

// List is part of structured.DeviceClassLister.
func (c classes) List() (all []*resourcev1.DeviceClass, err error) {
	for _, class := range c {
		all = append(all, class)
	}
	return all, nil
}

// Get is part of structured.DeviceClassLister.
func (c classes) Get(name string) (*resourcev1.DeviceClass, error) {
	if class := c[name]; class != nil {
		return class, nil
	}
	return nil, fmt.Errorf("device class %s does not exist", name)
}
