package podspec

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// resourceClaims checks the pod's claims of devices.
func resourceClaims(claims []corev1.PodResourceClaim, path *field.Path) (errs field.ErrorList) {
	seen := sets.New[string]()
	for i := range claims {
		c, at := &claims[i], path.Index(i)
		switch {
		case c.Name == "":
			errs = append(errs, field.Required(at.Child("name"), ""))
		case seen.Has(c.Name):
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		default:
			errs = append(errs, texts(at.Child("name"), c.Name, validation.IsDNS1123Label(c.Name))...)
		}
		seen.Insert(c.Name)
		claim, template := c.ResourceClaimName, c.ResourceClaimTemplateName
		if claim != nil && template != nil {
			errs = append(errs, field.Invalid(at, c.Name, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"))
		}
		if claim == nil && template == nil {
			errs = append(errs, field.Invalid(at, c.Name, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"))
		}
		if claim != nil {
			errs = append(errs, texts(at.Child("resourceClaimName"), *claim, isName(*claim))...)
		}
		if template != nil {
			errs = append(errs, texts(at.Child("resourceClaimTemplateName"), *template, isName(*template))...)
		}
	}
	return errs
}

// usedClaims checks which of the pod's claims, or of their requests, a container uses.
func (v *check) usedClaims(used []corev1.ResourceClaim, path *field.Path) (errs field.ErrorList) {
	seen := sets.New[string]()
	for i, c := range used {
		at := path.Index(i)
		if c.Name == "" {
			errs = append(errs, field.Required(at, ""))
			continue
		}
		name := c.Name
		if c.Request != "" {
			errs = append(errs, texts(at.Child("request"), c.Request, validation.IsDNS1123Label(c.Request))...)
			name += "/" + c.Request
		}
		if seen.Has(name) {
			errs = append(errs, field.Duplicate(at, name))
		}
		seen.Insert(name)
		if !hasClaim(v.spec, c.Name) {
			unknown := field.NotFound(at, c.Name)
			unknown.Detail = "must be one of the names in pod.spec.resourceClaims" + namesOf(v.spec.ResourceClaims)
			errs = append(errs, unknown)
		}
	}
	return errs
}

func hasClaim(s *corev1.PodSpec, name string) bool {
	return slices.ContainsFunc(s.ResourceClaims, func(c corev1.PodResourceClaim) bool { return c.Name == name })
}

// namesOf ends a sentence about the names of claims.
func namesOf(claims []corev1.PodResourceClaim) string {
	if len(claims) == 0 {
		return " which is empty"
	}
	names := sets.New[string]()
	for i := range claims {
		if claims[i].Name != "" {
			names.Insert(claims[i].Name)
		}
	}
	return ": " + strings.Join(sets.List(names), ", ")
}

// claimStatuses checks the claims that were made for a pod: those of its entries, and that of the extended resources which device classes serve.
func claimStatuses(now, old *corev1.Pod, path *field.Path) (errs field.ErrorList) {
	seen, statuses := sets.New[string](), path.Child("resourceClaimStatuses")
	for i, s := range now.Status.ResourceClaimStatuses {
		at := statuses.Index(i)
		if !hasClaim(&old.Spec, s.Name) {
			errs = append(errs, field.Invalid(at.Child("name"), s.Name, "must match the name of an entry in `spec.resourceClaims`"))
		}
		if seen.Has(s.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), s.Name))
		}
		seen.Insert(s.Name)
		if n := s.ResourceClaimName; n != nil {
			errs = append(errs, texts(at.Child("resourceClaimName"), *n, isName(*n))...)
		}
	}
	if s := now.Status.ExtendedResourceClaimStatus; s != nil {
		errs = append(errs, extendedClaim(s, &old.Spec, path.Child("extendedResourceClaimStatus"))...)
	}
	return errs
}

// extendedClaim checks which request of the claim each container has for each of its extended resources.
func extendedClaim(s *corev1.PodExtendedResourceClaimStatus, spec *corev1.PodSpec, path *field.Path) field.ErrorList {
	errs := texts(path.Child("resourceClaimName"), s.ResourceClaimName, isName(s.ResourceClaimName))
	mappings := path.Child("requestMappings")
	if len(s.RequestMappings) == 0 {
		errs = append(errs, field.Required(mappings, ""))
	}
	for i, m := range s.RequestMappings {
		at := mappings.Index(i)
		var of *corev1.Container
		for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
			for j := range list {
				if list[j].Name == m.ContainerName {
					of = &list[j]
				}
			}
		}
		if of == nil {
			errs = append(errs, field.Invalid(at.Child("containerName"), m.ContainerName,
				"must match the name of an entry in `spec.initContainers.name` or `spec.containers.name`"))
		} else if _, asked := of.Resources.Requests[corev1.ResourceName(m.ResourceName)]; !asked {
			errs = append(errs, field.Invalid(at.Child("resourceName"), m.ResourceName,
				fmt.Sprintf("must be a resource that container %q requests", m.ContainerName)))
		}
		errs = append(errs, texts(at.Child("requestName"), m.RequestName, validation.IsDNS1123Label(m.RequestName))...)
		if slices.Contains(s.RequestMappings[:i], m) {
			errs = append(errs, field.Duplicate(at, m.ContainerName+"/"+m.ResourceName))
		}
	}
	return errs
}
