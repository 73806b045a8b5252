// Package volumeexpander tells of a bound claim that asks for more than its volume has who will see to that: a program outside, the
// resizer of the volume's driver, which finds such claims by itself. The built-in local storage sees to its own. It replaces upstream's persistentvolume expander controller, of
// which no more is left since no storage is built in that could grow.
//
// Whether a claim may grow is decided when it is asked for, by the admission plug-in PersistentVolumeClaimResize.
package volumeexpander

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct{ reconcile.Deps }

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("volume_expand")}
	return reconcile.New(c.Deps, reconcile.For[*corev1.PersistentVolumeClaim]{
		Controller: "persistentvolume-expander-controller",
		Heeds:      func(before, after *corev1.PersistentVolumeClaim) bool { return !grows(before) && grows(after) },
		Read:       []*api.Kind{api.PersistentVolumeKind},
		Reconcile:  c.reconcile,
	})
}

// grows says that a claim has its volume and wants more of it than it has.
func grows(c *corev1.PersistentVolumeClaim) bool {
	want, have := c.Spec.Resources.Requests[corev1.ResourceStorage], c.Status.Capacity[corev1.ResourceStorage]
	return c.Status.Phase == corev1.ClaimBound && want.Cmp(have) > 0
}

func (c controller) reconcile(ctx context.Context, _ *slog.Logger, pvc *corev1.PersistentVolumeClaim) (reconcile.Result, error) {
	if !grows(pvc) {
		return reconcile.Result{}, nil
	}
	v, err := client.Get[*corev1.PersistentVolume](ctx, c.Client, api.Key{Name: pvc.Spec.VolumeName})
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil // the claim is about to be lost
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get volume: %w", err)
	}
	if r := v.Spec.ClaimRef; r != nil && r.UID == pvc.UID && claim.OfLocal(v) == "" {
		c.Events.Event(pvc, corev1.EventTypeNormal, "ExternalExpanding", "waiting for an external controller to expand this PVC")
	}
	return reconcile.Result{}, nil
}
