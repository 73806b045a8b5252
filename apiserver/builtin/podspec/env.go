package podspec

import (
	"path"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// envFields are the fields of a pod that a variable may show; volumeFields those that a file may.
var (
	envFields = []string{"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.podIP", "status.hostIPs", "status.podIPs"}
	volumeFields = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	// podLabels are all fields of a pod that have a name.
	podLabels = append([]string{"metadata.annotations", "metadata.labels", "spec.restartPolicy", "spec.schedulerName", "status.phase"}, envFields...)
)

// subscripted matches metadata.labels['key'].
var subscripted = regexp.MustCompile(`^([^\[]*)\['(.*)'\]$`)

func (v *check) env(vars []corev1.EnvVar, path *field.Path) (errs field.ErrorList) {
	for i, e := range vars {
		at := path.Index(i)
		if e.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else {
			errs = append(errs, texts(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))...)
		}
		errs = append(errs, v.envSource(&e, at.Child("valueFrom"))...)
	}
	return errs
}

func (v *check) envSource(e *corev1.EnvVar, path *field.Path) (errs field.ErrorList) {
	f := e.ValueFrom
	if f == nil {
		return nil
	}
	n := 0
	if f.FieldRef != nil {
		n++
		errs = append(errs, fieldRef(f.FieldRef, path.Child("fieldRef"), envFields)...)
	}
	if f.ResourceFieldRef != nil {
		n++
		errs = append(errs, resourceFieldRef(f.ResourceFieldRef, path.Child("resourceFieldRef"), false)...)
	}
	if r := f.ConfigMapKeyRef; r != nil {
		n++
		errs = append(errs, keyRef(r.Name, r.Key, path.Child("configMapKeyRef"))...)
	}
	if r := f.SecretKeyRef; r != nil {
		n++
		errs = append(errs, keyRef(r.Name, r.Key, path.Child("secretKeyRef"))...)
	}
	if r := f.FileKeyRef; r != nil {
		n++
		errs = append(errs, v.fileKeyRef(r, path.Child("fileKeyRef"))...)
	}
	switch {
	case n == 0:
		errs = append(errs, field.Invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case e.Value != "":
		errs = append(errs, field.Invalid(path, "", "may not be specified when `value` is not empty"))
	case n > 1:
		errs = append(errs, field.Invalid(path, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func keyRef(object, key string, path *field.Path) (errs field.ErrorList) {
	if object != "" {
		errs = texts(path.Child("name"), object, isName(object))
	}
	if key == "" {
		return append(errs, field.Required(path.Child("key"), ""))
	}
	return append(errs, texts(path.Child("key"), key, validation.IsConfigMapKey(key))...)
}

func (v *check) fileKeyRef(r *corev1.FileKeySelector, path *field.Path) (errs field.ErrorList) {
	switch source, ok := v.vols[r.VolumeName]; {
	case r.VolumeName == "":
		errs = append(errs, field.Required(path.Child("volumeName"), ""))
	case !ok:
		errs = append(errs, texts(path.Child("volumeName"), r.VolumeName, validation.IsDNS1123Label(r.VolumeName))...)
		errs = append(errs, field.NotFound(path.Child("volumeName"), r.VolumeName))
	case source.EmptyDir == nil:
		errs = append(errs, field.Invalid(path.Child("volumeName"), r.VolumeName, "referenced volume must be of type emptyDir"))
	}
	if r.Key == "" {
		errs = append(errs, field.Required(path.Child("key"), ""))
	} else {
		errs = append(errs, texts(path.Child("key"), r.Key, validation.IsRelaxedEnvVarName(r.Key))...)
	}
	if r.Path == "" {
		return append(errs, field.Required(path.Child("path"), ""))
	}
	return append(errs, inside(r.Path, path.Child("path"))...)
}

func envFrom(list []corev1.EnvFromSource, path *field.Path) (errs field.ErrorList) {
	for i, e := range list {
		at := path.Index(i)
		if e.Prefix != "" {
			errs = append(errs, texts(at.Child("prefix"), e.Prefix, validation.IsRelaxedEnvVarName(e.Prefix))...)
		}
		if r := e.ConfigMapRef; r != nil {
			errs = append(errs, name(at.Child("configMapRef", "name"), r.Name)...)
		}
		if r := e.SecretRef; r != nil {
			errs = append(errs, name(at.Child("secretRef", "name"), r.Name)...)
		}
		if e.ConfigMapRef == nil && e.SecretRef == nil {
			errs = append(errs, field.Invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"))
		} else if e.ConfigMapRef != nil && e.SecretRef != nil {
			errs = append(errs, field.Invalid(path, "", "may not have more than one field specified at a time"))
		}
	}
	return errs
}

// fieldRef checks the name of a pod's field against allowed, and the form metadata.labels['key'].
func fieldRef(f *corev1.ObjectFieldSelector, path *field.Path, allowed []string) (errs field.ErrorList) {
	if f.APIVersion == "" {
		return field.ErrorList{field.Required(path.Child("apiVersion"), "")}
	}
	if f.FieldPath == "" {
		return field.ErrorList{field.Required(path.Child("fieldPath"), "")}
	}
	at := path.Child("fieldPath")
	cannot := func(why string) field.ErrorList {
		return field.ErrorList{field.Invalid(at, f.FieldPath, "error converting fieldPath: "+why)}
	}
	if f.APIVersion != "v1" {
		return cannot("unsupported pod version: " + f.APIVersion)
	}
	if m := subscripted.FindStringSubmatch(f.FieldPath); m != nil {
		switch m[1] {
		case "metadata.annotations":
			return texts(path, m[2], validation.IsQualifiedName(strings.ToLower(m[2])))
		case "metadata.labels":
			return texts(path, m[2], validation.IsQualifiedName(m[2]))
		}
		return cannot("field label does not support subscript: " + f.FieldPath)
	}
	name := f.FieldPath
	if name == "spec.host" { // its first name
		name = "spec.nodeName"
	}
	if !slices.Contains(podLabels, name) {
		return cannot("field label not supported: " + f.FieldPath)
	}
	if !slices.Contains(allowed, name) {
		errs = append(errs, field.NotSupported(at, name, allowed))
	}
	return errs
}

// Divisors that quantities may be shown in.
var (
	cpuDivisors    = []string{"1m", "1"}
	memoryDivisors = []string{"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"}
)

func resourceFieldRef(r *corev1.ResourceFieldSelector, path *field.Path, volume bool) (errs field.ErrorList) {
	allowed := []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory",
		"requests.cpu", "requests.ephemeral-storage", "requests.memory"}
	huge := strings.HasPrefix(r.Resource, "limits.hugepages-") || strings.HasPrefix(r.Resource, "requests.hugepages-")
	known := huge || slices.Contains(allowed, r.Resource)
	switch {
	case volume && r.ContainerName == "":
		errs = append(errs, field.Required(path.Child("containerName"), ""))
	case r.Resource == "":
		errs = append(errs, field.Required(path.Child("resource"), ""))
	case !known:
		errs = append(errs, field.NotSupported(path.Child("resource"), r.Resource, allowed))
	}
	if !known || r.Divisor.IsZero() {
		return errs
	}
	_, what, _ := strings.Cut(r.Resource, ".")
	divisors, units := memoryDivisors, strings.Join(memoryDivisors, ", ")
	switch {
	case what == "cpu":
		divisors, units = cpuDivisors, strings.Join(cpuDivisors, " and ")
	case what == "ephemeral-storage":
		what = "local ephemeral storage"
	case huge:
		what = "hugepages"
	}
	if !slices.Contains(divisors, r.Divisor.String()) {
		errs = append(errs, field.Invalid(path.Child("divisor"), r.Resource, "only divisor's values "+units+" are supported with the "+what+" resource"))
	}
	return errs
}

// inside checks a relative path that must stay below where it starts.
func inside(p string, at *field.Path) (errs field.ErrorList) {
	if path.IsAbs(p) {
		errs = append(errs, field.Invalid(at, p, "must be a relative path"))
	}
	return append(errs, NoBackstep(p, at)...)
}

// NoBackstep refuses paths that lead out of where they begin.
func NoBackstep(p string, at *field.Path) field.ErrorList {
	if slices.Contains(strings.Split(p, "/"), "..") {
		return field.ErrorList{field.Invalid(at, p, "must not contain '..'")}
	}
	return nil
}
