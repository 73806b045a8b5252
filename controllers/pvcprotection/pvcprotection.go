// Package pvcprotection keeps a PersistentVolumeClaim that is being deleted until no pod uses it. It replaces upstream's
// persistentvolumeclaim protection controller.
package pvcprotection

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const finalizer = "kubernetes.io/pvc-protection"

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	return reconcile.Protect(d, reconcile.Protection[*corev1.PersistentVolumeClaim]{
		Controller: "persistentvolumeclaim-protection-controller",
		Finalizer:  finalizer,
		Used:       used,
		Also: []reconcile.Source{reconcile.Changed(func(_ context.Context, _ reconcile.Deps, before, after *corev1.Pod) (keys []api.Key) {
			if before == nil || after != nil && api.PodTerminal(before) == api.PodTerminal(after) {
				return nil // only an end lets a claim go
			}
			for _, name := range claims(before) {
				keys = append(keys, api.Key{Namespace: before.Namespace, Name: name})
			}
			return keys
		})},
	})
}

// claims returns the names of the claims that a pod's volumes are of, those made for it among them.
func claims(p *corev1.Pod) (names []string) {
	for i := range p.Spec.Volumes {
		if name := claim.Name(p, &p.Spec.Volumes[i]); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// used says whether a pod uses the claim. Pods without a node do not: no kubelet starts one whose claim is going.
func used(ctx context.Context, d reconcile.Deps, c *corev1.PersistentVolumeClaim) (bool, error) {
	pods, err := client.List[*corev1.Pod](ctx, d.Client, client.Query{Namespace: c.Namespace})
	if err != nil {
		return false, fmt.Errorf("list pods: %w", err)
	}
	return slices.ContainsFunc(pods, func(p *corev1.Pod) bool { return uses(p, c) }), nil
}

func uses(p *corev1.Pod, c *corev1.PersistentVolumeClaim) bool {
	if p.Spec.NodeName == "" || api.PodTerminal(p) {
		return false
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if claim.Name(p, v) == c.Name && (v.Ephemeral == nil || metav1.IsControlledBy(c, p)) {
			return true
		}
	}
	return false
}
