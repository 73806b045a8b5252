package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
)

// KeepButResources takes back in now whatever a write of pods/resize may not change, which is all but the resources and resize
// policies of its containers (KEP-1287) and the resources of the whole (KEP-5419), which stay where the write does not know of them.
// Containers that were added, taken away, renamed or moved stay, for Resize to refuse.
func KeepButResources(now, old *corev1.Pod) {
	metav1.ResetObjectMetaForStatus(now, old)
	wanted := now.Spec
	now.Spec, now.Status = *old.Spec.DeepCopy(), *old.Status.DeepCopy()
	now.Spec.Containers = resourcesOf(wanted.Containers, now.Spec.Containers)
	now.Spec.InitContainers = resourcesOf(wanted.InitContainers, now.Spec.InitContainers)
	if wanted.Resources != nil {
		now.Spec.Resources = wanted.Resources
	}
}

// KeepResources leaves the resources of the whole as they were in a write by somebody who does not know of them.
func KeepResources(now, old *corev1.Pod) {
	if now.Spec.Resources == nil {
		now.Spec.Resources = old.Spec.Resources.DeepCopy()
	}
}

// resourcesOf returns the old containers with the resources of the wanted ones, or the wanted ones where they are others.
func resourcesOf(wanted, old []corev1.Container) []corev1.Container {
	if !sameNames(wanted, old) {
		return wanted
	}
	for i := range old {
		old[i].Resources, old[i].ResizePolicy = wanted[i].Resources, wanted[i].ResizePolicy
	}
	return old
}

func sameNames(a, b []corev1.Container) bool {
	for i := range a {
		if len(a) != len(b) || a[i].Name != b[i].Name {
			return false
		}
	}
	return len(a) == len(b)
}

// Resize checks a write of pods/resize.
func Resize(now, old *corev1.Pod) (errs field.ErrorList) {
	root, path := field.NewPath(""), field.NewPath("spec")
	switch {
	case old.Annotations[corev1.MirrorPodAnnotationKey] != "":
		return field.ErrorList{field.Forbidden(root, "static pods cannot be resized")}
	case old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows:
		return field.ErrorList{field.Forbidden(root, "windows pods cannot be resized")}
	}
	errs = Spec(&now.Spec, path)
	if class := api.QOS(&now.Spec); class != api.QOS(&old.Spec) {
		errs = append(errs, field.Invalid(path, class, "Pod QOS Class may not change as a result of resizing"))
	}
	if !tellsResources(old) {
		errs = append(errs, field.Forbidden(path, "Pod running on node without support for resize"))
	}
	errs = append(errs, resizeWhole(now.Spec.Resources, old.Spec.Resources, path)...)
	order := append(sameOrder(now.Spec.Containers, old.Spec.Containers, path.Child("containers")),
		sameOrder(now.Spec.InitContainers, old.Spec.InitContainers, path.Child("initContainers"))...)
	if len(order) > 0 {
		return append(errs, order...)
	}
	for i := range now.Spec.InitContainers {
		n, o, at := &now.Spec.InitContainers[i], &old.Spec.InitContainers[i], path.Child("initContainers").Index(i)
		errs = append(errs, nothingRemoved("", &n.Resources, &o.Resources, at.Child("resources"))...)
		if !onlyComputing(n, o) {
			errs = append(errs, field.Forbidden(at, "only cpu and memory resources for init or sidecar containers are mutable"))
		}
	}
	for i := range now.Spec.Containers {
		n, o := &now.Spec.Containers[i], &old.Spec.Containers[i]
		errs = append(errs, nothingRemoved("", &n.Resources, &o.Resources, path.Child("containers").Index(i).Child("resources"))...)
		if !onlyComputing(n, o) {
			errs = append(errs, field.Forbidden(path, "only cpu and memory resources are mutable"))
		}
	}
	return errs
}

// tellsResources reports whether the pod's kubelet tells the resources of running containers. One that does not cannot resize.
func tellsResources(p *corev1.Pod) bool {
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Running != nil {
			return c.Resources != nil
		}
	}
	return true
}

func sameOrder(now, old []corev1.Container, path *field.Path) (errs field.ErrorList) {
	last := path.String()[len("spec."):]
	if len(now) != len(old) {
		return field.ErrorList{field.Forbidden(path, last+" may not be added or removed on resize")}
	}
	for i := range now {
		if now[i].Name != old[i].Name {
			errs = append(errs, field.Forbidden(path.Index(i).Child("name"), last+" may not be renamed or reordered on resize"))
		}
	}
	return errs
}

// resizeWhole checks what changes of the resources of the pod as a whole. It may get some that had none.
func resizeWhole(now, old *corev1.ResourceRequirements, path *field.Path) (errs field.ErrorList) {
	if now == nil && old == nil {
		return nil
	}
	a, b := corev1.ResourceRequirements{}, corev1.ResourceRequirements{}
	if now != nil {
		a = *now.DeepCopy()
	}
	if old != nil {
		b = *old.DeepCopy()
	}
	errs = nothingRemoved("pod-level ", &a, &b, path.Child("resources"))
	dropComputing(&a)
	dropComputing(&b)
	if !equality.Semantic.DeepEqual(a, b) {
		errs = append(errs, field.Forbidden(path, "only cpu and memory resources are mutable at pod-level"))
	}
	return errs
}

// nothingRemoved refuses to take a request or a limit away.
func nothingRemoved(whose string, now, old *corev1.ResourceRequirements, path *field.Path) (errs field.ErrorList) {
	if lacks(now.Requests, old.Requests) {
		errs = append(errs, field.Forbidden(path.Child("requests"), whose+"resource requests cannot be removed"))
	}
	if lacks(now.Limits, old.Limits) {
		errs = append(errs, field.Forbidden(path.Child("limits"), whose+"resource limits cannot be removed"))
	}
	return errs
}

func lacks(now, old corev1.ResourceList) bool {
	for name := range old {
		if _, ok := now[name]; !ok {
			return true
		}
	}
	return false
}

// onlyComputing reports whether the containers differ in nothing but their CPU and memory.
func onlyComputing(now, old *corev1.Container) bool {
	a, b := now.DeepCopy(), old.DeepCopy()
	dropComputing(&a.Resources)
	dropComputing(&b.Resources)
	return equality.Semantic.DeepEqual(a, b)
}

func dropComputing(r *corev1.ResourceRequirements) {
	for _, list := range []corev1.ResourceList{r.Requests, r.Limits} {
		delete(list, corev1.ResourceCPU)
		delete(list, corev1.ResourceMemory)
	}
}
