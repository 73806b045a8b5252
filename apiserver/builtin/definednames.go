package builtin

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"github.com/yare-dev/yare/api"
)

// defined brings the status to the spec, as upstream's naming and approval controllers do soon after a write: here it is
// part of the write.
func (d Deps) defined(c crd) {
	for _, v := range c.Spec.Versions {
		if v.Storage && !slices.Contains(c.Status.StoredVersions, v.Name) {
			c.Status.StoredVersions = append(c.Status.StoredVersions, v.Name)
			break
		}
	}
	var others []crd
	for e := range d.Store.Snapshot(api.CustomResourceDefinitionKind).All("", api.Key{}) {
		if o, ok := e.Object.(crd); ok {
			others = append(others, o)
		}
	}
	name(c, others)
	if apihelpers.IsProtectedCommunityGroup(c.Spec.Group) {
		apihelpers.SetCRDCondition(c, approval(c))
	}
}

// SettleNames returns those definitions, changed, whose status is not what follows from the names of all: a name became free when
// its holder went or took another, or two were defined with one name at the same time, of which the older has it. What is
// passed is read only.
func SettleNames(all []*apiextensionsv1.CustomResourceDefinition) (changed []*apiextensionsv1.CustomResourceDefinition) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b crd) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for i, c := range all {
		accepted := apihelpers.IsCRDConditionTrue(c, apiextensionsv1.NamesAccepted)
		twice := collides(c, all[:i])
		if accepted && !twice {
			continue
		}
		next := c.DeepCopy()
		if twice {
			next.Status.AcceptedNames = apiextensionsv1.CustomResourceDefinitionNames{}
		}
		if name(next, all); !equality.Semantic.DeepEqual(c.Status, next.Status) {
			all[i] = next
			changed = append(changed, next)
		}
	}
	return changed
}

// collides says that one of older has a name that was given to c too.
func collides(c crd, older []crd) bool {
	resources, kinds := taken(c, older)
	n := c.Status.AcceptedNames
	return slices.ContainsFunc(namesOf(n), func(r string) bool { return resources[r] }) ||
		slices.ContainsFunc([]string{n.Kind, n.ListKind}, func(k string) bool { return kinds[k] })
}

func namesOf(n apiextensionsv1.CustomResourceDefinitionNames) []string {
	return append([]string{n.Plural, n.Singular}, n.ShortNames...)
}

// taken are the names that other definitions of c's group have.
func taken(c crd, others []crd) (resources, kinds map[string]bool) {
	resources, kinds = map[string]bool{}, map[string]bool{}
	for _, o := range others {
		if o.Spec.Group != c.Spec.Group || o.Name == c.Name {
			continue
		}
		n := o.Status.AcceptedNames
		for _, r := range namesOf(n) {
			resources[r] = r != ""
		}
		for _, k := range []string{n.Kind, n.ListKind} {
			kinds[k] = k != ""
		}
	}
	return resources, kinds
}

// name gives c those of its names that no other definition has, and says in its conditions whether these are all.
func name(c crd, others []crd) {
	names, accepted := acceptNames(c, others)
	c.Status.AcceptedNames = names
	apihelpers.SetCRDCondition(c, accepted)
	if apihelpers.IsCRDConditionTrue(c, apiextensionsv1.Established) {
		return // it stays so: its objects are there
	}
	// It is established when it is served, by who serves it.
	established := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionFalse,
		Reason: "Installing", Message: "the initial names have been accepted"}
	if accepted.Status != apiextensionsv1.ConditionTrue {
		established.Reason, established.Message = "NotAccepted", "not all names are accepted"
	}
	apihelpers.SetCRDCondition(c, established)
}

func acceptNames(c crd, others []crd) (apiextensionsv1.CustomResourceDefinitionNames, apiextensionsv1.CustomResourceDefinitionCondition) {
	resources, kinds := taken(c, others)
	condition := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue,
		Reason: "NoConflicts", Message: "no conflicts found"}
	conflict := func(reason string, err error) {
		condition.Status, condition.Reason, condition.Message = apiextensionsv1.ConditionFalse, reason, err.Error()
	}
	want, names := c.Spec.Names, c.Status.AcceptedNames
	take := func(name *string, want, reason string, used map[string]bool) {
		if want != *name && used[want] {
			conflict(reason, fmt.Errorf("%q is already in use", want))
			return
		}
		*name = want
	}
	take(&names.Plural, want.Plural, "PluralConflict", resources)
	take(&names.Singular, want.Singular, "SingularConflict", resources)
	var errs []error
	for _, s := range want.ShortNames {
		if resources[s] && !slices.Contains(names.ShortNames, s) {
			errs = append(errs, fmt.Errorf("%q is already in use", s))
		}
	}
	if err := utilerrors.NewAggregate(errs); err != nil {
		conflict("ShortNamesConflict", err)
	} else {
		names.ShortNames = want.ShortNames
	}
	take(&names.Kind, want.Kind, "KindConflict", kinds)
	take(&names.ListKind, want.ListKind, "ListKindConflict", kinds)
	names.Categories = want.Categories
	return names, condition
}
