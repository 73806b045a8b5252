package builtin

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/rest"
)

func configMaps() *rest.Resource[*corev1.ConfigMap] {
	return &rest.Resource[*corev1.ConfigMap]{
		Validate:       validateConfigMap,
		ValidateUpdate: configMapUpdate,
		Columns: []rest.Column[*corev1.ConfigMap]{
			{Name: "Data", Description: corev1.ConfigMap{}.SwaggerDoc()["data"],
				Cell: func(c *corev1.ConfigMap) any { return len(c.Data) + len(c.BinaryData) }},
			{Name: "Age"},
		},
	}
}

func validateConfigMap(c *corev1.ConfigMap) (errs field.ErrorList) {
	size := 0
	for _, k := range sortedKeys(c.Data) {
		size += len(c.Data[k])
		at := field.NewPath("data").Key(k)
		errs = append(errs, texts(at, k, validation.IsConfigMapKey(k))...)
		if _, ok := c.BinaryData[k]; ok {
			errs = append(errs, field.Invalid(at, k, "duplicate of key present in binaryData"))
		}
	}
	for _, k := range sortedKeys(c.BinaryData) {
		size += len(c.BinaryData[k])
		errs = append(errs, texts(field.NewPath("binaryData").Key(k), k, validation.IsConfigMapKey(k))...)
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(field.NewPath(""), "", corev1.MaxSecretSize))
	}
	return errs
}

func configMapUpdate(now, old *corev1.ConfigMap) (errs field.ErrorList) {
	if !deref(old.Immutable) {
		return nil
	}
	const text = "field is immutable when `immutable` is set"
	if !deref(now.Immutable) {
		errs = append(errs, field.Forbidden(field.NewPath("immutable"), text))
	}
	if !maps.Equal(now.Data, old.Data) {
		errs = append(errs, field.Forbidden(field.NewPath("data"), text))
	}
	if !equality.Semantic.DeepEqual(now.BinaryData, old.BinaryData) {
		errs = append(errs, field.Forbidden(field.NewPath("binaryData"), text))
	}
	return errs
}
