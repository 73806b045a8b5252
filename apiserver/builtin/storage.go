package builtin

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Limits of what is handed to provisioners and drivers.
const (
	maxParameters      = 512
	maxParametersSize  = 256 << 10
	maxDriverName      = 63
	minTokenExpiration = 600
)

func storageClasses() *rest.Resource[*storagev1.StorageClass] {
	type class = *storagev1.StorageClass
	doc := storagev1.StorageClass{}.SwaggerDoc()
	return &rest.Resource[class]{
		AnswerDeleted: true,
		Default: func(c class) {
			setPtr(&c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)
			setPtr(&c.VolumeBindingMode, storagev1.VolumeBindingImmediate)
		},
		Validate: validateStorageClass,
		ValidateUpdate: func(now, old class) field.ErrorList {
			errs := sealed(now.Provisioner, old.Provisioner, field.NewPath("provisioner"))
			errs = append(errs, sealed(now.Parameters, old.Parameters, field.NewPath("parameters"))...)
			errs = append(errs, sealed(now.ReclaimPolicy, old.ReclaimPolicy, field.NewPath("reclaimPolicy"))...)
			return append(errs, sealed(now.VolumeBindingMode, old.VolumeBindingMode, field.NewPath("volumeBindingMode"))...)
		},
		Warn: func(c, _ class) (warnings []string) {
			for i, term := range c.AllowedTopologies {
				for j, e := range term.MatchLabelExpressions {
					if text := podspec.RetiredLabel(e.Key); text != "" {
						warnings = append(warnings, fmt.Sprintf("allowedTopologies[%d].matchLabelExpressions[%d].key: %s", i, j, text))
					}
				}
			}
			return warnings
		},
		Columns: []rest.Column[class]{
			{Name: "Provisioner", Description: doc["provisioner"], Cell: func(c class) any { return c.Provisioner }},
			{Name: "ReclaimPolicy", Description: doc["reclaimPolicy"], Cell: func(c class) any { return string(deref(c.ReclaimPolicy)) }},
			{Name: "VolumeBindingMode", Description: doc["volumeBindingMode"], Cell: func(c class) any { return string(deref(c.VolumeBindingMode)) }},
			{Name: "AllowVolumeExpansion", Description: doc["allowVolumeExpansion"], Cell: func(c class) any { return deref(c.AllowVolumeExpansion) }},
			{Name: "Age"},
		},
	}
}

func validateStorageClass(c *storagev1.StorageClass) (errs field.ErrorList) {
	errs = append(errs, provisioner(c.Provisioner, field.NewPath("provisioner"))...)
	errs = append(errs, parameters(c.Parameters, field.NewPath("parameters"))...)
	if p := deref(c.ReclaimPolicy); p != "" {
		errs = append(errs, oneOf(field.NewPath("reclaimPolicy"), p, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)...)
	}
	if m, at := deref(c.VolumeBindingMode), field.NewPath("volumeBindingMode"); m == "" {
		errs = append(errs, field.NotSupported(at, m, []storagev1.VolumeBindingMode{storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer}))
	} else {
		errs = append(errs, oneOf(at, m, storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)...)
	}
	return append(errs, topologies(c.AllowedTopologies, field.NewPath("allowedTopologies"))...)
}

func provisioner(name string, at *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	lower := strings.ToLower(name)
	return texts(at, lower, validation.IsQualifiedName(lower))
}

func parameters(ps map[string]string, at *field.Path) (errs field.ErrorList) {
	if len(ps) > maxParameters {
		return field.ErrorList{field.TooLong(at, "", maxParameters)}
	}
	size := 0
	for k, v := range ps {
		if k == "" {
			errs = append(errs, field.Invalid(at, k, "field can not be empty."))
		}
		size += len(k) + len(v)
	}
	if size > maxParametersSize {
		errs = append(errs, field.TooLong(at, "", maxParametersSize))
	}
	return errs
}

func topologies(terms []corev1.TopologySelectorTerm, at *field.Path) (errs field.ErrorList) {
	var before []map[string][]string
	for i, term := range terms {
		at := at.Index(i).Child("matchLabelExpressions")
		values := map[string][]string{}
		for j, e := range term.MatchLabelExpressions {
			at := at.Index(j)
			if len(e.Values) == 0 {
				errs = append(errs, field.Required(at.Child("values"), ""))
			}
			var seen []string
			for k, v := range e.Values {
				if slices.Contains(seen, v) {
					errs = append(errs, field.Duplicate(at.Child("values").Index(k), v))
					continue
				}
				seen = append(seen, v)
			}
			errs = append(errs, metavalidation.ValidateLabelName(e.Key, at.Child("key"))...)
			if _, ok := values[e.Key]; ok {
				errs = append(errs, field.Duplicate(at.Child("key"), e.Key))
			}
			slices.Sort(seen)
			values[e.Key] = seen
		}
		for _, other := range before {
			if maps.EqualFunc(values, other, slices.Equal) {
				errs = append(errs, field.Duplicate(at, ""))
			}
		}
		before = append(before, values)
	}
	return errs
}

func volumeAttributesClasses() *rest.Resource[*storagev1.VolumeAttributesClass] {
	type class = *storagev1.VolumeAttributesClass
	return &rest.Resource[class]{
		AnswerDeleted: true,
		Validate: func(c class) field.ErrorList {
			errs := append(provisioner(c.DriverName, field.NewPath("driverName")), parameters(c.Parameters, field.NewPath("parameters"))...)
			if len(c.Parameters) == 0 {
				errs = append(errs, field.Required(field.NewPath("parameters"), "must contain at least one key/value pair"))
			}
			return errs
		},
		ValidateUpdate: func(now, old class) (errs field.ErrorList) {
			if now.DriverName != old.DriverName {
				errs = append(errs, field.Forbidden(field.NewPath("driverName"), "updates to driverName are forbidden."))
			}
			if !maps.Equal(now.Parameters, old.Parameters) {
				errs = append(errs, field.Forbidden(field.NewPath("parameters"), "updates to parameters are forbidden."))
			}
			return errs
		},
		Columns: []rest.Column[class]{
			{Name: "DriverName", Description: storagev1.VolumeAttributesClass{}.SwaggerDoc()["driverName"], Cell: func(c class) any { return c.DriverName }},
			{Name: "Age"},
		},
	}
}

func csiStorageCapacities() *rest.Resource[*storagev1.CSIStorageCapacity] {
	type capacity = *storagev1.CSIStorageCapacity
	return &rest.Resource[capacity]{
		RequireRevision: true,
		Validate: func(c capacity) field.ErrorList {
			errs := podspec.Selector(c.NodeTopology, field.NewPath("nodeTopology"))
			errs = append(errs, texts(field.NewPath("storageClassName"), c.StorageClassName, isName(c.StorageClassName))...)
			if c.Capacity != nil && c.Capacity.Sign() < 0 {
				errs = append(errs, field.Invalid(field.NewPath("capacity"), c.Capacity.String(), "must be greater than or equal to 0"))
			}
			return errs
		},
		ValidateUpdate: func(now, old capacity) field.ErrorList {
			return append(immutable(now.NodeTopology, old.NodeTopology, field.NewPath("nodeTopology")),
				immutable(now.StorageClassName, old.StorageClassName, field.NewPath("storageClassName"))...)
		},
		Warn: func(c, _ capacity) (warnings []string) {
			if c.NodeTopology == nil {
				return nil
			}
			for i, e := range c.NodeTopology.MatchExpressions {
				if text := podspec.RetiredLabel(e.Key); text != "" {
					warnings = append(warnings, fmt.Sprintf("nodeTopology.matchExpressions[%d].key: %s is %s", i, e.Key, text))
				}
			}
			for _, k := range sortedKeys(c.NodeTopology.MatchLabels) {
				if text := podspec.RetiredLabel(k); text != "" {
					warnings = append(warnings, fmt.Sprintf("nodeTopology.matchLabels.%s: %s", k, text))
				}
			}
			return warnings
		},
		// Upstream declares columns, and does not use them.
	}
}

// driverName checks the name of a CSI driver, as it stands in fields.
func driverName(name string, at *field.Path) (errs field.ErrorList) {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	if len(name) > maxDriverName {
		errs = append(errs, field.TooLong(at, "", maxDriverName))
	}
	return append(errs, texts(at, name, validation.IsDNS1123Subdomain(strings.ToLower(name)))...)
}
