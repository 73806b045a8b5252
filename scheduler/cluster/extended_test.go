package cluster

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/dynamic-resource-allocation/structured"

	"github.com/yare-dev/yare/api"
)

// What is promised to a claim that is to be made is nobody else's at any moment until the claim is gone, in whatever order its writes are seen.
func TestUnmade(t *testing.T) {
	t.Parallel()
	key := api.Key{Namespace: "ns", Name: "p-extended-resources-x"}
	allocation := func() *resourcev1.AllocationResult {
		return &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{{Driver: "d", Pool: "p", Device: "1"}}}}
	}
	claim := func(revision string, a *resourcev1.AllocationResult) *resourcev1.ResourceClaim {
		return &resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, UID: "real", ResourceVersion: revision,
			Annotations:     map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: "pod", Controller: new(true)}}},
			Status: resourcev1.ResourceClaimStatus{Allocation: a}}
	}
	for name, steps := range map[string][]func(d *Devices){
		"seen step by step": {
			func(d *Devices) { d.SetClaim(claim("1", nil)) },
			func(d *Devices) { d.SetClaim(claim("2", nil)) }, // the finalizer
			func(d *Devices) { d.Withdraw(Unmade(key)) },     // the write has ended
			func(d *Devices) { d.SetClaim(claim("3", allocation())) },
		},
		"seen when all is written": {func(d *Devices) { d.SetClaim(claim("3", allocation())) }, func(d *Devices) { d.Withdraw(Unmade(key)) }},
	} {
		c := New()
		d := &c.Devices
		d.Promise(Unmade(key), allocation())
		taken := func() bool { return d.Taken.AllocatedDevices.Has(structured.MakeDeviceID("d", "p", "1")) }
		for i, step := range steps {
			if step(d); !taken() {
				t.Errorf("%s: after step %d the device is free", name, i)
			}
		}
		if d.Pending("real") || d.Pending(Unmade(key)) || d.Special("pod") == nil || d.Special("other") != nil {
			t.Errorf("%s: something is promised still", name)
		}
		if freed := d.RemoveClaim(claim("4", nil)); !freed || taken() || d.Special("pod") != nil {
			t.Errorf("%s: the device is not free when the claim is gone", name)
		}
	}
	// One that never comes.
	c := New()
	c.Devices.Promise(Unmade(key), allocation())
	if !c.Devices.Withdraw(Unmade(key)) || len(c.Devices.Taken.AllocatedDevices) > 0 {
		t.Error("a promise to nobody stays")
	}
}

// What a pod on a node has by its claim it does not ask of the node.
func TestRequestsByClaim(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		node   string
		mapped string
		want   int
	}{
		"waits": {"", "example.com/a", 2}, "has both from the node": {"n", "", 2}, "has one by its claim": {"n", "example.com/a", 1}, "has another by its claim": {"n", "example.com/x", 2},
	} {
		p := &corev1.Pod{}
		p.Spec.NodeName = tt.node
		p.Spec.Containers = []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
			"example.com/a": resource.MustParse("1"), "example.com/b": resource.MustParse("1")}}}}
		if tt.mapped != "" {
			p.Status.ExtendedResourceClaimStatus = &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "c", RequestMappings: []corev1.ContainerExtendedResourceRequest{
				{ContainerName: "c", ResourceName: tt.mapped, RequestName: "r"}}}
		}
		if got, err := New().Pod(p); err != nil || len(got.Requests) != tt.want {
			t.Errorf("%s: %v %v", name, got.Requests, err)
		}
	}
}
