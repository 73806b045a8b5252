package scheduler

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

const gpuResource corev1.ResourceName = "example.com/gpu"

// gpuClass is a class that stands for the resource.
func (b *bench) gpuClass() {
	b.t.Helper()
	o := &resourcev1.DeviceClass{}
	o.Name, o.Spec.ExtendedResourceName = "gpu", new(string(gpuResource))
	b.create(o)
}

func asksFor(name corev1.ResourceName, n string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		l := corev1.ResourceList{name: resource.MustParse(n)}
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: l, Limits: l}
	}
}

func plugged(n string) func(*corev1.Node) {
	return func(o *corev1.Node) { o.Status.Allocatable[gpuResource] = resource.MustParse(n) }
}

// control lets go of claims that are being deleted and have no devices, and deletes those of pods that are gone, as the controllers do.
func (b *bench) control() (stop func()) {
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for e, err := range b.Watch(ctx, api.ResourceClaimKind, client.Query{}, 0) {
			c, ok := e.Object.(*resourcev1.ResourceClaim)
			if err != nil || !ok || e.Op == client.Deleted {
				continue
			}
			if c.DeletionTimestamp != nil && c.Status.Allocation == nil && len(c.Finalizers) > 0 {
				_, _ = client.Mutate(ctx, b.Client, c, "", func(c *resourcev1.ResourceClaim) { c.Finalizers = nil })
			}
		}
	}()
	return func() { cancel(); <-done }
}

// special says which devices a pod has by its special claim, and which requests its container has: "n1/d1 (container-0-request-0)".
func (b *bench) special(name string) string {
	b.t.Helper()
	p := b.pod(name)
	s := p.Status.ExtendedResourceClaimStatus
	if s == nil {
		return ""
	}
	c := b.resourceClaim(s.ResourceClaimName)
	if !metav1.IsControlledBy(c, p) || c.Annotations[resourcev1.ExtendedResourceClaimAnnotation] != "true" || !strings.HasPrefix(c.Name, name+"-extended-resources-") {
		b.t.Errorf("claim of pod %s: %+v", name, c.ObjectMeta)
	}
	devices, forPod, _ := strings.Cut(b.has(s.ResourceClaimName), " for ")
	if forPod != name {
		b.t.Errorf("claim of pod %s is for %q", name, forPod)
	}
	var requests []string
	for _, m := range s.RequestMappings {
		requests = append(requests, m.RequestName)
	}
	return devices + " (" + strings.Join(requests, " ") + ")"
}

func (b *bench) expectSpecial(name, node, message, devices string) {
	b.t.Helper()
	b.expect(name, node, message)
	if got := b.special(name); got != devices {
		b.t.Errorf("pod %s has %q, want %q", name, got, devices)
	}
}

// finish takes a pod away, and the claim that was made for it.
func (b *bench) finish(name string) {
	b.t.Helper()
	p := b.pod(name)
	grace := int64(0)
	if err := b.Delete(b.t.Context(), p, client.DeleteOptions{Grace: &grace}); err != nil {
		b.t.Fatal(err)
	}
	s := p.Status.ExtendedResourceClaimStatus
	if s == nil {
		return
	}
	b.claimStatus(s.ResourceClaimName, func(c *resourcev1.ResourceClaim) { c.Status.Allocation, c.Status.ReservedFor = nil, nil })
	if err := b.Delete(b.t.Context(), b.resourceClaim(s.ResourceClaimName), client.DeleteOptions{}); err != nil {
		b.t.Fatal(err)
	}
}

// claims are how many there are.
func (b *bench) claims() (n int) {
	b.t.Helper()
	synctest.Wait()
	all, err := client.List[*resourcev1.ResourceClaim](b.t.Context(), b.Client, client.Query{})
	if err != nil {
		b.t.Fatal(err)
	}
	for range all {
		n++
	}
	return n
}

func TestExtendedResources(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		defer b.control()()
		b.node(makeNode("n1"))
		b.node(makeNode("n2"))
		b.node(makeNode("n3", plugged("1")))
		b.devices("n2", "d1", "d2")
		// Without a class it is a resource like others.
		b.create(makePod("a", asksFor(gpuResource, "2")))
		time.Sleep(time.Minute)
		b.expect("a", "", "0/3 nodes are available: 3 Insufficient example.com/gpu.")
		b.gpuClass()
		time.Sleep(time.Minute)
		b.expectSpecial("a", "n2", "", "n2/d1 n2/d2 (container-0-request-0)")
		// A node that offers it serves it itself.
		b.create(makePod("b", asksFor(gpuResource, "1")))
		time.Sleep(time.Minute)
		b.expectSpecial("b", "n3", "", "")
		b.create(makePod("c", asksFor("deviceclass.resource.kubernetes.io/gpu", "1")))
		time.Sleep(time.Minute)
		b.expectSpecial("c", "", "0/3 nodes are available: 3 cannot allocate all claims.", "")
		b.create(makePod("d", asksFor(gpuResource, "1")))
		time.Sleep(time.Minute)
		b.expectSpecial("d", "", "0/3 nodes are available: 1 Insufficient example.com/gpu, 2 cannot allocate all claims.", "")
		b.finish("a")
		time.Sleep(time.Minute)
		for _, name := range []string{"c", "d"} {
			b.expect(name, "n2", "")
		}
		if c, d := b.special("c"), b.special("d"); c == d || c == "" || d == "" {
			t.Errorf("pods have %q and %q", c, d)
		}
		// Beside a claim of the pod's own.
		b.finish("c")
		b.devicesWanted("own", 1)
		b.create(makePod("e", asksFor(gpuResource, "1"), withDevices("own")))
		time.Sleep(time.Minute)
		b.expectSpecial("e", "", "0/3 nodes are available: 1 Insufficient example.com/gpu, 2 cannot allocate all claims.", "")
		b.finish("d")
		time.Sleep(time.Minute)
		b.expect("e", "n2", "")
		if own, special := b.has("own"), b.special("e"); !strings.HasSuffix(own, " for e") || special == "" || strings.HasPrefix(special, strings.Fields(own)[0]) {
			t.Errorf("pod has %q and %q", own, special)
		}
		if n := b.claims(); n != 2 {
			t.Errorf("%d claims are left", n)
		}
		// A device plugin comes to a node whose class has nothing.
		b.create(makePod("f", asksFor(gpuResource, "2")))
		time.Sleep(time.Minute)
		b.expectSpecial("f", "", "0/3 nodes are available: 1 Insufficient example.com/gpu, 2 cannot allocate all claims.", "")
		n1, err := client.Get[*corev1.Node](b.t.Context(), b.Client, api.Key{Name: "n1"})
		if err == nil {
			_, err = client.Mutate(b.t.Context(), b.Client, n1, "status", plugged("2"))
		}
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		b.expectSpecial("f", "n1", "", "")
	})
}

// Many at once, more than there are devices: none is given twice, and no claim is made for those that wait.
func TestExtendedResourcesAtOnce(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		defer b.control()()
		b.gpuClass()
		for i := range 4 {
			b.node(makeNode(fmt.Sprint("n", i)))
			b.devices(fmt.Sprint("n", i), "d0", "d1", "d2")
		}
		for i := range 15 {
			b.create(makePod(fmt.Sprint("p", i), asksFor(gpuResource, "1")))
		}
		time.Sleep(time.Minute)
		seen, waiting := map[string]bool{}, 0
		for i := range 15 {
			p := b.pod(fmt.Sprint("p", i))
			if p.Spec.NodeName == "" {
				waiting++
				continue
			}
			got := b.special(p.Name)
			if !strings.HasPrefix(got, p.Spec.NodeName+"/") || seen[got] {
				t.Errorf("pod %s on %s has %q", p.Name, p.Spec.NodeName, got)
			}
			seen[got] = true
		}
		if n := b.claims(); waiting != 3 || n != 12 {
			t.Errorf("%d pods wait, %d claims", waiting, n)
		}
	})
}

// breaker refuses or loses writes that are made for special claims.
type breaker struct {
	meddler
	create  int // answers to creations that are lost
	refused int // creations that are refused
	status  int // changes of pods' status that fail, after the claim was written
}

func (m *breaker) Create(ctx context.Context, o api.Object) (api.Object, error) {
	if _, ok := o.(*resourcev1.ResourceClaim); !ok {
		return m.Client.Create(ctx, o)
	}
	if m.refused > 0 {
		m.refused--
		return nil, apierrors.NewInternalError(errors.New("not now"))
	}
	got, err := m.Client.Create(ctx, o)
	if m.create > 0 && err == nil {
		m.create--
		return nil, errors.New("connection reset by peer")
	}
	return got, err
}

func (m *breaker) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	if p, ok := o.(*corev1.Pod); ok && p.Status.ExtendedResourceClaimStatus != nil && m.status > 0 {
		m.status--
		return nil, apierrors.NewInternalError(errors.New("not now"))
	}
	return m.meddler.Update(ctx, o, sub)
}

// Whatever happens to the writes, the pod has its device in the end by one claim, and nothing is lost to others.
func TestSpecialClaimWritesFail(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]*breaker{
		"creation is refused":          {refused: 3},
		"answers to creation are lost": {create: 3},
		"all answers are lost":         {create: 12},
		"status is refused":            {status: 2},
		"binding fails":                {meddler: meddler{post: 3}},
		"claim is refused": {meddler: meddler{before: func() func(context.Context, *resourcev1.ResourceClaim, string) error {
			left := 5
			return func(context.Context, *resourcev1.ResourceClaim, string) error {
				if left--; left < 0 {
					return nil
				}
				return apierrors.NewInternalError(errors.New("not now"))
			}
		}()}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(c client.Client) client.Client { m.Client = c; return m }, func(b *bench) {
				defer b.control()()
				b.gpuClass()
				b.node(makeNode("n1"))
				b.devices("n1", "d1")
				for _, p := range []string{"p", "q"} {
					b.create(makePod(p, asksFor(gpuResource, "1")))
					time.Sleep(10 * time.Minute)
					b.expectSpecial(p, "n1", "", "n1/d1 (container-0-request-0)")
					if n := b.claims(); n != 1 {
						t.Errorf("%d claims for one pod", n)
					}
					b.finish(p)
				}
			})
		})
	}
}

// A scheduler that was killed halfway has left a claim, without devices or with some. It is the pod's where it does, and is replaced where not.
func TestSpecialClaimOfBefore(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		device string // that it has
		count  int64
		kept   bool
	}{"without devices": {"", 1, false}, "with them": {"d2", 1, true}, "with others than wanted": {"d2", 2, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, nil, func(b *bench) {
				defer b.control()()
				b.gpuClass()
				p := b.create(makePod("p", asksFor(gpuResource, "1"))).(*corev1.Pod)
				old := b.devicesWanted("p-extended-resources-old", tt.count, func(c *resourcev1.ResourceClaim) {
					c.Annotations = map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"}
					c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: p.UID, Controller: new(true)}}
					c.Spec.Devices.Requests[0].Name = "container-0-request-0"
					c.Finalizers = []string{resourcev1.Finalizer}
				})
				if tt.device != "" {
					b.claimStatus(old.Name, func(c *resourcev1.ResourceClaim) {
						c.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{
							{Request: "container-0-request-0", Driver: driver, Pool: "n1", Device: tt.device}}}}
						c.Status.ReservedFor = []resourcev1.ResourceClaimConsumerReference{{Resource: "pods", Name: "p", UID: p.UID}}
					})
				}
				b.devices("n1", "d1", "d2")
				b.node(makeNode("n1"))
				time.Sleep(time.Minute)
				want := "n1/d1 (container-0-request-0)"
				if tt.kept {
					want = "n1/d2 (container-0-request-0)"
				}
				b.expectSpecial("p", "n1", "", want)
				if s := b.pod("p").Status.ExtendedResourceClaimStatus; (s.ResourceClaimName == old.Name) != tt.kept || b.claims() != 1 {
					t.Errorf("%+v; %d claims", s, b.claims())
				}
			})
		})
	}
}

// A claim of before that somebody holds back: the pod gets another one as soon as it is gone.
func TestSpecialClaimHeldBack(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.gpuClass()
		p := b.create(makePod("p", asksFor(gpuResource, "1"))).(*corev1.Pod)
		old := b.devicesWanted("old", 1, func(c *resourcev1.ResourceClaim) {
			c.Annotations = map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"}
			c.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: p.UID, Controller: new(true)}}
			c.Finalizers = []string{"example.com/hold"}
		})
		b.devices("n1", "d1")
		b.node(makeNode("n1"))
		time.Sleep(time.Minute)
		if c := b.resourceClaim("old"); c.DeletionTimestamp == nil || b.pod("p").Spec.NodeName != "" {
			t.Fatalf("%+v", c.ObjectMeta)
		}
		if _, err := client.Mutate(b.t.Context(), b.Client, b.resourceClaim(old.Name), "", func(c *resourcev1.ResourceClaim) { c.Finalizers = nil }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * time.Second) // less than those that wait are tried after anyway
		b.expectSpecial("p", "n1", "", "n1/d1 (container-0-request-0)")
	})
}

// Devices that a driver makes ready first: the pod waits with its claim, and gets another one when that fails.
func TestSpecialClaimThatWaits(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		defer b.control()()
		b.gpuClass()
		b.node(makeNode("n1"))
		s := &resourcev1.ResourceSlice{}
		s.Name, s.Spec.Driver, s.Spec.NodeName = "slice", driver, new("n1")
		s.Spec.Pool = resourcev1.ResourcePool{Name: "n1", Generation: 1, ResourceSliceCount: 1}
		s.Spec.Devices = []resourcev1.Device{{Name: "d1", BindsToNode: new(true), BindingConditions: []string{"ready"}, BindingFailureConditions: []string{"broken"}}}
		b.create(s)
		b.create(makePod("p", asksFor(gpuResource, "1")))
		say := func(condition string) string {
			t.Helper()
			name := b.pod("p").Status.ExtendedResourceClaimStatus.ResourceClaimName
			b.claimStatus(name, func(c *resourcev1.ResourceClaim) {
				c.Status.Devices = []resourcev1.AllocatedDeviceStatus{{Driver: driver, Pool: "n1", Device: "d1", Conditions: []metav1.Condition{
					{Type: condition, Status: metav1.ConditionTrue, Reason: "Said", LastTransitionTime: metav1.Now()}}}}
			})
			return name
		}
		time.Sleep(time.Minute)
		b.expectSpecial("p", "", "", "n1/d1 (container-0-request-0)")
		first := say("broken")
		time.Sleep(time.Minute)
		if s := b.pod("p"); s.Spec.NodeName != "" || s.Status.ExtendedResourceClaimStatus.ResourceClaimName == first || b.claims() != 1 {
			t.Errorf("%q on %q, %d claims", s.Status.ExtendedResourceClaimStatus, s.Spec.NodeName, b.claims())
		}
		say("ready")
		time.Sleep(time.Minute)
		b.expectSpecial("p", "n1", "", "n1/d1 (container-0-request-0)")
	})
}

// older is an API server that has no kinds of devices.
type older struct{ client.Client }

func (o older) Watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	if slices.Contains(deviceKinds(), k) {
		return func(yield func(client.Event, error) bool) {
			yield(client.Event{}, apierrors.NewNotFound(k.GroupResource(), ""))
		}
	}
	return o.Client.Watch(ctx, k, q, from)
}

// Where there are no classes of devices, extended resources are the nodes' own.
func TestExtendedResourcesWithoutDevices(t *testing.T) {
	t.Parallel()
	bubble(t, func(c client.Client) client.Client { return older{c} }, func(b *bench) {
		b.node(makeNode("n1"))
		b.node(makeNode("n2", plugged("1")))
		b.create(makePod("a", asksFor(gpuResource, "1")))
		b.create(makePod("b", asksFor(gpuResource, "2")))
		time.Sleep(time.Minute)
		b.expectSpecial("a", "n2", "", "")
		b.expectSpecial("b", "", "0/2 nodes are available: 2 Insufficient example.com/gpu.", "")
	})
}

// late is an API whose news of claims come late, or not at all: a watch that begins anew misses what came and went meanwhile.
type late struct {
	client.Client
	by    time.Duration
	blind atomic.Bool
}

func (l *late) Watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	if k != api.ResourceClaimKind {
		return l.Client.Watch(ctx, k, q, from)
	}
	return func(yield func(client.Event, error) bool) {
		type news struct {
			e   client.Event
			err error
			at  time.Time
		}
		queue := make(chan news, 1000)
		go func() {
			defer close(queue)
			for e, err := range l.Client.Watch(ctx, k, q, from) {
				if e.Op == client.Synced || !l.blind.Load() {
					queue <- news{e, err, time.Now().Add(l.by)}
				}
			}
		}()
		for n := range queue {
			time.Sleep(time.Until(n.at))
			if !yield(n.e, n.err) {
				break
			}
		}
		for range queue { // until the watch has ended
		}
	}
}

// While the claims that were made have not come by the watch, their devices are nobody else's.
func TestSpecialClaimsComeLate(t *testing.T) {
	t.Parallel()
	l := &late{by: 7 * time.Second}
	bubble(t, func(c client.Client) client.Client { l.Client = c; return l }, func(b *bench) {
		defer b.control()()
		b.gpuClass()
		for i := range 2 {
			b.node(makeNode(fmt.Sprint("n", i)))
			b.devices(fmt.Sprint("n", i), "d0", "d1")
		}
		for i := range 6 {
			b.create(makePod(fmt.Sprint("p", i), asksFor(gpuResource, "1")))
			time.Sleep(2 * time.Second) // the news of one come while others are placed
		}
		time.Sleep(time.Minute)
		seen := map[string]string{}
		for i := range 6 {
			name := fmt.Sprint("p", i)
			if b.pod(name).Spec.NodeName == "" {
				continue
			}
			got := b.special(name)
			if seen[got] != "" {
				t.Errorf("pods %s and %s have %s", seen[got], name, got)
			}
			seen[got] = name
		}
		if len(seen) != 4 || b.claims() != 4 {
			t.Errorf("%v, %d claims", seen, b.claims())
		}
	})
}

// The claim of a pod that was made and went unseen keeps no device.
func TestSpecialClaimUnseen(t *testing.T) {
	t.Parallel()
	l := &late{}
	bubble(t, func(c client.Client) client.Client { l.Client = c; return l }, func(b *bench) {
		defer b.control()()
		b.gpuClass()
		b.node(makeNode("n1"))
		b.devices("n1", "d1")
		b.create(makePod("first", asksFor("deviceclass.resource.kubernetes.io/none", "1"))) // devices are looked at from here on
		time.Sleep(time.Second)
		l.blind.Store(true)
		b.create(makePod("p", asksFor(gpuResource, "1")))
		time.Sleep(time.Minute)
		b.expectSpecial("p", "n1", "", "n1/d1 (container-0-request-0)")
		b.create(makePod("q", asksFor(gpuResource, "1")))
		time.Sleep(time.Minute)
		b.expect("q", "", "0/1 nodes are available: 1 cannot allocate all claims.")
		b.finish("p")
		synctest.Wait()
		l.blind.Store(false)
		time.Sleep(time.Minute)
		b.expectSpecial("q", "n1", "", "n1/d1 (container-0-request-0)")
	})
}

// What pods have by claims does not count when the node comes to offer the resource itself.
func TestExtendedResourcesOfBoth(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		defer b.control()()
		b.gpuClass()
		b.node(makeNode("n1"))
		b.devices("n1", "d1", "d2")
		b.create(makePod("a", asksFor(gpuResource, "2")))
		time.Sleep(time.Minute)
		b.expectSpecial("a", "n1", "", "n1/d1 n1/d2 (container-0-request-0)")
		n1, err := client.Get[*corev1.Node](b.t.Context(), b.Client, api.Key{Name: "n1"})
		if err == nil {
			_, err = client.Mutate(b.t.Context(), b.Client, n1, "status", plugged("2"))
		}
		if err != nil {
			t.Fatal(err)
		}
		b.create(makePod("b", asksFor(gpuResource, "2")))
		time.Sleep(time.Minute)
		b.expectSpecial("b", "n1", "", "")
	})
}
