package plugins

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/scheduler/cluster"
)

func slice(name, pool string, total int64, change func(*resourcev1.ResourceSliceSpec), devices ...resourcev1.Device) *resourcev1.ResourceSlice {
	s := &resourcev1.ResourceSlice{ObjectMeta: metav1.ObjectMeta{Name: name}}
	s.Spec.Driver, s.Spec.Devices = "d", devices
	s.Spec.Pool = resourcev1.ResourcePool{Name: pool, ResourceSliceCount: total}
	change(&s.Spec)
	return s
}

func onNode(name string) func(*resourcev1.ResourceSliceSpec) {
	return func(s *resourcev1.ResourceSliceSpec) { s.NodeName = &name }
}

func onAll(s *resourcev1.ResourceSliceSpec) { s.AllNodes = new(true) }

func onLabel(key string) func(*resourcev1.ResourceSliceSpec) {
	return func(s *resourcev1.ResourceSliceSpec) {
		s.NodeSelector = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpExists}}}}}
	}
}

// device has attributes "model" and "size".
func device(name string, change ...func(*resourcev1.Device)) resourcev1.Device {
	d := resourcev1.Device{Name: name}
	for _, f := range change {
		f(&d)
	}
	return d
}

func model(v string) func(*resourcev1.Device) {
	return func(d *resourcev1.Device) {
		d.Attributes = map[resourcev1.QualifiedName]resourcev1.DeviceAttribute{"model": {StringValue: &v}}
	}
}

// wanted is a claim with a request "r" for n devices.
func wanted(name string, n int64, change ...func(*resourcev1.ResourceClaim)) *resourcev1.ResourceClaim {
	c := &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}}
	c.Spec.Devices.Requests = []resourcev1.DeviceRequest{{Name: "r", Exactly: &resourcev1.ExactDeviceRequest{
		DeviceClassName: "any", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: n}}}
	for _, f := range change {
		f(c)
	}
	return c
}

func exactly(change func(*resourcev1.ExactDeviceRequest)) func(*resourcev1.ResourceClaim) {
	return func(c *resourcev1.ResourceClaim) { change(c.Spec.Devices.Requests[0].Exactly) }
}

func having(text string) []resourcev1.DeviceSelector {
	return []resourcev1.DeviceSelector{{CEL: &resourcev1.CELDeviceSelector{Expression: text}}}
}

// alternatives has the request name models, the first one preferred.
func alternatives(models ...string) func(*resourcev1.ResourceClaim) {
	return func(c *resourcev1.ResourceClaim) {
		r := resourcev1.DeviceRequest{Name: "r"}
		for _, m := range models {
			r.FirstAvailable = append(r.FirstAvailable, resourcev1.DeviceSubRequest{Name: m, DeviceClassName: "any",
				Selectors: having(`device.attributes["d"].model == "` + m + `"`), AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: 1})
		}
		c.Spec.Devices.Requests = []resourcev1.DeviceRequest{r}
	}
}

// has gives a claim devices of a pool, on a node or on all, for pods.
func has(node, pool string, devices []string, pods ...string) func(*resourcev1.ResourceClaim) {
	return func(c *resourcev1.ResourceClaim) {
		a := &resourcev1.AllocationResult{}
		for _, d := range devices {
			a.Devices.Results = append(a.Devices.Results, resourcev1.DeviceRequestAllocationResult{Request: "r", Driver: "d", Pool: pool, Device: d})
		}
		if node != "" {
			a.NodeSelector = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}
		}
		c.Status.Allocation = a
		for _, p := range pods {
			c.Status.ReservedFor = append(c.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p, UID: types.UID(p)})
		}
	}
}

func uses(claims ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for i, c := range claims {
			p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, corev1.PodResourceClaim{Name: fmt.Sprint(i), ResourceClaimName: &c})
		}
	}
}

// allotted says what the pod's claims get on each node, or why not.
func allotted(c *cluster.Cluster, p *corev1.Pod) string {
	q, err := c.Pod(p)
	if err != nil {
		return err.Error()
	}
	check, err := dynamicResources.Prepare(c, q)
	if err != nil {
		return err.Error()
	}
	if check == nil {
		return "none"
	}
	var parts []string
	for slot, n := range c.Nodes {
		if !check.Pass(slot) {
			parts = append(parts, n.Name+": "+strings.Join(check.Why(slot), ", "))
			continue
		}
		a := DevicesOn(c, q, slot)
		var got []string
		if a != nil {
			for _, r := range a.Reserve {
				one := r.Claim.Name
				if r.Allocation != nil {
					for _, x := range r.Allocation.Devices.Results {
						one += " " + strings.TrimPrefix(x.Request, "r") + x.Pool + "/" + x.Device
					}
				}
				got = append(got, one)
			}
			if !a.Until.IsZero() {
				got = append(got, "waits "+a.Until.Sub(c.Devices.Now).String())
			}
		}
		parts = append(parts, n.Name+": "+strings.Join(got, ", "))
	}
	return strings.Join(parts, "; ")
}

func TestDynamicResources(t *testing.T) {
	t.Parallel()
	local := []*resourcev1.ResourceSlice{
		slice("a", "a", 1, onNode("a"), device("1", model("old")), device("2", model("new"))),
		slice("b", "b", 1, onNode("b"), device("1", model("old"))),
	}
	now := time.Unix(1e9, 0)
	conditions := func(at time.Time, said ...string) func(*resourcev1.ResourceClaim) {
		return func(c *resourcev1.ResourceClaim) {
			c.Status.Allocation.Devices.Results[0].BindingConditions = []string{"attached"}
			c.Status.Allocation.Devices.Results[0].BindingFailureConditions = []string{"broken"}
			c.Status.Allocation.AllocationTimestamp = &metav1.Time{Time: at}
			s := resourcev1.AllocatedDeviceStatus{Driver: "d", Pool: "a", Device: "1"}
			for _, x := range said {
				s.Conditions = append(s.Conditions, metav1.Condition{Type: x, Status: metav1.ConditionTrue})
			}
			c.Status.Devices = []resourcev1.AllocatedDeviceStatus{s}
		}
	}
	none := "cannot allocate all claims"
	fails := "claim ns/x: selector #0 on device d/a/1: CEL runtime error: no such key: nothing. consider using CEL optional chaining (.? followed by orValue()) " +
		"or guarding the check with has() for optional fields"
	for name, tt := range map[string]struct {
		slices []*resourcev1.ResourceSlice
		claims []*resourcev1.ResourceClaim
		pod    func(*corev1.Pod)
		want   string
	}{
		"no claims":      {local, nil, func(*corev1.Pod) {}, "none"},
		"no such claim":  {local, nil, uses("x"), `resourceclaim "x" not found`},
		"claim is going": {local, []*resourcev1.ResourceClaim{wanted("x", 1, func(c *resourcev1.ResourceClaim) { c.DeletionTimestamp = &metav1.Time{} })}, uses("x"), `resourceclaim "x" is being deleted`},
		"no such class": {local, []*resourcev1.ResourceClaim{wanted("x", 1, exactly(func(r *resourcev1.ExactDeviceRequest) { r.DeviceClassName = "y" }))}, uses("x"),
			"request r: device class y does not exist"},
		"one":         {local, []*resourcev1.ResourceClaim{wanted("x", 1)}, uses("x"), "a: x a/1; b: x b/1; c: " + none},
		"named twice": {local, []*resourcev1.ResourceClaim{wanted("x", 1)}, uses("x", "x"), "a: x a/1; b: x b/1; c: " + none},
		"two":         {local, []*resourcev1.ResourceClaim{wanted("x", 2)}, uses("x"), "a: x a/1 a/2; b: " + none + "; c: " + none},
		"two claims":  {local, []*resourcev1.ResourceClaim{wanted("x", 1), wanted("y", 1)}, uses("x", "y"), "a: x a/1, y a/2; b: " + none + "; c: " + none},
		"all": {local, []*resourcev1.ResourceClaim{wanted("x", 0, exactly(func(r *resourcev1.ExactDeviceRequest) { r.AllocationMode = resourcev1.DeviceAllocationModeAll }))}, uses("x"),
			"a: x a/1 a/2; b: x b/1; c: " + none},
		"of a model": {local, []*resourcev1.ResourceClaim{wanted("x", 1, exactly(func(r *resourcev1.ExactDeviceRequest) { r.Selectors = having(`device.attributes["d"].model == "new"`) }))}, uses("x"),
			"a: x a/2; b: " + none + "; c: " + none},
		"of the same model": {local, []*resourcev1.ResourceClaim{wanted("x", 2, func(c *resourcev1.ResourceClaim) {
			c.Spec.Devices.Constraints = []resourcev1.DeviceConstraint{{MatchAttribute: new(resourcev1.FullyQualifiedName("d/model"))}}
		})}, uses("x"), "a: " + none + "; b: " + none + "; c: " + none},
		"an expression that fails": {local, []*resourcev1.ResourceClaim{wanted("x", 1, exactly(func(r *resourcev1.ExactDeviceRequest) {
			r.Selectors = having(`device.attributes["d"].nothing == "new"`)
		}))}, uses("x"),
			"a: " + fails + "; b: " + fails + "; c: " + fails},
		"others have some": {local, []*resourcev1.ResourceClaim{wanted("x", 1), wanted("y", 1, has("a", "a", []string{"1"}, "q")), wanted("z", 1, has("b", "b", []string{"1"}))}, uses("x"),
			"a: x a/2; b: " + none + "; c: " + none},
		"for who looks after them": {local, []*resourcev1.ResourceClaim{wanted("y", 2, has("a", "a", []string{"1", "2"}, "q")),
			wanted("x", 1, exactly(func(r *resourcev1.ExactDeviceRequest) { r.AdminAccess = new(true) }))}, uses("x"), "a: x a/1; b: x b/1; c: " + none},
		"alternatives": {local, []*resourcev1.ResourceClaim{wanted("x", 1, alternatives("new", "old"))}, uses("x"), "a: x /newa/2; b: x /oldb/1; c: " + none},
		"has them":     {local, []*resourcev1.ResourceClaim{wanted("x", 1, has("b", "b", []string{"1"}))}, uses("x"), "a: " + claimElsewhere + "; b: x; c: " + claimElsewhere},
		"has them, and one to get": {local, []*resourcev1.ResourceClaim{wanted("x", 1, has("a", "a", []string{"1"}, "p")), wanted("y", 1)}, uses("x", "y"),
			"a: y a/2; b: " + claimElsewhere + "; c: " + claimElsewhere},
		"reserved for it": {local, []*resourcev1.ResourceClaim{wanted("x", 1, has("", "n", []string{"1"}, "p"))}, uses("x"), "a: ; b: ; c: "},
		"being prepared": {local, []*resourcev1.ResourceClaim{wanted("x", 1, has("a", "a", []string{"1"}, "p"), conditions(now.Add(-time.Minute)))}, uses("x"),
			"a: waits 9m0s; b: " + claimElsewhere + "; c: " + claimElsewhere},
		"prepared": {local, []*resourcev1.ResourceClaim{wanted("x", 1, has("a", "a", []string{"1"}, "p"), conditions(now.Add(-time.Hour), "attached"))}, uses("x"),
			"a: ; b: " + claimElsewhere + "; c: " + claimElsewhere},
		"not to be prepared": {local, []*resourcev1.ResourceClaim{wanted("x", 1, has("a", "a", []string{"1"}, "p"), conditions(now, "broken"))}, uses("x"),
			"a: " + claimElsewhere + "; b: " + claimElsewhere + "; c: " + claimElsewhere},
		"prepared for too long": {local, []*resourcev1.ResourceClaim{wanted("x", 1, has("a", "a", []string{"1"}, "p"), conditions(now.Add(-11*time.Minute)))}, uses("x"),
			"a: " + claimElsewhere + "; b: " + claimElsewhere + "; c: " + claimElsewhere},
		"over the network": {[]*resourcev1.ResourceSlice{slice("n", "n", 1, onAll, device("1"))}, []*resourcev1.ResourceClaim{wanted("x", 1)}, uses("x"), "a: x n/1; b: x n/1; c: x n/1"},
		"by labels": {[]*resourcev1.ResourceSlice{slice("n", "n", 2, onLabel("left"), device("1")), slice("m", "n", 2, onLabel("right"), device("2"))},
			[]*resourcev1.ResourceClaim{wanted("x", 1)}, uses("x"), "a: x n/1; b: " + none + "; c: x n/2"},
		"both": {append([]*resourcev1.ResourceSlice{slice("n", "z", 1, onAll, device("9"))}, local...), []*resourcev1.ResourceClaim{wanted("x", 2)}, uses("x"),
			"a: x a/1 a/2; b: x b/1 z/9; c: " + none},
		"a part of a pool, all wanted": {[]*resourcev1.ResourceSlice{slice("n", "n", 2, onAll, device("1"))},
			[]*resourcev1.ResourceClaim{wanted("x", 0, exactly(func(r *resourcev1.ExactDeviceRequest) { r.AllocationMode = resourcev1.DeviceAllocationModeAll }))}, uses("x"),
			"a: claim ns/x, request r: asks for all devices, but resource pool d/n is currently being updated; b: claim ns/x, request r: asks for all devices, but resource pool d/n is currently being updated; " +
				"c: claim ns/x, request r: asks for all devices, but resource pool d/n is currently being updated"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := world(t, []*corev1.Node{node("a", label("left", "")), node("b"), node("c", label("right", ""))}, nil)
			c.Devices.Now = now
			c.Devices.SetClass(&resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "any"}}, false)
			for _, s := range tt.slices {
				c.Devices.SetSlice(s, false)
			}
			for _, x := range tt.claims {
				c.Devices.SetClaim(x)
			}
			if got := allotted(c, pod("p", tt.pod)); got != tt.want {
				t.Errorf("got\n%s, want\n%s", got, tt.want)
			}
		})
	}
}

// A device that can be shared has room for as many claims as its capacity allows, and parts of a device take from what others have left.
func TestParts(t *testing.T) {
	t.Parallel()
	quantity := resource.MustParse
	shared := slice("a", "a", 1, onNode("a"), device("1", func(d *resourcev1.Device) {
		d.AllowMultipleAllocations = new(true)
		d.Capacity = map[resourcev1.QualifiedName]resourcev1.DeviceCapacity{"memory": {Value: quantity("10Gi")}}
	}))
	counters := slice("b-counters", "b", 2, onNode("b"))
	counters.Spec.SharedCounters = []resourcev1.CounterSet{{Name: "gpu", Counters: map[string]resourcev1.Counter{"memory": {Value: quantity("10Gi")}}}}
	part := func(of string) func(*resourcev1.Device) {
		return func(d *resourcev1.Device) {
			d.ConsumesCounters = []resourcev1.DeviceCounterConsumption{{CounterSet: "gpu", Counters: map[string]resourcev1.Counter{"memory": {Value: quantity(of)}}}}
		}
	}
	parts := slice("b-parts", "b", 2, onNode("b"), device("1", part("4Gi")), device("2", part("4Gi")), device("3", part("4Gi")))
	for name, tt := range map[string]struct {
		slices []*resourcev1.ResourceSlice
		size   string
		want   int
	}{
		"shared":      {[]*resourcev1.ResourceSlice{shared}, "3Gi", 3},
		"partitioned": {[]*resourcev1.ResourceSlice{counters, parts}, "", 2},
	} {
		c := world(t, []*corev1.Node{node("a"), node("b")}, nil)
		c.Devices.SetClass(&resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "any"}}, false)
		for _, s := range tt.slices {
			c.Devices.SetSlice(s, false)
		}
		n := 0
		for ; n < 10; n++ {
			claim := wanted(fmt.Sprint("x", n), 1, exactly(func(r *resourcev1.ExactDeviceRequest) {
				if tt.size != "" {
					r.Capacity = &resourcev1.CapacityRequirements{Requests: map[resourcev1.QualifiedName]resource.Quantity{"memory": quantity(tt.size)}}
				}
			}))
			c.Devices.SetClaim(claim)
			p, err := c.Pod(pod("p", uses(claim.Name)))
			if err != nil {
				t.Fatal(err)
			}
			check, err := dynamicResources.Prepare(c, p)
			if err != nil {
				t.Fatal(err)
			}
			slot := slices.IndexFunc([]int{0, 1}, check.Pass)
			if slot < 0 {
				break
			}
			c.Devices.Promise(claim.UID, DevicesOn(c, p, slot).Reserve[0].Allocation)
		}
		if n != tt.want {
			t.Errorf("%s: %d claims got something, want %d", name, n, tt.want)
		}
		for i := range n {
			c.Devices.Withdraw(types.UID(fmt.Sprint("x", i)))
		}
		if s := c.Devices.Taken; len(s.AllocatedDevices)+len(s.AllocatedSharedDeviceIDs)+len(s.AggregatedCapacity) != 0 {
			t.Errorf("%s: %+v is taken by nobody", name, s)
		}
	}
}

// A search that takes too long, or is interrupted, ends, and is not begun anew for further nodes.
func TestSearchEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*demands){
		"timed out trying to allocate devices":    func(d *demands) { d.left = 0 },
		"filter operation aborted: shutting down": func(d *demands) { d.c.Devices.Ended = func() error { return errors.New("shutting down") } },
	} {
		c := world(t, []*corev1.Node{node("a"), node("b")}, nil)
		c.Devices.SetClass(&resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "any"}}, false)
		c.Devices.SetSlice(slice("s", "s", 1, onAll, device("1")), false)
		c.Devices.SetClaim(wanted("x", 1))
		p, err := c.Pod(pod("p", uses("x")))
		if err != nil {
			t.Fatal(err)
		}
		d, err := demandsOf(c, p)
		if err != nil {
			t.Fatal(err)
		}
		end(d)
		if a := d.on(0); a.why != name {
			t.Errorf("got %q, want %q", a.why, name)
		}
		d.left, d.c.Devices.Ended = time.Hour, nil
		if b := d.on(1); b.why != name {
			t.Errorf("got %q, want %q", b.why, name)
		}
		// Nor for other pods that want the same, for a time.
		c.Devices.SetClaim(wanted("y", 1))
		c.Devices.SetClaim(wanted("z", 2))
		want := "a: y s/1; b: y s/1"
		if name == tooSlow {
			want = "a: " + tooSlow + "; b: " + tooSlow
		}
		if got := allotted(c, pod("q", uses("y"))); got != want {
			t.Errorf("after %s: %s", name, got)
		}
		if got := allotted(c, pod("q", uses("z"))); got != "a: cannot allocate all claims; b: cannot allocate all claims" {
			t.Errorf("after %s: %s", name, got)
		}
		c.Devices.Now = c.Devices.Now.Add(slowTime)
		if got := allotted(c, pod("q", uses("y"))); got != "a: y s/1; b: y s/1" {
			t.Errorf("later: %s", got)
		}
	}
}

// Nodes that have what is asked for first get the most.
func TestAlternativesScore(t *testing.T) {
	t.Parallel()
	c := world(t, []*corev1.Node{node("a"), node("b"), node("c")}, nil)
	c.Devices.SetClass(&resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "any"}}, false)
	for n, m := range map[string]string{"a": "good", "b": "best", "c": "better"} {
		c.Devices.SetSlice(slice(n, n, 1, onNode(n), device("1", model(m))), false)
	}
	c.Devices.SetClaim(wanted("x", 1, alternatives("best", "better", "good")))
	p, err := c.Pod(pod("p", uses("x")))
	if err != nil {
		t.Fatal(err)
	}
	rank := dynamicResourcesScore.Prepare(c, p, nil)
	got := []int64{rank(0), rank(1), rank(2)}
	dynamicResourcesScore.Scale.Apply(got)
	if !slices.Equal(got, []int64{75, 100, 87}) {
		t.Errorf("scores are %v", got)
	}
}

// What is taken is what claims have and what is promised, whatever the order in which both are seen.
func TestTaken(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	c := cluster.New()
	d := &c.Devices
	promised := map[string]bool{}
	version := 1
	for range 5000 {
		name := fmt.Sprint("x", r.IntN(5))
		version++
		next := wanted(name, 1, func(c *resourcev1.ResourceClaim) { c.ResourceVersion = fmt.Sprint(version) })
		known := d.Claims[api.KeyOf(next)]
		give := has("a", "a", []string{name})
		switch r.IntN(6) {
		case 0:
			d.SetClaim(next) // no allocation
		case 1:
			give(next)
			d.SetClaim(next)
			delete(promised, name)
		case 2:
			if known != nil && known.Status.Allocation == nil {
				give(next)
				d.Promise(next.UID, next.Status.Allocation)
				promised[name] = true
			}
		case 3:
			d.Withdraw(next.UID)
			delete(promised, name)
		case 4:
			d.RemoveClaim(next)
			if known != nil {
				delete(promised, name)
			}
		case 5:
			give(next)
			next.ResourceVersion = "1"
			if known != nil {
				d.SetClaim(next) // from before
			}
		}
		var want, got []string
		for i := range 5 {
			name := fmt.Sprint("x", i)
			if c := d.Claims[api.Key{Namespace: "ns", Name: name}]; promised[name] || c != nil && c.Status.Allocation != nil {
				want = append(want, "d/a/"+name)
			}
		}
		for id := range d.Taken.AllocatedDevices {
			got = append(got, id.String())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("taken is %v, want %v", got, want)
		}
	}
}

// Where nothing was found for one pod, nothing is searched for others that want the same, until there may be more.
func TestBarren(t *testing.T) {
	t.Parallel()
	c := world(t, []*corev1.Node{node("a"), node("b")}, nil)
	c.Devices.SetClass(&resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "any"}}, false)
	c.Devices.SetSlice(slice("a", "a", 1, onNode("a"), device("1"), device("2")), false)
	c.Devices.SetSlice(slice("b", "b", 1, onNode("b"), device("1")), false)
	other := wanted("other", 1, has("b", "b", []string{"1"}))
	c.Devices.SetClaim(other)
	for i := range 9 {
		c.Devices.SetClaim(wanted(fmt.Sprint("x", i), 1))
	}
	c.Devices.SetClaim(wanted("two", 2))
	searched := 0
	c.Devices.Ended = func() error { searched++; return nil }
	try := func(claim, want string, searches bool) {
		t.Helper()
		searched = 0
		p := pod("p", uses(claim))
		got := allotted(c, p)
		if got != want || (searched > 0) != searches {
			t.Errorf("%s: got %s after %d looks, want %s", claim, got, searched, want)
		}
		q, err := c.Pod(p)
		if err != nil {
			t.Fatal(err)
		}
		for slot := range c.Nodes {
			d, err := demandsOf(c, q)
			if err == nil && len(d.on(slot).allocations) > 0 {
				c.Devices.Promise(types.UID(claim), &d.on(slot).allocations[0])
				return
			}
		}
	}
	none := "cannot allocate all claims"
	try("x0", "a: x0 a/1; b: "+none, true)
	try("x1", "a: x1 a/2; b: "+none, true)
	try("x2", "a: "+none+"; b: "+none, true)
	try("x3", "a: "+none+"; b: "+none, false)
	try("two", "a: "+none+"; b: "+none, true)
	try("two", "a: "+none+"; b: "+none, false)
	c.Devices.RemoveClaim(other)
	try("x3", "a: "+none+"; b: x3 b/1", true)
	try("x4", "a: "+none+"; b: "+none, true)
	try("x5", "a: "+none+"; b: "+none, false)
	c.SetNode(node("a", label("new", "")))
	try("x5", "a: "+none+"; b: "+none, true)
	c.Devices.SetSlice(slice("n", "n", 1, onAll, device("1")), false)
	try("x5", "a: x5 n/1; b: x5 n/1", true)
	c.Devices.Withdraw("x5")
	try("x6", "a: x6 n/1; b: x6 n/1", true)
}
