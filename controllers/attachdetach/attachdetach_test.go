package attachdetach

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/events"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
	"github.com/yare-dev/yare/run"
)

// bench is a cluster with nodes n1, n2 and n3 and an attacher outside.
type bench struct {
	*testing.T
	*rt.Cluster
}

const finalizer = "external-attacher/disk"

// bubble runs f with the controller and an attacher that does what attach says; nil: it attaches all.
func bubble(t *testing.T, attach func(*storagev1.VolumeAttachmentStatus), f func(*bench)) {
	t.Helper()
	if attach == nil {
		attach = func(s *storagev1.VolumeAttachmentStatus) { s.Attached, s.AttachError = true, nil }
	}
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t, rt.New(t)}
		d := rt.Deps(t, b)
		d.Events = events.New(b.Cluster, "test", "", d.Log)
		for _, n := range []string{"n1", "n2", "n3"} {
			rt.Create(t, b, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}, Status: corev1.NodeStatus{
				Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}})
		}
		rt.Start(t, d, New(d), d.Events, attacher(b.Cluster, attach))
		f(b)
	})
}

// attacher attaches and detaches as external-attacher does: by a finalizer.
func attacher(c client.Client, attach func(*storagev1.VolumeAttachmentStatus)) run.Component {
	return run.Func("attacher", func(ctx context.Context, ready func()) error {
		ready()
		for e, err := range c.Watch(ctx, api.VolumeAttachmentKind, client.Query{}, 0) {
			if err != nil {
				return err
			}
			a, ok := e.Object.(*storagev1.VolumeAttachment)
			switch {
			case !ok || e.Op == client.Deleted:
				continue
			case a.DeletionTimestamp != nil:
				_, err = client.Mutate(ctx, c, a, "", func(a *storagev1.VolumeAttachment) { a.Finalizers = nil })
			case len(a.Finalizers) == 0:
				_, err = client.Mutate(ctx, c, a, "", func(a *storagev1.VolumeAttachment) { a.Finalizers = []string{finalizer} })
			default:
				_, err = client.Mutate(ctx, c, a, "status", func(a *storagev1.VolumeAttachment) { attach(&a.Status) })
			}
			_ = err // a conflict brings it back
		}
		return nil
	})
}

// volume makes a volume and its claim.
func (b *bench) volume(name string, modes ...corev1.PersistentVolumeAccessMode) {
	c := rt.Create(b, b, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}})
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}}
	v.Spec.AccessModes = modes
	v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "disk", VolumeHandle: "h-" + name}
	v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name, UID: c.UID}
	rt.Create(b, b, v)
}

func (b *bench) pod(name, node string, claims ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}, Spec: corev1.PodSpec{NodeName: node}}
	for _, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
	}
	return rt.Create(b, b, p)
}

func (b *bench) end(p *corev1.Pod) {
	zero := int64(0)
	rt.Delete(b, b, p, client.DeleteOptions{Grace: &zero})
}

func (b *bench) node(name string) *corev1.Node { return rt.Get[*corev1.Node](b, b, "", name) }

// use writes what a kubelet says that it uses.
func (b *bench) use(node string, volumes ...string) {
	rt.Mutate(b, b, b.node(node), "status", func(n *corev1.Node) {
		n.Status.VolumesInUse = nil
		for _, v := range volumes {
			n.Status.VolumesInUse = append(n.Status.VolumesInUse, claim.OnNode("disk", "h-"+v))
		}
	})
}

func (b *bench) ready(node string, status corev1.ConditionStatus) {
	rt.Mutate(b, b, b.node(node), "status", func(n *corev1.Node) { n.Status.Conditions[0].Status = status })
}

// expect compares what nodes are told to have, and the attachments that are not (yet) reported.
func (b *bench) expect(want string) {
	b.Helper()
	time.Sleep(time.Second)
	synctest.Wait()
	var out []string
	reported := map[string]bool{}
	for _, n := range rt.List[*corev1.Node](b, b) {
		for _, v := range n.Status.VolumesAttached {
			name, _ := strings.CutPrefix(string(v.Name), "kubernetes.io/csi/disk^h-")
			out = append(out, name+"@"+n.Name)
			reported[claim.AttachmentName("h-"+name, "disk", n.Name)] = true
		}
	}
	for _, a := range rt.List[*storagev1.VolumeAttachment](b, b) {
		if !reported[a.Name] {
			out = append(out, fmt.Sprintf("(%s@%s)", strings.TrimPrefix(*a.Spec.Source.PersistentVolumeName, "pv-"), a.Spec.NodeName))
		}
	}
	slices.Sort(out)
	if got := strings.Join(out, " "); got != want {
		b.Errorf("got %q, want %q", got, want)
	}
}

// heard returns what a pod was told, each as often as it was.
func (b *bench) heard(pod string) string {
	synctest.Wait()
	var out []string
	for _, e := range rt.List[*corev1.Event](b, b) {
		if e.InvolvedObject.Name == pod {
			out = append(out, fmt.Sprintf("%dx %s %s: %s", max(e.Count, 1), e.Type, e.Reason, e.Message))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func TestAttachesAndDetaches(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		b.volume("a", corev1.ReadWriteOnce)
		p, q := b.pod("p", "n1", "a"), b.pod("q", "n1", "a")
		b.expect("a@n1")
		if got := b.heard("p"); got != `1x Normal SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume "pv-a" ` {
			b.Errorf("heard %s", got)
		}
		va := rt.Get[*storagev1.VolumeAttachment](b, b, "", claim.AttachmentName("h-a", "disk", "n1"))
		if va.Spec.Attacher != "disk" || va.Spec.NodeName != "n1" || *va.Spec.Source.PersistentVolumeName != "pv-a" {
			b.Errorf("attachment %+v", va.Spec)
		}
		b.use("n1", "a")
		b.end(p)
		b.expect("a@n1")
		rt.Mutate(b, b, q, "status", func(q *corev1.Pod) { q.Status.Phase = corev1.PodSucceeded })
		b.expect("a@n1")          // its kubelet has not unmounted it
		time.Sleep(2 * time.Hour) // however long that takes
		b.expect("a@n1")
		b.use("n1")
		b.expect("")
	})
}

func TestNotWanted(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		for _, v := range []string{"unbound", "other", "free"} {
			b.volume(v)
		}
		rt.Mutate(b, b, rt.Get[*corev1.PersistentVolumeClaim](b, b, "ns", "unbound"), "status", func(c *corev1.PersistentVolumeClaim) { c.Status.Phase = corev1.ClaimPending })
		rt.Mutate(b, b, rt.Get[*corev1.PersistentVolume](b, b, "", "pv-other"), "", func(v *corev1.PersistentVolume) { v.Spec.ClaimRef.UID = "another" })
		b.pod("p", "n1", "unbound", "other", "missing")
		b.pod("nowhere", "", "free")
		b.pod("gone", "n9", "free")
		b.expect("")
		driver := rt.Create(b, b, &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Spec: storagev1.CSIDriverSpec{AttachRequired: new(false)}})
		b.pod("unattached", "n1", "free")
		b.expect("")
		rt.Mutate(b, b, driver, "", func(d *storagev1.CSIDriver) { d.Spec.AttachRequired = new(true) })
		b.expect("free@n1")
	})
}

// A volume goes from node to node only when the first has let it go.
func TestExclusive(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		b.volume("one", corev1.ReadWriteOnce)
		b.volume("pod", corev1.ReadWriteOncePod)
		b.volume("many", corev1.ReadWriteMany)
		b.volume("any")
		first := b.pod("first", "n1", "one", "pod", "many", "any")
		b.expect("any@n1 many@n1 one@n1 pod@n1")
		b.use("n1", "one", "pod", "many", "any")
		b.pod("second", "n2", "one", "pod", "many", "any")
		b.expect("any@n1 any@n2 many@n1 many@n2 one@n1 pod@n1")
		const used = `Warning FailedAttachVolume: Multi-Attach error for volume "pv-one" Volume is already used by pod(s) first`
		const held = `Warning FailedAttachVolume: Multi-Attach error for volume "pv-one" Volume is already exclusively attached to one node and can't be attached to another`
		if got := b.heard("second"); !strings.Contains(got, "1x "+used) {
			b.Errorf("heard %s", got)
		}
		b.end(first)
		b.expect("any@n1 any@n2 many@n1 many@n2 one@n1 pod@n1")
		time.Sleep(time.Hour)
		if got := b.heard("second"); !strings.Contains(got, "1x "+held) || !strings.Contains(got, "1x "+used) {
			b.Errorf("heard %s", got)
		}
		b.use("n1")
		b.expect("any@n2 many@n2 one@n2 pod@n2")
	})
}

// Two that come at once do not both get it.
func TestExclusiveAtOnce(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		b.pod("p", "n1", "one")
		time.Sleep(time.Second)
		b.pod("q", "n2", "one")
		b.volume("one", corev1.ReadWriteOnce)
		b.expect("one@n1")
	})
}

// A node that is silent or out of service has its volumes taken away.
func TestForce(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		b.volume("a", corev1.ReadWriteOnce)
		b.volume("b", corev1.ReadWriteOnce)
		pa, pb := b.pod("pa", "n1", "a"), b.pod("pb", "n2", "b")
		b.expect("a@n1 b@n2")
		b.use("n1", "a")
		b.use("n2", "b")
		b.ready("n1", corev1.ConditionUnknown)
		b.ready("n2", corev1.ConditionUnknown)
		b.end(pa)
		b.end(pb)
		time.Sleep(5 * time.Minute)
		b.expect("a@n1 b@n2")
		b.ready("n2", corev1.ConditionTrue) // back in time
		time.Sleep(2 * time.Minute)
		b.expect("b@n2")
		rt.Mutate(b, b, b.node("n2"), "", func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
		})
		b.expect("")
	})
}

// The volumes of a node that is gone are detached.
func TestNodeGone(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		b.volume("a", corev1.ReadWriteOnce)
		p := b.pod("p", "n1", "a")
		b.expect("a@n1")
		b.use("n1", "a")
		rt.Delete(b, b, b.node("n1"), client.DeleteOptions{})
		b.expect("(a@n1)") // its pod may run there
		b.end(p)
		b.expect("")
	})
}

func TestAttachFails(t *testing.T) {
	fail := "no room"
	bubble(t, func(s *storagev1.VolumeAttachmentStatus) {
		if fail == "" {
			s.Attached, s.AttachError = true, nil
		} else if fail != "silence" {
			s.AttachError = &storagev1.VolumeError{Message: fail}
		}
	}, func(b *bench) {
		b.volume("a")
		b.pod("p", "n1", "a")
		b.expect("(a@n1)")
		if got := b.heard("p"); got != `1x Warning FailedAttachVolume: AttachVolume.Attach failed for volume "pv-a" : no room` {
			b.Errorf("heard %s", got)
		}
		fail = ""
		rt.Mutate(b, b, rt.List[*storagev1.VolumeAttachment](b, b)[0], "status", func(a *storagev1.VolumeAttachment) { a.Status.AttachError = nil })
		b.expect("a@n1")
		fail = "silence"
		b.volume("b")
		b.pod("q", "n1", "b")
		b.expect("(b@n1) a@n1")
		time.Sleep(3 * time.Minute)
		if got := b.heard("q"); got != `1x Warning FailedAttachVolume: AttachVolume.Attach failed for volume "pv-b" : timed out waiting for external-attacher of disk CSI driver to attach volume h-b` {
			b.Errorf("heard %s", got)
		}
	})
}

// What others attached is theirs, and yet nobody else gets it meanwhile.
func TestOthers(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		b.volume("a", corev1.ReadWriteOnce)
		name := "pv-a"
		theirs := rt.Create(b, b, &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}, Spec: storagev1.VolumeAttachmentSpec{
			Attacher: "disk", NodeName: "n1", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &name}}})
		b.pod("p", "n2", "a")
		b.expect("(a@n1) a@n1") // reported, by another name
		rt.Delete(b, b, theirs, client.DeleteOptions{})
		b.expect("a@n2")
	})
}

// An attachment of ours whose PersistentVolume is gone is detached as any, and does not keep another volume with that handle from its pods.
func TestVolumeGone(t *testing.T) {
	lose := func(b *bench, names ...string) {
		for _, name := range names {
			rt.Delete(b, b, rt.Get[*corev1.PersistentVolume](b, b, "", "pv-"+name), client.DeleteOptions{})
			rt.Delete(b, b, rt.Get[*corev1.PersistentVolumeClaim](b, b, "ns", name), client.DeleteOptions{})
		}
	}
	// again makes a claim of another volume with the handle of name's.
	again := func(b *bench, name string) {
		c := rt.Create(b, b, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "new-" + name},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "new-" + name}, Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}})
		v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "new-" + name}}
		v.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
		v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "disk", VolumeHandle: "h-" + name}
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: c.Name, UID: c.UID}
		rt.Create(b, b, v)
	}
	bubble(t, nil, func(b *bench) {
		b.volume("idle", corev1.ReadWriteOnce)
		b.volume("used", corev1.ReadWriteOnce)
		p := b.pod("p", "n1", "idle", "used")
		b.expect("idle@n1 used@n1")
		b.use("n1", "used")
		b.end(p)
		b.expect("used@n1")
		lose(b, "used")
		b.expect("used@n1")
		again(b, "used")
		b.pod("q", "n2", "new-used")
		b.expect("used@n1") // and nobody else gets it meanwhile
		b.use("n1")
		b.expect("used@n2")
	})
	// One that was never attached has to make room: no attacher attaches what is gone.
	bubble(t, func(*storagev1.VolumeAttachmentStatus) {}, func(b *bench) {
		b.volume("a", corev1.ReadWriteOnce)
		p := b.pod("p", "n1", "a")
		b.expect("(a@n1)")
		lose(b, "a")
		again(b, "a")
		b.pod("q", "n1", "new-a")
		b.end(p)
		b.expect("(new-a@n1)")
	})
	// Nothing tells any more what its handle was.
	bubble(t, nil, func(b *bench) {
		name := "pv-gone"
		for _, va := range []string{claim.AttachmentName("h-gone", "disk", "n1"), claim.AttachmentName("h-gone", "disk", "n9"), "theirs"} {
			node := "n1"
			if va == claim.AttachmentName("h-gone", "disk", "n9") {
				node = "n9"
			}
			rt.Create(b, b, &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: va}, Spec: storagev1.VolumeAttachmentSpec{
				Attacher: "disk", NodeName: node, Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &name}}})
		}
		b.expect("(gone@n1)")
		if left := rt.List[*storagev1.VolumeAttachment](b, b); len(left) != 1 || left[0].Name != "theirs" {
			b.Errorf("left %v", left)
		}
	})
}

// A pod is told when somebody else's attachment has the name that its volume's needs.
func TestNameTaken(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		b.volume("a", corev1.ReadWriteOnce)
		b.volume("b", corev1.ReadWriteOnce)
		name, other := claim.AttachmentName("h-a", "disk", "n1"), "pv-b"
		taken := rt.Create(b, b, &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.VolumeAttachmentSpec{
			Attacher: "disk", NodeName: "n1", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &other}}})
		b.pod("p", "n1", "a")
		b.expect("(b@n1) b@n1")
		want := `1x Warning FailedAttachVolume: AttachVolume.Attach failed for volume "pv-a" : VolumeAttachment ` + name +
			`, whose name it needs, is of volume "pv-b": delete that VolumeAttachment`
		if got := b.heard("p"); got != want {
			b.Errorf("heard %s", got)
		}
		rt.Delete(b, b, taken, client.DeleteOptions{})
		b.expect("a@n1")
	})
}

// What cannot change the plan wakes nobody.
func TestHeeds(t *testing.T) {
	pod := func(uid types.UID, node string, phase corev1.PodPhase, claim bool) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}, Spec: corev1.PodSpec{NodeName: node}, Status: corev1.PodStatus{Phase: phase}}
		if p.Spec.Volumes = []corev1.Volume{{Name: "v"}}; claim {
			p.Spec.Volumes[0].PersistentVolumeClaim = &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}
		}
		return p
	}
	waits, runs, ended := pod("u", "", corev1.PodPending, true), pod("u", "n1", corev1.PodRunning, true), pod("u", "n1", corev1.PodFailed, true)
	without := pod("u", "n1", corev1.PodRunning, false)
	node := func(change func(*corev1.Node)) *corev1.Node {
		n := &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
		change(n)
		return n
	}
	plain := node(func(*corev1.Node) {})
	for _, tt := range []struct {
		name string
		e    client.Event
		want bool
	}{
		{"a pod without a node", client.Event{Op: client.Added, Object: waits}, false},
		{"a pod without claims", client.Event{Op: client.Added, Object: without}, false},
		{"a pod that runs", client.Event{Op: client.Added, Object: runs}, true},
		{"a pod is placed", client.Event{Op: client.Modified, Old: waits, Object: runs}, true},
		{"a pod's status", client.Event{Op: client.Modified, Old: pod("u", "n1", corev1.PodPending, true), Object: runs}, false},
		{"a pod ends", client.Event{Op: client.Modified, Old: runs, Object: ended}, true},
		{"another pod of the name", client.Event{Op: client.Modified, Old: runs, Object: pod("v", "n1", corev1.PodRunning, true)}, true},
		{"a pod goes that had ended", client.Event{Op: client.Deleted, Old: ended, Object: ended}, false},
		{"a pod goes", client.Event{Op: client.Deleted, Object: runs}, true},
		{"a pod ends and goes", client.Event{Op: client.Deleted, Old: runs, Object: ended}, true},
		{"a node comes", client.Event{Op: client.Added, Object: plain}, true},
		{"a node goes", client.Event{Op: client.Deleted, Old: plain, Object: plain}, true},
		{"a node's heartbeat", client.Event{Op: client.Modified, Old: plain, Object: node(func(n *corev1.Node) { n.Status.Conditions[0].LastHeartbeatTime = metav1.Now() })}, false},
		{"a node falls silent", client.Event{Op: client.Modified, Old: plain, Object: node(func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown })}, true},
		{"a node uses a volume", client.Event{Op: client.Modified, Old: plain, Object: node(func(n *corev1.Node) { n.Status.VolumesInUse = []corev1.UniqueVolumeName{"v"} })}, true},
		{"a node is told of a volume", client.Event{Op: client.Modified, Old: plain, Object: node(func(n *corev1.Node) { n.Status.VolumesAttached = []corev1.AttachedVolume{{Name: "v"}} })}, true},
		{"a node is out of service", client.Event{Op: client.Modified, Old: plain, Object: node(func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService}} })}, true},
		{"all is known", client.Event{Op: client.Synced}, true},
	} {
		if got := heeds(tt.e); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// meddler does something before the first write of a Node's status.
type meddler struct {
	client.Client
	do func()
}

func (m *meddler) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	if _, ok := o.(*corev1.Node); ok && m.do != nil {
		do := m.do
		m.do = nil
		do()
	}
	return m.Client.Update(ctx, o, sub)
}

// A volume that is mounted in the moment in which it would be detached stays.
func TestMountedMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t, rt.New(t)}
		m := &meddler{Client: b.Cluster}
		d := rt.Deps(t, m)
		rt.Create(t, b, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
		b.volume("a")
		p := b.pod("p", "n1", "a")
		rt.Start(t, d, New(d), attacher(b.Cluster, func(s *storagev1.VolumeAttachmentStatus) { s.Attached = true }))
		b.expect("a@n1")
		m.do = func() { b.use("n1", "a") }
		b.end(p)
		b.expect("a@n1")
		if m.do != nil {
			t.Fatal("the node was not written")
		}
		b.use("n1")
		b.expect("")
	})
}
