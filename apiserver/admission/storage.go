package admission

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// storageObjectInUseProtection keeps what storage is made of until nobody uses it any more: the protection controllers
// remove the finalizers.
func storageObjectInUseProtection() rest.Admission {
	return onMutate("StorageObjectInUseProtection", func(_ context.Context, a *rest.Admitting) error {
		if a.Operation != rest.OpCreate || a.Sub != "" {
			return nil
		}
		finalizer := ""
		switch a.Object.(type) {
		case *corev1.PersistentVolume:
			finalizer = "kubernetes.io/pv-protection"
		case *corev1.PersistentVolumeClaim:
			finalizer = "kubernetes.io/pvc-protection"
		case *storagev1.VolumeAttributesClass:
			finalizer = "kubernetes.io/vac-protection"
		default:
			return nil
		}
		if all := a.Object.GetFinalizers(); !slices.Contains(all, finalizer) {
			a.Object.SetFinalizers(append(all, finalizer))
		}
		return nil
	})
}

// claimResize lets only those claims grow whose class says that it can.
func claimResize(s *store.Store) rest.Admission {
	return onValidate("PersistentVolumeClaimResize", func(ctx context.Context, a *rest.Admitting) error {
		now, ok := a.Object.(*corev1.PersistentVolumeClaim)
		old, was := a.Old.(*corev1.PersistentVolumeClaim)
		if !ok || !was || a.Sub != "" || a.Operation != rest.OpUpdate {
			return nil
		}
		is, had := now.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
		if is.Cmp(had) <= 0 {
			return nil
		}
		if old.Status.Phase != corev1.ClaimBound {
			return forbidden(a, "Only bound persistent volume claims can be expanded")
		}
		if err := s.Sync(ctx); err != nil {
			return err
		}
		if name := claim.Class(now); name != "" && name == claim.Class(old) {
			if e := s.Snapshot(api.StorageClassKind).Get(api.Key{Name: name}); e != nil && e.Err() == nil {
				if may := e.Object.(*storagev1.StorageClass).AllowVolumeExpansion; may != nil && *may {
					return nil
				}
			}
		}
		return forbidden(a, "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
	})
}
