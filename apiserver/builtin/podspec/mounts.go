package podspec

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// mounts checks the volume mounts of c.
func (v *check) mounts(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	seen, devices := sets.New[string](), devicePaths(c)
	for i := range c.VolumeMounts {
		m, at := &c.VolumeMounts[i], path.Index(i)
		_, ok := v.vols[m.Name]
		errs = append(errs, required(at.Child("name"), m.Name)...)
		if !ok {
			errs = append(errs, field.NotFound(at.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			errs = append(errs, field.Required(at.Child("mountPath"), ""))
		}
		if seen.Has(m.MountPath) {
			errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "must be unique"))
		}
		seen.Insert(m.MountPath)
		if _, ok := devices[m.Name]; ok {
			errs = append(errs, field.Invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices"))
		}
		if slices.Contains(slices.Collect(maps.Values(devices)), m.MountPath) {
			errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices"))
		}
		if m.SubPath != "" {
			errs = append(errs, inside(m.SubPath, path.Child("subPath"))...)
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				errs = append(errs, field.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive"))
			}
			errs = append(errs, inside(m.SubPathExpr, path.Child("subPathExpr"))...)
		}
		errs = append(errs, propagation(m, c.SecurityContext, path)...)
	}
	return errs
}

// propagation checks how mounts go from the host into the container and back. The paths are upstream's: without the mount's index.
func propagation(m *corev1.VolumeMount, sc *corev1.SecurityContext, at *field.Path) (errs field.ErrorList) {
	mode := corev1.MountPropagationNone
	if m.MountPropagation != nil {
		mode = *m.MountPropagation
		errs = append(errs, oneOf(at.Child("mountPropagation"), mode, corev1.MountPropagationBidirectional,
			corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)...)
	}
	if mode == corev1.MountPropagationBidirectional && (sc == nil || sc.Privileged == nil || !*sc.Privileged) {
		errs = append(errs, field.Forbidden(at.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers"))
	}
	r := m.RecursiveReadOnly
	if r == nil {
		return errs
	}
	p := at.Child("recursiveReadOnly")
	switch *r {
	case corev1.RecursiveReadOnlyDisabled:
		return errs
	case corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible:
	default:
		return append(errs, oneOf(p, *r, corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible)...)
	}
	if !m.ReadOnly {
		errs = append(errs, field.Forbidden(p, "may only be specified when readOnly is true"))
	}
	if mode != corev1.MountPropagationNone {
		errs = append(errs, field.Forbidden(p, "may only be specified when mountPropagation is None or not specified"))
	}
	return errs
}

// mountPaths and devicePaths are where volumes are in c, by name: of a name given twice the last, as upstream looks at it.
func mountPaths(c *corev1.Container) map[string]string {
	paths := map[string]string{}
	for _, m := range c.VolumeMounts {
		paths[m.Name] = m.MountPath
	}
	return paths
}

func devicePaths(c *corev1.Container) map[string]string {
	paths := map[string]string{}
	for _, d := range c.VolumeDevices {
		paths[d.Name] = d.DevicePath
	}
	return paths
}

// devices checks the raw block devices of c, which only claims can give.
func (v *check) devices(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	paths, names, mounts := []string{}, []string{}, mountPaths(c)
	for i, d := range c.VolumeDevices {
		at := path.Index(i)
		source, ok := v.vols[d.Name]
		errs = append(errs, required(at.Child("name"), d.Name)...)
		if d.Name != "" && slices.Contains(names, d.Name) {
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "must be unique"))
		}
		if !ok {
			errs = append(errs, field.NotFound(at.Child("name"), d.Name))
		} else if source.PersistentVolumeClaim == nil && source.Ephemeral == nil {
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"))
		}
		if _, ok := mounts[d.Name]; ok {
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts"))
		}
		errs = append(errs, required(at.Child("devicePath"), d.DevicePath)...)
		if slices.Contains(paths, d.DevicePath) {
			errs = append(errs, field.Invalid(at.Child("devicePath"), d.DevicePath, "must be unique"))
		}
		if slices.Contains(slices.Collect(maps.Values(mounts)), d.DevicePath) {
			errs = append(errs, field.Invalid(at.Child("devicePath"), d.DevicePath, "must not already exist as a path in volumeMounts"))
		}
		if len(NoBackstep(d.DevicePath, at)) > 0 {
			errs = append(errs, field.Invalid(at.Child("devicePath"), d.DevicePath, "can not contain backsteps ('..')"))
		} else {
			paths = append(paths, d.DevicePath)
		}
		names = append(names, d.Name)
	}
	return errs
}
