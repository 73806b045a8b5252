package plugins

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/scheduler/cluster"
)

func csi(driver string) func(*corev1.PersistentVolume) {
	return func(v *corev1.PersistentVolume) {
		v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "handle-of-" + v.Name}
	}
}

func onePod(c *corev1.PersistentVolumeClaim) {
	c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
}

// outcome is what a filter says of every node: nothing where the pod passes.
func outcome(t *testing.T, f Filter, c *cluster.Cluster, pod *corev1.Pod) string {
	t.Helper()
	p, err := c.Pod(pod)
	if err != nil {
		t.Fatal(err)
	}
	check, err := f.Prepare(c, p)
	if err != nil {
		return err.Error()
	}
	var out []string
	for slot, n := range c.Nodes {
		if check != nil && !check.Pass(slot) {
			out = append(out, n.Name+": "+strings.Join(check.Why(slot), ", "))
		}
	}
	return strings.Join(out, "; ")
}

// stored fills in what is stored; names are those of the objects.
func stored(c *cluster.Cluster, objects ...api.Object) {
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.PersistentVolumeClaim:
			c.Claims[api.KeyOf(o)] = o
		case *corev1.PersistentVolume:
			c.Volumes[o.Name] = o
		case *storagev1.StorageClass:
			c.Classes[o.Name] = o
		case *storagev1.CSIDriver:
			c.Drivers[o.Name] = o
		case *storagev1.CSINode:
			c.DriversOn[o.Name] = o
		case *storagev1.VolumeAttachment:
			c.Attached[o.Spec.NodeName] = map[string]*storagev1.VolumeAttachment{o.Name: o}
		case *storagev1.CSIStorageCapacity:
			if c.Capacities[o.StorageClassName] == nil {
				c.Capacities[o.StorageClassName] = map[api.Key]*storagev1.CSIStorageCapacity{}
			}
			c.Capacities[o.StorageClassName][api.KeyOf(o)] = o
		}
	}
}

func TestVolumeRestrictions(t *testing.T) {
	t.Parallel()
	const taken = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode"
	for _, tt := range []struct {
		name string
		pods map[string][]*corev1.Pod
		pod  *corev1.Pod
		want string
	}{
		{"free", map[string][]*corev1.Pod{"a": {pod("q", claims("shared"))}}, pod("p", claims("alone", "shared")), ""},
		{"used", map[string][]*corev1.Pod{"a": {pod("q", claims("alone"))}}, pod("p", claims("alone")), "a: " + taken + "; b: " + taken},
		{"used on a node that is gone", map[string][]*corev1.Pod{"z": {pod("q", claims("alone"))}}, pod("p", claims("alone")), "a: " + taken + "; b: " + taken},
		{"used by many", map[string][]*corev1.Pod{"a": {pod("q", claims("shared"))}}, pod("p", claims("shared")), ""},
		{"of another namespace", map[string][]*corev1.Pod{"a": {pod("q", claims("alone"), func(p *corev1.Pod) { p.Namespace = "other" })}}, pod("p", claims("alone")), ""},
	} {
		c := world(t, []*corev1.Node{node("a"), node("b")}, tt.pods)
		stored(c, pvc("alone", "", "1", onePod), pvc("shared", "", "1"))
		if got := outcome(t, volumeRestrictions, c, tt.pod); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
		for _, on := range tt.pods {
			for _, q := range on {
				c.RemovePod(q.UID)
			}
		}
		if got := outcome(t, volumeRestrictions, c, tt.pod); got != "" || len(c.Claimed) != 0 {
			t.Errorf("%s: when they are gone: %s, %v", tt.name, got, c.Claimed)
		}
	}
}

func TestNodeVolumeLimits(t *testing.T) {
	t.Parallel()
	const full = "node(s) exceed max volume count"
	drivers := func(name string, ds ...storagev1.CSINodeDriver) *storagev1.CSINode {
		return &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: storagev1.CSINodeSpec{Drivers: ds}}
	}
	upTo := func(driver string, n int32) storagev1.CSINodeDriver {
		return storagev1.CSINodeDriver{Name: driver, Allocatable: &storagev1.VolumeNodeResources{Count: &n}}
	}
	attached := func(volume string) *storagev1.VolumeAttachment {
		return &storagev1.VolumeAttachment{ObjectMeta: metav1.ObjectMeta{Name: "csi-" + volume}, Spec: storagev1.VolumeAttachmentSpec{
			Attacher: "disk", NodeName: "a", Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &volume}}}
	}
	choosy := &storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Spec: storagev1.CSIDriverSpec{PreventPodSchedulingIfMissing: new(true)}}
	for _, tt := range []struct {
		name    string
		pods    []*corev1.Pod // on a
		objects []api.Object
		pod     *corev1.Pod
		want    string
	}{
		{"no limit known", []*corev1.Pod{pod("q", claims("x"))}, nil, pod("p", claims("y")), ""},
		{"room for one", []*corev1.Pod{pod("q", claims("x"))}, []api.Object{drivers("a", upTo("disk", 2))}, pod("p", claims("y")), ""},
		{"full", []*corev1.Pod{pod("q", claims("x"))}, []api.Object{drivers("a", upTo("disk", 1))}, pod("p", claims("y")), "a: " + full},
		{"the same volume", []*corev1.Pod{pod("q", claims("x"))}, []api.Object{drivers("a", upTo("disk", 1))}, pod("p", claims("x")), ""},
		{"another driver is full", []*corev1.Pod{pod("q", claims("x"))}, []api.Object{drivers("a", upTo("other", 0))}, pod("p", claims("y")), ""},
		{"two at once", nil, []api.Object{drivers("a", upTo("disk", 1))}, pod("p", claims("x", "y")), "a: " + full},
		{"one that is to be made", []*corev1.Pod{pod("q", claims("x"))}, []api.Object{drivers("a", upTo("disk", 1))}, pod("p", claims("new")), "a: " + full},
		{"and is wanted by two", []*corev1.Pod{pod("q", claims("new"))}, []api.Object{drivers("a", upTo("disk", 1))}, pod("p", claims("new")), ""},
		{"attached still, used no more", nil, []api.Object{drivers("a", upTo("disk", 1)), attached("x")}, pod("p", claims("y")), "a: " + full},
		{"attached already", nil, []api.Object{drivers("a", upTo("disk", 1)), attached("x")}, pod("p", claims("x")), ""},
		{"no claims", nil, []api.Object{drivers("a", upTo("disk", 0))}, pod("p"), ""},
		{"volumes without a driver", nil, []api.Object{drivers("a", upTo("disk", 0))}, pod("p", claims("plain")), ""},
		{"driver missing", nil, []api.Object{drivers("a", upTo("disk", 9)), choosy}, pod("p", claims("x")), "b: node(s) did not have CSI driver disk"},
	} {
		c := world(t, []*corev1.Node{node("a"), node("b")}, map[string][]*corev1.Pod{"a": tt.pods})
		stored(c, pv("x", "", "1", "", csi("disk")), pv("y", "", "1", "", csi("disk")), pv("plain", "", "1", ""),
			pvc("x", "", "1", boundTo("x")), pvc("y", "", "1", boundTo("y")), pvc("plain", "", "1", boundTo("plain")), pvc("new", "gold", "1"),
			&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "gold"}, Provisioner: "disk"})
		stored(c, tt.objects...)
		if got := outcome(t, nodeVolumeLimits, c, tt.pod); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestVolumeZone(t *testing.T) {
	t.Parallel()
	labelled := func(set map[string]string) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) { v.Labels = set }
	}
	const wrong = ": node(s) had no available volume zone"
	for _, tt := range []struct {
		name string
		set  map[string]string
		want string
	}{
		{"none", nil, ""},
		{"one zone", map[string]string{corev1.LabelTopologyZone: "1"}, "b" + wrong},
		{"several", map[string]string{corev1.LabelTopologyZone: "1__2"}, ""},
		{"the old label", map[string]string{corev1.LabelFailureDomainBetaZone: "2"}, "a" + wrong},
		{"a region that nodes do not name", map[string]string{corev1.LabelTopologyRegion: "r"}, "a" + wrong + "; b" + wrong},
	} {
		c := world(t, []*corev1.Node{node("a", label(corev1.LabelTopologyZone, "1")), node("b", label(corev1.LabelTopologyZone, "2")), node("nowhere")}, nil)
		stored(c, pv("x", "", "1", "", labelled(tt.set)), pvc("x", "", "1", boundTo("x")))
		if got := outcome(t, volumeZone, c, pod("p", claims("x"))); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Where a driver says what it has left, its volumes are made only where that is enough.
func TestVolumeCapacity(t *testing.T) {
	t.Parallel()
	left := func(name, node, size, most string) *storagev1.CSIStorageCapacity {
		o := &storagev1.CSIStorageCapacity{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}, StorageClassName: "made",
			NodeTopology: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: node}}}
		for _, q := range []struct {
			text string
			to   **resource.Quantity
		}{{size, &o.Capacity}, {most, &o.MaximumVolumeSize}} {
			if q.text != "" {
				v := resource.MustParse(q.text)
				*q.to = &v
			}
		}
		return o
	}
	elsewhere := left("no-topology", "", "9Gi", "")
	elsewhere.NodeTopology = nil
	otherClass := left("other", "b", "9Gi", "")
	otherClass.StorageClassName = "other"
	all := []api.Object{left("a", "a", "2Gi", ""), left("b", "b", "9Gi", "1Gi"), left("c", "c", "500Mi", ""), elsewhere, otherClass}
	for _, tt := range []struct {
		name   string
		tells  *bool
		size   string
		change func(*corev1.PersistentVolumeClaim)
		want   string
	}{
		{"all are large enough for it", new(true), "1Mi", nil, "d: " + noSpace},
		{"some are", new(true), "1Gi", nil, "c: " + noSpace + "; d: " + noSpace},
		{"the largest volume counts", new(true), "2Gi", nil, "b: " + noSpace + "; c: " + noSpace + "; d: " + noSpace},
		{"a driver that does not tell", nil, "2Gi", nil, ""},
		{"a driver that does not tell, aloud", new(false), "2Gi", nil, ""},
		{"its node was chosen", new(true), "2Gi", func(c *corev1.PersistentVolumeClaim) {
			c.Annotations = map[string]string{"volume.kubernetes.io/selected-node": "d"}
		}, "a: " + noVolume + "; b: " + noVolume + "; c: " + noVolume},
	} {
		late := storagev1.VolumeBindingWaitForFirstConsumer
		c := world(t, []*corev1.Node{node("a"), node("b"), node("c"), node("d")}, nil)
		claim := pvc("x", "made", tt.size)
		if tt.change != nil {
			tt.change(claim)
		}
		stored(c, append(all, claim, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "made"}, Provisioner: "disk", VolumeBindingMode: &late},
			&storagev1.CSIDriver{ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Spec: storagev1.CSIDriverSpec{StorageCapacity: tt.tells}})...)
		if got := outcome(t, volumes, c, pod("p", claims("x"))); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
