package builtin

import (
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

const tokensInSecrets = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes"

func csiDrivers() *rest.Resource[*storagev1.CSIDriver] {
	type driver = *storagev1.CSIDriver
	doc := storagev1.CSIDriverSpec{}.SwaggerDoc()
	flag := func(name, field string, get func(driver) *bool) rest.Column[driver] {
		return rest.Column[driver]{Name: name, Type: "boolean", Description: doc[field], Cell: func(d driver) any { return deref(get(d)) }}
	}
	return &rest.Resource[driver]{
		AnswerDeleted:   true,
		RequireRevision: true,
		Default:         defaultCSIDriver,
		// Upstream counts generations from the first update on.
		NoGeneration: true,
		PrepareUpdate: func(now, old driver) {
			if !equality.Semantic.DeepEqual(now.Spec, old.Spec) {
				now.Generation = old.Generation + 1
			}
		},
		Validate: validateCSIDriver,
		ValidateUpdate: func(now, old driver) field.ErrorList {
			spec := field.NewPath("spec")
			return append(immutable(now.Spec.AttachRequired, old.Spec.AttachRequired, spec.Child("attachedRequired")),
				immutable(now.Spec.VolumeLifecycleModes, old.Spec.VolumeLifecycleModes, spec.Child("volumeLifecycleModes"))...)
		},
		Warn: func(d, old driver) []string {
			changed := old == nil || !equality.Semantic.DeepEqual(d.Spec.TokenRequests, old.Spec.TokenRequests)
			if changed && len(d.Spec.TokenRequests) > 0 && d.Spec.ServiceAccountTokenInSecrets == nil {
				return []string{tokensInSecrets}
			}
			return nil
		},
		Columns: []rest.Column[driver]{
			flag("AttachRequired", "attachRequired", func(d driver) *bool { return d.Spec.AttachRequired }),
			flag("PodInfoOnMount", "podInfoOnMount", func(d driver) *bool { return d.Spec.PodInfoOnMount }),
			flag("StorageCapacity", "storageCapacity", func(d driver) *bool { return d.Spec.StorageCapacity }),
			{Name: "TokenRequests", Description: doc["tokenRequests"], Cell: func(d driver) any {
				if d.Spec.TokenRequests == nil {
					return unset
				}
				return joined(d.Spec.TokenRequests, func(r storagev1.TokenRequest) string { return r.Audience })
			}},
			flag("RequiresRepublish", "requiresRepublish", func(d driver) *bool { return d.Spec.RequiresRepublish }),
			{Name: "Modes", Description: doc["volumeLifecycleModes"], Cell: func(d driver) any {
				return or(joined(d.Spec.VolumeLifecycleModes, func(m storagev1.VolumeLifecycleMode) string { return string(m) }), none)
			}},
			{Name: "Age"},
		},
	}
}

// joined lists the texts of vs with commas.
func joined[T any](vs []T, text func(T) string) string {
	parts := make([]string, len(vs))
	for i, v := range vs {
		parts[i] = text(v)
	}
	return strings.Join(parts, ",")
}

func defaultCSIDriver(d *storagev1.CSIDriver) {
	s := &d.Spec
	setPtr(&s.AttachRequired, true)
	setPtr(&s.PodInfoOnMount, false)
	setPtr(&s.StorageCapacity, false)
	setPtr(&s.FSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy)
	if len(s.VolumeLifecycleModes) == 0 {
		s.VolumeLifecycleModes = []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent}
	}
	setPtr(&s.RequiresRepublish, false)
	setPtr(&s.SELinuxMount, false)
	setPtr(&s.PreventPodSchedulingIfMissing, false)
}

func validateCSIDriver(d *storagev1.CSIDriver) (errs field.ErrorList) {
	s, spec := &d.Spec, field.NewPath("spec")
	if p := deref(s.FSGroupPolicy); !slices.Contains(fsGroupPolicies(), p) {
		errs = append(errs, field.NotSupported(spec.Child("fsGroupPolicy"), p, fsGroupPolicies()))
	}
	seen := map[string]bool{}
	for i, r := range s.TokenRequests {
		at := spec.Child("tokenRequests").Index(i)
		if seen[r.Audience] {
			errs = append(errs, field.Duplicate(at.Child("audience"), r.Audience))
			continue
		}
		seen[r.Audience] = true
		if r.ExpirationSeconds == nil {
			continue
		}
		at = at.Child("expirationSeconds")
		if *r.ExpirationSeconds < minTokenExpiration {
			errs = append(errs, field.Invalid(at, *r.ExpirationSeconds, "may not specify a duration less than 10 minutes"))
		}
		if *r.ExpirationSeconds > 1<<32 {
			errs = append(errs, field.Invalid(at, *r.ExpirationSeconds, "may not specify a duration larger than 2^32 seconds"))
		}
	}
	modes := []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral}
	for _, m := range s.VolumeLifecycleModes {
		if !slices.Contains(modes, m) {
			errs = append(errs, field.NotSupported(spec.Child("volumeLifecycleModes"), m, modes))
		}
	}
	if n := s.NodeAllocatableUpdatePeriodSeconds; n != nil && *n < 10 {
		errs = append(errs, field.Invalid(spec.Child("nodeAllocatableUpdatePeriodSeconds"), *n, "must be greater than or equal to 10 seconds"))
	}
	if s.ServiceAccountTokenInSecrets != nil && len(s.TokenRequests) == 0 {
		errs = append(errs, field.Invalid(spec.Child("serviceAccountTokenInSecrets"), *s.ServiceAccountTokenInSecrets, "serviceAccountTokenInSecrets is set but no tokenRequests are specified"))
	}
	return errs
}

func fsGroupPolicies() []storagev1.FSGroupPolicy {
	return []storagev1.FSGroupPolicy{storagev1.FileFSGroupPolicy, storagev1.NoneFSGroupPolicy, storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy}
}

func csiNodes() *rest.Resource[*storagev1.CSINode] {
	type node = *storagev1.CSINode
	return &rest.Resource[node]{
		AnswerDeleted:   true,
		RequireRevision: true,
		NoGeneration:    true,
		Validate: func(n node) (errs field.ErrorList) {
			seen := map[string]bool{}
			for i := range n.Spec.Drivers {
				errs = append(errs, csiNodeDriver(&n.Spec.Drivers[i], seen, field.NewPath("spec", "drivers").Index(i))...)
			}
			return errs
		},
		ValidateUpdate: func(now, old node) (errs field.ErrorList) {
			for _, was := range old.Spec.Drivers {
				for _, is := range now.Spec.Drivers {
					if was.Name == is.Name {
						was.Allocatable, is.Allocatable = nil, nil
						errs = append(errs, immutable(is, was, field.NewPath("spec", "drivers"))...)
					}
				}
			}
			return errs
		},
		StrictStatus: true,
		PrepareStatus: func(now, old node) {
			// Volume health is an alpha feature of upstream, off by default there.
			if len(old.Status.StorageHealth) == 0 {
				now.Status.StorageHealth = nil
			}
		},
		Columns: []rest.Column[node]{
			{Name: "Drivers", Type: "integer", Description: "Drivers indicates the number of CSI drivers registered on the node", Cell: func(n node) any { return int64(len(n.Spec.Drivers)) }},
			{Name: "Age"},
		},
	}
}

const maxNodeID = 256

func csiNodeDriver(d *storagev1.CSINodeDriver, seen map[string]bool, at *field.Path) field.ErrorList {
	errs := driverName(d.Name, at.Child("name"))
	if d.NodeID == "" {
		errs = append(errs, field.Required(at.Child("nodeID"), ""))
	}
	if len(d.NodeID) > maxNodeID {
		errs = append(errs, field.Invalid(at.Child("nodeID"), d.NodeID, fmt.Sprintf("must be %d characters or less", maxNodeID)))
	}
	if d.Allocatable != nil {
		errs = append(errs, notNegativePtr(d.Allocatable.Count, at.Child("allocatable", "count"))...)
	}
	if seen[d.Name] {
		errs = append(errs, field.Duplicate(at.Child("name"), d.Name))
	}
	seen[d.Name] = true
	keys := map[string]bool{}
	for _, k := range d.TopologyKeys {
		if k == "" {
			errs = append(errs, field.Required(at, ""))
		}
		if keys[k] {
			errs = append(errs, field.Duplicate(at, k))
		}
		keys[k] = true
		errs = append(errs, texts(at, k, validation.IsQualifiedName(k))...)
	}
	return errs
}

func volumeAttachments() *rest.Resource[*storagev1.VolumeAttachment] {
	type attachment = *storagev1.VolumeAttachment
	doc := storagev1.VolumeAttachmentSpec{}.SwaggerDoc()
	validate := func(a attachment) field.ErrorList {
		at := field.NewPath("spec")
		errs := append(attachmentSource(&a.Spec.Source, at.Child("source")), texts(at.Child("nodeName"), a.Spec.NodeName, isName(a.Spec.NodeName))...)
		errs = append(errs, attachmentStatus(&a.Status, field.NewPath("status"))...)
		if name := a.Spec.Source.PersistentVolumeName; name != nil {
			errs = append(errs, texts(at.Child("source", "persistentVolumeName"), *name, isName(*name))...)
		}
		return append(errs, attacher(a.Spec.Attacher, at.Child("attacher"))...)
	}
	seal := func(now, old attachment) field.ErrorList { return sealed(now.Spec, old.Spec, field.NewPath("spec")) }
	return &rest.Resource[attachment]{
		AnswerDeleted:   true,
		RequireRevision: true,
		NoGeneration:    true,
		Validate:        validate,
		ValidateUpdate:  seal,
		StrictStatus:    true,
		ValidateStatus:  func(now, old attachment) field.ErrorList { return append(validate(now), seal(now, old)...) },
		Columns: []rest.Column[attachment]{
			{Name: "Attacher", Format: "name", Description: doc["attacher"], Cell: func(a attachment) any { return a.Spec.Attacher }},
			{Name: "PV", Description: storagev1.VolumeAttachmentSource{}.SwaggerDoc()["persistentVolumeName"], Cell: func(a attachment) any { return deref(a.Spec.Source.PersistentVolumeName) }},
			{Name: "Node", Description: doc["nodeName"], Cell: func(a attachment) any { return a.Spec.NodeName }},
			{Name: "Attached", Type: "boolean", Description: storagev1.VolumeAttachmentStatus{}.SwaggerDoc()["attached"], Cell: func(a attachment) any { return a.Status.Attached }},
			{Name: "Age"},
		},
	}
}

func attacher(name string, at *field.Path) (errs field.ErrorList) {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	errs = texts(at, name, content.IsDNS1123SubdomainCaseless(name))
	if len(name) > maxDriverName {
		errs = append(errs, field.TooLongCharacters(at, name, maxDriverName))
	}
	return errs
}

func attachmentSource(s *storagev1.VolumeAttachmentSource, at *field.Path) field.ErrorList {
	const one = "must specify exactly one of inlineVolumeSpec and persistentVolumeName"
	switch {
	case s.InlineVolumeSpec == nil && s.PersistentVolumeName == nil:
		return field.ErrorList{field.Required(at, one)}
	case s.InlineVolumeSpec != nil && s.PersistentVolumeName != nil:
		return field.ErrorList{field.Forbidden(at, one)}
	case s.InlineVolumeSpec != nil:
		return inlineVolume(s.InlineVolumeSpec, at.Child("inlineVolumeSpec"))
	case *s.PersistentVolumeName == "":
		return field.ErrorList{field.Required(at.Child("persistentVolumeName"), "must specify non empty persistentVolumeName")}
	}
	return nil
}

// inlineVolume checks a volume that was a pod's own before it was moved to a CSI driver: the driver's part and
// nothing that only a PersistentVolume has.
func inlineVolume(s *corev1.PersistentVolumeSpec, at *field.Path) (errs field.ErrorList) {
	const inline = "may not be specified in the context of inline volumes"
	forbid := func(set bool, name, text string) {
		if set {
			errs = append(errs, field.Forbidden(at.Child(name), text))
		}
	}
	forbid(s.ClaimRef != nil, "claimRef", inline)
	forbid(len(s.Capacity) != 0, "capacity", inline)
	if s.CSI == nil {
		errs = append(errs, field.Required(at.Child("csi"), "has to be specified in the context of inline volumes"))
	}
	errs = append(errs, accessModes(s.AccessModes, at.Child("accessModes"))...)
	forbid(s.PersistentVolumeReclaimPolicy != "" && s.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimRetain,
		"persistentVolumeReclaimPolicy", "may only be "+string(corev1.PersistentVolumeReclaimRetain)+" in the context of inline volumes")
	forbid(s.NodeAffinity != nil, "nodeAffinity", inline)
	other := s.PersistentVolumeSource
	other.CSI = nil
	switch {
	case other != (corev1.PersistentVolumeSource{}):
		forbid(s.CSI != nil, "csi", "may not specify more than 1 volume type")
	case s.CSI == nil:
		errs = append(errs, field.Required(at, "must specify a volume type"))
	default:
		errs = append(errs, csiSource(s.CSI, at.Child("csi"))...)
	}
	forbid(s.StorageClassName != "", "storageClassName", inline)
	forbid(s.VolumeMode != nil && *s.VolumeMode != corev1.PersistentVolumeFilesystem, "volumeMode",
		"may not specify volumeMode other than "+string(corev1.PersistentVolumeFilesystem)+" in the context of inline volumes")
	return errs
}

func accessModes(modes []corev1.PersistentVolumeAccessMode, at *field.Path) field.ErrorList {
	if len(modes) == 0 {
		return field.ErrorList{field.Required(at, "")}
	}
	return podspec.AccessModes(modes, at)
}

func csiSource(s *corev1.CSIPersistentVolumeSource, at *field.Path) field.ErrorList {
	errs := driverName(s.Driver, at.Child("driver"))
	if s.VolumeHandle == "" {
		errs = append(errs, field.Required(at.Child("volumeHandle"), ""))
	}
	for _, r := range []struct {
		name string
		ref  *corev1.SecretReference
	}{{"controllerPublishSecretRef", s.ControllerPublishSecretRef}, {"controllerExpandSecretRef", s.ControllerExpandSecretRef},
		{"nodePublishSecretRef", s.NodePublishSecretRef}, {"nodeExpandSecretRef", s.NodeExpandSecretRef}} {
		if r.ref == nil {
			continue
		}
		at := at.Child(r.name)
		errs = append(errs, requiredName(r.ref.Name, at.Child("name"), isName)...)
		errs = append(errs, requiredName(r.ref.Namespace, at.Child("namespace"), isLabel)...)
	}
	return errs
}

func requiredName(name string, at *field.Path, check func(string) []string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	return texts(at, name, check(name))
}

const maxVolumeError = 1024

func attachmentStatus(s *storagev1.VolumeAttachmentStatus, at *field.Path) (errs field.ErrorList) {
	size := 0
	for k, v := range s.AttachmentMetadata {
		size += len(k) + len(v)
	}
	if size > maxParametersSize {
		errs = append(errs, field.TooLong(at.Child("attachmentMetadata"), "", maxParametersSize))
	}
	check := func(e *storagev1.VolumeError, at *field.Path) {
		if e == nil {
			return
		}
		if len(e.Message) > maxVolumeError {
			errs = append(errs, field.TooLong(at.Child("message"), "", maxVolumeError))
		}
		if e.ErrorCode != nil && *e.ErrorCode < 0 {
			errs = append(errs, field.Invalid(at.Child("errorCode"), *e.ErrorCode, validation.InclusiveRangeError(0, math.MaxInt32)))
		}
	}
	check(s.AttachError, at.Child("attachError"))
	check(s.DetachError, at.Child("detachError"))
	return errs
}
