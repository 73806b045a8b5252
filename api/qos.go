package api

import (
	corev1 "k8s.io/api/core/v1"
)

// QOS returns the quality of service class of a pod: Guaranteed when every container's cpu and memory are limited and
// requested alike, BestEffort when none asks for any, else Burstable. Ephemeral containers do not count; where the pod
// as a whole has requests or limits, these alone do.
func QOS(s *corev1.PodSpec) corev1.PodQOSClass {
	guaranteed, asked := true, false
	look := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, request := r.Limits[name], r.Requests[name]
			asked = asked || limit.Sign() > 0 || request.Sign() > 0
			// A limit without a request requests as much.
			_, requested := r.Requests[name]
			guaranteed = guaranteed && limit.Sign() > 0 && (!requested || request.Cmp(limit) == 0)
		}
	}
	if r := s.Resources; r != nil && len(r.Requests)+len(r.Limits) > 0 {
		look(r)
	} else {
		for _, cs := range [][]corev1.Container{s.Containers, s.InitContainers} {
			for i := range cs {
				look(&cs[i].Resources)
			}
		}
	}
	switch {
	case !asked:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
