package builtin

import (
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// fieldsOf is the selector that a question is about, nil where it has none. What cannot be read, and operators that are not known, is
// left out: the question is about more then, which no less is needed for.
func fieldsOf(a *authorizationv1.FieldSelectorAttributes) fields.Selector {
	if a == nil {
		return nil
	}
	if a.RawSelector != "" {
		s, err := fields.ParseSelector(a.RawSelector)
		if err != nil {
			return nil
		}
		return s
	}
	var all []fields.Selector
	for _, q := range a.Requirements {
		switch {
		case len(q.Values) != 1: // requests have no such selectors
		case q.Operator == metav1.FieldSelectorOpIn:
			all = append(all, fields.OneTermEqualSelector(q.Key, q.Values[0]))
		case q.Operator == metav1.FieldSelectorOpNotIn:
			all = append(all, fields.OneTermNotEqualSelector(q.Key, q.Values[0]))
		}
	}
	if len(all) == 0 {
		return nil
	}
	return fields.AndSelectors(all...)
}

// labelOperators are those of a question's requirements.
var labelOperators = map[metav1.LabelSelectorOperator]selection.Operator{
	metav1.LabelSelectorOpIn: selection.In, metav1.LabelSelectorOpNotIn: selection.NotIn,
	metav1.LabelSelectorOpExists: selection.Exists, metav1.LabelSelectorOpDoesNotExist: selection.DoesNotExist,
}

// labelsOf is fieldsOf for labels.
func labelsOf(a *authorizationv1.LabelSelectorAttributes) labels.Selector {
	if a == nil {
		return nil
	}
	if a.RawSelector != "" {
		s, err := labels.Parse(a.RawSelector)
		if err != nil {
			return nil
		}
		return s
	}
	var all []labels.Requirement
	for _, q := range a.Requirements {
		op, known := labelOperators[q.Operator]
		if !known {
			continue
		}
		if r, err := labels.NewRequirement(q.Key, op, q.Values); err == nil {
			all = append(all, *r)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return labels.NewSelector().Add(all...)
}
