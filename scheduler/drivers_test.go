package scheduler

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
)

// driven makes a claim with its volume of the CSI driver "disk".
func (b *bench) driven(name string, mode corev1.PersistentVolumeAccessMode) {
	b.t.Helper()
	class := ""
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	v.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{mode}
	v.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "disk", VolumeHandle: name}
	b.create(v)
	o := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Annotations: map[string]string{claim.Completed: "yes"}}}
	o.Spec.StorageClassName, o.Spec.AccessModes, o.Spec.VolumeName = &class, v.Spec.AccessModes, name
	o.Spec.Resources.Requests = v.Spec.Capacity
	b.create(o)
}

// A volume for one pod alone goes from a pod to the next one when the first ends, and at once to one that is more important.
func TestVolumeOfOnePod(t *testing.T) {
	t.Parallel()
	const taken = "0/2 nodes are available: 2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode."
	bubble(t, nil, func(b *bench) {
		b.node(makeNode("n1"))
		b.node(makeNode("n2"))
		b.driven("v", corev1.ReadWriteOncePod)
		here := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n1"} }
		b.create(makePod("first", usesClaim("v"), here, important32(5)))
		time.Sleep(time.Second)
		b.create(makePod("equal", usesClaim("v"), important32(5)))
		time.Sleep(time.Minute)
		b.expect("first", "n1", "")
		b.expect("equal", "", taken)
		b.create(makePod("high", usesClaim("v"), important32(9)))
		time.Sleep(time.Second)
		if got := b.gone(); len(got) != 1 || got[0] != "first" {
			t.Errorf("%v had to go", got)
		}
		time.Sleep(time.Minute)
		b.expect("high", "n1", "")
		b.expect("equal", "", taken)
		grace := int64(0)
		if err := b.Delete(b.t.Context(), b.pod("high"), client.DeleteOptions{Grace: &grace}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if b.pod("equal").Spec.NodeName == "" {
			t.Error("it waits though nobody uses the volume")
		}
	})
}

// A pod that waits for room at a driver comes when a volume is detached.
func TestWaitsForDetach(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.node(makeNode("n1"))
		one, volume := int32(1), "old"
		b.create(&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Spec: storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{
			{Name: "disk", NodeID: "n1", Allocatable: &storagev1.VolumeNodeResources{Count: &one}}}}})
		b.driven(volume, corev1.ReadWriteOnce)
		b.driven("new", corev1.ReadWriteOnce)
		va := b.create(&storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "csi-old"}, Spec: storagev1.VolumeAttachmentSpec{
			Attacher: "disk", NodeName: "n1", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &volume}}})
		b.create(makePod("p", usesClaim("new")))
		time.Sleep(time.Minute)
		b.expect("p", "", "0/1 nodes are available: 1 node(s) exceed max volume count.")
		if err := b.Delete(b.t.Context(), va, client.DeleteOptions{AnyRevision: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		b.expect("p", "n1", "")
	})
}

// A pod whose volume a driver has no space for comes when it has.
func TestWaitsForCapacity(t *testing.T) {
	t.Parallel()
	bubble(t, nil, func(b *bench) {
		b.node(makeNode("n1"))
		b.late("made", "disk")
		b.create(&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Spec: storagev1.CSIDriverSpec{StorageCapacity: new(true)}})
		b.claim("a", "made")
		b.create(makePod("a", usesClaim("a")))
		time.Sleep(time.Second)
		b.expect("a", "", "0/1 nodes are available: 1 node(s) did not have enough free storage.")
		size := resource.MustParse("10Gi")
		b.create(&storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "n1"}, StorageClassName: "made",
			NodeTopology: &metav1.LabelSelector{}, Capacity: &size})
		time.Sleep(time.Minute)
		if got := b.pvc("a").Annotations[claim.SelectedNode]; got != "n1" {
			t.Errorf("selected node %q", got)
		}
	})
}
