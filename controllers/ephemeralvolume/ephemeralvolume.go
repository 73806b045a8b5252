// Package ephemeralvolume makes the claims of the ephemeral volumes of pods, which go with their pods. It replaces upstream's
// ephemeral volume controller.
package ephemeralvolume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct{ reconcile.Deps }

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("ephemeral_volume")}
	return reconcile.New(c.Deps, reconcile.For[*corev1.Pod]{
		Controller: "ephemeral-volume-controller",
		Also:       []reconcile.Source{reconcile.Owned[*corev1.PersistentVolumeClaim]()},
		Write:      reconcile.Writes{api.PersistentVolumeClaimKind: {"create"}},
		Reconcile:  c.reconcile,
	})
}

func (c controller) reconcile(ctx context.Context, _ *slog.Logger, p *corev1.Pod) (reconcile.Result, error) {
	if p.DeletionTimestamp != nil || api.PodTerminal(p) {
		return reconcile.Result{}, nil
	}
	var errs []error
	for i := range p.Spec.Volumes {
		if v := &p.Spec.Volumes[i]; v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
			if err := c.claim(ctx, p, v); err != nil {
				errs = append(errs, fmt.Errorf("volume %s: %w", v.Name, err))
			}
		}
	}
	return reconcile.Result{}, errors.Join(errs...)
}

// claim creates the volume's claim, if there is none.
func (c controller) claim(ctx context.Context, p *corev1.Pod, v *corev1.Volume) error {
	key := api.Key{Namespace: p.Namespace, Name: p.Name + "-" + v.Name}
	have, err := client.Get[*corev1.PersistentVolumeClaim](ctx, c.Client, key)
	switch {
	case err == nil && metav1.IsControlledBy(have, p):
		return nil
	case err == nil:
		return fmt.Errorf("PVC %s was not created for pod %s (pod is not owner)", key, api.KeyOf(p))
	case !apierrors.IsNotFound(err):
		return fmt.Errorf("get claim: %w", err)
	}
	t := v.Ephemeral.VolumeClaimTemplate
	_, err = client.Create(ctx, c.Client, &corev1.PersistentVolumeClaim{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"},
		ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: maps.Clone(t.Labels), Annotations: maps.Clone(t.Annotations),
			OwnerReferences: []metav1.OwnerReference{*reconcile.ControllerRef(p)}},
		Spec: *t.Spec.DeepCopy(),
	})
	if err != nil {
		return fmt.Errorf("create claim: %w", err)
	}
	return nil
}
