package podspec

import (
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
		if seen.Has(c.Name) {
			errs = append(errs, field.Duplicate(at, c.Name)) // its requests are there already
		} else {
			errs = append(errs, usedClaim(used[:i], c, seen, at)...)
		}
		if !hasClaim(v.spec, c.Name) {
			unknown := field.NotFound(at, c.Name)
			unknown.Detail = "must be one of the names in pod.spec.resourceClaims" + namesOf(v.spec.ResourceClaims)
			errs = append(errs, unknown)
		}
	}
	return errs
}

// usedClaim checks a claim, or a request of it, beside those before. A claim as a whole and one of its requests overlap.
func usedClaim(before []corev1.ResourceClaim, c corev1.ResourceClaim, seen sets.Set[string], at *field.Path) (errs field.ErrorList) {
	name := c.Name
	if c.Request != "" {
		errs = append(errs, texts(at.Child("request"), c.Request, validation.IsDNS1123Label(c.Request))...)
		name += "/" + c.Request
	}
	if seen.Has(name) || c.Request == "" && slices.ContainsFunc(before, func(o corev1.ResourceClaim) bool { return o.Name == name }) {
		errs = append(errs, field.Duplicate(at, name))
	}
	seen.Insert(name)
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
func extendedClaim(s *corev1.PodExtendedResourceClaimStatus, spec *corev1.PodSpec, path *field.Path) (errs field.ErrorList) {
	mappings := path.Child("requestMappings")
	if len(s.RequestMappings) == 0 {
		errs = append(errs, field.Required(mappings, "at least one request mapping is required"))
	}
	for i, m := range s.RequestMappings {
		at := mappings.Index(i)
		if of := containerCalled(spec, m.ContainerName); of == nil {
			errs = append(errs, field.Invalid(at.Child("containerName"), m.ContainerName, "must match the name of an entry in spec.initContainers.name or spec.containers.name"))
		} else if _, asked := of.Resources.Requests[corev1.ResourceName(m.ResourceName)]; !asked {
			errs = append(errs, field.Invalid(at.Child("resourceName"), m.ResourceName, "must match the extended resource name of an entry in "+
				"spec.initContainers.resources.requests or spec.containers.resources.requests"))
		}
		errs = append(errs, texts(path.Child("requestName"), m.RequestName, validation.IsDNS1123Label(m.RequestName))...)
		if slices.Contains(s.RequestMappings[:i], m) {
			errs = append(errs, field.Duplicate(at.Child("containerName"), m.ContainerName), field.Duplicate(at.Child("resourceName"), m.ResourceName),
				field.Duplicate(at.Child("requestName"), m.RequestName))
		}
	}
	at := path.Child("resourceClaimName")
	if s.ResourceClaimName == "" {
		return append(errs, field.Required(at, ""))
	}
	return append(errs, texts(at, s.ResourceClaimName, isName(s.ResourceClaimName))...)
}

func containerCalled(spec *corev1.PodSpec, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{spec.Containers, spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// claimPrefix begins what the health of a claim's devices is told under, "claim:NAME" or "claim:NAME/REQUEST".
const claimPrefix = "claim:"

// deviceHealth checks what statuses of containers say of the devices that these have.
func deviceHealth(statuses []corev1.ContainerStatus, containers []corev1.Container, extended *corev1.PodExtendedResourceClaimStatus, path *field.Path) (errs field.ErrorList) {
	for i := range statuses {
		s := &statuses[i]
		at := path.Index(i).Child("allocatedResourcesStatus")
		k := slices.IndexFunc(containers, func(c corev1.Container) bool { return c.Name == s.Name })
		for j := range s.AllocatedResourcesStatus {
			r, at := &s.AllocatedResourcesStatus[j], at.Index(j)
			if k >= 0 && !has(&containers[k], r.Name, extended) {
				why := "must match one of the container's resource requests"
				if strings.HasPrefix(string(r.Name), claimPrefix) {
					why = "must match one of the container's resource claims as 'claim:<claimName>/<requestName>' when container.resources.claims[*].request is set or 'claim:<claimName>' when it is empty"
				}
				errs = append(errs, field.Invalid(at.Child("name"), r.Name, why))
			}
			errs = append(errs, healths(r.Resources, at.Child("resources"))...)
		}
	}
	return errs
}

// has says whether the container has resources under that name.
func has(c *corev1.Container, name corev1.ResourceName, extended *corev1.PodExtendedResourceClaimStatus) bool {
	claim, ok := strings.CutPrefix(string(name), claimPrefix)
	if !ok {
		_, asked := c.Resources.Requests[name]
		return asked
	}
	claim, request, _ := strings.Cut(claim, "/")
	if slices.Contains(c.Resources.Claims, corev1.ResourceClaim{Name: claim, Request: request}) {
		return true
	}
	return extended != nil && request != "" && claim == extended.ResourceClaimName &&
		slices.ContainsFunc(extended.RequestMappings, func(m corev1.ContainerExtendedResourceRequest) bool {
			q, asked := c.Resources.Requests[corev1.ResourceName(m.ResourceName)]
			return m.ContainerName == c.Name && m.RequestName == request && asked && !q.IsZero()
		})
}

func healths(devices []corev1.ResourceHealth, path *field.Path) (errs field.ErrorList) {
	seen := sets.New[corev1.ResourceID]()
	for i := range devices {
		d, at := &devices[i], path.Index(i)
		errs = append(errs, known(at.Child("health"), d.Health, corev1.ResourceHealthStatusHealthy, corev1.ResourceHealthStatusUnhealthy, corev1.ResourceHealthStatusUnknown)...)
		if m := d.Message; m != nil && *m == "" {
			errs = append(errs, field.Required(at.Child("message"), "must be non-empty if specified"))
		} else if m != nil && len(*m) > corev1.ResourceHealthMessageMaxLength {
			errs = append(errs, field.TooLong(at.Child("message"), *m, corev1.ResourceHealthMessageMaxLength))
		}
		if seen.Has(d.ResourceID) {
			errs = append(errs, field.Duplicate(at.Child("resourceID"), d.ResourceID))
		}
		seen.Insert(d.ResourceID)
	}
	return errs
}
