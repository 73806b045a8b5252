package builtin

import (
	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/rest"
)

func leases() *rest.Resource[*coordinationv1.Lease] {
	type lease = *coordinationv1.Lease
	return &rest.Resource[lease]{
		AnyFinalizer:   true,
		CreateOnUpdate: true, RequireRevision: true,
		NoGeneration: true,
		// Coordinated leader election is behind a gate that is off: its fields stay where they are already.
		Prepare: func(l lease) { l.Spec.Strategy, l.Spec.PreferredHolder = nil, nil },
		PrepareUpdate: func(now, old lease) {
			if old.Spec.Strategy == nil {
				now.Spec.Strategy = nil
			}
			if old.Spec.PreferredHolder == nil {
				now.Spec.PreferredHolder = nil
			}
		},
		Validate: func(l lease) (errs field.ErrorList) {
			spec := field.NewPath("spec")
			if s := l.Spec.LeaseDurationSeconds; s != nil && *s <= 0 {
				errs = append(errs, field.Invalid(spec.Child("leaseDurationSeconds"), *s, "must be greater than 0"))
			}
			if n := l.Spec.LeaseTransitions; n != nil && *n < 0 {
				errs = append(errs, field.Invalid(spec.Child("leaseTransitions"), *n, "must be greater than or equal to 0"))
			}
			if s := l.Spec.Strategy; s != nil {
				errs = append(errs, oneOf(spec.Child("strategy"), *s, coordinationv1.OldestEmulationVersion)...)
			}
			if p := l.Spec.PreferredHolder; p != nil && *p != "" && (l.Spec.Strategy == nil || *l.Spec.Strategy == "") {
				errs = append(errs, field.Forbidden(spec.Child("preferredHolder"), "may only be specified if `strategy` is defined"))
			}
			return errs
		},
		Columns: []rest.Column[lease]{
			{Name: "Holder", Description: coordinationv1.LeaseSpec{}.SwaggerDoc()["holderIdentity"], Cell: func(l lease) any { return deref(l.Spec.HolderIdentity) }},
			{Name: "Age"},
		},
	}
}
