package resources

import (
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/yare-dev/yare/api"
)

// QOS returns the pod's quality-of-service class: what its status says, or else, for a pod that came by no API
// server, what its requests and limits of cpu and memory amount to.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	return api.QOS(&pod.Spec)
}

// Requests returns what the pod takes of a node: containers, init containers and overhead.
func Requests(pod *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
}
