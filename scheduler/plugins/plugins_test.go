package plugins

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/scheduler/cluster"
)

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{}
	n.Name, n.Labels = name, map[string]string{corev1.LabelHostname: name}
	n.Status.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("10"),
	}
	for _, f := range change {
		f(n)
	}
	return n
}

func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.UID = "ns", name, types.UID(name)
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i:1"}}
	for _, f := range change {
		f(p)
	}
	return p
}

func asks(cpu, memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	}
}

// asksWhole is asks for the pod as a whole.
func asksWhole(cpu, memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Resources = &corev1.ResourceRequirements{Requests: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}}
	}
}

// was is asks for a pod that is being resized, as a whole, from what these are.
func was(cpu, memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		l := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
		p.Status.AllocatedResources, p.Status.Resources = l, &corev1.ResourceRequirements{Requests: l}
	}
}

func infeasible(p *corev1.Pod) {
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: corev1.PodReasonInfeasible})
}

func label(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[key] = value }
}

func app(value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels = map[string]string{"app": value} }
}

// world is nodes a, b, c, ... with pods on them by node.
func world(t *testing.T, nodes []*corev1.Node, pods map[string][]*corev1.Pod) *cluster.Cluster {
	t.Helper()
	c := cluster.New()
	for _, n := range nodes {
		c.SetNode(n)
	}
	for on, ps := range pods {
		for _, p := range ps {
			q, err := c.Pod(p)
			if err != nil {
				t.Fatal(err)
			}
			c.SetPod(q, on)
		}
	}
	return c
}

func taint(effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "k", Value: fmt.Sprint(len(n.Spec.Taints)), Effect: effect})
	}
}

func hostPort(ip string, port int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostIP: ip, HostPort: port, Protocol: corev1.ProtocolTCP}}
	}
}

func near(value string, required bool) func(*corev1.Pod) {
	term := corev1.PodAffinityTerm{TopologyKey: "zone", LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": value}}}
	return func(p *corev1.Pod) {
		a := &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{{Weight: 5, PodAffinityTerm: term}}}
		if required {
			a = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term}}
		}
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: a}
	}
}

// Reasons of nodes a and b; the constraints themselves are compared with an oracle in package scheduler.
func TestReasons(t *testing.T) {
	t.Parallel()
	big := func(p *corev1.Pod) {
		asks("5", "9Gi")(p)
		p.Spec.Containers[0].Resources.Requests["example.com/gpu"] = resource.MustParse("1")
	}
	ten := make([]*corev1.Pod, 10)
	for i := range ten {
		ten[i] = pod(fmt.Sprint(i))
	}
	for _, tt := range []struct {
		name   string
		filter Filter
		a      *corev1.Node
		pods   map[string][]*corev1.Pod
		pod    *corev1.Pod
		want   []string // none: it fits
	}{
		{"resources", nodeResourcesFit, node("a"), nil, pod("p", big),
			[]string{"Insufficient cpu", "Insufficient example.com/gpu", "Insufficient memory"}},
		{"number of pods", nodeResourcesFit, node("a"), map[string][]*corev1.Pod{"a": ten}, pod("p"), []string{"Too many pods"}},
		{"exactly full", nodeResourcesFit, node("a"), map[string][]*corev1.Pod{"a": {pod("q", asks("3", "1Gi"))}}, pod("p", asks("1", "7Gi")), nil},
		{"sidecars and init containers", nodeResourcesFit, node("a"), nil, pod("p", asks("2", "1Gi"), func(p *corev1.Pod) {
			p.Spec.InitContainers = []corev1.Container{
				{RestartPolicy: new(corev1.ContainerRestartPolicyAlways), Resources: pod("", asks("1", "0")).Spec.Containers[0].Resources},
				{Resources: pod("", asks("3500m", "0")).Spec.Containers[0].Resources},
			}
		}), []string{"Insufficient cpu"}},
		{"overhead", nodeResourcesFit, node("a"), nil, pod("p", asks("4", "1Gi"), func(p *corev1.Pod) {
			p.Spec.Overhead = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m")}
		}), []string{"Insufficient cpu"}},
		{"as a whole", nodeResourcesFit, node("a"), nil, pod("p", asks("1", "1Gi"), asksWhole("4", "1Gi"), func(p *corev1.Pod) {
			p.Spec.Overhead = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m")}
		}), []string{"Insufficient cpu"}},
		{"cordoned", nodeUnschedulable, node("a", func(n *corev1.Node) { n.Spec.Unschedulable = true }), nil, pod("p"),
			[]string{"node(s) were unschedulable"}},
		{"taint", taintToleration, node("a", taint(corev1.TaintEffectNoExecute)), nil, pod("p"), []string{"node(s) had untolerated taint(s)"}},
		{"taint that is a wish", taintToleration, node("a", taint(corev1.TaintEffectPreferNoSchedule)), nil, pod("p"), nil},
		{"selector", nodeAffinity, node("a"), nil, pod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"x": "y"} }),
			[]string{"node(s) didn't match Pod's node affinity/selector"}},
		{"port", nodePorts, node("a"), map[string][]*corev1.Pod{"a": {pod("q", hostPort("127.0.0.1", 80))}}, pod("p", hostPort("", 80)),
			[]string{"node(s) didn't have free ports for the requested pod ports"}},
		{"port on another address", nodePorts, node("a"), map[string][]*corev1.Pod{"a": {pod("q", hostPort("127.0.0.1", 80))}},
			pod("p", hostPort("10.0.0.1", 80)), nil},
		{"affinity to nobody", interPodAffinity, node("a", label("zone", "1")), nil, pod("p", near("x", true)),
			[]string{"node(s) didn't match pod affinity rules"}},
		{"affinity to itself", interPodAffinity, node("a", label("zone", "1")), nil, pod("p", near("x", true), app("x")), nil},
		{"affinity to itself, no zone", interPodAffinity, node("a"), nil, pod("p", near("x", true), app("x")),
			[]string{"node(s) didn't match pod affinity rules"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := world(t, []*corev1.Node{tt.a}, tt.pods)
			p, err := c.Pod(tt.pod)
			if err != nil {
				t.Fatal(err)
			}
			check, err := tt.filter.Prepare(c, p)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			if check != nil && !check.Pass(0) {
				got = check.Why(0)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestScores(t *testing.T) {
	t.Parallel()
	owned := func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{{UID: "rs", Controller: new(true)}} }
	image := func(size int64) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.Status.Images = []corev1.ContainerImage{{Names: []string{"i:1"}, SizeBytes: size}}
		}
	}
	for _, tt := range []struct {
		name  string
		score Score
		nodes []*corev1.Node
		pods  map[string][]*corev1.Pod
		pod   *corev1.Pod
		want  []int64 // nil: it makes no difference
	}{
		{"least allocated", leastAllocated, []*corev1.Node{node("a"), node("b")},
			map[string][]*corev1.Pod{"a": {pod("q", asks("2", "4Gi"))}}, pod("p", asks("1", "2Gi")), []int64{25, 75}},
		{"least allocated, as a whole", leastAllocated, []*corev1.Node{node("a"), node("b")},
			map[string][]*corev1.Pod{"a": {pod("q", asks("1", "1Gi"), asksWhole("2", "4Gi"))}}, pod("p", asksWhole("1", "2Gi")), []int64{25, 75}},
		{"least allocated, while it is resized", leastAllocated, []*corev1.Node{node("a"), node("b"), node("c")},
			map[string][]*corev1.Pod{"a": {pod("q", asksWhole("2", "4Gi"), was("1", "2Gi"))}, "b": {pod("r", asksWhole("1", "2Gi"), was("2", "4Gi"))},
				"c": {pod("s", asksWhole("3", "6Gi"), was("1", "2Gi"), infeasible)}}, pod("p", asksWhole("1", "2Gi")), []int64{25, 25, 50}},
		{"balanced", balancedAllocation, []*corev1.Node{node("a"), node("b")},
			map[string][]*corev1.Pod{"a": {pod("q", asks("2", "0"))}}, pod("p", asks("1", "2Gi")), []int64{75, 100}},
		{"balanced, nothing asked", balancedAllocation, []*corev1.Node{node("a")}, nil, pod("p"), nil},
		{"taints that are wishes", taintTolerationScore,
			[]*corev1.Node{node("a", taint(corev1.TaintEffectPreferNoSchedule), taint(corev1.TaintEffectPreferNoSchedule)),
				node("b", taint(corev1.TaintEffectPreferNoSchedule)), node("c")}, nil, pod("p"), []int64{0, 50, 100}},
		{"image", imageLocality, []*corev1.Node{node("a", image(1000<<20)), node("b")}, nil, pod("p"), []int64{48, 0}},
		{"siblings", podTopologySpreadScore, []*corev1.Node{node("a"), node("b"), node("c")},
			map[string][]*corev1.Pod{"a": {pod("q", owned), pod("r", owned)}, "b": {pod("s", owned)}}, pod("p", owned), []int64{40, 60, 100}},
		{"near others", interPodAffinityScore, []*corev1.Node{node("a", label("zone", "1")), node("b", label("zone", "2")), node("c")},
			map[string][]*corev1.Pod{"a": {pod("q", app("x"))}}, pod("p", near("x", false)), []int64{100, 0, 0}},
		{"others would be near", interPodAffinityScore, []*corev1.Node{node("a", label("zone", "1")), node("b", label("zone", "2"))},
			map[string][]*corev1.Pod{"b": {pod("q", near("x", true))}}, pod("p", app("x")), []int64{0, 100}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := world(t, tt.nodes, tt.pods)
			p, err := c.Pod(tt.pod)
			if err != nil {
				t.Fatal(err)
			}
			feasible := make([]int, len(tt.nodes))
			for i := range feasible {
				feasible[i] = i
			}
			rank := tt.score.Prepare(c, p, feasible)
			if rank == nil {
				if tt.want != nil {
					t.Error("makes no difference")
				}
				return
			}
			got := make([]int64, len(feasible))
			for i := range got {
				got[i] = rank(i)
			}
			tt.score.Scale.Apply(got)
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// Pods that local plugins could judge differently have different signatures; those of one template have the same.
func TestSignature(t *testing.T) {
	t.Parallel()
	c := cluster.New()
	sign := func(p *corev1.Pod) string {
		q, err := c.Pod(p)
		if err != nil {
			t.Fatal(err)
		}
		s, err := Signature(q)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	base := sign(pod("a", asks("1", "1Gi")))
	if sign(pod("b", asks("1000m", "1024Mi"), app("x"), near("y", true))) != base {
		t.Error("pods of one template differ")
	}
	for name, p := range map[string]*corev1.Pod{
		"cpu":        pod("a", asks("1001m", "1Gi")),
		"port":       pod("a", asks("1", "1Gi"), hostPort("", 80)),
		"selector":   pod("a", asks("1", "1Gi"), func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"a": "b"} }),
		"toleration": pod("a", asks("1", "1Gi"), func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Key: "a"}} }),
	} {
		if sign(p) == base {
			t.Errorf("another %s makes no other signature", name)
		}
	}
}

// claims is a pod's use of claims.
func claims(names ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		for _, n := range names {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: n, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: n}}})
		}
	}
}

func pvc(name, class, size string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}}
	c.Spec.StorageClassName = &class
	c.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
	for _, f := range change {
		f(c)
	}
	return c
}

func boundTo(volume string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Annotations = volume, map[string]string{claim.Completed: "yes"}
	}
}

// pv is a volume on one node, or on all when node is empty.
func pv(name, class, size, node string, change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
	v.Spec.StorageClassName, v.Status.Phase = class, corev1.VolumeAvailable
	v.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}
	if node != "" {
		v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}}
	}
	for _, f := range change {
		f(v)
	}
	return v
}

// What keeps pods with claims from every node, and which nodes of a, b and c the others can be on, with what to do there.
func TestVolumes(t *testing.T) {
	t.Parallel()
	reservedFor := func(name, uid string) func(*corev1.PersistentVolume) {
		return func(v *corev1.PersistentVolume) {
			v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "ns", Name: name, UID: types.UID(uid)}
		}
	}
	ephemeral := func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}
	}
	for _, tt := range []struct {
		name    string
		pod     *corev1.Pod
		claims  []*corev1.PersistentVolumeClaim
		volumes []*corev1.PersistentVolume
		want    string
	}{
		{"no claim of the name", pod("p", claims("x")), nil, nil, `persistentvolumeclaim "x" not found`},
		{"not made yet", pod("p", ephemeral), nil, nil, `waiting for ephemeral volume controller to create the persistentvolumeclaim "p-v"`},
		{"another's", pod("p", ephemeral), []*corev1.PersistentVolumeClaim{pvc("p-v", "", "1")}, nil, `PVC "ns/p-v" was not created for pod "ns/p" (pod is not owner)`},
		{"not bound", pod("p", claims("x")), []*corev1.PersistentVolumeClaim{pvc("x", "", "1")}, []*corev1.PersistentVolume{pv("v", "", "1", "")},
			"pod has unbound immediate PersistentVolumeClaims"},
		{"lost", pod("p", claims("x")), []*corev1.PersistentVolumeClaim{pvc("x", "", "1", boundTo("v"))}, nil,
			`persistentvolumeclaim "x" bound to non-existent persistentvolume "v"`},
		{"on its way", pod("p", claims("x")), []*corev1.PersistentVolumeClaim{pvc("x", "", "1", func(c *corev1.PersistentVolumeClaim) { c.DeletionTimestamp = &metav1.Time{} })}, nil,
			`persistentvolumeclaim "x" is being deleted`},
		{"bound, everywhere", pod("p", claims("x")), []*corev1.PersistentVolumeClaim{pvc("x", "", "1", boundTo("v"))}, []*corev1.PersistentVolume{pv("v", "", "1", "")},
			"a: bound; b: bound; c: bound"},
		{"bound, on one", pod("p", claims("x")), []*corev1.PersistentVolumeClaim{pvc("x", "", "1", boundTo("v"))}, []*corev1.PersistentVolume{pv("v", "", "1", "b")},
			"a: " + unreachable + "; b: bound; c: " + unreachable},
		{"the smallest on each", pod("p", claims("x")), []*corev1.PersistentVolumeClaim{pvc("x", "local", "2")},
			[]*corev1.PersistentVolume{pv("small", "local", "1", "a"), pv("b5", "local", "5", "b"), pv("b3", "local", "3", "b"), pv("c2", "local", "2", "c")},
			"a: " + noVolume + "; b: b3=x; c: c2=x"},
		{"two that share", pod("p", claims("x", "y")), []*corev1.PersistentVolumeClaim{pvc("x", "local", "3"), pvc("y", "local", "1")},
			[]*corev1.PersistentVolume{pv("a3", "local", "3", "a"), pv("b1", "local", "1", "b"), pv("b3", "local", "3", "b")},
			"a: " + noVolume + "; b: b1=y b3=x; c: " + noVolume},
		{"one bound, one waiting", pod("p", claims("x", "y")), []*corev1.PersistentVolumeClaim{pvc("x", "", "1", boundTo("v")), pvc("y", "local", "1")},
			[]*corev1.PersistentVolume{pv("v", "", "1", "a"), pv("b1", "local", "1", "b")},
			"a: " + noVolume + "; b: " + unreachable + "; c: " + unreachable + ", " + noVolume},
		{"reserved, not bound yet", pod("p", claims("x")), []*corev1.PersistentVolumeClaim{pvc("x", "local", "1")},
			[]*corev1.PersistentVolume{pv("a1", "local", "1", "a"), pv("b2", "local", "2", "b", reservedFor("x", "x"))},
			"a: " + noVolume + "; b: ; c: " + noVolume},
		{"to be made", pod("p", claims("x")), []*corev1.PersistentVolumeClaim{pvc("x", "made", "1")}, []*corev1.PersistentVolume{pv("c1", "made", "1", "c")},
			"a: x@; b: " + noVolume + "; c: c1=x"},
		{"being made", pod("p", claims("x")), []*corev1.PersistentVolumeClaim{pvc("x", "made", "1", func(c *corev1.PersistentVolumeClaim) {
			c.Annotations = map[string]string{claim.SelectedNode: "b"}
		})}, nil, "a: " + noVolume + "; b: ; c: " + noVolume},
	} {
		late := storagev1.VolumeBindingWaitForFirstConsumer
		c := world(t, []*corev1.Node{node("a", label("zone", "1")), node("b", label("zone", "2")), node("c")}, nil)
		c.Classes["local"] = &storagev1.StorageClass{Provisioner: claim.Unprovisioned, VolumeBindingMode: &late}
		c.Classes["made"] = &storagev1.StorageClass{Provisioner: "csi.example.com", VolumeBindingMode: &late, AllowedTopologies: []corev1.TopologySelectorTerm{
			{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: "zone", Values: []string{"0", "1"}}}}}}
		for _, o := range tt.claims {
			c.Claims[api.KeyOf(o)] = o
		}
		for _, o := range tt.volumes {
			c.Volumes[o.Name] = o
		}
		p, err := c.Pod(tt.pod)
		if err != nil {
			t.Fatal(err)
		}
		check, err := volumes.Prepare(c, p)
		if err != nil {
			if err.Error() != tt.want {
				t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
			}
			continue
		}
		var got []string
		for slot, n := range c.Nodes {
			if !check.Pass(slot) {
				got = append(got, n.Name+": "+strings.Join(check.Why(slot), ", "))
				continue
			}
			b := VolumesOn(c, p, slot)
			if b == nil {
				got = append(got, n.Name+": bound")
				continue
			}
			var parts []string
			for v, c := range b.Reserve {
				parts = append(parts, v.Name+"="+c.Name)
			}
			for _, c := range b.Select {
				parts = append(parts, c.Name+"@")
			}
			slices.Sort(parts)
			got = append(got, n.Name+": "+strings.Join(parts, " "))
		}
		if got := strings.Join(got, "; "); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
