package builtin_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/apiserver/builtin"
)

// TestSettleNames has definitions that are written "plural kind,short age accepted", accepted being those of kind and short that they
// have: what settles are their statuses.
func TestSettleNames(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name      string
		have      []string
		want      []string // of those that change: "plural: names accepted, reason of NamesAccepted, reason of Established"
		different bool     // the last one's group
	}{
		{name: "all is well", have: []string{"foos Foo,f 1 Foo,f", "bars Bar,b 2 Bar,b"}},
		{name: "the holder is there", have: []string{"foos Foo,f 1 Foo,f", "bars Foo,b 2 b"}},
		{name: "the holder went", have: []string{"bars Foo,b 2 b"}, want: []string{"bars: Foo b, NoConflicts, Installing"}},
		{name: "a short name became free", have: []string{"foos Foo,g 1 Foo,g", "bars Bar,f 2 Bar"}, want: []string{"bars: Bar f, NoConflicts, Installing"}},
		{name: "two wait for one name", have: []string{"foos Foo,f 2 f", "bars Foo,b 1 b"}, want: []string{"bars: Foo b, NoConflicts, Installing"}},
		{name: "two were quick", have: []string{"foos Foo,f 2 Foo,f", "bars Foo,b 1 Foo,b"}, want: []string{"foos:  f, ListKindConflict, NotAccepted"}},
		{name: "in different groups", have: []string{"foos Foo,f 1 Foo,f", "bars Foo,f 2 Foo,f"}, different: true},
	} {
		var all []*apiextensionsv1.CustomResourceDefinition
		for i, text := range tt.have {
			f := strings.Fields(text + " ")
			kind, short, _ := strings.Cut(f[1], ",")
			age := map[string]time.Duration{"1": 2 * time.Hour, "2": time.Hour}[f[2]]
			c := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: f[0] + ".example.com", CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age))}}
			c.Spec.Group = "example.com"
			if tt.different && i == len(tt.have)-1 {
				c.Spec.Group = "example.org"
			}
			c.Spec.Names = apiextensionsv1.CustomResourceDefinitionNames{Plural: f[0], Singular: f[0][:3], Kind: kind, ListKind: kind + "List", ShortNames: []string{short}}
			c.Status.AcceptedNames = apiextensionsv1.CustomResourceDefinitionNames{Plural: f[0], Singular: f[0][:3]}
			has := strings.Split(f[3], ",")
			accepted := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue,
				Reason: "NoConflicts", Message: "no conflicts found", LastTransitionTime: metav1.Unix(1e9, 0)}
			established := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionFalse, Reason: "NotServed",
				Message: "the names have been accepted, but this release does not serve custom resources", LastTransitionTime: metav1.Unix(1e9, 0)}
			if slices.Contains(has, short) {
				c.Status.AcceptedNames.ShortNames = []string{short}
			} else {
				accepted.Status, accepted.Reason, accepted.Message = apiextensionsv1.ConditionFalse, "ShortNamesConflict", fmt.Sprintf("%q is already in use", short)
			}
			if slices.Contains(has, kind) {
				c.Status.AcceptedNames.Kind, c.Status.AcceptedNames.ListKind = kind, kind+"List"
			} else {
				accepted.Status, accepted.Reason, accepted.Message = apiextensionsv1.ConditionFalse, "ListKindConflict", fmt.Sprintf("%q is already in use", kind+"List")
			}
			if accepted.Status == apiextensionsv1.ConditionFalse {
				established.Reason, established.Message = "NotAccepted", "not all names are accepted"
			}
			c.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{accepted, established}
			all = append(all, c)
		}
		var got []string
		for _, c := range builtin.SettleNames(all) {
			n := c.Status.AcceptedNames
			got = append(got, fmt.Sprintf("%s: %s %s, %s, %s", c.Spec.Names.Plural, n.Kind, strings.Join(n.ShortNames, ","), c.Status.Conditions[0].Reason, c.Status.Conditions[1].Reason))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
