package quota_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/quota"
)

// amounts reads "cpu=1 memory=2Gi".
func amounts(text string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for _, f := range strings.Fields(text) {
		name, q, _ := strings.Cut(f, "=")
		l[corev1.ResourceName(name)] = resource.MustParse(q)
	}
	return l
}

func text(l corev1.ResourceList) string {
	var out []string
	for _, n := range quota.Names(l) {
		q := l[n]
		out = append(out, fmt.Sprintf("%s=%s", n, q.String()))
	}
	return strings.Join(out, " ")
}

func pod(change func(*corev1.Pod), requests, limits string) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c",
		Resources: corev1.ResourceRequirements{Requests: amounts(requests), Limits: amounts(limits)}}}}}
	if change != nil {
		change(p)
	}
	return p
}

func TestUsage(t *testing.T) {
	t.Parallel()
	now := time.Unix(1000, 0)
	seconds, gone := int64(30), metav1.NewTime(now.Add(-31*time.Second))
	gold, no := "gold", false
	ports := func(nodePorts ...int32) (ps []corev1.ServicePort) {
		for _, n := range nodePorts {
			ps = append(ps, corev1.ServicePort{NodePort: n})
		}
		return ps
	}
	for name, tc := range map[string]struct {
		k    *api.Kind
		o    api.Object
		want string
	}{
		"pod": {api.PodKind, pod(nil, "cpu=1 memory=2Gi example.org/gpu=2 hugepages-2Mi=4Mi", "cpu=2"),
			"count/pods=1 cpu=1 hugepages-2Mi=4Mi limits.cpu=2 memory=2Gi pods=1 requests.cpu=1 requests.example.org/gpu=2 requests.hugepages-2Mi=4Mi requests.memory=2Gi"},
		"pod as a whole": {api.PodKind, pod(func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: amounts("cpu=2 hugepages-2Mi=8Mi"), Limits: amounts("cpu=3 hugepages-2Mi=8Mi")}
		}, "cpu=1 memory=2Gi ephemeral-storage=1Gi hugepages-2Mi=4Mi", "hugepages-2Mi=4Mi"),
			"count/pods=1 cpu=2 ephemeral-storage=1Gi hugepages-2Mi=8Mi limits.cpu=3 memory=2Gi pods=1 requests.cpu=2 requests.ephemeral-storage=1Gi requests.hugepages-2Mi=8Mi requests.memory=2Gi"},
		"pod that becomes smaller": {api.PodKind, pod(func(p *corev1.Pod) {
			p.Spec.Resources = &corev1.ResourceRequirements{Requests: amounts("cpu=1"), Limits: amounts("cpu=2")}
			p.Status.AllocatedResources, p.Status.Resources = amounts("cpu=1"), &corev1.ResourceRequirements{Requests: amounts("cpu=3"), Limits: amounts("cpu=4")}
		}, "", ""), "count/pods=1 cpu=3 limits.cpu=4 pods=1 requests.cpu=3"},
		"ended pod":  {api.PodKind, pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, "cpu=1", ""), "count/pods=1"},
		"stuck pod":  {api.PodKind, pod(func(p *corev1.Pod) { p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &gone, &seconds }, "cpu=1", ""), "count/pods=1"},
		"config map": {api.ConfigMapKind, &corev1.ConfigMap{}, "configmaps=1 count/configmaps=1"},
		"job":        {api.JobKind, &batchv1.Job{}, "count/jobs.batch=1"},
		"node ports": {api.ServiceKind, &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: ports(0, 0)}},
			"count/services=1 services=1 services.loadbalancers=0 services.nodeports=2"},
		"balancer of its own": {api.ServiceKind, &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: ports(0, 30000), AllocateLoadBalancerNodePorts: &no}},
			"count/services=1 services=1 services.loadbalancers=1 services.nodeports=1"},
		"claim": {api.PersistentVolumeClaimKind, &corev1.PersistentVolumeClaim{
			Spec:   corev1.PersistentVolumeClaimSpec{StorageClassName: &gold, Resources: corev1.VolumeResourceRequirements{Requests: amounts("storage=1500m")}},
			Status: corev1.PersistentVolumeClaimStatus{AllocatedResources: amounts("storage=1")}},
			"count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/requests.storage=2 persistentvolumeclaims=1 requests.storage=2"},
		"devices": {api.ResourceClaimKind, &resourcev1.ResourceClaim{Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{
			{Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "a", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: 2}},
			{FirstAvailable: []resourcev1.DeviceSubRequest{
				{DeviceClassName: "a", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: 3},
				{DeviceClassName: "b", AllocationMode: resourcev1.DeviceAllocationModeAll}}}}}}},
			"a.deviceclass.resource.k8s.io/devices=5 b.deviceclass.resource.k8s.io/devices=32 count/resourceclaims.resource.k8s.io=1 " +
				"requests.deviceclass.resource.kubernetes.io/a=5 requests.deviceclass.resource.kubernetes.io/b=32 requests.example.org/gpu=5"},
		"alternatives of one name": {api.ResourceClaimKind, &resourcev1.ResourceClaim{Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{
			{FirstAvailable: []resourcev1.DeviceSubRequest{
				{DeviceClassName: "a", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: 3},
				{DeviceClassName: "a2", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: 4}}}}}}},
			"a.deviceclass.resource.k8s.io/devices=3 a2.deviceclass.resource.k8s.io/devices=4 count/resourceclaims.resource.k8s.io=1 " +
				"requests.deviceclass.resource.kubernetes.io/a=3 requests.deviceclass.resource.kubernetes.io/a2=4 requests.example.org/gpu=4"},
		// The pod counts under the names that it asks by, its claim under the others.
		"of a pod": {api.ResourceClaimKind, special("p", "uid"),
			"a.deviceclass.resource.k8s.io/devices=5 count/resourceclaims.resource.k8s.io=1 requests.deviceclass.resource.kubernetes.io/a=3 requests.example.org/gpu=2"},
		"of a pod that is gone": {api.ResourceClaimKind, special("gone", "uid"),
			"a.deviceclass.resource.k8s.io/devices=5 count/resourceclaims.resource.k8s.io=1 requests.deviceclass.resource.kubernetes.io/a=5 requests.example.org/gpu=5"},
		"of another pod of the name": {api.ResourceClaimKind, special("p", "other"),
			"a.deviceclass.resource.k8s.io/devices=5 count/resourceclaims.resource.k8s.io=1 requests.deviceclass.resource.kubernetes.io/a=5 requests.example.org/gpu=5"},
		"pod by the class": {api.PodKind, pod(nil, "deviceclass.resource.kubernetes.io/a=2", ""), "count/pods=1 pods=1 requests.deviceclass.resource.kubernetes.io/a=2"},
	} {
		use := quota.Usage(tc.k, tc.o, among, now)
		if got := text(use); got != tc.want {
			t.Errorf("%s:\ngot  %s\nwant %s", name, got, tc.want)
		}
		for n := range use {
			if !quota.Tracks(tc.k, n) {
				t.Errorf("%s: %s is used and not tracked", name, n)
			}
		}
	}
}

// among are classes of which a and a2 serve example.org/gpu, and a pod p that asks for them by that name in its first container, and by the class in its second.
var among = quota.Others{
	Class: func(name string) *resourcev1.DeviceClass {
		c := &resourcev1.DeviceClass{}
		switch name {
		case "a", "a2":
			c.Spec.ExtendedResourceName = new("example.org/gpu")
		case "b":
		default:
			return nil
		}
		return c
	},
	Pod: func(key api.Key) *corev1.Pod {
		if key.Name != "p" {
			return nil
		}
		p := pod(nil, "cpu=1 example.org/gpu=3", "")
		p.UID = "uid"
		p.Spec.Containers = append(p.Spec.Containers, pod(nil, "deviceclass.resource.kubernetes.io/a=2", "").Spec.Containers...)
		return p
	},
}

// special is the claim that a scheduler makes for such a pod.
func special(name, uid string) *resourcev1.ResourceClaim {
	request := func(name string, n int64) resourcev1.DeviceRequest {
		return resourcev1.DeviceRequest{Name: name, Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "a", AllocationMode: resourcev1.DeviceAllocationModeExactCount, Count: n}}
	}
	return &resourcev1.ResourceClaim{
		ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{resourcev1.ExtendedResourceClaimAnnotation: "true"},
			OwnerReferences: []metav1.OwnerReference{{Kind: "Pod", APIVersion: "v1", Name: name, UID: types.UID(uid), Controller: new(true)}}},
		Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{request("container-0-request-1", 3), request("container-1-request-0", 2)}}},
	}
}

func TestScopes(t *testing.T) {
	t.Parallel()
	deadline := int64(5)
	class := "silver"
	ended := pod(func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = &deadline; p.Spec.PriorityClassName = "high" }, "", "")
	busy := pod(func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{Namespaces: []string{"x"}}}}}
	}, "cpu=1", "")
	claim := &corev1.PersistentVolumeClaim{Status: corev1.PersistentVolumeClaimStatus{CurrentVolumeAttributesClassName: &class}}
	scope := func(names ...corev1.ResourceQuotaScope) corev1.ResourceQuotaSpec {
		return corev1.ResourceQuotaSpec{Scopes: names}
	}
	selector := func(name corev1.ResourceQuotaScope, op corev1.ScopeSelectorOperator, values ...string) corev1.ResourceQuotaSpec {
		return corev1.ResourceQuotaSpec{ScopeSelector: &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{{ScopeName: name, Operator: op, Values: values}}}}
	}
	for name, tc := range map[string]struct {
		spec corev1.ResourceQuotaSpec
		want string // of ended, busy, claim, config map
	}{
		"none":            {corev1.ResourceQuotaSpec{}, "true true true true"},
		"terminating":     {scope(corev1.ResourceQuotaScopeTerminating), "true false false false"},
		"not terminating": {scope(corev1.ResourceQuotaScopeNotTerminating), "false true false false"},
		"best effort":     {scope(corev1.ResourceQuotaScopeBestEffort), "true false false false"},
		"both":            {scope(corev1.ResourceQuotaScopeNotBestEffort, corev1.ResourceQuotaScopeNotTerminating), "false true false false"},
		"affinity":        {scope(corev1.ResourceQuotaScopeCrossNamespacePodAffinity), "false true false false"},
		"priority":        {selector(corev1.ResourceQuotaScopePriorityClass, corev1.ScopeSelectorOpIn, "high", "higher"), "true false false false"},
		"other priority":  {selector(corev1.ResourceQuotaScopePriorityClass, corev1.ScopeSelectorOpNotIn, "high"), "false true false false"},
		"any priority":    {selector(corev1.ResourceQuotaScopePriorityClass, corev1.ScopeSelectorOpExists), "true false false false"},
		"no priority":     {selector(corev1.ResourceQuotaScopePriorityClass, corev1.ScopeSelectorOpDoesNotExist), "false true false false"},
		"attributes":      {selector(corev1.ResourceQuotaScopeVolumeAttributesClass, corev1.ScopeSelectorOpIn, "silver"), "false false true false"},
	} {
		var got []string
		for _, o := range []api.Object{ended, busy, claim, &corev1.ConfigMap{}} {
			ok, err := quota.Matches(&corev1.ResourceQuota{Spec: tc.spec}, o)
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			got = append(got, fmt.Sprint(ok))
		}
		if g := strings.Join(got, " "); g != tc.want {
			t.Errorf("%s: got %s, want %s", name, g, tc.want)
		}
	}
	if _, err := quota.Matches(&corev1.ResourceQuota{Spec: selector(corev1.ResourceQuotaScopePriorityClass, "Odd")}, busy); err == nil {
		t.Error("an operator that does not exist matched")
	}
}

func TestUnspecified(t *testing.T) {
	t.Parallel()
	names := []corev1.ResourceName{"limits.cpu", "memory", "pods", "requests.nvidia.com/gpu"}
	if err := quota.Unspecified(names, pod(nil, "memory=1", "cpu=1")); err != nil {
		t.Error(err)
	}
	p := pod(nil, "", "")
	p.Spec.InitContainers = []corev1.Container{{Name: "a", Resources: corev1.ResourceRequirements{Limits: amounts("cpu=1")}}}
	if err := quota.Unspecified(names, p); err == nil || err.Error() != "must specify limits.cpu for: c; memory for: a,c" {
		t.Error(err)
	}
}
