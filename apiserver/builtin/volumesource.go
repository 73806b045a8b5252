package builtin

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
)

// Where PersistentVolumes come from. The API knows sources that no node serves any more: their volumes can be kept and moved over
// to CSI drivers.

func defaultVolumeSource(s *corev1.PersistentVolumeSource) {
	if h := s.HostPath; h != nil {
		setPtr(&h.Type, corev1.HostPathUnset)
	}
	if r := s.RBD; r != nil {
		setDefault(&r.RBDPool, "rbd")
		setDefault(&r.RadosUser, "admin")
		setDefault(&r.Keyring, "/etc/ceph/keyring")
	}
	if i := s.ISCSI; i != nil {
		setDefault(&i.ISCSIInterface, "default")
	}
	if a := s.AzureDisk; a != nil {
		setPtr(&a.CachingMode, corev1.AzureDataDiskCachingReadWrite)
		setPtr(&a.FSType, "ext4")
		setPtr(&a.ReadOnly, false)
		setPtr(&a.Kind, corev1.AzureSharedBlobDisk)
	}
	if v := s.ScaleIO; v != nil {
		setDefault(&v.StorageMode, "ThinProvisioned")
		setDefault(&v.FSType, "xfs")
	}
}

// mountOptions says whether the old annotation for mount options is heard.
func mountOptions(s *corev1.PersistentVolumeSpec) bool {
	return s.GCEPersistentDisk != nil || s.AWSElasticBlockStore != nil || s.Glusterfs != nil || s.NFS != nil || s.RBD != nil || s.Quobyte != nil ||
		s.ISCSI != nil || s.Cinder != nil || s.CephFS != nil || s.AzureFile != nil || s.VsphereVolume != nil || s.AzureDisk != nil || s.PhotonPersistentDisk != nil
}

// sourceCheck is one source: its name, where errors in it are, and what finds them, nil where it is not set.
type sourceCheck struct {
	name, inside string
	check        func(at *field.Path) field.ErrorList
}

// source returns the check of s, none where s is nil.
func source[T any](name string, s *T, check func(s *T, at *field.Path) field.ErrorList) sourceCheck {
	if s == nil {
		return sourceCheck{name: name}
	}
	return sourceCheck{name, name, func(at *field.Path) field.ErrorList { return check(s, at) }}
}

// called says that errors in the source stand under another name than the source itself, as clients know them.
func (c sourceCheck) called(inside string) sourceCheck {
	c.inside = inside
	return c
}

// volumeSource checks that there is exactly one source, and that one.
func volumeSource(s *corev1.PersistentVolumeSpec, name string, at *field.Path) (errs field.ErrorList) {
	n := 0
	for _, c := range append(currentSources(s, at), retiredSources(s, name)...) {
		if c.check == nil {
			continue
		}
		if n++; n > 1 && c.name != "flexVolume" {
			outer := c.name
			if outer == "cephfs" {
				outer = "cephFS"
			}
			errs = append(errs, field.Forbidden(at.Child(outer), "may not specify more than 1 volume type"))
			continue
		}
		errs = append(errs, c.check(at.Child(c.inside))...)
	}
	if n == 0 {
		errs = append(errs, field.Required(at, "must specify a volume type"))
	}
	return errs
}

func currentSources(s *corev1.PersistentVolumeSpec, spec *field.Path) []sourceCheck {
	return []sourceCheck{
		source("hostPath", s.HostPath, podspec.HostPath),
		source("nfs", s.NFS, podspec.NFS),
		source("fc", s.FC, podspec.FibreChannel),
		source("local", s.Local, func(l *corev1.LocalVolumeSource, at *field.Path) (errs field.ErrorList) {
			if l.Path == "" {
				errs = append(errs, field.Required(at.Child("path"), ""))
			} else {
				errs = append(errs, podspec.NoBackstep(l.Path, at.Child("path"))...)
			}
			if s.NodeAffinity == nil {
				errs = append(errs, field.Required(spec.Child("nodeAffinity"), "Local volume requires node affinity"))
			}
			return errs
		}),
		source("csi", s.CSI, func(c *corev1.CSIPersistentVolumeSource, at *field.Path) field.ErrorList {
			errs := podspec.Driver(c.Driver, at.Child("driver"))
			errs = append(errs, required(at, "volumeHandle", c.VolumeHandle)...)
			errs = append(errs, namedSecret(c.ControllerPublishSecretRef, at.Child("controllerPublishSecretRef"))...)
			errs = append(errs, namedSecret(c.ControllerExpandSecretRef, at.Child("controllerExpandSecretRef"))...)
			errs = append(errs, namedSecret(c.NodePublishSecretRef, at.Child("nodePublishSecretRef"))...)
			return append(errs, namedSecret(c.NodeExpandSecretRef, at.Child("nodeExpandSecretRef"))...)
		}),
	}
}

func retiredSources(s *corev1.PersistentVolumeSpec, name string) []sourceCheck {
	return []sourceCheck{
		source("gcePersistentDisk", s.GCEPersistentDisk, func(d *corev1.GCEPersistentDiskVolumeSource, at *field.Path) field.ErrorList {
			return append(required(at, "pdName", d.PDName), partition(d.Partition, at)...)
		}).called("persistentDisk"),
		source("awsElasticBlockStore", s.AWSElasticBlockStore, func(d *corev1.AWSElasticBlockStoreVolumeSource, at *field.Path) field.ErrorList {
			return append(required(at, "volumeID", d.VolumeID), partition(d.Partition, at)...)
		}),
		source("glusterfs", s.Glusterfs, glusterfs),
		source("flocker", s.Flocker, podspec.Flocker),
		source("rbd", s.RBD, func(r *corev1.RBDPersistentVolumeSource, at *field.Path) field.ErrorList {
			return append(required(at, "monitors", strings.Join(r.CephMonitors, ",")), required(at, "image", r.RBDImage)...)
		}),
		source("quobyte", s.Quobyte, podspec.Quobyte),
		source("cephfs", s.CephFS, func(c *corev1.CephFSPersistentVolumeSource, at *field.Path) field.ErrorList {
			return required(at, "monitors", strings.Join(c.Monitors, ","))
		}),
		source("iscsi", s.ISCSI, func(i *corev1.ISCSIPersistentVolumeSource, at *field.Path) field.ErrorList { return iscsi(i, name, at) }),
		source("cinder", s.Cinder, func(c *corev1.CinderPersistentVolumeSource, at *field.Path) field.ErrorList {
			errs := required(at, "volumeID", c.VolumeID)
			if r := c.SecretRef; r != nil {
				errs = append(errs, required(at.Child("secretRef"), "name", r.Name)...)
				errs = append(errs, required(at.Child("secretRef"), "namespace", r.Namespace)...)
			}
			return errs
		}),
		source("flexVolume", s.FlexVolume, flexVolume),
		source("azureFile", s.AzureFile, func(a *corev1.AzureFilePersistentVolumeSource, at *field.Path) field.ErrorList {
			errs := append(required(at, "secretName", a.SecretName), required(at, "shareName", a.ShareName)...)
			if a.SecretNamespace != nil {
				errs = append(errs, required(at, "secretNamespace", *a.SecretNamespace)...)
			}
			return errs
		}),
		source("vsphereVolume", s.VsphereVolume, func(v *corev1.VsphereVirtualDiskVolumeSource, at *field.Path) field.ErrorList {
			return required(at, "volumePath", v.VolumePath)
		}),
		source("photonPersistentDisk", s.PhotonPersistentDisk, func(p *corev1.PhotonPersistentDiskVolumeSource, at *field.Path) field.ErrorList {
			return required(at, "pdID", p.PdID)
		}),
		source("portworxVolume", s.PortworxVolume, func(p *corev1.PortworxVolumeSource, at *field.Path) field.ErrorList {
			return required(at, "volumeID", p.VolumeID)
		}),
		source("azureDisk", s.AzureDisk, azureDisk),
		source("scaleIO", s.ScaleIO, func(v *corev1.ScaleIOPersistentVolumeSource, at *field.Path) field.ErrorList {
			return append(append(required(at, "gateway", v.Gateway), required(at, "system", v.System)...), required(at, "volumeName", v.VolumeName)...)
		}),
		source("storageos", s.StorageOS, storageOS),
	}
}

// required is an error where a text is empty.
func required(at *field.Path, name, value string) field.ErrorList {
	if value != "" {
		return nil
	}
	return field.ErrorList{field.Required(at.Child(name), "")}
}

func namedSecret(r *corev1.SecretReference, at *field.Path) (errs field.ErrorList) {
	if r == nil {
		return nil
	}
	if errs = required(at, "name", r.Name); r.Name != "" {
		errs = append(errs, texts(at.Child("name"), r.Name, validation.IsDNS1123Subdomain(r.Name))...)
	}
	if r.Namespace == "" {
		return append(errs, field.Required(at.Child("namespace"), ""))
	}
	return append(errs, texts(at.Child("namespace"), r.Namespace, validation.IsDNS1123Label(r.Namespace))...)
}

func partition(n int32, at *field.Path) field.ErrorList {
	if n < 0 || n > 255 {
		return field.ErrorList{field.Invalid(at.Child("partition"), n, validation.InclusiveRangeError(1, 255))}
	}
	return nil
}

func lun(n int32, at *field.Path) field.ErrorList {
	if n < 0 || n > 255 {
		return field.ErrorList{field.Invalid(at.Child("lun"), n, validation.InclusiveRangeError(0, 255))}
	}
	return nil
}

func glusterfs(g *corev1.GlusterfsPersistentVolumeSource, at *field.Path) field.ErrorList {
	errs := append(required(at, "endpoints", g.EndpointsName), required(at, "path", g.Path)...)
	if ns := g.EndpointsNamespace; ns != nil && *ns == "" {
		errs = append(errs, field.Invalid(at.Child("endpointsNamespace"), *ns, "if the endpointnamespace is set, it must be a valid namespace name"))
	} else if ns != nil {
		errs = append(errs, texts(at.Child("endpointsNamespace"), *ns, validation.IsDNS1123Label(*ns))...)
	}
	return errs
}

func iscsiName(name string, at *field.Path) field.ErrorList {
	if form := podspec.Initiator(name); form == nil || !form.MatchString(name) {
		return field.ErrorList{field.Invalid(at, name, "must be valid format")}
	}
	return nil
}

func iscsi(i *corev1.ISCSIPersistentVolumeSource, name string, at *field.Path) field.ErrorList {
	errs := required(at, "targetPortal", i.TargetPortal)
	if i.InitiatorName != nil && len(name+":"+i.TargetPortal) > 64 {
		errs = append(errs, field.Invalid(at.Child("targetportal"), i.TargetPortal,
			"Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified."))
	}
	if i.IQN == "" {
		errs = append(errs, field.Required(at.Child("iqn"), ""))
	} else {
		errs = append(errs, iscsiName(i.IQN, at.Child("iqn"))...)
	}
	errs = append(errs, lun(i.Lun, at)...)
	if (i.DiscoveryCHAPAuth || i.SessionCHAPAuth) && i.SecretRef == nil {
		errs = append(errs, field.Required(at.Child("secretRef"), ""))
	}
	if i.SecretRef != nil {
		errs = append(errs, required(at.Child("secretRef"), "name", i.SecretRef.Name)...)
	}
	if n := i.InitiatorName; n != nil {
		errs = append(errs, iscsiName(*n, at.Child("initiatorname"))...)
	}
	return errs
}

func flexVolume(f *corev1.FlexPersistentVolumeSource, at *field.Path) field.ErrorList {
	errs := required(at, "driver", f.Driver)
	for _, k := range sortedKeys(f.Options) {
		domain, _, _ := strings.Cut(k, "/")
		if d := "." + strings.ToLower(domain); strings.HasSuffix(d, ".kubernetes.io") || strings.HasSuffix(d, ".k8s.io") {
			errs = append(errs, field.Invalid(at.Child("options").Key(k), k, "kubernetes.io and k8s.io namespaces are reserved"))
		}
	}
	return errs
}

func azureDisk(a *corev1.AzureDiskVolumeSource, at *field.Path) field.ErrorList {
	errs := append(required(at, "diskName", a.DiskName), required(at, "diskURI", a.DataDiskURI)...)
	if m := a.CachingMode; m != nil {
		errs = append(errs, known(at.Child("cachingMode"), *m, corev1.AzureDataDiskCachingNone, corev1.AzureDataDiskCachingReadOnly, corev1.AzureDataDiskCachingReadWrite)...)
	}
	if a.Kind == nil {
		return errs
	}
	errs = append(errs, known(at.Child("kind"), *a.Kind, corev1.AzureDedicatedBlobDisk, corev1.AzureManagedDisk, corev1.AzureSharedBlobDisk)...)
	prefix, form := "https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"
	if *a.Kind == corev1.AzureManagedDisk {
		prefix, form = "/subscriptions/", "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"
	}
	if !strings.HasPrefix(a.DataDiskURI, prefix) {
		errs = append(errs, field.NotSupported(at.Child("diskURI"), a.DataDiskURI, []string{form}))
	}
	return errs
}

func storageOS(s *corev1.StorageOSPersistentVolumeSource, at *field.Path) (errs field.ErrorList) {
	label := func(name, value string) {
		errs = append(errs, texts(at.Child(name), value, validation.IsDNS1123Label(value))...)
	}
	if s.VolumeName == "" {
		errs = append(errs, field.Required(at.Child("volumeName"), ""))
	} else {
		label("volumeName", s.VolumeName)
	}
	if s.VolumeNamespace != "" {
		label("volumeNamespace", s.VolumeNamespace)
	}
	if r := s.SecretRef; r != nil {
		errs = append(errs, required(at.Child("secretRef"), "name", r.Name)...)
		errs = append(errs, required(at.Child("secretRef"), "namespace", r.Namespace)...)
	}
	return errs
}
