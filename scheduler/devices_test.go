package scheduler

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

const driver = "gpu.example.com"

func (b *bench) deviceClass(name string) {
	b.t.Helper()
	o := &resourcev1.DeviceClass{}
	o.Name = name
	o.Spec.Selectors = []resourcev1.DeviceSelector{{CEL: &resourcev1.CELDeviceSelector{Expression: `device.driver == "` + driver + `"`}}}
	b.create(o)
}

// devices makes a slice of devices on a node, of a pool of its own.
func (b *bench) devices(node string, names ...string) *resourcev1.ResourceSlice {
	b.t.Helper()
	o := &resourcev1.ResourceSlice{}
	o.Name, o.Spec.Driver, o.Spec.NodeName = "slice-"+node, driver, &node
	o.Spec.Pool = resourcev1.ResourcePool{Name: node, Generation: 1, ResourceSliceCount: 1}
	for _, n := range names {
		o.Spec.Devices = append(o.Spec.Devices, resourcev1.Device{Name: n})
	}
	return b.create(o).(*resourcev1.ResourceSlice)
}

func (b *bench) devicesWanted(name string, count int64, change ...func(*resourcev1.ResourceClaim)) *resourcev1.ResourceClaim {
	b.t.Helper()
	o := &resourcev1.ResourceClaim{}
	o.Namespace, o.Name = "default", name
	o.Spec.Devices.Requests = []resourcev1.DeviceRequest{{Name: "r", Exactly: &resourcev1.ExactDeviceRequest{
		DeviceClassName: "gpu", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: count}}}
	for _, f := range change {
		f(o)
	}
	return b.create(o).(*resourcev1.ResourceClaim)
}

func (b *bench) resourceClaim(name string) *resourcev1.ResourceClaim {
	b.t.Helper()
	synctest.Wait()
	c, err := client.Get[*resourcev1.ResourceClaim](b.t.Context(), b.Client, api.Key{Namespace: "default", Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) claimStatus(name string, change func(*resourcev1.ResourceClaim)) {
	b.t.Helper()
	if _, err := client.Mutate(b.t.Context(), b.Client, b.resourceClaim(name), "status", change); err != nil {
		b.t.Fatal(err)
	}
}

// has says what a claim has and for whom: "n1/d1 n1/d2 for p".
func (b *bench) has(name string) string {
	b.t.Helper()
	c := b.resourceClaim(name)
	var devices, pods []string
	if c.Status.Allocation != nil {
		for _, r := range c.Status.Allocation.Devices.Results {
			devices = append(devices, r.Pool+"/"+r.Device)
		}
		if !slices.Contains(c.Finalizers, resourcev1.Finalizer) {
			b.t.Errorf("claim %s has devices but no finalizer", name)
		}
	}
	for _, r := range c.Status.ReservedFor {
		if r.Resource != "pods" || r.UID == "" {
			b.t.Errorf("claim %s is reserved for %+v", name, r)
		}
		pods = append(pods, r.Name)
	}
	slices.Sort(devices)
	slices.Sort(pods)
	return strings.Join(devices, " ") + " for " + strings.Join(pods, " ")
}

func (b *bench) expectClaim(name, want string) {
	b.t.Helper()
	if got := b.has(name); got != want {
		b.t.Errorf("claim %s has %q, want %q", name, got, want)
	}
}

func withDevices(claims ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for i, c := range claims {
			p.Spec.ResourceClaims = append(p.Spec.ResourceClaims, corev1.PodResourceClaim{Name: fmt.Sprint("c", i), ResourceClaimName: &c})
		}
	}
}

// end takes a pod away at once and its reservations with it, as the controller does. Claims that nobody uses give their devices back.
func (b *bench) end(name string) {
	b.t.Helper()
	grace := int64(0)
	p := b.pod(name)
	if err := b.Delete(b.t.Context(), p, client.DeleteOptions{Grace: &grace}); err != nil {
		b.t.Fatal(err)
	}
	for c := range p.Spec.ResourceClaims {
		b.claimStatus(*p.Spec.ResourceClaims[c].ResourceClaimName, func(c *resourcev1.ResourceClaim) {
			c.Status.ReservedFor = slices.DeleteFunc(c.Status.ReservedFor, func(r resourcev1.ResourceClaimConsumerReference) bool { return r.UID == p.UID })
			if len(c.Status.ReservedFor) == 0 {
				c.Status.Allocation, c.Status.ReservedFor = nil, nil
			}
		})
	}
}

// A pod goes where the devices are, its claim has them, and the next one waits until they are free again.
func TestDevices(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		for _, n := range []string{"n1", "n2", "n3"} {
			b.node(makeNode(n))
		}
		b.create(makePod("a", withDevices("a")))
		time.Sleep(time.Minute)
		b.expect("a", "", `0/3 nodes are available: resourceclaim "a" not found.`)
		b.devicesWanted("a", 2)
		time.Sleep(time.Minute)
		b.expect("a", "", "0/3 nodes are available: request r: device class gpu does not exist.")
		b.deviceClass("gpu")
		time.Sleep(time.Minute)
		b.expect("a", "", "0/3 nodes are available: 3 cannot allocate all claims.")
		b.devices("n1", "d1")
		b.devices("n2", "d1", "d2", "d3")
		time.Sleep(time.Minute)
		b.expect("a", "n2", "")
		b.expectClaim("a", "n2/d1 n2/d2 for a")
		if at := b.resourceClaim("a").Status.Allocation.AllocationTimestamp; at == nil {
			t.Error("the allocation has no time")
		}

		b.devicesWanted("b", 2)
		b.create(makePod("b", withDevices("b")))
		time.Sleep(time.Minute)
		b.expect("b", "", "0/3 nodes are available: 3 cannot allocate all claims.")
		b.expectClaim("b", " for ")
		b.end("a")
		time.Sleep(time.Minute)
		b.expect("b", "n2", "")
		b.expectClaim("b", "n2/d1 n2/d2 for b")
	})
}

// Claims of many pods at once: no device is given twice, and none is left over.
func TestDevicesAtOnce(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.deviceClass("gpu")
		const nodes, each = 5, 4
		for i := range nodes {
			b.node(makeNode(fmt.Sprint("n", i)))
			b.devices(fmt.Sprint("n", i), "d0", "d1", "d2", "d3")
		}
		const n = nodes*each + 3
		for i := range n {
			b.devicesWanted(fmt.Sprint("c", i), 1)
			b.create(makePod(fmt.Sprint("p", i), withDevices(fmt.Sprint("c", i))))
		}
		time.Sleep(time.Minute)
		seen := map[string]string{}
		waiting := 0
		for i := range n {
			p, got := b.pod(fmt.Sprint("p", i)), b.has(fmt.Sprint("c", i))
			if p.Spec.NodeName == "" {
				waiting++
				continue
			}
			device, forPod, _ := strings.Cut(got, " for ")
			if !strings.HasPrefix(device, p.Spec.NodeName+"/") || forPod != p.Name || seen[device] != "" {
				t.Errorf("pod %s on %s: claim has %q, which %s has too", p.Name, p.Spec.NodeName, got, seen[device])
			}
			seen[device] = p.Name
		}
		if waiting != 3 {
			t.Errorf("%d pods wait", waiting)
		}
	})
}

// Pods share a claim: they all go where its devices are.
func TestSharedClaim(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.deviceClass("gpu")
		for _, n := range []string{"n1", "n2"} {
			b.node(makeNode(n))
			b.devices(n, "d")
		}
		b.devicesWanted("a", 1)
		for i := range 5 {
			b.create(makePod(fmt.Sprint("p", i), withDevices("a", "a")))
		}
		time.Sleep(time.Minute)
		node := b.pod("p0").Spec.NodeName
		for i := range 5 {
			b.expect(fmt.Sprint("p", i), node, "")
		}
		b.expectClaim("a", node+"/d for p0 p1 p2 p3 p4")
		evs, err := client.List[*corev1.Event](b.t.Context(), b.Client, client.Query{Namespace: "default"})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range evs {
			if e.Reason == "FailedScheduling" {
				t.Errorf("%s: %s", e.InvolvedObject.Name, e.Message)
			}
		}

		// All places are taken.
		b.claimStatus("a", func(c *resourcev1.ResourceClaim) {
			for i := len(c.Status.ReservedFor); i < resourcev1.ResourceClaimReservedForMaxSize; i++ {
				id := fmt.Sprint("x", i)
				c.Status.ReservedFor = append(c.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: id, UID: types.UID(id)})
			}
		})
		synctest.Wait()
		b.create(makePod("late", withDevices("a")))
		time.Sleep(time.Minute)
		b.expect("late", "", "0/2 nodes are available: resourceclaim in use.")
		b.claimStatus("a", func(c *resourcev1.ResourceClaim) { c.Status.ReservedFor = c.Status.ReservedFor[:100] })
		time.Sleep(time.Minute)
		b.expect("late", node, "")
	})
}

// A pod whose claim is made for it waits in silence until it is there, and takes no one else's.
func TestGeneratedClaim(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.deviceClass("gpu")
		b.node(makeNode("n1"))
		b.devices("n1", "d1", "d2")
		template := "t"
		b.create(makePod("a", func(p *corev1.Pod) {
			p.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "c", ResourceClaimTemplateName: &template}, {Name: "none", ResourceClaimTemplateName: &template}}
		}))
		time.Sleep(time.Minute)
		b.expect("a", "", "")
		name := "a-c-x"
		made := func(p *corev1.Pod) {
			p.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "c", ResourceClaimName: &name}, {Name: "none"}}
		}
		if _, err := client.Mutate(b.t.Context(), b.Client, b.pod("a"), "status", made); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		b.expect("a", "", "")
		b.devicesWanted(name, 1)
		time.Sleep(time.Minute)
		b.expect("a", "", "0/1 nodes are available: ResourceClaim default/a-c-x was not created for Pod default/a (Pod is not owner).")
		if err := b.Delete(b.t.Context(), b.resourceClaim(name), client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		b.devicesWanted(name, 1, func(c *resourcev1.ResourceClaim) {
			c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "a", UID: b.pod("a").UID, Controller: new(true)}}
		})
		time.Sleep(time.Minute)
		b.expect("a", "n1", "")
		b.expectClaim(name, "n1/d1 for a")
	})
}

// Devices that a claim has where no pod can use them are given back, and it gets others.
func TestIdleDevices(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.deviceClass("gpu")
		b.node(makeNode("n1"))
		b.devices("n1", "d1")
		b.devicesWanted("a", 1)
		b.create(makePod("a", withDevices("a")))
		time.Sleep(time.Minute)
		b.expect("a", "n1", "")
		grace := int64(0)
		if err := b.Delete(b.t.Context(), b.pod("a"), client.DeleteOptions{Grace: &grace}); err != nil {
			t.Fatal(err)
		}
		n1, err := client.Get[*corev1.Node](b.t.Context(), b.Client, api.Key{Name: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Mutate(b.t.Context(), b.Client, n1, "", func(n *corev1.Node) { n.Spec.Unschedulable = true }); err != nil {
			t.Fatal(err)
		}
		b.node(makeNode("n2"))
		b.devices("n2", "d2")
		synctest.Wait()
		b.create(makePod("b", withDevices("a")))
		time.Sleep(time.Minute)
		b.expect("b", "", "0/2 nodes are available: 1 node(s) were unschedulable, 1 resourceclaim not available on the node.")
		b.expectClaim("a", "n1/d1 for a") // it seems to be in use
		b.claimStatus("a", func(c *resourcev1.ResourceClaim) { c.Status.ReservedFor = nil })
		time.Sleep(time.Minute)
		b.expect("b", "n2", "")
		b.expectClaim("a", "n2/d2 for b")
	})
}

// Devices with taints are for those who tolerate them, whether their driver says so or a rule.
func TestTaintedDevices(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.deviceClass("gpu")
		b.node(makeNode("n1"))
		b.devices("n1", "d1", "d2")
		pool, device := "n1", "d1"
		rule := &resourcev1.DeviceTaintRule{ObjectMeta: metav1.ObjectMeta{Name: "broken"}}
		rule.Spec.DeviceSelector = &resourcev1.DeviceTaintSelector{Pool: &pool, Device: &device}
		rule.Spec.Taint = resourcev1.DeviceTaint{Key: "broken", Effect: resourcev1.DeviceTaintEffectNoSchedule}
		got := b.create(rule)
		b.devicesWanted("a", 1)
		b.devicesWanted("b", 1)
		b.devicesWanted("c", 1, func(c *resourcev1.ResourceClaim) {
			c.Spec.Devices.Requests[0].Exactly.Tolerations = []resourcev1.DeviceToleration{{Key: "broken", Operator: resourcev1.DeviceTolerationOpExists}}
		})
		b.create(makePod("a", withDevices("a")))
		time.Sleep(time.Minute)
		b.expectClaim("a", "n1/d2 for a")
		b.create(makePod("b", withDevices("b")))
		time.Sleep(time.Minute)
		b.expect("b", "", "0/1 nodes are available: 1 cannot allocate all claims.")
		b.create(makePod("c", withDevices("c")))
		time.Sleep(time.Minute)
		b.expectClaim("c", "n1/d1 for c")
		b.end("c")
		time.Sleep(time.Minute)
		b.expect("b", "", "0/1 nodes are available: 1 cannot allocate all claims.")
		if err := b.Delete(b.t.Context(), got, client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		b.expectClaim("b", "n1/d1 for b")
	})
}

// Drivers make devices ready before the pod is bound: while they do it is promised the node, and when they cannot it gets other devices.
func TestBindingConditions(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.deviceClass("gpu")
		b.node(makeNode("n1"))
		b.node(makeNode("n2"))
		slice := func(node string) {
			o := &resourcev1.ResourceSlice{}
			o.Name, o.Spec.Driver, o.Spec.NodeName = "slice-"+node, driver, &node
			o.Spec.Pool = resourcev1.ResourcePool{Name: node, Generation: 1, ResourceSliceCount: 1}
			o.Spec.Devices = []resourcev1.Device{{Name: "d", BindingConditions: []string{"attached"}, BindingFailureConditions: []string{"broken"}}}
			b.create(o)
		}
		say := func(condition, node string) {
			b.claimStatus("a", func(c *resourcev1.ResourceClaim) {
				c.Status.Devices = []resourcev1.AllocatedDeviceStatus{{Driver: driver, Pool: node, Device: "d", Conditions: []metav1.Condition{
					{Type: condition, Status: metav1.ConditionTrue, Reason: "X", LastTransitionTime: metav1.Now()}}}}
			})
		}
		waits := func(node string) {
			t.Helper()
			if p := b.pod("a"); p.Spec.NodeName != "" || p.Status.NominatedNodeName != node {
				t.Errorf("pod is on %q, promised %q, want %q", p.Spec.NodeName, p.Status.NominatedNodeName, node)
			}
			b.expectClaim("a", node+"/d for a")
		}
		slice("n1")
		b.devicesWanted("a", 1)
		b.create(makePod("a", withDevices("a"), requests("3", "1Gi")))
		time.Sleep(time.Minute)
		waits("n1")
		// Its room is kept meanwhile.
		b.create(makePod("other", requests("3", "1Gi")))
		time.Sleep(time.Minute)
		b.expect("other", "n2", "")
		if err := b.Delete(b.t.Context(), b.pod("other"), client.DeleteOptions{Grace: new(int64)}); err != nil {
			t.Fatal(err)
		}
		slice("n2")
		synctest.Wait()
		say("broken", "n1")
		time.Sleep(time.Minute)
		if got := b.has("a"); got != "n1/d for a" && got != "n2/d for a" {
			t.Errorf("claim has %q", got)
		}
		say("attached", b.pod("a").Status.NominatedNodeName)
		time.Sleep(time.Minute)
		if p := b.pod("a"); p.Spec.NodeName == "" || b.has("a") != p.Spec.NodeName+"/d for a" {
			t.Errorf("pod is on %q, claim has %q", p.Spec.NodeName, b.has("a"))
		}

		// A driver that never says anything: other devices are tried after a time.
		b.end("a")
		b.create(makePod("b", withDevices("a")))
		time.Sleep(bindingPatience - time.Minute)
		first := b.has("a")
		if p := b.pod("b"); p.Spec.NodeName != "" || p.Status.NominatedNodeName == "" || !strings.HasPrefix(first, p.Status.NominatedNodeName) {
			t.Errorf("pod is on %q, promised %q, claim has %q", p.Spec.NodeName, p.Status.NominatedNodeName, first)
		}
		at := b.resourceClaim("a").Status.Allocation.AllocationTimestamp
		time.Sleep(2 * time.Minute)
		if now := b.resourceClaim("a").Status.Allocation; now == nil || !now.AllocationTimestamp.After(at.Time) {
			t.Errorf("it waits for the same device: %+v", now)
		}
	})
}

const bindingPatience = 10 * time.Minute

// A pod with both sorts of claims gets its volume and its devices on one node.
func TestDevicesAndVolumes(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.deviceClass("gpu")
		b.late("local", "kubernetes.io/no-provisioner")
		for _, n := range []string{"n1", "n2", "n3"} {
			b.node(makeNode(n))
		}
		b.local("v1", "local", "n1")
		b.local("v2", "local", "n2")
		b.devices("n2", "d")
		b.devices("n3", "d")
		b.claim("v", "local")
		b.devicesWanted("d", 1)
		synctest.Wait()
		b.create(makePod("a", usesClaim("v"), withDevices("d")))
		time.Sleep(time.Minute)
		b.expectClaim("d", "n2/d for a") // at once: nobody else can take it while the volume is bound
		if got := b.bound(); got != "v2=v " {
			t.Errorf("bound: %s", got)
		}
		time.Sleep(time.Minute)
		b.expect("a", "n2", "")
	})
}

// A pod with claims drives others off the only node that has devices for it, when there is no room, but never for devices.
func TestDevicesAndPreemption(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.deviceClass("gpu")
		b.node(makeNode("n1"))
		b.node(makeNode("n2"))
		b.devices("n1", "d1")
		b.devicesWanted("high", 1)
		b.devicesWanted("higher", 1)
		here := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n1"} }
		b.create(makePod("low", requests("3", "1Gi"), here, important32(1)))
		time.Sleep(time.Minute)
		b.create(makePod("high", requests("3", "1Gi"), withDevices("high"), important32(5)))
		time.Sleep(time.Minute)
		if got := b.gone(); len(got) != 1 || got[0] != "low" {
			t.Errorf("%v had to go", got)
		}
		time.Sleep(time.Minute)
		b.expect("high", "n1", "")
		b.expectClaim("high", "n1/d1 for high")
		b.create(makePod("higher", requests("100m", "1Gi"), withDevices("higher"), important32(9)))
		time.Sleep(time.Minute)
		b.expect("higher", "", "0/2 nodes are available: 2 cannot allocate all claims.")
		if got := b.gone(); len(got) != 0 {
			t.Errorf("%v had to go for devices that this does not free", got)
		}
	})
}

// watching notes which kinds are watched.
type watching struct {
	client.Client
	mu    sync.Mutex
	kinds []string
}

func (w *watching) Watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.kinds = append(w.kinds, k.Kind)
	return w.Client.Watch(ctx, k, q, from)
}

// devices says which kinds of devices are watched.
func (w *watching) devices() (kinds []string) {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range deviceKinds() {
		for _, got := range w.kinds {
			if got == k.Kind {
				kinds = append(kinds, got)
			}
		}
	}
	return kinds
}

// Devices are looked at from the first pod on that needs them.
func TestDevicesAreNotWatchedForNothing(t *testing.T) {
	t.Parallel()
	w := &watching{}
	bubble(t, func(c client.Client) client.Client { w.Client = c; return w }, func(b *bench) {
		b.node(makeNode("n1"))
		b.deviceClass("gpu")
		b.devices("n1", "d1", "d2")
		for _, c := range []string{"a", "b"} {
			b.devicesWanted(c, 1)
		}
		b.create(makePod("plain"))
		b.create(makePod("others", withDevices("a"), func(p *corev1.Pod) { p.Spec.SchedulerName = "other" }))
		time.Sleep(time.Minute)
		b.expect("plain", "n1", "")
		if got := w.devices(); len(got) != 0 {
			t.Errorf("watches %v", got)
		}
		for _, c := range []string{"a", "b"} {
			b.create(makePod(c, withDevices(c)))
			time.Sleep(time.Minute)
			b.expect(c, "n1", "")
		}
		if got := w.devices(); len(got) != 4 {
			t.Errorf("watches %v", got)
		}
	})
}
