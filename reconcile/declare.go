package reconcile

import (
	"context"
	"maps"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// Writes declares what is written: a kind to verbs, "create", "delete", "update/status". A kind of nil
// means every kind (the garbage collector's).
type Writes map[*api.Kind][]string

// Declaration is what a controller reads and writes.
type Declaration struct {
	Controller string
	Kinds      []*api.Kind // read, the controller's own first
	Writes     Writes
}

func (d *Declaration) reads(kinds ...*api.Kind) {
	for _, k := range kinds {
		if !slices.Contains(d.Kinds, k) {
			d.Kinds = append(d.Kinds, k)
		}
	}
}

// CanRead says whether kind was declared to be read.
func (d *Declaration) CanRead(kind *api.Kind) bool {
	return slices.Contains(d.Kinds, kind) || slices.Contains(d.Kinds, nil)
}

// CanWrite says whether the verb ("update", or "update/status") was declared for kind.
func (d *Declaration) CanWrite(kind *api.Kind, verb string) bool {
	return slices.Contains(d.Writes[kind], verb) || slices.Contains(d.Writes[nil], verb)
}

type declarationKey struct{}

func withDeclaration(ctx context.Context, d *Declaration) context.Context {
	return context.WithValue(ctx, declarationKey{}, d)
}

// DeclarationOf returns the declaration of the controller that ctx was given to, nil if none was.
func DeclarationOf(ctx context.Context) *Declaration {
	d, _ := ctx.Value(declarationKey{}).(*Declaration)
	return d
}

// Role returns the ClusterRole that follows from the declaration.
func (d *Declaration) Role() *rbacv1.ClusterRole {
	verbs := map[[2]string]map[string]bool{} // group and resource to verbs
	allow := func(k *api.Kind, sub, verb string) {
		at := [2]string{"*", "*"}
		if k != nil {
			at = [2]string{k.Group, k.Plural}
		}
		if sub != "" {
			at[1] += "/" + sub
		}
		if verbs[at] == nil {
			verbs[at] = map[string]bool{}
		}
		verbs[at][verb] = true
	}
	for _, k := range d.Kinds {
		for _, v := range []string{"get", "list", "watch"} {
			allow(k, "", v)
		}
	}
	for k, vs := range d.Writes {
		for _, v := range vs {
			verb, sub, _ := strings.Cut(v, "/")
			allow(k, sub, verb)
		}
	}
	for _, v := range []string{"create", "patch"} {
		allow(api.EventKind, "", v)
	}
	role := &rbacv1.ClusterRole{
		TypeMeta: metav1.TypeMeta{APIVersion: rbacv1.SchemeGroupVersion.String(), Kind: "ClusterRole"},
		ObjectMeta: metav1.ObjectMeta{
			Name:        "system:controller:" + d.Controller,
			Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"},
			Labels:      map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"},
		},
	}
	for _, at := range slices.SortedFunc(maps.Keys(verbs), func(a, b [2]string) int {
		return strings.Compare(a[0]+"\x00"+a[1], b[0]+"\x00"+b[1])
	}) {
		role.Rules = append(role.Rules, rbacv1.PolicyRule{
			APIGroups: []string{at[0]}, Resources: []string{at[1]}, Verbs: slices.Sorted(maps.Keys(verbs[at])),
		})
	}
	return role
}
