package crd

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel/model"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	apivalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	celcommon "k8s.io/apiserver/pkg/cel/common"
)

// checks are a version's validators, compiled.
type checks struct {
	structural *structuralschema.Structural
	schema     validation.SchemaValidator
	status     validation.SchemaValidator // of the status alone; nil where the schema has none
	rules      *cel.Validator             // nil where there are none
}

func (v *definedVersion) compileChecks() (*checks, error) {
	s, err := v.structural()
	if err != nil {
		return nil, err
	}
	schema, err := v.internalSchema()
	if err != nil {
		return nil, err
	}
	c := &checks{structural: s}
	if c.schema, _, err = validation.NewSchemaValidator(schema); err != nil {
		return nil, fmt.Errorf("%w: %w", errSchema, err)
	}
	if schema != nil {
		if status, ok := schema.Properties["status"]; ok {
			if c.status, _, err = validation.NewSchemaValidator(&status); err != nil {
				return nil, fmt.Errorf("%w: %w", errSchema, err)
			}
		}
	}
	c.rules = cel.NewValidator(s, true, celconfig.PerCallLimit)
	return c, nil
}

// validate checks a write of the object; old is nil on create.
func (v *definedVersion) validate(ctx context.Context, now, old object) field.ErrorList {
	c, err := v.checks()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	var before map[string]any
	var options []validation.ValidationOption
	var ruleOptions []cel.Option
	if old != nil {
		before = old.Object
		same := celcommon.NewCorrelatedObject(now.Object, old.Object, &model.Structural{Structural: c.structural})
		options = append(options, validation.WithRatcheting(same))
		ruleOptions = append(ruleOptions, cel.WithRatcheting(same))
	}
	var errs field.ErrorList
	if old == nil {
		errs = validation.ValidateCustomResource(nil, now.Object, c.schema)
	} else {
		errs = validation.ValidateCustomResourceUpdate(nil, now.Object, old.Object, c.schema, options...)
	}
	errs = append(errs, v.validateScale(now, true)...)
	errs = append(errs, objectmeta.Validate(ctx, nil, now.Object, c.structural, false)...)
	if old == nil || len(listtype.ValidateListSetsAndMaps(nil, c.structural, old.Object)) == 0 {
		errs = append(errs, listtype.ValidateListSetsAndMaps(nil, c.structural, now.Object)...)
	}
	return c.validateRules(ctx, errs, now, before, ruleOptions)
}

// validateStatus checks a write of the status.
func (v *definedVersion) validateStatus(ctx context.Context, now, old object) field.ErrorList {
	c, err := v.checks()
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	same := celcommon.NewCorrelatedObject(now.Object, old.Object, &model.Structural{Structural: c.structural})
	var options []validation.ValidationOption
	if c.structural != nil {
		options = append(options, validation.WithRatcheting(same.Key("status")))
	}
	var errs field.ErrorList
	if status, ok := now.Object["status"]; ok && c.status != nil {
		errs = validation.ValidateCustomResourceUpdate(field.NewPath("status"), status, old.Object["status"], c.status, options...)
	}
	errs = append(errs, v.validateScale(now, false)...)
	if wrong := listtype.ValidateListSetsAndMaps(nil, c.structural, now.Object); len(wrong) > 0 &&
		len(listtype.ValidateListSetsAndMaps(nil, c.structural, old.Object)) == 0 {
		errs = append(errs, wrong...)
	}
	return c.validateRules(ctx, errs, now, old.Object, []cel.Option{cel.WithRatcheting(same)})
}

// validateRules adds to errs what the rules say, unless the object is not such that they can be asked.
func (c *checks) validateRules(ctx context.Context, errs field.ErrorList, now object, old map[string]any, options []cel.Option) field.ErrorList {
	if c.rules == nil {
		return errs
	}
	if slices.ContainsFunc(errs, blocking) {
		return append(errs, field.Invalid(nil, nil,
			"some validation rules were not checked because the object was invalid; correct the existing errors to complete validation"))
	}
	var before any
	if old != nil {
		before = old
	}
	more, _ := c.rules.Validate(ctx, nil, c.structural, now.Object, before, celconfig.RuntimeCELCostBudget, options...)
	return append(errs, more...)
}

func blocking(e *field.Error) bool {
	switch e.Type {
	case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
		return true
	}
	return false
}

// validateScale checks that what /scale would show is there: the replicas that are wanted, where spec says so, and those of the status.
func (v *definedVersion) validateScale(o object, spec bool) (errs field.ErrorList) {
	if v.spec.Subresources == nil || v.spec.Subresources.Scale == nil {
		return nil
	}
	s := v.spec.Subresources.Scale
	count := func(path string) {
		n, _, err := unstructured.NestedInt64(o.Object, jsonPath(path)...)
		at := field.NewPath(path)
		switch {
		case err != nil:
			errs = append(errs, field.Invalid(at, n, err.Error()))
		case n < 0:
			errs = append(errs, field.Invalid(at, n, "should be a non-negative integer"))
		case n > math.MaxInt32:
			errs = append(errs, field.Invalid(at, n, fmt.Sprintf("should be less than or equal to %v", math.MaxInt32)))
		}
	}
	if spec {
		count(s.SpecReplicasPath)
	}
	count(s.StatusReplicasPath)
	if s.LabelSelectorPath != nil {
		if text, _, err := unstructured.NestedString(o.Object, jsonPath(*s.LabelSelectorPath)...); err != nil {
			errs = append(errs, field.Invalid(field.NewPath(*s.LabelSelectorPath), text, err.Error()))
		}
	}
	return errs
}

// finalizerWarnings are about finalizers that others might have chosen too.
func finalizerWarnings(o, old object) (warnings []string) {
	var had []string
	if old != nil {
		had = old.GetFinalizers()
	}
	names := slices.Clone(o.GetFinalizers())
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if slices.Contains(had, name) {
			continue
		}
		for _, msg := range apivalidation.IsQualifiedName(name) {
			warnings = append(warnings, fmt.Sprintf("metadata.finalizers: %q: %s", name, msg))
		}
		switch {
		case strings.Contains(name, "/"), name == metav1.FinalizerOrphanDependents, name == metav1.FinalizerDeleteDependents, name == string(corev1.FinalizerKubernetes):
		case strings.Contains(name, "."):
			warnings = append(warnings, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name including a path (/) to avoid accidental conflicts with other finalizer writers", name))
		default:
			warnings = append(warnings, fmt.Sprintf("metadata.finalizers: %q: prefer a domain-qualified finalizer name to avoid accidental conflicts with other finalizer writers", name))
		}
	}
	return warnings
}
