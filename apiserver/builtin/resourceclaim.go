package builtin

import (
	"context"
	"fmt"
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// resourceClaims ask for devices. Who allocates them, and the drivers, write the status: each only what is theirs.
func resourceClaims(d Deps) *rest.Resource[*resourcev1.ResourceClaim] {
	type claim = *resourcev1.ResourceClaim
	return &rest.Resource[claim]{
		NoGeneration:  true,
		StrictStatus:  true,
		AnswerDeleted: true,
		NoStatus:      true, // the subresource asks who writes
		Default: func(c claim) {
			defaultDevices(&c.Spec.Devices)
			if a := c.Status.Allocation; a != nil {
				for i := range a.Devices.Results {
					defaultTolerations(a.Devices.Results[i].Tolerations)
				}
			}
		},
		Prepare:        func(c claim) { c.Status = resourcev1.ResourceClaimStatus{}; dropDerived(&c.Spec.Devices) },
		PrepareUpdate:  func(now, old claim) { now.Status = *old.Status.DeepCopy(); dropDerived(&now.Spec.Devices) },
		ValidateCreate: func(c claim) field.ErrorList { return deviceClaim(&c.Spec.Devices, field.NewPath("spec", "devices")) },
		ValidateUpdate: func(now, old claim) field.ErrorList { return sealed(now.Spec, old.Spec, field.NewPath("spec")) },
		ValidateIn: func(_ context.Context, now, old claim) field.ErrorList {
			if old != nil {
				return nil // the spec is what it was
			}
			return d.adminRequest(now.Namespace, now.Spec.Devices.Requests)
		},
		Sub: map[string]*rest.Subresource{"status": {Update: d.claimStatus}},
		Columns: []rest.Column[claim]{
			{Name: "State", Description: "A summary of the current state (allocated, pending, reserved, etc.).", Cell: func(c claim) any { return claimState(c) }},
			{Name: "Age"},
		},
	}
}

func claimState(c *resourcev1.ResourceClaim) string {
	var states []string
	if c.DeletionTimestamp != nil {
		states = append(states, "deleted")
	}
	switch {
	case c.Status.Allocation != nil:
		states = append(states, "allocated")
		if len(c.Status.ReservedFor) > 0 {
			states = append(states, "reserved")
		}
	case c.DeletionTimestamp == nil:
		states = append(states, "pending")
	}
	return strings.Join(states, ",")
}

func resourceClaimTemplates(d Deps) *rest.Resource[*resourcev1.ResourceClaimTemplate] {
	type template = *resourcev1.ResourceClaimTemplate
	return &rest.Resource[template]{
		NoGeneration:  true,
		AnswerDeleted: true,
		Default:       func(t template) { defaultDevices(&t.Spec.Spec.Devices) },
		Prepare:       func(t template) { dropDerived(&t.Spec.Spec.Devices) },
		PrepareUpdate: func(now, _ template) { dropDerived(&now.Spec.Spec.Devices) },
		Validate: func(t template) field.ErrorList {
			at := field.NewPath("spec")
			errs := podspec.TemplateMeta(&t.Spec.ObjectMeta, at.Child("metadata"))
			return append(errs, deviceClaim(&t.Spec.Spec.Devices, at.Child("spec", "devices"))...)
		},
		ValidateUpdate: func(now, old template) field.ErrorList { return immutable(now.Spec, old.Spec, field.NewPath("spec")) },
		ValidateIn: func(_ context.Context, now, old template) field.ErrorList {
			if old != nil {
				return nil
			}
			return d.adminRequest(now.Namespace, now.Spec.Spec.Devices.Requests)
		},
		Columns: []rest.Column[template]{{Name: "Age"}},
	}
}

// eachRequest calls fn with the parts that exact requests and alternatives have alike.
func eachRequest(c *resourcev1.DeviceClaim, fn func(mode *resourcev1.DeviceAllocationMode, count *int64, ts []resourcev1.DeviceToleration, derived *[]resourcev1.DeviceDerivedAttribute)) {
	for i := range c.Requests {
		r := &c.Requests[i]
		if e := r.Exactly; e != nil {
			fn(&e.AllocationMode, &e.Count, e.Tolerations, &e.DerivedAttributes)
		}
		for j := range r.FirstAvailable {
			s := &r.FirstAvailable[j]
			fn(&s.AllocationMode, &s.Count, s.Tolerations, &s.DerivedAttributes)
		}
	}
}

func defaultDevices(c *resourcev1.DeviceClaim) {
	eachRequest(c, func(mode *resourcev1.DeviceAllocationMode, count *int64, ts []resourcev1.DeviceToleration, _ *[]resourcev1.DeviceDerivedAttribute) {
		defaultTolerations(ts)
		setDefault(mode, resourcev1.DeviceAllocationModeExactCount)
		if *mode == resourcev1.DeviceAllocationModeExactCount {
			setDefault(count, 1)
		}
	})
}

func defaultTolerations(ts []resourcev1.DeviceToleration) {
	for i := range ts {
		setDefault(&ts[i].Operator, resourcev1.DeviceTolerationOpEqual)
	}
}

// dropDerived removes what is an alpha feature of upstream, off by default there.
func dropDerived(c *resourcev1.DeviceClaim) {
	eachRequest(c, func(_ *resourcev1.DeviceAllocationMode, _ *int64, _ []resourcev1.DeviceToleration, derived *[]resourcev1.DeviceDerivedAttribute) {
		*derived = nil
	})
}

// requestNames are the requests of a claim that others may name: "a", or "a/b" for one of a's alternatives.
func requestNames(c *resourcev1.DeviceClaim) (names []string) {
	for _, r := range c.Requests {
		names = append(names, r.Name)
		for _, s := range r.FirstAvailable {
			names = append(names, r.Name+"/"+s.Name)
		}
	}
	return names
}

func deviceClaim(c *resourcev1.DeviceClaim, at *field.Path) field.ErrorList {
	names := requestNames(c)
	requests := at.Child("requests")
	errs := atMost(c.Requests, resourcev1.DeviceRequestsMaxSize, requests, deviceRequest)
	if len(c.Requests) <= resourcev1.DeviceRequestsMaxSize {
		errs = append(errs, distinct(c.Requests, requests, func(r resourcev1.DeviceRequest) string { return r.Name })...)
	}
	errs = append(errs, atMost(c.Constraints, resourcev1.DeviceConstraintsMaxSize, at.Child("constraints"), func(c *resourcev1.DeviceConstraint, at *field.Path) field.ErrorList {
		errs := requestRefs(c.Requests, names, at.Child("requests"))
		if c.MatchAttribute != nil {
			errs = append(errs, fullyQualified(*c.MatchAttribute, at.Child("matchAttribute"))...)
		}
		if c.DistinctAttribute != nil {
			errs = append(errs, fullyQualified(*c.DistinctAttribute, at.Child("distinctAttribute"))...)
		}
		if c.MatchAttribute == nil && c.DistinctAttribute == nil {
			errs = append(errs, field.Required(at, `exactly one of "matchAttribute" or "distinctAttribute" is required, but multiple fields are set`))
		}
		return errs
	})...)
	return append(errs, atMost(c.Config, resourcev1.DeviceConfigMaxSize, at.Child("config"), func(c *resourcev1.DeviceClaimConfiguration, at *field.Path) field.ErrorList {
		return append(requestRefs(c.Requests, names, at.Child("requests")), deviceConfig(&c.DeviceConfiguration, at)...)
	})...)
}

// requestRefs checks a list of names of requests.
func requestRefs(refs, names []string, at *field.Path) field.ErrorList {
	errs := atMost(refs, resourcev1.DeviceRequestsMaxSize, at, func(ref *string, at *field.Path) field.ErrorList { return requestRef(*ref, names, at) })
	if len(refs) > resourcev1.DeviceRequestsMaxSize {
		return errs
	}
	return append(errs, distinct(refs, at, self)...)
}

func requestRef(ref string, names []string, at *field.Path) (errs field.ErrorList) {
	unknown := field.Invalid(at, ref, "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'")
	parts := strings.Split(ref, "/")
	if len(parts) > 2 {
		return field.ErrorList{unknown}
	}
	for _, p := range parts {
		errs = append(errs, labelName(p, at)...)
	}
	if !slices.Contains(names, ref) {
		errs = append(errs, unknown)
	}
	return errs
}

func deviceRequest(r *resourcev1.DeviceRequest, at *field.Path) field.ErrorList {
	errs := labelName(r.Name, at.Child("name"))
	first := at.Child("firstAvailable")
	switch {
	case r.Exactly == nil && len(r.FirstAvailable) == 0:
		return append(errs, field.Required(at, "exactly one of `exactly` or `firstAvailable` is required"))
	case r.Exactly != nil && len(r.FirstAvailable) > 0:
		errs = append(errs, field.Invalid(at, nil, "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set"))
		// Nothing else is looked at but what upstream checks by generated rules.
		errs = append(errs, requestValues(r.Exactly.AllocationMode, r.Exactly.Tolerations, at.Child("exactly"))...)
		for i, s := range r.FirstAvailable {
			errs = append(errs, requestValues(s.AllocationMode, s.Tolerations, first.Index(i))...)
			errs = append(errs, requiredName(s.DeviceClassName, first.Index(i).Child("deviceClassName"), isName)...)
		}
		return errs
	case r.Exactly != nil:
		e, at := r.Exactly, at.Child("exactly")
		return append(errs, exactRequest(e.DeviceClassName, e.Selectors, e.AllocationMode, e.Count, e.Tolerations, at)...)
	}
	errs = append(errs, atMost(r.FirstAvailable, resourcev1.FirstAvailableDeviceRequestMaxSize, first, func(s *resourcev1.DeviceSubRequest, at *field.Path) field.ErrorList {
		return append(labelName(s.Name, at.Child("name")), exactRequest(s.DeviceClassName, s.Selectors, s.AllocationMode, s.Count, s.Tolerations, at)...)
	})...)
	if len(r.FirstAvailable) <= resourcev1.FirstAvailableDeviceRequestMaxSize {
		errs = append(errs, distinct(r.FirstAvailable, first, func(s resourcev1.DeviceSubRequest) string { return s.Name })...)
	}
	return errs
}

// requestValues checks those fields of a request that have a few values.
func requestValues(mode resourcev1.DeviceAllocationMode, ts []resourcev1.DeviceToleration, at *field.Path) field.ErrorList {
	errs := known(at.Child("allocationMode"), mode, resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount)
	for i, t := range ts {
		at := at.Child("tolerations").Index(i)
		errs = append(errs, known(at.Child("operator"), t.Operator, resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists)...)
		if t.Effect != "" {
			errs = append(errs, known(at.Child("effect"), t.Effect, taintEffects()...)...)
		}
	}
	return errs
}

func exactRequest(class string, selectors []resourcev1.DeviceSelector, mode resourcev1.DeviceAllocationMode, count int64, ts []resourcev1.DeviceToleration, at *field.Path) field.ErrorList {
	errs := deviceSelectors(selectors, at.Child("selectors"))
	switch mode {
	case resourcev1.DeviceAllocationModeAll:
		if count != 0 {
			errs = append(errs, field.Invalid(at.Child("count"), count, fmt.Sprintf("must not be specified when allocationMode is '%s'", mode)))
		}
	case resourcev1.DeviceAllocationModeExactCount:
		if count <= 0 {
			errs = append(errs, field.Invalid(at.Child("count"), count, "must be greater than zero"))
		}
	default:
		errs = append(errs, oneOf(at.Child("allocationMode"), mode, resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount)...)
	}
	errs = append(errs, deviceTolerations(ts, at.Child("tolerations"))...)
	return append(errs, requiredName(class, at.Child("deviceClassName"), isName)...)
}

const adminLabel = "resource.kubernetes.io/admin-access"

// adminRequest refuses claims for devices that are in use by others, but in the namespaces of administrators.
func (d Deps) adminRequest(namespace string, requests []resourcev1.DeviceRequest) field.ErrorList {
	for i, r := range requests {
		if r.Exactly != nil && deref(r.Exactly.AdminAccess) {
			return d.adminNamespace(namespace, field.NewPath("spec", "devices", "requests").Index(i).Child("adminAccess"))
		}
	}
	return nil
}

func (d Deps) adminNamespace(namespace string, at *field.Path) field.ErrorList {
	ns := d.Store.Snapshot(api.NamespaceKind).Get(api.Key{Name: namespace})
	if ns == nil {
		return field.ErrorList{field.InternalError(at, fmt.Errorf("could not retrieve namespace to verify admin access: namespaces %q not found", namespace))}
	}
	if ns.Object.GetLabels()[adminLabel] != "true" {
		return field.ErrorList{field.Forbidden(at, fmt.Sprintf("admin access to devices requires the `%s: true` label on the containing namespace", adminLabel))}
	}
	return nil
}
