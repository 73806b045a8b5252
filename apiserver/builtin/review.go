package builtin

import (
	"context"
	"errors"
	"fmt"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Kinds that are questions: they are posted, and come back with their status filled in.

func tokenReviews(d Deps) *rest.Resource[*authenticationv1.TokenReview] {
	type review = *authenticationv1.TokenReview
	verifier := d.Verifier
	if verifier == nil {
		verifier = d.Tokens
	}
	return &rest.Resource[review]{
		Answer: func(ctx context.Context, r review) (review, error) {
			if r.Spec.Token == "" {
				return nil, apierrors.NewBadRequest("token is required for TokenReview in authentication")
			}
			audiences := r.Spec.Audiences
			if len(audiences) == 0 {
				audiences = d.Tokens.Audiences()
			}
			r.Status = authenticationv1.TokenReviewStatus{}
			user, both, err := verifier.Verify(ctx, r.Spec.Token, audiences)
			switch {
			case err != nil:
				r.Status.Error = err.Error()
			case user != nil:
				r.Status.Authenticated = true
				r.Status.User = userInfo(user)
				r.Status.Audiences = both
			default:
				r.Status.Error = "invalid bearer token"
			}
			return r, nil
		},
		Name: anyName,
	}
}

// anyName is for kinds whose objects have no name.
func anyName(string, bool) []string { return nil }

func userInfo(u *authn.User) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: slices.Clone(u.Groups)}
	for k, v := range u.Extra {
		if info.Extra == nil {
			info.Extra = map[string]authenticationv1.ExtraValue{}
		}
		info.Extra[k] = slices.Clone(v)
	}
	return info
}

func selfSubjectReviews() *rest.Resource[*authenticationv1.SelfSubjectReview] {
	return &rest.Resource[*authenticationv1.SelfSubjectReview]{
		Answer: func(ctx context.Context, r *authenticationv1.SelfSubjectReview) (*authenticationv1.SelfSubjectReview, error) {
			r.ObjectMeta = metav1.ObjectMeta{CreationTimestamp: metav1.Now()}
			r.Status.UserInfo = userInfo(authn.UserFrom(ctx))
			return r, nil
		},
		Name: anyName,
	}
}

// question is the common part of the three access reviews.
func question(u *authn.User, r *authorizationv1.ResourceAttributes, p *authorizationv1.NonResourceAttributes) *authz.Attributes {
	if r != nil {
		return &authz.Attributes{User: u, Verb: r.Verb, Group: r.Group, Version: r.Version, Resource: r.Resource,
			Subresource: r.Subresource, Namespace: r.Namespace, Name: r.Name,
			Fields: fieldsOf(r.FieldSelector), Labels: labelsOf(r.LabelSelector)}
	}
	return &authz.Attributes{User: u, Verb: p.Verb, Path: p.Path}
}

func (d Deps) decide(ctx context.Context, a *authz.Attributes) authorizationv1.SubjectAccessReviewStatus {
	ok, reason, err := d.Access.Authorize(ctx, a)
	s := authorizationv1.SubjectAccessReviewStatus{Allowed: ok, Denied: errors.Is(err, authz.ErrDenied), Reason: reason}
	if err != nil {
		s.EvaluationError = err.Error()
	}
	return s
}

func askOne(r *authorizationv1.ResourceAttributes, p *authorizationv1.NonResourceAttributes) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	if (r == nil) == (p == nil) {
		errs = append(errs, field.Invalid(spec, p, "exactly one of nonResourceAttributes or resourceAttributes must be specified"))
	}
	if r == nil {
		return errs
	}
	at := spec.Child("resourceAttributes")
	one := func(at *field.Path, raw string, requirements int) {
		if raw != "" && requirements > 0 {
			errs = append(errs, field.Invalid(at.Child("rawSelector"), raw, "may not specified at the same time as requirements"))
		}
		if raw == "" && requirements == 0 {
			errs = append(errs, field.Required(at.Child("requirements"), fmt.Sprintf("when %s is specified, requirements or rawSelector is required", at)))
		}
	}
	// Operators that are not known come from clients that are newer.
	if s := r.FieldSelector; s != nil {
		at := at.Child("fieldSelector")
		one(at, s.RawSelector, len(s.Requirements))
		for i, q := range s.Requirements {
			errs = append(errs, metavalidation.ValidateFieldSelectorRequirement(q, metavalidation.FieldSelectorValidationOptions{AllowUnknownOperatorInRequirement: true},
				at.Child("requirements").Index(i))...)
		}
	}
	if s := r.LabelSelector; s != nil {
		at := at.Child("labelSelector")
		one(at, s.RawSelector, len(s.Requirements))
		for i, q := range s.Requirements {
			errs = append(errs, metavalidation.ValidateLabelSelectorRequirement(q, metavalidation.LabelSelectorValidationOptions{AllowUnknownOperatorInRequirement: true},
				at.Child("requirements").Index(i))...)
		}
	}
	return errs
}

// unnamed checks that a question has no metadata but what the server notes, and the namespace where it is asked in one.
func unnamed(m metav1.ObjectMeta, text string) field.ErrorList {
	m.ManagedFields = nil
	if equality.Semantic.DeepEqual(m, metav1.ObjectMeta{}) {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("metadata"), m, text)}
}

func askWho(s *authorizationv1.SubjectAccessReviewSpec) (errs field.ErrorList) {
	errs = askOne(s.ResourceAttributes, s.NonResourceAttributes)
	if s.User == "" && len(s.Groups) == 0 {
		errs = append(errs, field.Invalid(field.NewPath("spec", "user"), s.User, "at least one of user or group must be specified"))
	}
	return errs
}

func subjectOf(s *authorizationv1.SubjectAccessReviewSpec) *authn.User {
	u := &authn.User{Name: s.User, UID: s.UID, Groups: s.Groups, Extra: map[string][]string{}}
	for k, v := range s.Extra {
		u.Extra[k] = v
	}
	return u
}

func subjectAccessReviews(d Deps) *rest.Resource[*authorizationv1.SubjectAccessReview] {
	type review = *authorizationv1.SubjectAccessReview
	return &rest.Resource[review]{
		Validate: func(r review) field.ErrorList {
			return append(askWho(&r.Spec), unnamed(r.ObjectMeta, "must be empty")...)
		},
		Answer: func(ctx context.Context, r review) (review, error) {
			r.Status = d.decide(ctx, question(subjectOf(&r.Spec), r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes))
			return r, nil
		},
		Name: anyName,
	}
}

func localSubjectAccessReviews(d Deps) *rest.Resource[*authorizationv1.LocalSubjectAccessReview] {
	type review = *authorizationv1.LocalSubjectAccessReview
	return &rest.Resource[review]{
		Validate: func(r review) field.ErrorList {
			meta := r.ObjectMeta
			meta.Namespace = ""
			errs := append(askWho(&r.Spec), unnamed(meta, "must be empty except for namespace")...)
			if a := r.Spec.ResourceAttributes; a != nil && a.Namespace != r.Namespace {
				errs = append(errs, field.Invalid(field.NewPath("spec", "resourceAttributes", "namespace"), a.Namespace, "must match metadata.namespace"))
			}
			if r.Spec.NonResourceAttributes != nil {
				errs = append(errs, field.Invalid(field.NewPath("spec", "nonResourceAttributes"), r.Spec.NonResourceAttributes, "disallowed on this kind of request"))
			}
			return errs
		},
		Answer: func(ctx context.Context, r review) (review, error) {
			r.Status = d.decide(ctx, question(subjectOf(&r.Spec), r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes))
			return r, nil
		},
		Name: anyName,
	}
}

func selfSubjectAccessReviews(d Deps) *rest.Resource[*authorizationv1.SelfSubjectAccessReview] {
	type review = *authorizationv1.SelfSubjectAccessReview
	return &rest.Resource[review]{
		Validate: func(r review) field.ErrorList {
			return append(askOne(r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes), unnamed(r.ObjectMeta, "must be empty")...)
		},
		Answer: func(ctx context.Context, r review) (review, error) {
			r.Status = d.decide(ctx, question(authn.UserFrom(ctx), r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes))
			return r, nil
		},
		Name: anyName,
	}
}

func selfSubjectRulesReviews(d Deps) *rest.Resource[*authorizationv1.SelfSubjectRulesReview] {
	type review = *authorizationv1.SelfSubjectRulesReview
	return &rest.Resource[review]{
		Answer: func(ctx context.Context, asked review) (review, error) {
			if asked.Spec.Namespace == "" {
				return nil, apierrors.NewBadRequest("no namespace on request")
			}
			u := authn.UserFrom(ctx)
			r := &authorizationv1.SelfSubjectRulesReview{} // upstream does not repeat the question
			rules, err := d.Authorizer.RulesFor(u, asked.Spec.Namespace)
			r.Status = authorizationv1.SubjectRulesReviewStatus{ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}}
			if err != nil {
				r.Status.EvaluationError = err.Error()
			}
			// What a kubelet may do follows from its pods, and cannot be listed as rules.
			r.Status.Incomplete = err != nil || u.In(authn.Nodes)
			for _, rule := range rules {
				if len(rule.NonResourceURLs) > 0 {
					r.Status.NonResourceRules = append(r.Status.NonResourceRules, authorizationv1.NonResourceRule{Verbs: rule.Verbs, NonResourceURLs: rule.NonResourceURLs})
				} else {
					r.Status.ResourceRules = append(r.Status.ResourceRules, authorizationv1.ResourceRule{Verbs: rule.Verbs,
						APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames})
				}
			}
			return r, nil
		},
		Name: anyName,
	}
}
