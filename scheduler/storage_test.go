package scheduler

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
)

func usesClaim(name string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
	}
}

// late makes a class whose volumes wait for their first pod.
func (b *bench) late(name, provisioner string) {
	mode := storagev1.VolumeBindingWaitForFirstConsumer
	o := &storagev1.StorageClass{Provisioner: provisioner, VolumeBindingMode: &mode}
	o.Name = name
	b.create(o)
}

func (b *bench) claim(name, class string) {
	o := &corev1.PersistentVolumeClaim{}
	o.Namespace, o.Name = "default", name
	o.Spec.StorageClassName, o.Spec.AccessModes = &class, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	o.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	b.create(o)
}

// local makes a volume on a node.
func (b *bench) local(name, class, node string) {
	b.t.Helper()
	o := &corev1.PersistentVolume{}
	o.Name = name
	o.Spec.StorageClassName, o.Spec.AccessModes = class, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	o.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	o.Spec.Local = &corev1.LocalVolumeSource{Path: "/mnt/" + name}
	o.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}}
	got := b.create(o).(*corev1.PersistentVolume)
	if _, err := client.Mutate(b.t.Context(), b.Client, got, "status", func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeAvailable }); err != nil {
		b.t.Fatal(err)
	}
}

// bound completes the binding of every claim that a volume is reserved for, as the volume binder does, and returns what they are.
func (b *bench) bound() string {
	b.t.Helper()
	synctest.Wait()
	volumes, err := client.List[*corev1.PersistentVolume](b.t.Context(), b.Client, client.Query{})
	if err != nil {
		b.t.Fatal(err)
	}
	out := ""
	for _, v := range volumes {
		r := v.Spec.ClaimRef
		if r == nil {
			continue
		}
		c := b.pvc(r.Name)
		if r.UID != c.UID {
			b.t.Errorf("volume %s is reserved for %+v", v.Name, r)
		}
		if _, err := client.Mutate(b.t.Context(), b.Client, c, "", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.VolumeName = v.Name
			c.Annotations = map[string]string{claim.Completed: "yes"}
		}); err != nil {
			b.t.Fatal(err)
		}
		out += fmt.Sprintf("%s=%s ", v.Name, r.Name)
	}
	synctest.Wait()
	return out
}

func (b *bench) pvc(name string) *corev1.PersistentVolumeClaim {
	b.t.Helper()
	c, err := client.Get[*corev1.PersistentVolumeClaim](b.t.Context(), b.Client, api.Key{Namespace: "default", Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// A pod goes where a volume is that its claim can have, and not before it has it.
func TestLocalVolumes(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.late("local", claim.Unprovisioned)
		for _, n := range []string{"n1", "n2", "n3"} {
			b.node(makeNode(n))
		}
		b.claim("a", "local")
		b.create(makePod("a", usesClaim("a")))
		time.Sleep(time.Second)
		b.expect("a", "", "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind.")
		b.local("v2", "local", "n2")
		time.Sleep(time.Minute)
		if p := b.pod("a"); p.Spec.NodeName != "" || p.Status.NominatedNodeName != "n2" {
			t.Errorf("pod is on %q, promised %q", p.Spec.NodeName, p.Status.NominatedNodeName)
		}
		if got := b.bound(); got != "v2=a " {
			t.Errorf("bound: %s", got)
		}
		time.Sleep(time.Second)
		b.expect("a", "n2", "")
		// Another pod of the same claim has to be there too.
		b.create(makePod("b", usesClaim("a")))
		time.Sleep(time.Second)
		b.expect("b", "n2", "")
	})
}

// Pods that come at once do not get the same volume, and each gets one.
func TestLocalVolumesAtOnce(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.late("local", claim.Unprovisioned)
		const n = 20
		for i := range n {
			b.node(makeNode(fmt.Sprint("n", i)))
			b.local(fmt.Sprint("v", i), "local", fmt.Sprint("n", i))
			b.claim(fmt.Sprint("c", i), "local")
		}
		for i := range n {
			b.create(makePod(fmt.Sprint("p", i), usesClaim(fmt.Sprint("c", i))))
		}
		time.Sleep(time.Second)
		b.bound()
		time.Sleep(time.Second)
		on := map[string]bool{}
		for i := range n {
			on[b.pod(fmt.Sprint("p", i)).Spec.NodeName] = true
		}
		if len(on) != n || on[""] {
			t.Errorf("pods are on %v", on)
		}
	})
}

// A provisioner is told the node; where it gives up, another is chosen.
func TestProvisionedVolumes(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.late("made", "csi.example.com")
		b.node(makeNode("n1"))
		b.claim("a", "made")
		b.create(makePod("a", usesClaim("a"), requests("3", "1Gi")))
		time.Sleep(time.Minute)
		if got := b.pvc("a").Annotations[claim.SelectedNode]; got != "n1" {
			t.Errorf("selected node %q", got)
		}
		if p := b.pod("a"); p.Spec.NodeName != "" || p.Status.NominatedNodeName != "n1" {
			t.Errorf("pod is on %q, promised %q", p.Spec.NodeName, p.Status.NominatedNodeName)
		}
		// Its room is kept.
		b.create(makePod("b", requests("2", "1Gi")))
		time.Sleep(time.Second)
		b.expect("b", "", "0/1 nodes are available: 1 Insufficient cpu.")
		// The provisioner cannot make one there.
		b.node(makeNode("n2"))
		time.Sleep(time.Second)
		b.expect("b", "n2", "")
		n1, err := client.Get[*corev1.Node](b.t.Context(), b.Client, api.Key{Name: "n1"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Mutate(b.t.Context(), b.Client, n1, "", func(n *corev1.Node) { n.Spec.Unschedulable = true }); err != nil {
			t.Fatal(err)
		}
		b.node(makeNode("n3"))
		if _, err := client.Mutate(b.t.Context(), b.Client, b.pvc("a"), "", func(c *corev1.PersistentVolumeClaim) { delete(c.Annotations, claim.SelectedNode) }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if got := b.pvc("a").Annotations[claim.SelectedNode]; got != "n3" {
			t.Errorf("selected node %q", got)
		}
	})
}

// busy writes to a claim in the moment before the scheduler does, some times.
type busy struct {
	client.Client
	left int
}

func (b *busy) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	if c, ok := o.(*corev1.PersistentVolumeClaim); ok && b.left > 0 {
		b.left--
		now, err := client.Get[*corev1.PersistentVolumeClaim](ctx, b.Client, api.KeyOf(c))
		if err != nil {
			return nil, err
		}
		if _, err := client.Mutate(ctx, b.Client, now, "", func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"n": fmt.Sprint(b.left)} }); err != nil {
			return nil, err
		}
	}
	return b.Client.Update(ctx, o, sub)
}

// Others that write to a claim do not keep its provisioner from being told the node.
func TestClaimIsBusy(t *testing.T) {
	t.Parallel()
	x := &busy{left: 12}
	bubble(t, func(c client.Client) client.Client { x.Client = c; return x }, func(b *bench) {
		b.late("made", "csi.example.com")
		b.node(makeNode("n1"))
		b.claim("a", "made")
		b.create(makePod("a", usesClaim("a")))
		time.Sleep(time.Second)
		if got := b.pvc("a"); got.Annotations[claim.SelectedNode] != "n1" || got.Labels["n"] != "0" {
			t.Errorf("claim %+v", got.ObjectMeta)
		}
	})
}

// refusing refuses some updates of volumes.
type refusing struct {
	client.Client
	left int
}

func (r *refusing) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	if _, ok := o.(*corev1.PersistentVolume); ok && r.left > 0 {
		r.left--
		return nil, apierrors.NewInternalError(errors.New("not now"))
	}
	return r.Client.Update(ctx, o, sub)
}

// What was assumed for a reservation that failed is given back, and it is tried again.
func TestReservationFails(t *testing.T) {
	t.Parallel()
	bubble(t, func(c client.Client) client.Client { return &refusing{Client: c, left: 3} }, func(b *bench) {
		b.late("local", claim.Unprovisioned)
		b.node(makeNode("n1"))
		b.local("v", "local", "n1")
		b.claim("a", "local")
		b.create(makePod("a", usesClaim("a")))
		time.Sleep(time.Minute)
		if got := b.bound(); got != "v=a " {
			t.Errorf("bound: %s", got)
		}
		time.Sleep(time.Second)
		b.expect("a", "n1", "")
	})
}
