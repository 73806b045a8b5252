// Package vacprotection keeps a VolumeAttributesClass that is being deleted while a claim or a volume names it. It replaces
// upstream's VolumeAttributesClass protection controller.
package vacprotection

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const finalizer = "kubernetes.io/vac-protection"

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	return reconcile.Protect(d, reconcile.Protection[*storagev1.VolumeAttributesClass]{
		Controller: "volumeattributesclass-protection-controller",
		Finalizer:  finalizer,
		Used:       used,
		Also: []reconcile.Source{
			reconcile.Mapped(func(c *corev1.PersistentVolumeClaim) []api.Key { return keys(ofClaim(c)) }),
			reconcile.Mapped(func(v *corev1.PersistentVolume) []api.Key { return keys(ofVolume(v)) }),
		},
	})
}

func used(ctx context.Context, d reconcile.Deps, class *storagev1.VolumeAttributesClass) (bool, error) {
	claims, err := client.List[*corev1.PersistentVolumeClaim](ctx, d.Client, client.Query{})
	if err != nil {
		return false, fmt.Errorf("list claims: %w", err)
	}
	for _, c := range claims {
		if slices.Contains(ofClaim(c), class.Name) {
			return true, nil
		}
	}
	volumes, err := client.List[*corev1.PersistentVolume](ctx, d.Client, client.Query{})
	if err != nil {
		return false, fmt.Errorf("list volumes: %w", err)
	}
	for _, v := range volumes {
		if slices.Contains(ofVolume(v), class.Name) {
			return true, nil
		}
	}
	return false, nil
}

// ofClaim returns the classes that c has, had or is to have; some are empty.
func ofClaim(c *corev1.PersistentVolumeClaim) []string {
	names := append(name(c.Spec.VolumeAttributesClassName), name(c.Status.CurrentVolumeAttributesClassName)...)
	if m := c.Status.ModifyVolumeStatus; m != nil {
		names = append(names, m.TargetVolumeAttributesClassName)
	}
	return names
}

func ofVolume(v *corev1.PersistentVolume) []string { return name(v.Spec.VolumeAttributesClassName) }

func name(n *string) []string {
	if n == nil {
		return nil
	}
	return []string{*n}
}

func keys(names []string) []api.Key {
	var found []api.Key
	for _, n := range names {
		if n != "" {
			found = append(found, api.Key{Name: n})
		}
	}
	return found
}
