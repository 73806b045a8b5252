// Package field evaluates what a Pod says about itself: fieldRef and resourceFieldRef of the downward
// API, which environment variables and volumes share. It replaces upstream's pkg/fieldpath.
package field

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Runtime is what is known only at run time.
type Runtime struct {
	HostIPs     []string
	PodIPs      []string
	NodeName    string
	Allocatable corev1.ResourceList // stands in for limits that a container does not have
}

// Value returns the value of a field path such as metadata.labels['app'] or status.podIP. Maps are printed one key="value"
// per line.
func Value(pod *corev1.Pod, path string, rt Runtime) (string, error) {
	if name, key, ok := subscript(path); ok {
		switch name {
		case "metadata.annotations":
			return pod.Annotations[key], nil
		case "metadata.labels":
			return pod.Labels[key], nil
		}
		return "", fmt.Errorf("field path %q: no such map", path)
	}
	switch path {
	case "metadata.annotations":
		return Map(pod.Annotations), nil
	case "metadata.labels":
		return Map(pod.Labels), nil
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return rt.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(rt.HostIPs), nil
	case "status.hostIPs":
		return strings.Join(rt.HostIPs, ","), nil
	case "status.podIP":
		return first(rt.PodIPs), nil
	case "status.podIPs":
		return strings.Join(rt.PodIPs, ","), nil
	}
	return "", fmt.Errorf("field path %q: not supported", path)
}

// Resource returns the value of a resourceFieldRef: the container's, divided by the divisor and rounded up. A limit that
// is not set is that of the whole pod, else what the node can give.
func Resource(pod *corev1.Pod, container string, ref *corev1.ResourceFieldSelector, rt Runtime) (string, error) {
	if ref.ContainerName != "" {
		container = ref.ContainerName
	}
	c := find(pod, container)
	if c == nil {
		return "", fmt.Errorf("resource field of container %q: no such container", container)
	}
	kind, name, ok := strings.Cut(ref.Resource, ".")
	if !ok || kind != "limits" && kind != "requests" {
		return "", fmt.Errorf("resource field %q: not supported", ref.Resource)
	}
	var q resource.Quantity
	if kind == "limits" {
		q = c.Resources.Limits[corev1.ResourceName(name)]
		if whole := pod.Spec.Resources; q.IsZero() && whole != nil {
			q = whole.Limits[corev1.ResourceName(name)]
		}
		if q.IsZero() {
			q = rt.Allocatable[corev1.ResourceName(name)]
		}
	} else {
		q = c.Resources.Requests[corev1.ResourceName(name)]
	}
	return divide(corev1.ResourceName(name), q, ref.Divisor), nil
}

func divide(name corev1.ResourceName, q, divisor resource.Quantity) string {
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if name == corev1.ResourceCPU {
		d := divisor.MilliValue()
		return strconv.FormatInt((q.MilliValue()+d-1)/d, 10)
	}
	d := max(divisor.Value(), 1)
	return strconv.FormatInt((q.Value()+d-1)/d, 10)
}

// Map prints a map in order of keys, one key="value" per line.
func Map(m map[string]string) string {
	var b strings.Builder
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s=%s", k, strconv.Quote(m[k]))
	}
	return b.String()
}

func subscript(path string) (name, key string, ok bool) {
	name, rest, ok := strings.Cut(path, "['")
	key, closed := strings.CutSuffix(rest, "']")
	return name, key, ok && closed
}

func find(pod *corev1.Pod, name string) *corev1.Container {
	for _, cs := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range cs {
			if cs[i].Name == name {
				return &cs[i]
			}
		}
	}
	return nil
}

func first(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}
