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
		CreateOnUpdate: true,
		NoGeneration:   true,
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
				errs = append(errs, field.Forbidden(spec.Child("preferredHolder"), "may not be specified when `spec.strategy` is not specified"))
			}
			return errs
		},
		Columns: []rest.Column[lease]{
			{Name: "Holder", Description: coordinationv1.LeaseSpec{}.SwaggerDoc()["holderIdentity"], Cell: func(l lease) any { return deref(l.Spec.HolderIdentity) }},
			{Name: "Age"},
		},
	}
}
