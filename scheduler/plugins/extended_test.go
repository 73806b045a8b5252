package plugins

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/scheduler/cluster"
)

const gpu corev1.ResourceName = "example.com/gpu"

// class stands for an extended resource, unless that is "".
func class(name, extended string, age time.Duration) *resourcev1.DeviceClass {
	c := &resourcev1.DeviceClass{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Time{Time: time.Unix(1e9, 0).Add(-age)}}}
	if extended != "" {
		c.Spec.ExtendedResourceName = &extended
	}
	return c
}

// asking is a pod of containers such as "a 2", which asks for two, "init b 1", which ends, and "sidecar c 1". A name of a resource may follow.
func asking(containers ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "p"}}
	for _, text := range containers {
		words := strings.Fields(text)
		kind := ""
		if words[0] == "init" || words[0] == "sidecar" {
			kind, words = words[0], words[1:]
		}
		c := corev1.Container{Name: words[0], Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("1m"), "zzz.com/z": resource.MustParse("0")}}}
		for i := 1; i < len(words); i += 2 {
			name := gpu
			if i+1 < len(words) {
				name = corev1.ResourceName(words[i+1])
			}
			c.Resources.Requests[name] = resource.MustParse(words[i])
		}
		if kind == "sidecar" {
			c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
		}
		if kind != "" {
			p.Spec.InitContainers = append(p.Spec.InitContainers, c)
		} else {
			p.Spec.Containers = append(p.Spec.Containers, c)
		}
	}
	return p
}

func TestSpecialClaim(t *testing.T) {
	t.Parallel()
	c := cluster.New()
	c.SetDeviceClass(class("any", string(gpu), 0), false)
	c.SetDeviceClass(class("nic", "example.com/nic", 0), false)
	for name, tt := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"one container":   {asking("a 2"), "container-0-request-1:any*2; a>container-0-request-1"},
		"two":             {asking("a 2", "b", "c 1"), "container-0-request-1:any*2 container-2-request-1:any*1; a>container-0-request-1 c>container-2-request-1"},
		"nought":          {asking("a 0", "b 1"), "container-1-request-1:any*1; b>container-1-request-1"},
		"before":          {asking("init i 1", "a 2"), "container-1-request-1:any*2; a>container-1-request-1 i>container-1-request-1"},
		"before and more": {asking("init i 3", "a 2"), "container-0-request-1:any*1 container-1-request-1:any*2; a>container-1-request-1 i>container-1-request-1 i>container-0-request-1"},
		"several before": {asking("init i 3", "init j 5", "init k 2", "a 2"),
			"container-1-request-1:any*3 container-3-request-1:any*2; a>container-3-request-1 i>container-3-request-1 i>container-1-request-1 " +
				"j>container-3-request-1 j>container-1-request-1 k>container-3-request-1"},
		"a sidecar before it is not to be had": {asking("sidecar s 1", "init i 1"),
			"container-0-request-1:any*1 container-1-request-1:any*1; s>container-0-request-1 i>container-1-request-1"},
		"a sidecar after it is": {asking("init i 1", "sidecar s 1"), "container-1-request-1:any*1; s>container-1-request-1 i>container-1-request-1"},
		"of several":            {asking("init i 2", "a 1", "b 1", "c 1"), "container-1-request-1:any*1 container-2-request-1:any*1 container-3-request-1:any*1; a>container-1-request-1 b>container-2-request-1 c>container-3-request-1 i>container-1-request-1 i>container-2-request-1"},
		"two resources":         {asking("a 1 example.com/nic 2 example.com/gpu"), "container-0-request-1:any*2 container-0-request-2:nic*1; a>container-0-request-1 a>container-0-request-2"},
	} {
		claim, mappings := Special(c, tt.pod, []corev1.ResourceName{gpu, "example.com/nic"})
		var rs, ms []string
		for _, r := range claim.Spec.Devices.Requests {
			rs = append(rs, fmt.Sprintf("%s:%s*%d", r.Name, r.Exactly.DeviceClassName, r.Exactly.Count))
		}
		for _, m := range mappings {
			ms = append(ms, m.ContainerName+">"+m.RequestName)
		}
		if got := strings.Join(rs, " ") + "; " + strings.Join(ms, " "); got != tt.want {
			t.Errorf("%s: %s\nwant %s", name, got, tt.want)
		}
		if claim.Name != "" || claim.GenerateName != "p-extended-resources-" || claim.Namespace != "ns" || cluster.SpecialFor(claim) != "p" {
			t.Errorf("%s: %+v", name, claim.ObjectMeta)
		}
	}
}

// Of the classes that give the same name, the younger serves, then the first by name; and each has a name of its own.
func TestClassOf(t *testing.T) {
	t.Parallel()
	implicit := corev1.ResourceName(resourcev1.ResourceDeviceClassPrefix + "c")
	for name, tt := range map[string]struct {
		classes []*resourcev1.DeviceClass
		gone    string
		of      corev1.ResourceName
		want    string
	}{
		"none":           {nil, "", gpu, ""},
		"one":            {[]*resourcev1.DeviceClass{class("a", string(gpu), 0), class("b", "", 0)}, "", gpu, "a"},
		"younger":        {[]*resourcev1.DeviceClass{class("a", string(gpu), time.Hour), class("b", string(gpu), time.Minute)}, "", gpu, "b"},
		"the same age":   {[]*resourcev1.DeviceClass{class("b", string(gpu), 0), class("a", string(gpu), 0)}, "", gpu, "a"},
		"gone":           {[]*resourcev1.DeviceClass{class("a", string(gpu), time.Hour), class("b", string(gpu), time.Minute)}, "b", gpu, "a"},
		"by its own":     {[]*resourcev1.DeviceClass{class("c", string(gpu), 0)}, "", implicit, "c"},
		"another's name": {[]*resourcev1.DeviceClass{class("a", string(gpu), 0)}, "", implicit, ""},
	} {
		for range 2 { // in either order
			c := cluster.New()
			slices.Reverse(tt.classes)
			for _, k := range tt.classes {
				c.SetDeviceClass(k, false)
				c.Devices.ClassOf(gpu)
			}
			if tt.gone != "" {
				c.SetDeviceClass(c.Devices.Classes[tt.gone], true)
			}
			got := ""
			if k := c.Devices.ClassOf(tt.of); k != nil {
				got = k.Name
			}
			if got != tt.want {
				t.Errorf("%s: %q, want %q", name, got, tt.want)
			}
		}
	}
}

// What a pod gets for extended resources on each node: a has devices, b a device plugin, c neither.
func TestExtendedOnNodes(t *testing.T) {
	t.Parallel()
	made := func(status bool, change ...func(*resourcev1.ResourceClaim)) func(*cluster.Cluster, *corev1.Pod) {
		return func(c *cluster.Cluster, p *corev1.Pod) {
			claim, mappings := Special(c, p, []corev1.ResourceName{gpu})
			claim.Name, claim.UID = "made", "made"
			for _, f := range change {
				f(claim)
			}
			c.Devices.SetClaim(claim)
			if status {
				p.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "made", RequestMappings: mappings}
			}
		}
	}
	nothing := func(*cluster.Cluster, *corev1.Pod) {}
	none, elsewhere := "cannot allocate all claims", "resourceclaim not available on the node"
	for name, tt := range map[string]struct {
		pod    *corev1.Pod
		change func(*cluster.Cluster, *corev1.Pod)
		want   string
	}{
		"nothing":          {asking("x"), nothing, "none"},
		"one":              {asking("x 1"), nothing, "a:  container-0-request-1a/1; b: ; c: " + none},
		"two":              {asking("x 2"), nothing, "a:  container-0-request-1a/1 container-0-request-1a/2; b: Insufficient; c: " + none},
		"three":            {asking("x 3"), nothing, "a: " + none + "; b: Insufficient; c: " + none},
		"by the class":     {asking("x 1 deviceclass.resource.kubernetes.io/any"), nothing, "a:  container-0-request-1a/1; b: " + none + "; c: " + none},
		"made before":      {asking("x 1"), made(true, has("a", "a", []string{"2"}, "p")), "a: ; b: " + elsewhere + "; c: " + elsewhere},
		"not told yet":     {asking("x 1"), made(false, has("a", "a", []string{"2"}, "p")), "a: made; b: " + elsewhere + "; c: " + elsewhere},
		"not reserved":     {asking("x 1"), made(true, has("a", "a", []string{"2"})), "a: made; b: " + elsewhere + "; c: " + elsewhere},
		"made halfway":     {asking("x 1"), made(false), "a: " + elsewhere + "; b: " + elsewhere + "; c: " + elsewhere},
		"made for another": {asking("x 1"), made(true, has("a", "a", []string{"2"}, "p"), exactly(func(r *resourcev1.ExactDeviceRequest) { r.Count = 2 })), "a: " + elsewhere + "; b: " + elsewhere + "; c: " + elsewhere},
		"going":            {asking("x 1"), made(true, func(c *resourcev1.ResourceClaim) { c.DeletionTimestamp = &metav1.Time{} }), `resourceclaim "made" is being deleted`},
		"told, and gone": {asking("x 1"), func(c *cluster.Cluster, p *corev1.Pod) {
			made(true)(c, p)
			c.Devices.RemoveClaim(c.Devices.Special("p"))
		}, "a:  container-0-request-1a/1; b: " + promised + "; c: " + none},
	} {
		c := cluster.New()
		for _, n := range []string{"a", "b", "c"} {
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}}
			node.Status.Allocatable = corev1.ResourceList{"cpu": resource.MustParse("1"), "pods": resource.MustParse("9")}
			if n == "b" {
				node.Status.Allocatable[gpu] = resource.MustParse("1")
			}
			c.SetNode(node)
		}
		c.Devices.Now = time.Unix(1e9, 0)
		c.SetDeviceClass(class("any", string(gpu), 0), false)
		c.Devices.SetSlice(slice("a", "a", 1, onNode("a"), device("1"), device("2")), false)
		tt.change(c, tt.pod)
		got := allotted(c, tt.pod)
		if q, err := c.Pod(tt.pod); err == nil && strings.Contains(tt.want, "Insufficient") {
			// The node's own are the other filter's.
			check, err := nodeResourcesFit.Prepare(c, q)
			if err != nil || !check.Pass(0) || check.Pass(1) || !check.Pass(2) {
				t.Errorf("%s: fits %v %v %v: %v", name, check.Pass(0), check.Pass(1), check.Pass(2), err)
			}
			got = strings.Replace(got, "b: ;", "b: Insufficient;", 1)
		}
		if got != tt.want {
			t.Errorf("%s: %s\nwant %s", name, got, tt.want)
		}
	}
}
