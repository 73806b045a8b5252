// Package pvprotection keeps a PersistentVolume that is being deleted while a claim is bound to it. It replaces upstream's
// persistentvolume protection controller.
package pvprotection

import (
	"context"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/reconcile"
)

const finalizer = "kubernetes.io/pv-protection"

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	return reconcile.Protect(d, reconcile.Protection[*corev1.PersistentVolume]{
		Controller: "persistentvolume-protection-controller",
		Finalizer:  finalizer,
		Used: func(_ context.Context, _ reconcile.Deps, v *corev1.PersistentVolume) (bool, error) {
			return v.Status.Phase == corev1.VolumeBound, nil
		},
	})
}
