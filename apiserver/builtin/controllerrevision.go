package builtin

import (
	"bytes"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/rest"
)

func controllerRevisions() *rest.Resource[*appsv1.ControllerRevision] {
	type revision = *appsv1.ControllerRevision
	return &rest.Resource[revision]{
		Validate: func(r revision) (errs field.ErrorList) {
			if len(r.Data.Raw) == 0 && r.Data.Object == nil {
				errs = append(errs, field.Required(field.NewPath("data"), "data is mandatory"))
			} else if t := bytes.TrimSpace(r.Data.Raw); len(t) > 0 && t[0] != '{' {
				errs = append(errs, field.Invalid(field.NewPath("data"), "", "error parsing data: must be a JSON object"))
			}
			return append(errs, notNegative(r.Revision, field.NewPath("revision"))...)
		},
		ValidateUpdate: func(now, old revision) field.ErrorList {
			return immutable(now.Data, old.Data, field.NewPath("data"))
		},
		Columns: []rest.Column[revision]{
			{Name: "Controller", Description: "Controller of the object", Cell: func(r revision) any {
				ref := metav1.GetControllerOf(r)
				if ref == nil {
					return none
				}
				gv, err := schema.ParseGroupVersion(ref.APIVersion)
				if err != nil {
					return none
				}
				return kindAndName(gv.WithKind(ref.Kind).GroupKind(), ref.Name)
			}},
			{Name: "Revision", Description: appsv1.ControllerRevision{}.SwaggerDoc()["revision"], Cell: func(r revision) any { return r.Revision }},
			{Name: "Age"},
		},
	}
}

// kindAndName is "daemonset.apps/web".
func kindAndName(k schema.GroupKind, name string) string {
	lower := schema.GroupKind{Group: k.Group, Kind: strings.ToLower(k.Kind)}
	return lower.String() + "/" + name
}
