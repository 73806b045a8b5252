package cluster

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func node(name string, offers ...corev1.ResourceName) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	n.Status.Allocatable = corev1.ResourceList{}
	for _, r := range offers {
		n.Status.Allocatable[r] = resource.MustParse("10")
	}
	return n
}

func asking(t *testing.T, c *Cluster, name string, resources ...corev1.ResourceName) *Pod {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), Labels: map[string]string{"name": name}}}
	p.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{}}}}
	for _, r := range resources {
		p.Spec.Containers[0].Resources.Requests[r] = resource.MustParse("2")
	}
	q, err := c.Pod(p)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func away(key, name string) *Term {
	t := &Term{Key: key, namespaces: []string{"ns"}}
	t.Selector, _ = metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchLabels: map[string]string{"name": name}})
	t.name()
	return t
}

// Of what comes and goes nothing is remembered for ever: labels, names of resources and of nodes.
func TestForgets(t *testing.T) {
	t.Parallel()
	c := New()
	c.SetNode(node("n"))
	standing := asking(t, c, "standing")
	standing.Anti = []*Term{away(corev1.LabelHostname, "last")}
	standing.terms = []carried{{standing.Anti[0], roleAnti, 1}}
	c.SetPod(standing, "n")
	pods := 200_000
	if testing.Short() {
		pods = maxClasses + 10_000
	}
	for i := range pods {
		p := asking(t, c, fmt.Sprint(i), corev1.ResourceName(fmt.Sprintf("example.com/%d", i)))
		if len(c.Repelled(p)) > 0 {
			t.Fatalf("%s is repelled", p.Name)
		}
		c.Counter(true, away(corev1.LabelHostname, "last"))
		if i%100 == 0 {
			c.SetNode(node(fmt.Sprintf("n%d", i)))
			c.RemoveNode(fmt.Sprintf("n%d", i))
		}
		c.SetPod(p, "n")
		c.RemovePod(p.UID)
	}
	if n := len(c.classes); n > maxClasses+1 {
		t.Errorf("%d classes", n)
	}
	for _, k := range c.carriers {
		if n := len(k.matches); n > maxClasses+1 {
			t.Errorf("a term remembers %d classes", n)
		}
	}
	for _, k := range c.counters {
		if n := len(k.known); n > maxClasses+1 {
			t.Errorf("a counter remembers %d classes", n)
		}
	}
	if n := len(c.Used); n != fixed {
		t.Errorf("%d columns", n)
	}
	if n := c.Topology(corev1.LabelHostname).Len(); n != 2 {
		t.Errorf("%d domains", n)
	}
	last := asking(t, c, "last")
	if n := len(c.Repelled(last)); n != 1 {
		t.Errorf("repelled by %d", n)
	}
}

// Nor are topology keys that nobody names any more.
func TestForgetsTopologies(t *testing.T) {
	t.Parallel()
	c := New()
	c.SetNode(node("n"))
	for i := range 2 * maxCounters {
		c.Counter(true, away(fmt.Sprintf("example.com/%d", i), "last"))
	}
	if n := len(c.topologies); n > maxCounters {
		t.Errorf("%d topologies", n)
	}
	c.SetNamespace("ns", map[string]string{"a": "b"})
	if n := len(c.topologies); n != 0 {
		t.Errorf("%d topologies by which nothing is counted", n)
	}
}

// What a pod asked for before anybody offered it counts when a node does, or a class serves it.
func TestOfferedLater(t *testing.T) {
	t.Parallel()
	const a, b, own = corev1.ResourceName("example.com/a"), corev1.ResourceName("example.com/b"), corev1.ResourceName("example.com/c")
	c := New()
	c.SetNode(node("n1"))
	for _, on := range []string{"n1", "n2"} { // n2 is not known yet
		c.SetPod(asking(t, c, on, a, b, own), on)
	}
	c.SetNode(node("n2", a))
	c.SetNode(node("n1", b))
	name := string(own)
	c.SetDeviceClass(&resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: resourcev1.DeviceClassSpec{ExtendedResourceName: &name}}, false)
	for _, on := range []string{"n1", "n2"} {
		slot, _ := c.Slot(on)
		for _, r := range []corev1.ResourceName{a, b, own} {
			column, ok := c.resources[r]
			if !ok || c.Used[column][slot] != 2 {
				t.Errorf("%v of %s are used on %s", c.Used, r, on)
			}
		}
		c.RemovePod(types.UID(on))
	}
	for column := range c.Used {
		for slot, n := range c.Used[column] {
			if n != 0 {
				t.Errorf("%d of %s are used in slot %d by nobody", n, c.Resource(column), slot)
			}
		}
	}
}
