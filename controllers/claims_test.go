package controllers_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// The claims of a Job's pods, one for each and one for all, are made, used and let go, through the real pipeline.
func TestResourceClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		spec := resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{
			{Name: "gpu", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gpu.example.com"}}}}}
		rt.Create(t, c, &resourcev1.ResourceClaimTemplate{ObjectMeta: meta("each"), Spec: resourcev1.ResourceClaimTemplateSpec{Spec: spec}})
		rt.Create(t, c, &resourcev1.ResourceClaim{ObjectMeta: meta("all"), Spec: spec})
		pod := template(nil, corev1.RestartPolicyNever)
		pod.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "each", ResourceClaimTemplateName: ptr("each")}, {Name: "all", ResourceClaimName: ptr("all")}}
		pod.Spec.Containers[0].Resources.Claims = []corev1.ResourceClaim{{Name: "each"}, {Name: "all", Request: "gpu"}}
		rt.Create(t, c, &batchv1.Job{ObjectMeta: meta("job"), Spec: batchv1.JobSpec{Completions: ptr(int32(2)), Parallelism: ptr(int32(2)), Template: pod}})
		time.Sleep(time.Minute)
		claims := rt.List[*resourcev1.ResourceClaim](t, c)
		if len(claims) != 3 {
			t.Fatalf("%d claims", len(claims))
		}
		for _, claim := range claims {
			claim = rt.Mutate(t, c, claim, "", func(claim *resourcev1.ResourceClaim) { claim.Finalizers = []string{resourcev1.Finalizer} })
			rt.Mutate(t, c, claim, "status", func(claim *resourcev1.ResourceClaim) {
				claim.Status.Allocation = &resourcev1.AllocationResult{Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{
					{Request: "gpu", Driver: "gpu.example.com", Pool: "n1", Device: "gpu-0"}}}}
			})
		}
		time.Sleep(time.Minute)
		for _, p := range rt.List[*corev1.Pod](t, c) {
			if s := p.Status.ResourceClaimStatuses; len(s) != 1 || s[0].Name != "each" || !strings.HasPrefix(*s[0].ResourceClaimName, p.Name+"-each-") {
				t.Fatalf("statuses %+v", s)
			}
			own := rt.Get[*resourcev1.ResourceClaim](t, c, "ns", *p.Status.ResourceClaimStatuses[0].ResourceClaimName)
			if r := own.Status.ReservedFor; len(r) != 1 || r[0].UID != p.UID || !metav1.IsControlledBy(own, p) {
				t.Errorf("claim %s of pod %s: %+v", own.Name, p.Name, own.Status)
			}
		}
		if all := rt.Get[*resourcev1.ResourceClaim](t, c, "ns", "all"); len(all.Status.ReservedFor) != 2 {
			t.Errorf("the claim for all: %+v", all.Status)
		}
		pods := rt.List[*corev1.Pod](t, c)
		rt.Mutate(t, c, pods[0], "status", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded })
		time.Sleep(time.Minute)
		if n := len(rt.List[*resourcev1.ResourceClaim](t, c)); n != 2 {
			t.Errorf("%d claims after one pod has ended", n)
		}
		rt.Delete(t, c, rt.Get[*batchv1.Job](t, c, "ns", "job"), client.DeleteOptions{Propagation: metav1.DeletePropagationBackground})
		time.Sleep(time.Minute)
		claims = rt.List[*resourcev1.ResourceClaim](t, c)
		if len(claims) != 1 || claims[0].Status.Allocation != nil || len(claims[0].Status.ReservedFor) != 0 || len(claims[0].Finalizers) != 0 {
			t.Errorf("after the Job: %d claims, the first %+v", len(claims), claims[0])
		}
		if n := len(rt.List[*corev1.Pod](t, c)); n != 0 {
			t.Errorf("%d pods", n)
		}
	})
}
