package localvolume

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/events"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func size(text string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(text)}
}

// pvc is a claim whose node was chosen.
func pvc(name, node string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	local := claim.LocalClass
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Annotations: map[string]string{claim.SelectedNode: node}},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &local, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: size("1Gi")}}}
	claim.Ask(c, claim.LocalDriver)
	for _, f := range change {
		f(c)
	}
	return c
}

func node(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: "host-" + name}}}
}

func TestRefuse(t *testing.T) {
	block, gold, other := corev1.PersistentVolumeBlock, "gold", "v1"
	immediate := storagev1.VolumeBindingImmediate
	for _, tt := range []struct {
		name   string
		claim  func(*corev1.PersistentVolumeClaim)
		class  func(*storagev1.StorageClass)
		refuse string
	}{
		{name: "nothing"},
		{name: "one pod alone", claim: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		}},
		{name: "mode", claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeMode = &block }, refuse: "volumeMode Block is not supported: local volumes are folders"},
		{name: "many nodes", claim: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce, corev1.ReadWriteMany}
		}, refuse: "accessMode ReadWriteMany is not supported: a local volume is on one node"},
		{name: "selector", claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.Selector = &metav1.LabelSelector{} }, refuse: "a selector is for volumes that exist"},
		{name: "source", claim: func(c *corev1.PersistentVolumeClaim) {
			c.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "VolumeSnapshot", Name: "s"}
		}, refuse: "dataSource is not supported: local volumes begin empty"},
		{name: "attributes", claim: func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeAttributesClassName = &gold },
			refuse: "volumeAttributesClassName is not supported: local volumes have no attributes"},
		{name: "parameters", class: func(c *storagev1.StorageClass) { c.Parameters = map[string]string{"type": other, "path": "/x"} },
			refuse: `it has the parameter "path": there are none` + "\n" + `it has the parameter "type": there are none`},
		{name: "too soon", class: func(c *storagev1.StorageClass) { c.VolumeBindingMode = &immediate },
			refuse: "its volumeBindingMode must be WaitForFirstConsumer: a local volume is on the node of its first pod"},
	} {
		k, c := class(true), pvc("c", "n1")
		if tt.claim != nil {
			tt.claim(c)
		}
		if tt.class != nil {
			tt.class(k)
		}
		got := ""
		if err := errors.Join(refuse(c, k)...); err != nil {
			got = err.Error()
		}
		if got != tt.refuse {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.refuse)
		}
	}
}

// bench is a cluster with the node n1.
type bench struct {
	*testing.T
	*rt.Cluster
}

func bubble(t *testing.T, before func(*bench), f func(*bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t, rt.New(t)}
		d := rt.Deps(t, b)
		d.Events = events.New(b.Cluster, "test", "", d.Log)
		rt.Create(t, b, node("n1"))
		if before != nil {
			before(b)
		}
		rt.Start(t, d, New(d), d.Events)
		f(b)
	})
}

// volumes returns what volumes there are.
func (b *bench) volumes() string {
	synctest.Wait()
	var out []string
	for _, v := range rt.List[*corev1.PersistentVolume](b, b) {
		size := v.Spec.Capacity[corev1.ResourceStorage]
		out = append(out, fmt.Sprintf("%s for %s on %s %s %s %v deleted=%v", v.Name, v.Spec.ClaimRef.Name, v.Labels[claim.LocalNode], size.String(),
			v.Spec.PersistentVolumeReclaimPolicy, v.Finalizers, v.DeletionTimestamp != nil))
	}
	return strings.Join(out, "; ")
}

func (b *bench) expect(want string) {
	b.Helper()
	if got := b.volumes(); got != want {
		b.Errorf("got %q, want %q", got, want)
	}
}

func (b *bench) volume() *corev1.PersistentVolume {
	return rt.List[*corev1.PersistentVolume](b, b)[0]
}

// heard returns the last words about a claim.
func (b *bench) heard(name string) string {
	synctest.Wait()
	out := ""
	for _, e := range rt.List[*corev1.Event](b, b) {
		if e.InvolvedObject.Name == name {
			out = fmt.Sprintf("%s %s: %s", e.Type, e.Reason, e.Message)
		}
	}
	return out
}

// bound completes a binding, as the volume binder does.
func (b *bench) bound(name string) *corev1.PersistentVolumeClaim {
	v := rt.Mutate(b, b, b.volume(), "status", func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeBound })
	c := rt.Mutate(b, b, rt.Get[*corev1.PersistentVolumeClaim](b, b, "ns", name), "", func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Annotations[claim.Completed] = v.Name, "yes"
	})
	return rt.Mutate(b, b, c, "status", func(c *corev1.PersistentVolumeClaim) {
		c.Status.Phase, c.Status.Capacity = corev1.ClaimBound, v.Spec.Capacity.DeepCopy()
	})
}

const made = "pvc-c for c on n1 1Gi Delete [local.csi.yare.dev/data] deleted="

func withUID(c *corev1.PersistentVolumeClaim) { c.UID = "c" }

func TestProvisions(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		synctest.Wait()
		c := rt.Create(b, b, pvc("c", "", withUID))
		b.expect("")
		c = rt.Mutate(b, b, c, "", func(c *corev1.PersistentVolumeClaim) { c.Annotations[claim.SelectedNode] = "n1" })
		b.expect(made + "false")
		v := b.volume()
		if v.Spec.ClaimRef.UID != c.UID || v.Spec.CSI.Driver != claim.LocalDriver || v.Spec.CSI.VolumeHandle != v.Name || claim.OfLocal(v) != "n1" ||
			!claim.Reaches(node("n1"), v) || claim.Reaches(node("n2"), v) || claim.Unsuited(v, c) != "" {
			b.Errorf("volume %+v", v.Spec)
		}
		if got := b.heard("c"); got != "Normal ProvisioningSucceeded: Successfully provisioned volume pvc-c" {
			b.Error(got)
		}
		rt.Mutate(b, b, c, "", func(c *corev1.PersistentVolumeClaim) { c.Labels = map[string]string{"a": "b"} })
		b.expect(made + "false") // none for the second time
		c = b.bound("c")
		rt.Mutate(b, b, c, "", func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = size("3Gi") })
		b.expect(strings.Replace(made, "1Gi", "3Gi", 1) + "false")
		has := rt.Get[*corev1.PersistentVolumeClaim](b, b, "ns", "c").Status.Capacity[corev1.ResourceStorage]
		if got := b.heard("c"); got != "Normal VolumeResizeSuccessful: Resize volume succeeded" || has.String() != "3Gi" {
			b.Error(got, has.String())
		}
	})
}

// A claim whose status says nothing of its size, or that another's growing failed, grows too.
func TestGrowsFromNothing(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		synctest.Wait()
		rt.Create(b, b, pvc("c", "n1", withUID))
		synctest.Wait()
		c := b.bound("c")
		rt.Mutate(b, b, c, "status", func(c *corev1.PersistentVolumeClaim) {
			c.Status.Capacity = nil
			c.Status.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{corev1.ResourceStorage: corev1.PersistentVolumeClaimNodeResizeInfeasible}
			c.Status.Conditions = []corev1.PersistentVolumeClaimCondition{{Type: corev1.PersistentVolumeClaimNodeResizeError}, {Type: corev1.PersistentVolumeClaimUnused}}
		})
		synctest.Wait()
		s := rt.Get[*corev1.PersistentVolumeClaim](b, b, "ns", "c").Status
		if has := s.Capacity[corev1.ResourceStorage]; has.String() != "1Gi" || s.AllocatedResourceStatuses != nil || len(s.Conditions) != 1 {
			b.Errorf("%+v", s)
		}
	})
}

func TestRefuses(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		synctest.Wait()
		rt.Create(b, b, pvc("c", "n1", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}))
		if got := b.heard("c"); got != `Warning ProvisioningFailed: failed to provision volume with StorageClass "local": accessMode ReadWriteMany is not supported: a local volume is on one node` {
			b.Error(got)
		}
		for _, c := range []*corev1.PersistentVolumeClaim{pvc("lost", "n2"), pvc("other", "n1", func(c *corev1.PersistentVolumeClaim) { claim.Ask(c, "csi.example.com") })} {
			rt.Create(b, b, c)
		}
		b.expect("")
		if c := rt.Get[*corev1.PersistentVolumeClaim](b, b, "ns", "lost"); c.Annotations[claim.SelectedNode] != "" {
			b.Error("it still waits for a node that is gone")
		}
	})
}

// The data of a volume goes when its claim is gone, and when its node says so.
func TestDeletes(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		synctest.Wait()
		rt.Create(b, b, pvc("c", "n1", withUID))
		synctest.Wait()
		v := b.volume()
		b.bound("c")
		b.expect(made + "false")
		rt.Mutate(b, b, v, "status", func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeReleased })
		b.expect(made + "true")
		rt.Mutate(b, b, v, "", func(v *corev1.PersistentVolume) { v.Finalizers = nil })
		b.expect("")
	})
}

// A volume whose node is gone waits for it, and says so.
func TestNodeGone(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		synctest.Wait()
		rt.Create(b, b, pvc("c", "n1", withUID))
		synctest.Wait()
		v := b.volume()
		rt.Delete(b, b, v, client.DeleteOptions{})
		b.expect(made + "true")
		if got := b.heard(v.Name); got != "" {
			b.Error(got)
		}
		rt.Delete(b, b, rt.Get[*corev1.Node](b, b, "", "n1"), client.DeleteOptions{})
		b.expect(made + "true")
		if got := b.heard(v.Name); got != "Warning VolumeFailedDelete: node n1, which has the data, is gone: the volume is deleted when it is back. "+
			"If it will not come back, take the finalizer local.csi.yare.dev/data away." {
			b.Error(got)
		}
	})
}

// Who changes his mind about a volume's data has his way, as long as it is there.
func TestRetains(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		synctest.Wait()
		rt.Create(b, b, pvc("c", "n1", withUID))
		synctest.Wait()
		v := b.volume()
		policy := func(p corev1.PersistentVolumeReclaimPolicy) {
			rt.Mutate(b, b, v, "", func(v *corev1.PersistentVolume) { v.Spec.PersistentVolumeReclaimPolicy = p })
		}
		policy(corev1.PersistentVolumeReclaimRetain)
		b.expect("pvc-c for c on n1 1Gi Retain [] deleted=false")
		rt.Mutate(b, b, v, "status", func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeReleased })
		b.expect("pvc-c for c on n1 1Gi Retain [] deleted=false")
		rt.Mutate(b, b, v, "", func(v *corev1.PersistentVolume) { delete(v.Labels, claim.LocalNode) })
		b.expect("pvc-c for c on n1 1Gi Retain [] deleted=false")
		policy(corev1.PersistentVolumeReclaimDelete)
		b.expect(made + "true")
		policy(corev1.PersistentVolumeReclaimRetain)
		b.expect("") // the data is nobody's business now
	})
}

// Volumes that others made with the driver are theirs.
func TestOthers(t *testing.T) {
	bubble(t, nil, func(b *bench) {
		v := volume(pvc("c", "n1", withUID), class(true), node("n1"))
		v.Annotations, v.Finalizers = nil, nil
		v.Status.Phase = corev1.VolumeReleased
		rt.Create(b, b, v)
		b.expect("pvc-c for c on n1 1Gi Delete [] deleted=false")
	})
}

// The class is made once, and the driver kept.
func TestDriver(t *testing.T) {
	classes := func(b *bench) (names []string) {
		synctest.Wait()
		for _, c := range rt.List[*storagev1.StorageClass](b, b) {
			names = append(names, fmt.Sprintf("%s %v", c.Name, claim.Default([]*storagev1.StorageClass{c}) != nil))
		}
		return names
	}
	bubble(t, nil, func(b *bench) {
		if got := classes(b); !slices.Equal(got, []string{"local true"}) {
			b.Error(got)
		}
		rt.Delete(b, b, rt.List[*storagev1.StorageClass](b, b)[0], client.DeleteOptions{})
		d := rt.Get[*storagev1.CSIDriver](b, b, "", claim.LocalDriver)
		rt.Mutate(b, b, d, "", func(d *storagev1.CSIDriver) { d.Spec.AttachRequired = new(true) })
		if got := classes(b); len(got) != 0 {
			b.Error("it was deleted, and is back:", got)
		}
		if d := rt.Get[*storagev1.CSIDriver](b, b, "", claim.LocalDriver); *d.Spec.AttachRequired {
			b.Error("the driver is not mended")
		}
	})
	bubble(t, func(b *bench) {
		mine := class(true)
		mine.Name = "mine"
		rt.Create(b, b, mine)
	}, func(b *bench) {
		if got := classes(b); !slices.Equal(got, []string{"local false", "mine true"}) {
			b.Error(got)
		}
	})
	// Ended between the two.
	bubble(t, func(b *bench) {
		fails := 3
		b.Refuse = func(verb string, k *api.Kind, _ api.Key) error {
			if verb == "create" && k == api.CSIDriverKind && fails > 0 {
				fails--
				return errors.New("not now")
			}
			return nil
		}
	}, func(b *bench) {
		if got := classes(b); !slices.Equal(got, []string{"local true"}) {
			b.Error(got)
		}
	})
}
