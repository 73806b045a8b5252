package crd

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/util/jsonpath"

	"github.com/yare-dev/yare/apiserver/rest"
)

// path is a JSONPath that is parsed when it is first asked for.
type path func() (*jsonpath.JSONPath, error)

func parsed(text string) path {
	return sync.OnceValues(func() (*jsonpath.JSONPath, error) {
		p := jsonpath.New("").AllowMissingKeys(true)
		return p, p.Parse("{" + text + "}")
	})
}

// columns are those of the definition; the age where it has none.
func (v *definedVersion) columns() []rest.Column[object] {
	defined := v.spec.AdditionalPrinterColumns
	if len(defined) == 0 {
		defined = []apiextensionsv1.CustomResourceColumnDefinition{{
			Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"],
		}}
	}
	all := make([]rest.Column[object], len(defined))
	for i, c := range defined {
		at := parsed(c.JSONPath)
		text := c.Description
		if text == "" {
			text = "Custom resource definition column (in JSONPath format): " + c.JSONPath
		}
		all[i] = rest.Column[object]{Name: c.Name, Type: c.Type, Format: c.Format, Description: text, Priority: c.Priority,
			Cell: func(o object) any { return cell(at, c.Type, o) }}
	}
	return all
}

func cell(at path, typ string, o object) any {
	p, err := at()
	if err != nil {
		return nil
	}
	found, err := p.FindResults(o.Object)
	if err != nil || len(found) == 0 || len(found[0]) == 0 {
		return nil
	}
	value := found[0][0].Interface()
	if typ == "string" {
		var b bytes.Buffer
		if err := p.PrintResults(&b, []reflect.Value{reflect.ValueOf(value)}); err != nil {
			return nil
		}
		return b.String()
	}
	return cellOf(typ, value)
}

// cellOf returns value as a cell of a column of the type, nil where it is none.
func cellOf(typ string, value any) any {
	switch v := value.(type) {
	case int64:
		switch typ {
		case "integer":
			return v
		case "number":
			return float64(v)
		}
	case float64:
		switch typ {
		case "integer":
			return int64(v)
		case "number":
			return v
		}
	case bool:
		if typ == "boolean" {
			return v
		}
	case string:
		if typ != "date" {
			break
		}
		var at metav1.Time
		if at.UnmarshalQueryParameter(v) != nil {
			return "<invalid>"
		}
		if at.IsZero() {
			return "<unknown>"
		}
		return duration.HumanDuration(time.Since(at.Time))
	}
	return nil
}

// fields are the version's selectable fields; nil where it has none.
func (v *definedVersion) fields() func(o object) fields.Set {
	if len(v.spec.SelectableFields) == 0 {
		return nil
	}
	type selectable struct {
		name string
		at   path
	}
	all := make([]selectable, len(v.spec.SelectableFields))
	for i, f := range v.spec.SelectableFields {
		all[i] = selectable{strings.TrimPrefix(f.JSONPath, "."), parsed(f.JSONPath)}
	}
	return func(o object) fields.Set {
		set := fields.Set{}
		for _, f := range all {
			set[f.name] = ""
			p, err := f.at()
			if err != nil {
				continue
			}
			found, err := p.FindResults(o.Object)
			if err != nil || len(found) != 1 || len(found[0]) != 1 {
				continue
			}
			if value := found[0][0].Interface(); value != nil {
				set[f.name] = fmt.Sprint(value)
			}
		}
		return set
	}
}

// scaleOf is where a custom resource has what /scale shows.
func scaleOf(s *apiextensionsv1.CustomResourceSubresourceScale) *rest.Scale[object] {
	number := func(o object, path string) int32 {
		n, _, _ := unstructured.NestedInt64(o.Object, jsonPath(path)...) // validation has seen to it
		return int32(n)
	}
	return &rest.Scale[object]{
		Replicas: func(o object) (int32, int32) { return number(o, s.SpecReplicasPath), number(o, s.StatusReplicasPath) },
		Set: func(o object, n int32) {
			_ = unstructured.SetNestedField(o.Object, int64(n), jsonPath(s.SpecReplicasPath)...) // fails where Check does
		},
		Selector: func(o object) string {
			if s.LabelSelectorPath == nil {
				return ""
			}
			text, _, _ := unstructured.NestedString(o.Object, jsonPath(*s.LabelSelectorPath)...)
			return text
		},
		Check: func(o object) error {
			_, found, err := unstructured.NestedInt64(o.Object, jsonPath(s.SpecReplicasPath)...)
			if err != nil {
				return apierrors.NewInternalError(err)
			}
			if !found {
				return apierrors.NewInternalError(fmt.Errorf("the spec replicas field %q does not exist", s.SpecReplicasPath))
			}
			return nil
		},
	}
}
