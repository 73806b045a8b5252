package builtin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

type crd = *apiextensionsv1.CustomResourceDefinition

// customResourceDefinitions are checked by upstream's own library: their schemas and rules in CEL are a language, of which
// there should be one implementation. What they define is served by package crd, which also lets them go when all of that is deleted.
func customResourceDefinitions(d Deps) *rest.Resource[crd] {
	created := "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.\n\nPopulated by the system. Read-only. Null for lists. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata"
	return &rest.Resource[crd]{
		// The name follows from the spec: Validate says.
		Name:            func(string, bool) []string { return nil },
		RequireRevision: true,
		AnyFinalizer:    true,
		Default:         apiextensionsv1.SetObjectDefaults_CustomResourceDefinition,
		Prepare:         func(c crd) { d.defined(c) },
		PrepareUpdate:   func(now, _ crd) { d.defined(now) },
		ValidateIn:      checkCRD,
		Finalizing: func(c crd) bool {
			return c.DeletionTimestamp == nil || apihelpers.CRDHasFinalizer(c, apiextensionsv1.CustomResourceCleanupFinalizer)
		},
		Deleting: func(c crd) {
			if !apihelpers.CRDHasFinalizer(c, apiextensionsv1.CustomResourceCleanupFinalizer) {
				c.Finalizers = append(c.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer)
			}
			apihelpers.SetCRDCondition(c, apiextensionsv1.CustomResourceDefinitionCondition{
				Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue, Reason: "InstanceDeletionPending",
				Message: "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon"})
		},
		ValidateStatus: func(now, _ crd) field.ErrorList {
			n, err := internalCRD(now)
			if err != nil {
				return field.ErrorList{field.InternalError(nil, err)}
			}
			return crdvalidation.ValidateCustomResourceDefinitionStatus(&n.Status, field.NewPath("status"))
		},
		Warn: func(c, old crd) []string {
			warnings := crdWarnings(c)
			if old == nil {
				return warnings
			}
			before := crdWarnings(old)
			return slices.DeleteFunc(warnings, func(w string) bool { return slices.Contains(before, w) })
		},
		Columns: []rest.Column[crd]{
			{Name: "Scope", Description: "Cluster/Namespaced", Cell: func(c crd) any { return string(c.Spec.Scope) }},
			{Name: "Versions", Description: "Served versions", Cell: func(c crd) any { return servedVersions(c) }},
			{Name: "Created At", Type: "date", Description: created, Cell: func(c crd) any { return c.CreationTimestamp.UTC().Format(time.RFC3339) }},
			{Name: "Group", Wide: true, Description: "API group", Cell: func(c crd) any { return c.Spec.Group }},
			{Name: "Kind", Wide: true, Description: "CustomResource kind", Cell: func(c crd) any { return c.Spec.Names.Kind }},
			{Name: "ShortNames", Wide: true, Description: "Short names", Cell: func(c crd) any { return strings.Join(c.Spec.Names.ShortNames, ",") }},
			{Name: "Established", Type: "boolean", Wide: true, Description: "Established status", Cell: func(c crd) any {
				return apihelpers.IsCRDConditionTrue(c, apiextensionsv1.Established)
			}},
		},
	}
}

// checkCRD asks upstream's library; old is nil on create.
func checkCRD(ctx context.Context, now, old crd) field.ErrorList {
	if err := api.Bounded(now); err != nil {
		return field.ErrorList{field.Invalid(field.NewPath("spec", "versions"), field.OmitValueType{}, err.Error())}
	}
	// What the names are accepted to be follows from the spec: it is wrong when that is.
	now, accepted := now.DeepCopy(), apiextensionsv1.CustomResourceDefinitionNames{}
	if old != nil {
		accepted = old.Status.AcceptedNames
	}
	now.Status.AcceptedNames = accepted
	n, err := internalCRD(now)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	if old == nil {
		return crdvalidation.ValidateCustomResourceDefinition(ctx, n)
	}
	o, err := internalCRD(old)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	return crdvalidation.ValidateCustomResourceDefinitionUpdate(ctx, n, o)
}

// internalCRD is c in the form that the library checks.
func internalCRD(c crd) (*apiextensions.CustomResourceDefinition, error) {
	out := &apiextensions.CustomResourceDefinition{}
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(c.DeepCopy(), out, nil); err != nil {
		return nil, fmt.Errorf("read the definition: %w", err)
	}
	return out, nil
}

func servedVersions(c crd) string {
	var names []string
	for _, v := range c.Spec.Versions {
		switch {
		case v.Served && v.Storage:
			names = append(names, v.Name+"(storage)")
		case v.Served:
			names = append(names, v.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

// crdWarnings are about lists that no one can merge and formats that no one knows.
func crdWarnings(c crd) (warnings []string) {
	in, err := internalCRD(c)
	if err != nil {
		return nil
	}
	var sets []string
	look := func(s *apiextensions.JSONSchemaProps) bool {
		if s.Format != "" {
			one := &spec.Schema{SchemaProps: spec.SchemaProps{Format: s.Format, Type: []string{s.Type}}}
			for _, f := range schemavalidation.GetUnrecognizedFormats(one, environment.DefaultCompatibilityVersion()) {
				warnings = append(warnings, fmt.Sprintf("unrecognized format %q", f))
			}
		}
		if s.XListType == nil || *s.XListType != "set" || s.Items == nil || s.Items.Schema == nil {
			return false
		}
		if t := s.Items.Schema.Type; t == "object" || t == "array" {
			sets = append(sets, fmt.Sprintf("x-kubernetes-list-type: set for items of type %q is not supported by server-side apply or CEL validation rules", t))
		}
		return false
	}
	if v := in.Spec.Validation; v != nil && v.OpenAPIV3Schema != nil {
		crdvalidation.SchemaHas(v.OpenAPIV3Schema, look)
	}
	for _, v := range in.Spec.Versions {
		if v.Schema != nil && v.Schema.OpenAPIV3Schema != nil {
			crdvalidation.SchemaHas(v.Schema.OpenAPIV3Schema, look)
		}
	}
	slices.Sort(sets)
	return append(warnings, slices.Compact(sets)...)
}

// approval says whether a definition in a group of Kubernetes' own has the community's consent.
func approval(c crd) apiextensionsv1.CustomResourceDefinitionCondition {
	condition := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.KubernetesAPIApprovalPolicyConformant, Status: apiextensionsv1.ConditionFalse}
	state, text := apihelpers.GetAPIApprovalState(c.Annotations)
	condition.Message = text
	switch state {
	case apihelpers.APIApproved:
		condition.Status, condition.Reason = apiextensionsv1.ConditionTrue, "ApprovedAnnotation"
	case apihelpers.APIApprovalBypassed:
		condition.Reason = "UnapprovedAnnotation"
	case apihelpers.APIApprovalMissing:
		condition.Reason = "MissingAnnotation"
	default:
		condition.Reason = "InvalidAnnotation"
	}
	return condition
}
