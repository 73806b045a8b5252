package podspec

import (
	"maps"
	"net"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The volumes that Kubernetes has handed over to CSI drivers or given up. The API takes them as ever; a node that cannot serve one
// says so in an event, and the pod waits.

// defaultForeign sets what the client left out of such a volume.
func defaultForeign(v *corev1.VolumeSource) {
	text := func(at *string, value string) {
		if *at == "" {
			*at = value
		}
	}
	if i := v.ISCSI; i != nil {
		text(&i.ISCSIInterface, "default")
	}
	if r := v.RBD; r != nil {
		text(&r.RBDPool, "rbd")
		text(&r.RadosUser, "admin")
		text(&r.Keyring, "/etc/ceph/keyring")
	}
	if a := v.AzureDisk; a != nil {
		setPtr(&a.CachingMode, corev1.AzureDataDiskCachingReadWrite)
		setPtr(&a.Kind, corev1.AzureSharedBlobDisk)
		setPtr(&a.FSType, "ext4")
		setPtr(&a.ReadOnly, false)
	}
	if s := v.ScaleIO; s != nil {
		text(&s.StorageMode, "ThinProvisioned")
		text(&s.FSType, "xfs")
	}
}

// foreign is one source: its name, whether it is given, and what is wrong with it.
type foreign struct {
	name  string
	given bool
	check func(p *field.Path) field.ErrorList
}

// foreignSources returns the checks of the sources in v.
func foreignSources(v *corev1.VolumeSource) []foreign {
	list := []foreign{
		{"gcePersistentDisk", v.GCEPersistentDisk != nil, func(p *field.Path) field.ErrorList {
			return disk(v.GCEPersistentDisk.PDName, v.GCEPersistentDisk.Partition, p, "pdName")
		}},
		{"awsElasticBlockStore", v.AWSElasticBlockStore != nil, func(p *field.Path) field.ErrorList {
			return disk(v.AWSElasticBlockStore.VolumeID, v.AWSElasticBlockStore.Partition, p, "volumeID")
		}},
		{"gitRepo", v.GitRepo != nil, func(p *field.Path) field.ErrorList {
			return append(required(p.Child("repository"), v.GitRepo.Repository), inside(v.GitRepo.Directory, p.Child("directory"))...)
		}},
		{"iscsi", v.ISCSI != nil, func(p *field.Path) field.ErrorList { return iscsi(v.ISCSI, p) }},
		{"glusterfs", v.Glusterfs != nil, func(p *field.Path) field.ErrorList {
			return append(required(p.Child("endpoints"), v.Glusterfs.EndpointsName), required(p.Child("path"), v.Glusterfs.Path)...)
		}},
		{"rbd", v.RBD != nil, func(p *field.Path) field.ErrorList {
			return append(someOf(p.Child("monitors"), v.RBD.CephMonitors), required(p.Child("image"), v.RBD.RBDImage)...)
		}},
		{"flexVolume", v.FlexVolume != nil, func(p *field.Path) field.ErrorList { return flex(v.FlexVolume, p) }},
		{"cinder", v.Cinder != nil, func(p *field.Path) field.ErrorList {
			return append(required(p.Child("volumeID"), v.Cinder.VolumeID), secretName(v.Cinder.SecretRef, p)...)
		}},
		{"cephfs", v.CephFS != nil, func(p *field.Path) field.ErrorList { return someOf(p.Child("monitors"), v.CephFS.Monitors) }},
		{"flocker", v.Flocker != nil, func(p *field.Path) field.ErrorList { return Flocker(v.Flocker, p) }},
		{"fc", v.FC != nil, func(p *field.Path) field.ErrorList { return FibreChannel(v.FC, p) }},
	}
	return append(list, vendorSources(v)...)
}

func vendorSources(v *corev1.VolumeSource) []foreign {
	return []foreign{
		{"azureFile", v.AzureFile != nil, func(p *field.Path) field.ErrorList {
			return append(required(p.Child("secretName"), v.AzureFile.SecretName), required(p.Child("shareName"), v.AzureFile.ShareName)...)
		}},
		{"vsphereVolume", v.VsphereVolume != nil, func(p *field.Path) field.ErrorList {
			return required(p.Child("volumePath"), v.VsphereVolume.VolumePath)
		}},
		{"quobyte", v.Quobyte != nil, func(p *field.Path) field.ErrorList { return Quobyte(v.Quobyte, p) }},
		{"azureDisk", v.AzureDisk != nil, func(p *field.Path) field.ErrorList { return azureDisk(v.AzureDisk, p) }},
		{"photonPersistentDisk", v.PhotonPersistentDisk != nil, func(p *field.Path) field.ErrorList {
			return required(p.Child("pdID"), v.PhotonPersistentDisk.PdID)
		}},
		{"portworxVolume", v.PortworxVolume != nil, func(p *field.Path) field.ErrorList {
			return required(p.Child("volumeID"), v.PortworxVolume.VolumeID)
		}},
		{"scaleIO", v.ScaleIO != nil, func(p *field.Path) field.ErrorList {
			errs := append(required(p.Child("gateway"), v.ScaleIO.Gateway), required(p.Child("system"), v.ScaleIO.System)...)
			return append(errs, required(p.Child("volumeName"), v.ScaleIO.VolumeName)...)
		}},
		{"storageos", v.StorageOS != nil, func(p *field.Path) field.ErrorList {
			s := v.StorageOS
			errs := required(p.Child("volumeName"), s.VolumeName)
			if s.VolumeName != "" {
				errs = append(errs, texts(p.Child("volumeName"), s.VolumeName, validation.IsDNS1123Label(s.VolumeName))...)
			}
			if s.VolumeNamespace != "" {
				errs = append(errs, texts(p.Child("volumeNamespace"), s.VolumeNamespace, validation.IsDNS1123Label(s.VolumeNamespace))...)
			}
			return append(errs, secretName(s.SecretRef, p)...)
		}},
	}
}

func someOf(p *field.Path, values []string) field.ErrorList {
	if len(values) == 0 {
		return field.ErrorList{field.Required(p, "")}
	}
	return nil
}

func secretName(ref *corev1.LocalObjectReference, p *field.Path) field.ErrorList {
	if ref == nil {
		return nil
	}
	return required(p.Child("secretRef", "name"), ref.Name)
}

func disk(id string, partition int32, p *field.Path, name string) field.ErrorList {
	errs := required(p.Child(name), id)
	if partition < 0 || partition > 255 {
		errs = append(errs, field.Invalid(p.Child("partition"), partition, validation.InclusiveRangeError(0, 255)))
	}
	return errs
}

// The forms of names in iSCSI.
var initiatorForms = map[string]*regexp.Regexp{
	"iqn": regexp.MustCompile(`iqn\.\d{4}-\d{2}\.([[:alnum:]-.]+)(:[^,;*&$|\s]+)$`),
	"eui": regexp.MustCompile(`^eui.[[:alnum:]]{16}$`),
	"naa": regexp.MustCompile(`^naa.[[:alnum:]]{32}$`),
}

// Initiator returns the form that the name of an iSCSI node must match; nil: it begins like none.
func Initiator(name string) *regexp.Regexp { return initiatorForms[name[:min(3, len(name))]] }

func initiator(name string, p *field.Path) field.ErrorList {
	form := Initiator(name)
	switch {
	case form == nil:
		return field.ErrorList{field.Invalid(p, name, "must be valid format starting with iqn, eui, or naa")}
	case !form.MatchString(name):
		return field.ErrorList{field.Invalid(p, name, "must be valid format")}
	}
	return nil
}

func iscsi(i *corev1.ISCSIVolumeSource, p *field.Path) field.ErrorList {
	errs := append(required(p.Child("targetPortal"), i.TargetPortal), required(p.Child("iqn"), i.IQN)...)
	if i.IQN != "" {
		errs = append(errs, initiator(i.IQN, p.Child("iqn"))...)
	}
	if i.Lun < 0 || i.Lun > 255 {
		errs = append(errs, field.Invalid(p.Child("lun"), i.Lun, validation.InclusiveRangeError(0, 255)))
	}
	if (i.DiscoveryCHAPAuth || i.SessionCHAPAuth) && i.SecretRef == nil {
		errs = append(errs, field.Required(p.Child("secretRef"), ""))
	}
	if i.InitiatorName != nil {
		errs = append(errs, initiator(*i.InitiatorName, p.Child("initiatorname"))...)
	}
	return errs
}

func flex(f *corev1.FlexVolumeSource, p *field.Path) field.ErrorList {
	errs := required(p.Child("driver"), f.Driver)
	for _, key := range slices.Sorted(maps.Keys(f.Options)) {
		domain, _, _ := strings.Cut(key, "/")
		domain = "." + strings.ToLower(domain)
		if strings.HasSuffix(domain, ".kubernetes.io") || strings.HasSuffix(domain, ".k8s.io") {
			errs = append(errs, field.Invalid(p.Child("options").Key(key), key, "kubernetes.io and k8s.io namespaces are reserved"))
		}
	}
	return errs
}

// Flocker checks a Flocker volume, of a pod or of a PersistentVolume.
func Flocker(f *corev1.FlockerVolumeSource, p *field.Path) (errs field.ErrorList) {
	if f.DatasetName == "" && f.DatasetUUID == "" {
		errs = append(errs, field.Required(p, "one of datasetName and datasetUUID is required"))
	}
	if f.DatasetName != "" && f.DatasetUUID != "" {
		errs = append(errs, field.Invalid(p, "resource", "datasetName and datasetUUID can not be specified simultaneously"))
	}
	if strings.Contains(f.DatasetName, "/") {
		errs = append(errs, field.Invalid(p.Child("datasetName"), f.DatasetName, "must not contain '/'"))
	}
	return errs
}

// FibreChannel checks a Fibre Channel volume, of a pod or of a PersistentVolume.
func FibreChannel(f *corev1.FCVolumeSource, p *field.Path) (errs field.ErrorList) {
	targets := p.Child("targetWWNs")
	switch {
	case len(f.TargetWWNs) == 0 && len(f.WWIDs) == 0:
		errs = append(errs, field.Required(targets, "must specify either targetWWNs or wwids, but not both"))
	case len(f.TargetWWNs) > 0 && len(f.WWIDs) > 0:
		errs = append(errs, field.Invalid(targets, f.TargetWWNs, "targetWWNs and wwids can not be specified simultaneously"))
	}
	switch {
	case len(f.TargetWWNs) == 0:
	case f.Lun == nil:
		errs = append(errs, field.Required(p.Child("lun"), "lun is required if targetWWNs is specified"))
	case *f.Lun < 0 || *f.Lun > 255:
		errs = append(errs, field.Invalid(p.Child("lun"), *f.Lun, validation.InclusiveRangeError(0, 255)))
	}
	return errs
}

// Quobyte checks a Quobyte volume, of a pod or of a PersistentVolume.
func Quobyte(q *corev1.QuobyteVolumeSource, p *field.Path) (errs field.ErrorList) {
	const registry = "must be a host:port pair or multiple pairs separated by commas"
	switch {
	case q.Registry == "":
		errs = append(errs, field.Required(p.Child("registry"), registry))
	case len(q.Tenant) > 64:
		errs = append(errs, field.Required(p.Child("tenant"), "must be a UUID and may not exceed a length of 64 characters"))
	default:
		for pair := range strings.SplitSeq(q.Registry, ",") {
			if _, _, err := net.SplitHostPort(pair); err != nil {
				errs = append(errs, field.Invalid(p.Child("registry"), q.Registry, registry))
			}
		}
	}
	return append(errs, required(p.Child("volume"), q.Volume)...)
}

func azureDisk(a *corev1.AzureDiskVolumeSource, p *field.Path) field.ErrorList {
	errs := append(required(p.Child("diskName"), a.DiskName), required(p.Child("diskURI"), a.DataDiskURI)...)
	if c := a.CachingMode; c != nil {
		errs = append(errs, oneOf(p.Child("cachingMode"), *c, corev1.AzureDataDiskCachingNone, corev1.AzureDataDiskCachingReadOnly, corev1.AzureDataDiskCachingReadWrite)...)
	}
	if a.Kind == nil {
		return errs
	}
	errs = append(errs, oneOf(p.Child("kind"), *a.Kind, corev1.AzureDedicatedBlobDisk, corev1.AzureManagedDisk, corev1.AzureSharedBlobDisk)...)
	managed := *a.Kind == corev1.AzureManagedDisk
	if managed && !strings.HasPrefix(a.DataDiskURI, "/subscriptions/") {
		errs = append(errs, field.NotSupported(p.Child("diskURI"), a.DataDiskURI,
			[]string{"/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"}))
	}
	if !managed && !strings.HasPrefix(a.DataDiskURI, "https://") {
		errs = append(errs, field.NotSupported(p.Child("diskURI"), a.DataDiskURI, []string{"https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"}))
	}
	return errs
}
