package resourceclaim

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// cluster runs the controller alone.
func cluster(t *testing.T) *rt.Cluster {
	c := rt.New(t)
	d := rt.Deps(t, c)
	rt.Start(t, d, New(d))
	return c
}

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "ns", Name: name} }

// byTemplate and byName are entries of pods.
func byTemplate(name, template string) corev1.PodResourceClaim {
	return corev1.PodResourceClaim{Name: name, ResourceClaimTemplateName: &template}
}

func byName(name, claim string) corev1.PodResourceClaim {
	return corev1.PodResourceClaim{Name: name, ResourceClaimName: &claim}
}

func pod(name, node string, entries ...corev1.PodResourceClaim) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: meta(name), Spec: corev1.PodSpec{NodeName: node, ResourceClaims: entries}}
}

func template(name string) *resourcev1.ResourceClaimTemplate {
	return &resourcev1.ResourceClaimTemplate{ObjectMeta: meta(name), Spec: resourcev1.ResourceClaimTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"c": "d"}}, Spec: spec()}}
}

func spec() resourcev1.ResourceClaimSpec {
	return resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{Name: "gpu"}}}}
}

// allocate does what the scheduler does for pods.
func allocate(t *testing.T, c client.Client, name string, pods ...*corev1.Pod) {
	t.Helper()
	claim := rt.Mutate(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta(name)}, "", func(claim *resourcev1.ResourceClaim) {
		claim.Finalizers = []string{resourcev1.Finalizer}
	})
	rt.Mutate(t, c, claim, "status", func(claim *resourcev1.ResourceClaim) {
		claim.Status.Allocation = &resourcev1.AllocationResult{}
		for _, p := range pods {
			claim.Status.ReservedFor = append(claim.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{Resource: "pods", Name: p.Name, UID: p.UID})
		}
	})
}

// made returns the claim that a pod's status names for an entry, nil where there is none.
func made(t *testing.T, c client.Client, pod, entry string) *resourcev1.ResourceClaim {
	t.Helper()
	synctest.Wait()
	for _, s := range rt.Get[*corev1.Pod](t, c, "ns", pod).Status.ResourceClaimStatuses {
		if s.Name == entry {
			return rt.Get[*resourcev1.ResourceClaim](t, c, "ns", *s.ResourceClaimName)
		}
	}
	return nil
}

// state is a claim in a line: "allocated for a, b; held; going".
func state(t *testing.T, c client.Client, name string) string {
	t.Helper()
	synctest.Wait()
	claim, err := client.Get[*resourcev1.ResourceClaim](t.Context(), c, api.Key{Namespace: "ns", Name: name})
	if apierrors.IsNotFound(err) {
		return "gone"
	}
	if err != nil {
		t.Fatal(err)
	}
	out := []string{"free"}
	if claim.Status.Allocation != nil {
		out[0] = "allocated"
	}
	for _, r := range claim.Status.ReservedFor {
		out = append(out, r.Name)
	}
	if len(claim.Finalizers) > 0 {
		out = append(out, "held")
	}
	if claim.DeletionTimestamp != nil {
		out = append(out, "going")
	}
	return strings.Join(out, " ")
}

func finish(t *testing.T, c client.Client, p *corev1.Pod, phase corev1.PodPhase) {
	t.Helper()
	rt.Mutate(t, c, p, "status", func(p *corev1.Pod) { p.Status.Phase = phase })
}

func want(t *testing.T, c client.Client, claim, want, when string) {
	t.Helper()
	if got := state(t, c, claim); got != want {
		t.Errorf("claim %s %s: %s, want %s", claim, when, got, want)
	}
}

func TestPrefix(t *testing.T) {
	long := strings.Repeat("p", 253)
	for _, x := range [][3]string{
		{"pod", "gpu", "pod-gpu-"},
		{"a.b", strings.Repeat("e", 63), "a-" + strings.Repeat("e", 52) + "-"},
		{strings.Repeat("p", 51), "gpus", strings.Repeat("p", 51) + "-gpus-"},
		{strings.Repeat("p", 52), "gpus", strings.Repeat("p", 51) + "-gpu-"},
		{long, "g", strings.Repeat("p", 56) + "--"},
		{long, strings.Repeat("e", 63), strings.Repeat("p", 45) + "-" + strings.Repeat("e", 11) + "-"},
		{"a." + long[2:], "g", "a." + strings.Repeat("p", 54) + "--"},
		{"p", strings.Repeat("e", 63), "p-" + strings.Repeat("e", 54) + "-"},
	} {
		got := prefix(x[0], x[1])
		if bad := apivalidation.NameIsDNSSubdomain(got+"xxxxx", false); len(bad) > 0 {
			t.Errorf("%s, %s: a name like %sxxxxx is refused: %v", x[0], x[1], got, bad)
		}
		if got != x[2] || len(got) > longest+1 {
			t.Errorf("%s, %s: %s (%d), want %s", x[0], x[1], got, len(got), x[2])
		}
	}
}

func TestDone(t *testing.T) {
	now := metav1.Now()
	for _, x := range []struct {
		phase   corev1.PodPhase
		deleted *metav1.Time
		node    string
		want    bool
	}{
		{"", nil, "", false}, {corev1.PodRunning, nil, "n1", false}, {corev1.PodRunning, &now, "n1", false}, {corev1.PodPending, &now, "", true},
		{corev1.PodSucceeded, nil, "n1", true}, {corev1.PodFailed, &now, "n1", true},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: x.deleted}, Spec: corev1.PodSpec{NodeName: x.node}, Status: corev1.PodStatus{Phase: x.phase}}
		if done(p) != x.want {
			t.Errorf("%+v: %v", x, done(p))
		}
	}
}

// A pod gets a claim for each entry with a template, once.
func TestGenerate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		rt.Create(t, c, template("t"))
		rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("shared")})
		p := rt.Create(t, c, pod("p", "", byTemplate("one", "t"), byName("mine", "shared"), byTemplate("two", "t")))
		rt.Create(t, c, pod("plain", ""))
		one, two := made(t, c, "p", "one"), made(t, c, "p", "two")
		if one == nil || two == nil || one.Name == two.Name {
			t.Fatalf("claims %+v, %+v", one, two)
		}
		if !strings.HasPrefix(one.Name, "p-one-") || !metav1.IsControlledBy(one, p) || one.OwnerReferences[0].BlockOwnerDeletion != nil || one.Labels["a"] != "b" ||
			one.Annotations["c"] != "d" || one.Annotations[resourcev1.PodResourceClaimAnnotation] != "one" || one.Spec.Devices.Requests[0].Name != "gpu" {
			t.Errorf("claim %+v", one)
		}
		if n := len(rt.List[*resourcev1.ResourceClaim](t, c)); n != 3 {
			t.Errorf("%d claims", n)
		}
		if n := len(rt.Get[*corev1.Pod](t, c, "ns", "p").Status.ResourceClaimStatuses); n != 2 {
			t.Errorf("%d statuses", n)
		}
		time.Sleep(time.Hour)
		if n := c.Writes("patch/status pods") + c.Writes("create resourceclaims.resource.k8s.io"); n != 4 {
			t.Errorf("%d writes, want one status and three claims, of which one is the test's", n)
		}
	})
}

// What a pod waits for wakes it: a template that comes late, a claim that somebody deleted, a name that another object has.
func TestGenerateAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		rt.Create(t, c, pod("p", "", byTemplate("one", "late"), byTemplate("two", "t")))
		rt.Create(t, c, template("t"))
		if made(t, c, "p", "one") != nil || made(t, c, "p", "two") == nil {
			t.Error("a claim without a template, or none with one")
		}
		time.Sleep(time.Hour)
		begin := time.Now()
		rt.Create(t, c, template("late"))
		one := made(t, c, "p", "one")
		if one == nil || time.Since(begin) > 0 {
			t.Fatalf("a template that came late makes %+v", one)
		}
		rt.Delete(t, c, one, client.DeleteOptions{})
		again := made(t, c, "p", "one")
		if again.UID == one.UID {
			t.Error("a deleted claim was not made again")
		}
		rt.Mutate(t, c, again, "", func(claim *resourcev1.ResourceClaim) { claim.OwnerReferences = nil })
		rt.Mutate(t, c, &corev1.Pod{ObjectMeta: meta("p")}, "status", func(p *corev1.Pod) {
			p.Status.NominatedNodeName = "n1"
			p.Status.ResourceClaimStatuses = p.Status.ResourceClaimStatuses[1:]
		})
		synctest.Wait()
		if third := made(t, c, "p", "one"); third == nil || third.UID == again.UID {
			t.Error("a claim that is not the pod's counts as its own")
		}
	})
}

// A run that ends between its writes leaves nothing behind, and makes nothing twice.
func TestInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		refused := 0
		c.Refuse = func(verb string, k *api.Kind, _ api.Key) error {
			if verb == "patch/status" && k == api.PodKind && refused < 3 {
				refused++
				return apierrors.NewServiceUnavailable("test")
			}
			return nil
		}
		rt.Create(t, c, template("t"))
		rt.Create(t, c, pod("p", "", byTemplate("one", "t")))
		time.Sleep(time.Minute)
		if made(t, c, "p", "one") == nil || refused != 3 || len(rt.List[*resourcev1.ResourceClaim](t, c)) != 1 {
			t.Errorf("%d claims after %d failures", len(rt.List[*resourcev1.ResourceClaim](t, c)), refused)
		}
	})
}

// A claim is left by each consumer that ends; the last one's end frees it.
func TestRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		for _, name := range []string{"shared", "unused"} {
			rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta(name)})
		}
		var pods []*corev1.Pod
		for _, name := range []string{"a", "b", "c", "d"} {
			pods = append(pods, rt.Create(t, c, pod(name, "n1", byName("x", "shared"))))
		}
		allocate(t, c, "shared", pods...)
		allocate(t, c, "unused")
		want(t, c, "shared", "allocated a b c d held", "in use")
		finish(t, c, pods[0], corev1.PodSucceeded)
		want(t, c, "shared", "allocated b c d held", "after one has succeeded")
		rt.Delete(t, c, pods[1], client.DeleteOptions{})
		want(t, c, "shared", "allocated b c d held", "while one is ending")
		now := int64(0)
		rt.Delete(t, c, pods[1], client.DeleteOptions{Grace: &now})
		want(t, c, "shared", "allocated c d held", "after one is gone")
		rt.Delete(t, c, pods[2], client.DeleteOptions{Grace: &now})
		rt.Create(t, c, pod("c", "", byName("x", "shared")))
		want(t, c, "shared", "allocated d held", "after one was replaced")
		rt.Delete(t, c, pods[3], client.DeleteOptions{Grace: &now})
		want(t, c, "shared", "free", "after all are gone")
		want(t, c, "unused", "allocated held", "that never had a consumer")
		rt.Delete(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("unused")}, client.DeleteOptions{})
		want(t, c, "unused", "gone", "after its deletion")
	})
}

// A claim that is deleted goes when its last consumer does; one whose allocation did not come about goes at once.
func TestDeleted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("used")})
		half := &resourcev1.ResourceClaim{ObjectMeta: meta("half")}
		half.Finalizers = []string{resourcev1.Finalizer}
		rt.Create(t, c, half)
		p := rt.Create(t, c, pod("p", "n1", byName("x", "used")))
		allocate(t, c, "used", p)
		for _, name := range []string{"used", "half"} {
			rt.Delete(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta(name)}, client.DeleteOptions{})
		}
		want(t, c, "used", "allocated p held going", "while it is in use")
		want(t, c, "half", "gone", "without an allocation")
		finish(t, c, p, corev1.PodFailed)
		want(t, c, "used", "gone", "after its pod has failed")
	})
}

// Generated claims are deleted when their pods end, not before; consumers of other kinds keep a claim.
func TestOwnerEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		rt.Create(t, c, template("t"))
		for _, x := range []struct {
			name, node string
			end        func(*corev1.Pod)
			want       string
		}{
			{"succeeded", "n1", func(p *corev1.Pod) { finish(t, c, p, corev1.PodSucceeded) }, "gone"},
			{"ending", "n1", func(p *corev1.Pod) { rt.Delete(t, c, p, client.DeleteOptions{}) }, "allocated ending held"},
			{"unplaced", "", func(p *corev1.Pod) {
				rt.Mutate(t, c, p, "", func(p *corev1.Pod) { p.Finalizers = []string{"test/keep"} })
				rt.Delete(t, c, p, client.DeleteOptions{})
			}, "gone"},
		} {
			p := rt.Create(t, c, pod(x.name, x.node, byTemplate("x", "t")))
			claim := made(t, c, x.name, "x")
			allocate(t, c, claim.Name, p)
			want(t, c, claim.Name, "allocated "+x.name+" held", "of a pod that lives")
			x.end(p)
			want(t, c, claim.Name, x.want, x.name)
		}
		// The garbage collector deletes what is owned by a pod that is gone.
		p := rt.Create(t, c, pod("gone", "n1", byTemplate("x", "t")))
		claim := made(t, c, "gone", "x")
		allocate(t, c, claim.Name, p)
		now := int64(0)
		rt.Delete(t, c, p, client.DeleteOptions{Grace: &now})
		want(t, c, claim.Name, "free", "of a pod that is gone")
		q := rt.Create(t, c, pod("other", "n1", byTemplate("x", "t")))
		claim = made(t, c, "other", "x")
		allocate(t, c, claim.Name)
		rt.Mutate(t, c, claim, "status", func(claim *resourcev1.ResourceClaim) {
			claim.Status.ReservedFor = []resourcev1.ResourceClaimConsumerReference{{APIGroup: "example.com", Resource: "jobs", Name: "j", UID: "u"}}
		})
		finish(t, c, q, corev1.PodSucceeded)
		want(t, c, claim.Name, "allocated j held", "with a consumer of another kind")
	})
}

// The claim that the scheduler made for an extended resource goes with its pod.
func TestExtendedResource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		p := rt.Create(t, c, pod("p", "n1"))
		special := &resourcev1.ResourceClaim{ObjectMeta: meta("special")}
		special.OwnerReferences = []metav1.OwnerReference{*reconcile.ControllerRef(p)}
		special.Annotations = map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"}
		rt.Create(t, c, special)
		allocate(t, c, "special", p)
		p = rt.Mutate(t, c, p, "status", func(p *corev1.Pod) {
			p.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "special"}
		})
		want(t, c, "special", "allocated p held", "in use")
		finish(t, c, p, corev1.PodSucceeded)
		want(t, c, "special", "gone", "after its pod")
	})
}

// A pod that was made with a node has its claims reserved here, as soon as they are allocated; nobody else's.
func TestPlacedByOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		rt.Create(t, c, template("t"))
		rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("ready")})
		allocate(t, c, "ready")
		rt.Create(t, c, pod("p", "n1", byName("a", "ready"), byName("b", "late"), byTemplate("c", "t")))
		rt.Create(t, c, pod("q", "", byName("a", "ready")))
		own := made(t, c, "p", "c")
		want(t, c, "ready", "allocated p held", "that was allocated before")
		rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("late")})
		want(t, c, "late", "free", "that nobody has allocated")
		for _, name := range []string{"late", own.Name} {
			allocate(t, c, name)
			want(t, c, name, "allocated p held", "that was allocated later")
		}
		rt.Mutate(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("late")}, "status", func(claim *resourcev1.ResourceClaim) { claim.Status.ReservedFor = nil })
		want(t, c, "late", "allocated p held", "whose reservation somebody removed")
	})
}

// A claim for as many pods as there may be takes no more, until one goes.
func TestFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("full")})
		allocate(t, c, "full")
		const n = resourcev1.ResourceClaimReservedForMaxSize
		for i := range n + 1 {
			rt.Create(t, c, pod(fmt.Sprintf("p%03d", i), "n1", byName("a", "full")))
			synctest.Wait()
		}
		claim := rt.Get[*resourcev1.ResourceClaim](t, c, "ns", "full")
		if len(claim.Status.ReservedFor) != n {
			t.Fatalf("reserved for %d", len(claim.Status.ReservedFor))
		}
		finish(t, c, rt.Get[*corev1.Pod](t, c, "ns", "p000"), corev1.PodSucceeded)
		synctest.Wait()
		claim = rt.Get[*resourcev1.ResourceClaim](t, c, "ns", "full")
		if len(claim.Status.ReservedFor) != n || claim.Status.ReservedFor[n-1].Name != fmt.Sprintf("p%03d", n) {
			t.Errorf("reserved for %d, the last is %+v", len(claim.Status.ReservedFor), claim.Status.ReservedFor[len(claim.Status.ReservedFor)-1])
		}
	})
}

// A scheduler that allocates anew between the two writes of a deallocation keeps its finalizer.
func TestAllocatedInBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("x")})
		p := rt.Create(t, c, pod("p", "n1", byName("x", "x")))
		q := rt.Create(t, c, pod("q", "", byName("x", "x")))
		allocate(t, c, "x", p)
		synctest.Wait()
		again := false
		c.Refuse = func(verb string, k *api.Kind, _ api.Key) error {
			if verb == "update" && k == api.ResourceClaimKind && !again {
				again = true
				go allocate(t, c, "x", q)
				return apierrors.NewConflict(k.GroupResource(), "x", nil)
			}
			return nil
		}
		finish(t, c, p, corev1.PodSucceeded)
		time.Sleep(time.Second)
		want(t, c, "x", "allocated q held", "allocated again at once")
	})
}

// A controller that begins puts right what happened while none ran.
func TestBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		rt.Create(t, c, template("t"))
		own := func(name string, p *corev1.Pod) {
			claim := &resourcev1.ResourceClaim{ObjectMeta: meta(name)}
			claim.Annotations = map[string]string{resourcev1.PodResourceClaimAnnotation: "x"}
			claim.OwnerReferences = []metav1.OwnerReference{*reconcile.ControllerRef(p)}
			rt.Create(t, c, claim)
		}
		rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("stale")})
		gone := pod("gone", "n1")
		gone.UID = "gone"
		allocate(t, c, "stale", gone)
		ended := rt.Create(t, c, pod("ended", "n1", byTemplate("x", "t")))
		own("ended-x-1", ended)
		allocate(t, c, "ended-x-1", ended)
		finish(t, c, ended, corev1.PodFailed)
		own("begun-x-1", rt.Create(t, c, pod("begun", "", byTemplate("x", "t"))))
		rt.Create(t, c, pod("fresh", "", byTemplate("x", "t")))
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		want(t, c, "stale", "free", "of a pod that is gone")
		want(t, c, "ended-x-1", "gone", "of a pod that has ended")
		if claim := made(t, c, "begun", "x"); claim == nil || claim.Name != "begun-x-1" {
			t.Errorf("a claim that was not recorded: %+v", claim)
		}
		if made(t, c, "fresh", "x") == nil {
			t.Error("no claim was made")
		}
	})
}

// lagging is a client that knows of no pods yet but when it asks the server.
type lagging struct {
	client.Client
	pods bool
}

func (l *lagging) Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	if k == api.PodKind && !l.pods && !client.IsLive(ctx) {
		return nil, apierrors.NewNotFound(k.GroupResource(), key.Name)
	}
	return l.Client.Get(ctx, k, key)
}

// A claim that is seen before its pod is not taken from it.
func TestLagging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		slow := &lagging{Client: c}
		d := rt.Deps(t, slow)
		rt.Start(t, d, New(d))
		rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("x")})
		allocate(t, c, "x", rt.Create(t, c, pod("p", "n1", byName("x", "x"))))
		want(t, c, "x", "allocated p held", "whose pod is not known yet")
	})
}

// Pods without claims, and heartbeats of others, wake nobody.
func TestWakes(t *testing.T) {
	base := pod("p", "n1", byTemplate("x", "t"))
	base.UID = "u"
	change := func(f func(*corev1.Pod)) *corev1.Pod {
		p := base.DeepCopy()
		f(p)
		return p
	}
	name := "p-x-1"
	recorded := change(func(p *corev1.Pod) {
		p.Status.ResourceClaimStatuses = []corev1.PodResourceClaimStatus{{Name: "x", ResourceClaimName: &name}}
	})
	d := rt.Deps(t, rt.New(t))
	for _, x := range []struct {
		what          string
		before, after *corev1.Pod
		want          string
	}{
		{"without claims", pod("p", ""), pod("p", "n1"), "[]"},
		{"created", nil, base, "[ns/pod:p]"},
		{"ready", base, change(func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning }), "[]"},
		{"recorded", base, recorded, "[ns/pod:p]"},
		{"placed", change(func(p *corev1.Pod) { p.Spec.NodeName = "" }), base, "[ns/pod:p]"},
		{"ended", recorded, change(func(p *corev1.Pod) { p.Status = recorded.Status; p.Status.Phase = corev1.PodFailed }), "[ns/pod:p ns/claim:p-x-1 ns/claim:p-x-1]"},
		{"ended, seen first", nil, change(func(p *corev1.Pod) { p.Status = recorded.Status; p.Status.Phase = corev1.PodFailed }), "[ns/pod:p ns/claim:p-x-1]"},
		{"gone", recorded, nil, "[ns/pod:p ns/claim:p-x-1]"},
		{"replaced", recorded, change(func(p *corev1.Pod) { p.UID = types.UID("v") }), "[ns/pod:p ns/claim:p-x-1]"},
	} {
		if got := fmt.Sprint(wakenByPod(context.Background(), d, x.before, x.after)); got != x.want {
			t.Errorf("%s: %s, want %s", x.what, got, x.want)
		}
	}
}
