package podspec

import (
	"path"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (v *check) volumes(path *field.Path) (errs field.ErrorList) {
	v.vols = map[string]*corev1.VolumeSource{}
	for i := range v.spec.Volumes {
		vol, at, before := &v.spec.Volumes[i], path.Index(i), len(errs)
		switch messages := validation.IsDNS1123Label(vol.Name); {
		case vol.Name == "":
			errs = append(errs, field.Required(at.Child("name"), ""))
		case len(messages) > 0:
			errs = append(errs, texts(at.Child("name"), vol.Name, messages)...)
		case v.vols[vol.Name] != nil:
			errs = append(errs, field.Duplicate(at.Child("name"), vol.Name))
		}
		errs = append(errs, source(&vol.VolumeSource, at)...)
		if len(errs) == before { // others are not found by those who name them
			v.vols[vol.Name] = &vol.VolumeSource
		}
	}
	return errs
}

// spellings are names of sources that upstream writes differently when there is one too many.
var spellings = map[string]string{"cephfs": "cephFS", "downwardAPI": "downwarAPI"}

// source checks that exactly one source is given, and that one.
func source(v *corev1.VolumeSource, at *field.Path) (errs field.ErrorList) {
	n := 0
	one := func(set bool, name string, check func(p *field.Path) field.ErrorList) {
		if !set {
			return
		}
		if n++; n > 1 {
			if spelled, ok := spellings[name]; ok {
				name = spelled
			}
			errs = append(errs, field.Forbidden(at.Child(name), "may not specify more than 1 volume type"))
			return
		}
		errs = append(errs, check(at.Child(name))...)
	}
	one(v.EmptyDir != nil, "emptyDir", func(p *field.Path) field.ErrorList { return emptyDir(v.EmptyDir, p) })
	one(v.HostPath != nil, "hostPath", func(p *field.Path) field.ErrorList { return HostPath(v.HostPath, p) })
	one(v.Secret != nil, "secret", func(p *field.Path) field.ErrorList {
		s := v.Secret
		return append(required(p.Child("secretName"), s.SecretName), files(s.Items, s.DefaultMode, p)...)
	})
	one(v.ConfigMap != nil, "configMap", func(p *field.Path) field.ErrorList {
		s := v.ConfigMap
		return append(required(p.Child("name"), s.Name), files(s.Items, s.DefaultMode, p)...)
	})
	one(v.DownwardAPI != nil, "downwardAPI", func(p *field.Path) field.ErrorList {
		return append(mode(v.DownwardAPI.DefaultMode, p.Child("defaultMode")), downward(v.DownwardAPI.Items, p)...)
	})
	one(v.Projected != nil, "projected", func(p *field.Path) field.ErrorList { return projected(v.Projected, p) })
	one(v.PersistentVolumeClaim != nil, "persistentVolumeClaim", func(p *field.Path) field.ErrorList {
		return required(p.Child("claimName"), v.PersistentVolumeClaim.ClaimName)
	})
	one(v.Ephemeral != nil, "ephemeral", func(p *field.Path) field.ErrorList {
		t := v.Ephemeral.VolumeClaimTemplate
		if t == nil {
			return field.ErrorList{field.Required(p.Child("volumeClaimTemplate"), "")}
		}
		return append(TemplateMeta(&t.ObjectMeta, p.Child("volumeClaimTemplate", "metadata")), Claim(&t.Spec, p.Child("volumeClaimTemplate", "spec"))...)
	})
	one(v.CSI != nil, "csi", func(p *field.Path) field.ErrorList { return csi(v.CSI, p) })
	one(v.NFS != nil, "nfs", func(p *field.Path) field.ErrorList { return NFS(v.NFS, p) })
	one(v.Image != nil, "image", func(p *field.Path) field.ErrorList {
		return append(required(p.Child("reference"), v.Image.Reference),
			oneOf(p.Child("pullPolicy"), v.Image.PullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	})
	for _, f := range foreignSources(v) {
		one(f.given, f.name, f.check)
	}
	if n == 0 {
		errs = append(errs, field.Required(at, "must specify a volume type"))
	}
	return errs
}

func required(p *field.Path, value string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return nil
}

func emptyDir(e *corev1.EmptyDirVolumeSource, p *field.Path) (errs field.ErrorList) {
	if e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
		errs = append(errs, field.Forbidden(p.Child("sizeLimit"), "SizeLimit field must be a valid resource quantity"))
	}
	return errs // a medium that a node does not have is the kubelet's to refuse
}

// hostPathTypes are the values of HostPathVolumeSource.Type.
var hostPathTypes = []corev1.HostPathType{corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory,
	corev1.HostPathFileOrCreate, corev1.HostPathFile, corev1.HostPathSocket, corev1.HostPathCharDev, corev1.HostPathBlockDev}

// HostPath checks a directory or file of the node.
func HostPath(h *corev1.HostPathVolumeSource, p *field.Path) (errs field.ErrorList) {
	if h.Path == "" {
		return field.ErrorList{field.Required(p.Child("path"), "")}
	}
	errs = NoBackstep(h.Path, p.Child("path"))
	if h.Type != nil && *h.Type != "" {
		errs = append(errs, oneOf(p.Child("type"), *h.Type, hostPathTypes...)...)
	}
	return errs
}

// Driver checks the name of a CSI driver.
func Driver(name string, p *field.Path) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	errs := texts(p, name, validation.IsDNS1123Subdomain(strings.ToLower(name)))
	if len(name) > 63 {
		errs = append(field.ErrorList{field.TooLong(p, name, 63)}, errs...)
	}
	return errs
}

func csi(c *corev1.CSIVolumeSource, p *field.Path) field.ErrorList {
	errs := Driver(c.Driver, p.Child("driver"))
	if r := c.NodePublishSecretRef; r != nil {
		errs = append(errs, required(p.Child("nodePublishSecretRef", "name"), r.Name)...)
	}
	return errs
}

// NFS checks a share of an NFS server.
func NFS(n *corev1.NFSVolumeSource, p *field.Path) field.ErrorList {
	errs := append(required(p.Child("server"), n.Server), required(p.Child("path"), n.Path)...)
	if !path.IsAbs(n.Path) {
		errs = append(errs, field.Invalid(p.Child("path"), n.Path, "must be an absolute path"))
	}
	return errs
}

func mode(m *int32, p *field.Path) field.ErrorList {
	if m != nil && (*m < 0 || *m > 0o777) {
		return field.ErrorList{field.Invalid(p, *m, "must be a number between 0 and 0777 (octal), both inclusive")}
	}
	return nil
}

// files checks the items of a Secret's or ConfigMap's volume.
func files(items []corev1.KeyToPath, defaultMode *int32, p *field.Path) (errs field.ErrorList) {
	errs = mode(defaultMode, p.Child("defaultMode"))
	for i, item := range items {
		at := p.Child("items").Index(i)
		if item.Key == "" {
			errs = append(errs, field.Required(at.Child("key"), ""))
		} else {
			errs = append(errs, texts(at.Child("key"), item.Key, validation.IsConfigMapKey(item.Key))...)
		}
		errs = append(errs, required(at.Child("path"), item.Path)...)
		errs = append(errs, filePath(item.Path, at.Child("path"))...)
		errs = append(errs, mode(item.Mode, at.Child("mode"))...)
	}
	return errs
}

// filePath checks the path of a file within a volume that is written atomically: names that open with two dots are taken.
func filePath(p string, at *field.Path) (errs field.ErrorList) {
	errs = inside(p, at)
	if strings.HasPrefix(p, "..") && !strings.HasPrefix(p, "../") && p != ".." {
		errs = append(errs, field.Invalid(at, p, "must not start with '..'"))
	}
	return errs
}

// downward checks files that show parts of the pod. The paths of the errors are upstream's: without the file's index.
func downward(items []corev1.DownwardAPIVolumeFile, at *field.Path) (errs field.ErrorList) {
	for _, f := range items {
		errs = append(errs, required(at.Child("path"), f.Path)...)
		errs = append(errs, filePath(f.Path, at.Child("path"))...)
		errs = append(errs, mode(f.Mode, at.Child("mode"))...)
		switch {
		case f.FieldRef != nil:
			errs = append(errs, fieldRef(f.FieldRef, at.Child("fieldRef"), volumeFields)...)
			if f.ResourceFieldRef != nil {
				errs = append(errs, field.Invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
			}
		case f.ResourceFieldRef != nil:
			errs = append(errs, resourceFieldRef(f.ResourceFieldRef, at.Child("resourceFieldRef"), true)...)
		default:
			errs = append(errs, field.Required(at, "one of fieldRef and resourceFieldRef is required"))
		}
	}
	return errs
}

// minTokenSeconds and maxTokenSeconds bound the life of projected service account tokens.
const (
	minTokenSeconds = 10 * 60
	maxTokenSeconds = 1 << 32
)

func projected(s *corev1.ProjectedVolumeSource, p *field.Path) (errs field.ErrorList) {
	errs = mode(s.DefaultMode, p.Child("defaultMode"))
	seen := map[string]bool{}
	once := func(path string, at *field.Path) {
		if path != "" && seen[path] {
			errs = append(errs, field.Invalid(at, path, "conflicting duplicate paths"))
		}
		seen[path] = true
	}
	for i, src := range s.Sources {
		at := p.Child("sources").Index(i)
		n := 0
		if s := src.Secret; s != nil {
			n++
			errs = append(errs, required(at.Child("secret", "name"), s.Name)...)
			errs = append(errs, files(s.Items, nil, at.Child("secret"))...)
			for _, item := range s.Items {
				once(item.Path, p)
			}
		}
		if s := src.ConfigMap; s != nil {
			n++
			errs = append(errs, required(at.Child("configMap", "name"), s.Name)...)
			errs = append(errs, files(s.Items, nil, at.Child("configMap"))...)
			for _, item := range s.Items {
				once(item.Path, p)
			}
		}
		if s := src.DownwardAPI; s != nil {
			n++
			errs = append(errs, downward(s.Items, at.Child("downwardAPI"))...)
			for _, item := range s.Items {
				once(item.Path, p)
			}
		}
		if s := src.ServiceAccountToken; s != nil {
			n++
			errs = append(errs, token(s, at.Child("serviceAccountToken"))...)
			// Upstream has the path of the token's path so.
			errs = append(errs, required(p.Child("path"), s.Path)...)
			errs = append(errs, filePath(s.Path, p.Child("path"))...)
		}
		if s := src.ClusterTrustBundle; s != nil {
			n++
			errs = append(errs, trustBundle(s, at.Child("clusterTrustBundle"))...)
			once(s.Path, p)
		}
		if s := src.PodCertificate; s != nil {
			n++
			errs = append(errs, podCertificate(s, at.Child("podCertificate"), func(path string) { once(path, p) })...)
		}
		if n > 1 {
			errs = append(errs, field.Forbidden(at, "may not specify more than 1 volume type per source"))
		}
	}
	return errs
}

func token(s *corev1.ServiceAccountTokenProjection, p *field.Path) (errs field.ErrorList) {
	if e := s.ExpirationSeconds; e != nil {
		if *e < minTokenSeconds {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *e, "may not specify a duration less than 10 minutes"))
		}
		if *e > maxTokenSeconds {
			errs = append(errs, field.Invalid(p.Child("expirationSeconds"), *e, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	return errs
}
