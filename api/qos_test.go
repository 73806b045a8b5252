package api

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestQOS(t *testing.T) {
	t.Parallel()
	list := func(cpu, memory string) corev1.ResourceList {
		l := corev1.ResourceList{}
		if cpu != "" {
			l[corev1.ResourceCPU] = resource.MustParse(cpu)
		}
		if memory != "" {
			l[corev1.ResourceMemory] = resource.MustParse(memory)
		}
		return l
	}
	c := func(limits, requests corev1.ResourceList) corev1.Container {
		return corev1.Container{Resources: corev1.ResourceRequirements{Limits: limits, Requests: requests}}
	}
	for name, tc := range map[string]struct {
		main, init []corev1.Container
		want       corev1.PodQOSClass
	}{
		"nothing":           {[]corev1.Container{c(nil, nil)}, nil, corev1.PodQOSBestEffort},
		"zero":              {[]corev1.Container{c(nil, list("0", "0"))}, nil, corev1.PodQOSBestEffort},
		"limits alone":      {[]corev1.Container{c(list("1", "1Gi"), nil)}, nil, corev1.PodQOSGuaranteed},
		"equal":             {[]corev1.Container{c(list("1", "1Gi"), list("1000m", "1024Mi"))}, nil, corev1.PodQOSGuaranteed},
		"less requested":    {[]corev1.Container{c(list("1", "1Gi"), list("1", "1Mi"))}, nil, corev1.PodQOSBurstable},
		"memory alone":      {[]corev1.Container{c(list("", "1Gi"), nil)}, nil, corev1.PodQOSBurstable},
		"one of two":        {[]corev1.Container{c(list("1", "1Gi"), nil), c(nil, nil)}, nil, corev1.PodQOSBurstable},
		"init asks nothing": {[]corev1.Container{c(list("1", "1Gi"), nil)}, []corev1.Container{c(nil, nil)}, corev1.PodQOSBurstable},
		"other resources": {[]corev1.Container{c(corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("1Gi")}, nil)}, nil,
			corev1.PodQOSBestEffort},
	} {
		if got := QOS(&corev1.PodSpec{Containers: tc.main, InitContainers: tc.init}); got != tc.want {
			t.Errorf("%s: got %s, want %s", name, got, tc.want)
		}
	}
	whole := c(list("1", "1Gi"), nil).Resources
	if got := QOS(&corev1.PodSpec{Resources: &whole, Containers: []corev1.Container{c(nil, nil)}}); got != corev1.PodQOSGuaranteed {
		t.Errorf("limits of the pod as a whole: got %s", got)
	}
}
