package volumebinder

import (
	"fmt"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func volume(name, size, class string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PersistentVolumeSpec{StorageClassName: class,
		Capacity:    corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain}}
	v.Status.Phase = corev1.VolumeAvailable
	for _, f := range change {
		f(v)
	}
	return v
}

func pvc(name, size, class string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
		Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}}}}
	for _, f := range change {
		f(c)
	}
	return c
}

func forClaim(name, uid string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name}
		if uid != "" {
			v.Spec.ClaimRef.UID = "other"
		}
	}
}

func onto(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Spec.VolumeName = name }
}

func bound(c *corev1.PersistentVolumeClaim) {
	c.Annotations = map[string]string{claim.Completed: "yes"}
}

func on(node string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) { c.Annotations = map[string]string{claim.SelectedNode: node} }
}

func class(name, provisioner string, mode storagev1.VolumeBindingMode) *storagev1.StorageClass {
	return &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
}

var classes = map[string]*storagev1.StorageClass{
	"hand": class("hand", claim.Unprovisioned, storagev1.VolumeBindingImmediate),
	"made": class("made", "csi.example.com", storagev1.VolumeBindingImmediate),
	"here": class("here", claim.LocalDriver, storagev1.VolumeBindingWaitForFirstConsumer),
	"late": class("late", "csi.example.com", storagev1.VolumeBindingWaitForFirstConsumer),
}

func TestJudge(t *testing.T) {
	block := corev1.PersistentVolumeBlock
	for _, tt := range []struct {
		name    string
		claim   *corev1.PersistentVolumeClaim
		volumes []*corev1.PersistentVolume
		want    string
	}{
		{"the smallest that is large enough", pvc("c", "2Gi", ""), []*corev1.PersistentVolume{volume("a", "5Gi", ""), volume("b", "1Gi", ""), volume("c", "3Gi", "")}, "Bound c"},
		{"of its class", pvc("c", "1Gi", "gold"), []*corev1.PersistentVolume{volume("a", "1Gi", ""), volume("b", "5Gi", "gold")}, "Bound b"},
		{"a class waits for its provisioner", pvc("c", "1Gi", "gold"), []*corev1.PersistentVolume{volume("a", "1Gi", "")}, "Pending ProvisioningFailed"},
		{"a class without provisioner", pvc("c", "1Gi", "hand"), []*corev1.PersistentVolume{volume("a", "1Gi", "")}, "Pending ProvisioningFailed"},
		{"a class with one", pvc("c", "1Gi", "made"), nil, "Pending ExternalProvisioning by csi.example.com"},
		{"a class that waits", pvc("c", "1Gi", "late"), []*corev1.PersistentVolume{volume("a", "1Gi", "late")}, "Pending WaitForFirstConsumer"},
		{"waits no more", pvc("c", "1Gi", "late"), []*corev1.PersistentVolume{volume("a", "1Gi", "late"), volume("b", "5Gi", "late", forClaim("c", ""))}, "Bound b"},
		{"its node is known", pvc("c", "1Gi", "late", on("n1")), nil, "Pending ExternalProvisioning by csi.example.com"},
		{"of the built-in local storage", pvc("c", "1Gi", "here", on("n1")), nil, "Pending by " + claim.LocalDriver},
		{"its node is known, and its volume", pvc("c", "1Gi", "late", on("n1")), []*corev1.PersistentVolume{volume("b", "5Gi", "late", forClaim("c", ""))}, "Bound b"},
		{"none", pvc("c", "1Gi", ""), nil, "Pending FailedBinding"},
		{"reserved for it", pvc("c", "1Gi", ""), []*corev1.PersistentVolume{volume("a", "1Gi", ""), volume("b", "5Gi", "", forClaim("c", ""))}, "Bound b"},
		{"reserved for another", pvc("c", "1Gi", ""), []*corev1.PersistentVolume{volume("b", "5Gi", "", forClaim("d", ""))}, "Pending FailedBinding"},
		{"selected", pvc("c", "1Gi", "", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"a": "b"}}
		}), []*corev1.PersistentVolume{volume("a", "1Gi", ""), volume("b", "5Gi", "", func(v *corev1.PersistentVolume) { v.Labels = map[string]string{"a": "b"} })}, "Bound b"},
		{"another mode", pvc("c", "1Gi", ""), []*corev1.PersistentVolume{volume("a", "1Gi", "", func(v *corev1.PersistentVolume) { v.Spec.VolumeMode = &block })}, "Pending FailedBinding"},
		{"the one that it asks for", pvc("c", "1Gi", "", onto("b")), []*corev1.PersistentVolume{volume("a", "1Gi", ""), volume("b", "5Gi", "")}, "Bound b"},
		{"asked for and too small", pvc("c", "9Gi", "", onto("b")), []*corev1.PersistentVolume{volume("b", "5Gi", "")}, "Pending VolumeMismatch"},
		{"asked for and taken", pvc("c", "1Gi", "", onto("b")), []*corev1.PersistentVolume{volume("b", "5Gi", "", forClaim("d", "other"))}, "Pending FailedBinding"},
		{"asked for and not there yet", pvc("c", "1Gi", "", onto("b")), nil, "Pending"},
		{"lost", pvc("c", "1Gi", "", onto("b"), bound), nil, "Lost ClaimLost"},
		{"bound twice", pvc("c", "1Gi", "", onto("b"), bound), []*corev1.PersistentVolume{volume("b", "5Gi", "", forClaim("c", "other"))}, "Lost ClaimMisbound"},
	} {
		j := judge(tt.claim, tt.volumes, classes[claim.Class(tt.claim)])
		got := string(j.phase)
		if j.volume != nil {
			got += " " + j.volume.Name
		}
		if j.reason != "" {
			got += " " + j.reason
		}
		if j.maker != "" {
			got += " by " + j.maker
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// A volume is made, bound, left and lost.
func TestLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		expect := func(claim, volume string) {
			t.Helper()
			synctest.Wait()
			got := ""
			for _, c := range rt.List[*corev1.PersistentVolumeClaim](t, c) {
				got += fmt.Sprintf("%s %s %s;", c.Name, c.Status.Phase, c.Spec.VolumeName)
			}
			if got != claim {
				t.Errorf("claims %q, want %q", got, claim)
			}
			got = ""
			for _, v := range rt.List[*corev1.PersistentVolume](t, c) {
				got += fmt.Sprintf("%s %s;", v.Name, v.Status.Phase)
			}
			if got != volume {
				t.Errorf("volumes %q, want %q", got, volume)
			}
		}
		rt.Create(t, c, pvc("a", "1Gi", ""))
		rt.Create(t, c, pvc("b", "1Gi", ""))
		expect("a Pending ;b Pending ;", "")
		rt.Create(t, c, volume("v", "2Gi", "", func(v *corev1.PersistentVolume) { v.Status.Phase = "" }))
		synctest.Wait()
		winner, loser := "a", "b"
		if rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", "b").Spec.VolumeName != "" {
			winner, loser = loser, winner
		}
		w := rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", winner)
		size := w.Status.Capacity[corev1.ResourceStorage]
		v := rt.Get[*corev1.PersistentVolume](t, c, "", "v")
		if w.Status.Phase != corev1.ClaimBound || size.String() != "2Gi" || w.Annotations[claim.Completed] != "yes" || v.Spec.ClaimRef.UID != w.UID || v.Annotations[claim.Ours] != "yes" {
			t.Errorf("claim %+v, volume %+v", w, v)
		}
		rt.Delete(t, c, rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", winner), client.DeleteOptions{})
		expect(loser+" Pending ;", "v Released;")
		// What was on it is kept until somebody says that it may be used again.
		rt.Mutate(t, c, v, "", func(v *corev1.PersistentVolume) { v.Spec.ClaimRef = nil })
		expect(loser+" Bound v;", "v Bound;")
		rt.Delete(t, c, v, client.DeleteOptions{})
		expect(loser+" Lost v;", "")
	})
}

// A claim whose class waits gets nothing before the scheduler has chosen: a volume, or a node for a provisioner.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		rt.Create(t, c, class("late", "csi.example.com", storagev1.VolumeBindingWaitForFirstConsumer))
		rt.Create(t, c, volume("v", "1Gi", "late"))
		rt.Create(t, c, pvc("a", "1Gi", "late"))
		b := rt.Create(t, c, pvc("b", "1Gi", "late"))
		expect := func(name, want string) {
			t.Helper()
			synctest.Wait()
			c := rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", name)
			if got := fmt.Sprintf("%s %s %s", c.Status.Phase, c.Spec.VolumeName, claim.Provisioner(c)); got != want {
				t.Errorf("claim %s: %q, want %q", name, got, want)
			}
		}
		expect("a", "Pending  ")
		expect("b", "Pending  ")
		rt.Mutate(t, c, rt.Get[*corev1.PersistentVolume](t, c, "", "v"), "", func(v *corev1.PersistentVolume) { claim.Reserve(v, b) })
		expect("b", "Bound v ")
		rt.Mutate(t, c, rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", "a"), "", func(c *corev1.PersistentVolumeClaim) {
			metav1.SetMetaDataAnnotation(&c.ObjectMeta, claim.SelectedNode, "n1")
		})
		expect("a", "Pending  csi.example.com")
	})
}

// A claim that names no class gets the one that becomes the default, unless it has a volume already or wants no class.
func TestDefaultClass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		none := func(c *corev1.PersistentVolumeClaim) { c.Spec.StorageClassName = nil }
		rt.Create(t, c, volume("v", "1Gi", ""))
		rt.Create(t, c, pvc("bound", "1Gi", "", none))
		synctest.Wait()
		rt.Create(t, c, pvc("late", "1Gi", "", none))
		rt.Create(t, c, pvc("empty", "1Gi", ""))
		rt.Create(t, c, pvc("beta", "1Gi", "", none, func(c *corev1.PersistentVolumeClaim) {
			c.Annotations = map[string]string{corev1.BetaStorageClassAnnotation: ""}
		}))
		synctest.Wait()
		rt.Create(t, c, class("plain", "csi.example.com", storagev1.VolumeBindingImmediate))
		first := class("made", "csi.example.com", storagev1.VolumeBindingImmediate)
		first.Annotations = map[string]string{claim.DefaultClass: "true"}
		rt.Create(t, c, first)
		synctest.Wait()
		got := ""
		for _, c := range rt.List[*corev1.PersistentVolumeClaim](t, c) {
			class := "<none>"
			if n := c.Spec.StorageClassName; n != nil {
				class = *n
			}
			got += fmt.Sprintf("%s %s %s;", c.Name, class, claim.Provisioner(c))
		}
		if want := "beta <none> ;bound <none> ;empty  ;late made csi.example.com;"; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

// A volume is not released because its claim is not known here yet.
func TestLateClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, rt.Late(c, api.PersistentVolumeClaimKind))
		rt.Start(t, d, New(d))
		rt.Create(t, c, pvc("a", "1Gi", "", onto("v"), func(c *corev1.PersistentVolumeClaim) { c.UID = "other" }))
		v := volume("v", "1Gi", "", forClaim("a", "other"))
		v.Status.Phase = corev1.VolumeBound
		rt.Create(t, c, v)
		synctest.Wait()
		if got := rt.Get[*corev1.PersistentVolume](t, c, "", "v").Status.Phase; got != corev1.VolumeBound {
			t.Errorf("the volume is %s", got)
		}
		rt.Delete(t, c, rt.Get[*corev1.PersistentVolumeClaim](t, c, "ns", "a"), client.DeleteOptions{})
		synctest.Wait()
		if got := rt.Get[*corev1.PersistentVolume](t, c, "", "v").Status.Phase; got != corev1.VolumeReleased {
			t.Errorf("the volume is %s when its claim is gone", got)
		}
	})
}

func TestPolicyDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		remove := func(v *corev1.PersistentVolume) {
			v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimDelete
		}
		rt.Create(t, c, volume("hand", "1Gi", "", remove, forClaim("gone", "other")))
		rt.Create(t, c, volume("made", "1Gi", "", remove, forClaim("gone", "other"), func(v *corev1.PersistentVolume) { v.Annotations = map[string]string{claim.ProvisionedBy: "csi"} }))
		synctest.Wait()
		for name, want := range map[string]corev1.PersistentVolumePhase{"hand": corev1.VolumeFailed, "made": corev1.VolumeReleased} {
			if got := rt.Get[*corev1.PersistentVolume](t, c, "", name).Status; got.Phase != want {
				t.Errorf("%s is %+v", name, got)
			}
		}
	})
}
