package spec

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// ByClaim says whether containers of the pod have an extended resource by the claim that the scheduler made for it (KEP-5004), and not by a device plugin
// or otherwise from the node.
func ByClaim(pod *corev1.Pod, resource string) bool {
	s := pod.Status.ExtendedResourceClaimStatus
	return s != nil && slices.ContainsFunc(s.RequestMappings, func(m corev1.ContainerExtendedResourceRequest) bool { return m.ResourceName == resource })
}
