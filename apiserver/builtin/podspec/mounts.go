package podspec

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// mounts checks the volume mounts of c.
func (v *check) mounts(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	seen := sets.New[string]()
	for i := range c.VolumeMounts {
		m, at := &c.VolumeMounts[i], path.Index(i)
		source, ok := v.vols[m.Name]
		if m.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else if !ok {
			errs = append(errs, field.NotFound(at.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			errs = append(errs, field.Required(at.Child("mountPath"), ""))
		}
		if seen.Has(m.MountPath) {
			errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "must be unique"))
		}
		seen.Insert(m.MountPath)
		for _, d := range c.VolumeDevices {
			if d.Name == m.Name {
				errs = append(errs, field.Invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices"))
			}
			if d.DevicePath == m.MountPath {
				errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices"))
			}
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
		errs = append(errs, imageMount(m, source, at)...)
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

// imageMount checks what an image's volume cannot do.
func imageMount(m *corev1.VolumeMount, source *corev1.VolumeSource, at *field.Path) (errs field.ErrorList) {
	if source == nil || source.Image == nil {
		return nil
	}
	if m.SubPathExpr != "" {
		errs = append(errs, field.Forbidden(at.Child("subPathExpr"), "not allowed in image volume sources"))
	}
	if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional {
		errs = append(errs, field.Forbidden(at.Child("mountPropagation"), "bidirectional propagation is not allowed in image volume sources"))
	}
	return errs
}

// devices checks the raw block devices of c, which only claims can give.
func (v *check) devices(c *corev1.Container, path *field.Path) (errs field.ErrorList) {
	paths, names := []string{}, []string{}
	for i, d := range c.VolumeDevices {
		at := path.Index(i)
		source, ok := v.vols[d.Name]
		switch {
		case d.Name == "":
			errs = append(errs, field.Required(at.Child("name"), ""))
		case slices.Contains(names, d.Name):
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "must be unique"))
		case !ok:
			errs = append(errs, field.NotFound(at.Child("name"), d.Name))
		case source.PersistentVolumeClaim == nil && source.Ephemeral == nil:
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode"))
		}
		if slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == d.Name }) {
			errs = append(errs, field.Invalid(at.Child("name"), d.Name, "must not already exist in volumeMounts"))
		}
		if d.DevicePath == "" {
			errs = append(errs, field.Required(at.Child("devicePath"), ""))
		} else {
			errs = append(errs, NoBackstep(d.DevicePath, at.Child("devicePath"))...)
			if slices.Contains(paths, d.DevicePath) {
				errs = append(errs, field.Invalid(at.Child("devicePath"), d.DevicePath, "must be unique"))
			}
		}
		paths, names = append(paths, d.DevicePath), append(names, d.Name)
	}
	return errs
}
