package builtin

import (
	"fmt"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A question is asked with its selectors, as far as they can be read.
func TestReviewSelectors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		fields *authorizationv1.FieldSelectorAttributes
		labels *authorizationv1.LabelSelectorAttributes
		want   string
	}{
		{nil, nil, "<nil> <nil>"},
		{&authorizationv1.FieldSelectorAttributes{RawSelector: "spec.nodeName=n"}, &authorizationv1.LabelSelectorAttributes{RawSelector: "a in (b,c)"}, "spec.nodeName=n a in (b,c)"},
		{&authorizationv1.FieldSelectorAttributes{RawSelector: "!"}, &authorizationv1.LabelSelectorAttributes{RawSelector: "="}, "<nil> <nil>"},
		{&authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{
			{Key: "spec.nodeName", Operator: metav1.FieldSelectorOpIn, Values: []string{"n"}}, {Key: "a", Operator: metav1.FieldSelectorOpNotIn, Values: []string{"b"}},
			{Key: "c", Operator: metav1.FieldSelectorOpIn, Values: []string{"d", "e"}}, {Key: "f", Operator: "Near", Values: []string{"g"}}, {Key: "h", Operator: metav1.FieldSelectorOpExists},
		}}, &authorizationv1.LabelSelectorAttributes{Requirements: []metav1.LabelSelectorRequirement{
			{Key: "a", Operator: metav1.LabelSelectorOpIn, Values: []string{"b", "c"}}, {Key: "d", Operator: metav1.LabelSelectorOpDoesNotExist}, {Key: "e", Operator: "Near"},
		}}, "spec.nodeName=n,a!=b a in (b,c),!d"},
		{&authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{{Key: "f", Operator: "Near", Values: []string{"g"}}}}, nil, "<nil> <nil>"},
	} {
		a := question(nil, &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods", FieldSelector: tt.fields, LabelSelector: tt.labels}, nil)
		if got := fmt.Sprint(a.Fields, " ", a.Labels); got != tt.want {
			t.Errorf("%+v %+v: %s, want %s", tt.fields, tt.labels, got, tt.want)
		}
	}
}
