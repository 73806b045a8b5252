// Package localvolume is the provisioner of the built-in local storage: it makes the PersistentVolumes of claims whose class is of
// that driver, pinned to the node that the scheduler chose, lets them grow, and deletes those that were left by their claims. It stands
// where others run external-provisioner and external-resizer beside a driver.
//
//	claim, node chosen ──> PersistentVolume ──> claim gone, Released ──> deleted ──(the node removes the data)──> gone
//
// The data is the business of csi/localdriver on the node: it is made when it is first mounted, and a volume whose policy is Delete is kept
// by a finalizer until the node has removed it.
//
// The driver's CSIDriver is kept as it is to be. When it is made, which is once in a cluster's life, a StorageClass is made before it, as
// the default where there is none: whoever changes or deletes that keeps his choice.
//
// Invariants: a volume is called after its claim's UID, so that no crash makes two for one claim. What a claim or its class asks for and a
// folder cannot give is refused by an Event that names it.
package localvolume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct{ reconcile.Deps }

// driverKey wakes what keeps the CSIDriver. No other key is of both words.
var driverKey = api.Key{Name: "csidriver/" + claim.LocalDriver}

// New returns the controller. Keys are those of claims, and of volumes, which have no namespace.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named(claim.LocalDriver)}
	k := reconcile.NewKeyed(c.Deps, reconcile.Keyed{
		Controller: "local-volume-controller",
		Sources: []reconcile.Source{
			reconcile.Mapped(func(o *corev1.PersistentVolumeClaim) []api.Key { return []api.Key{api.KeyOf(o)} }),
			reconcile.Mapped(func(v *corev1.PersistentVolume) []api.Key {
				if claim.OfLocal(v) == "" {
					return nil
				}
				return []api.Key{api.KeyOf(v)}
			}),
			reconcile.MappedBy(waiting, api.PersistentVolumeClaimKind),
			reconcile.Changed(left, api.PersistentVolumeKind),
			reconcile.Mapped(func(d *storagev1.CSIDriver) []api.Key {
				if d.Name != claim.LocalDriver {
					return nil
				}
				return []api.Key{driverKey}
			}),
		},
		Write: reconcile.Writes{
			api.PersistentVolumeKind:      {"create", "update", "delete"},
			api.PersistentVolumeClaimKind: {"update", "update/status"},
			api.StorageClassKind:          {"create"},
			api.CSIDriverKind:             {"create", "update"},
		},
		Run: c.run,
	})
	k.Wake(driverKey)
	return k
}

// waiting returns the claims of a class that came or changed and that have no volume.
func waiting(ctx context.Context, d reconcile.Deps, class *storagev1.StorageClass) (keys []api.Key) {
	if class.Provisioner != claim.LocalDriver {
		return nil
	}
	claims, err := client.List[*corev1.PersistentVolumeClaim](ctx, d.Client, client.Query{})
	if err != nil {
		d.Log.Warn("list claims", "err", err)
		return nil
	}
	for _, o := range claims {
		if o.Spec.VolumeName == "" && claim.Class(o) == class.Name {
			keys = append(keys, api.KeyOf(o))
		}
	}
	return keys
}

// left returns the volumes of a node that is gone.
func left(ctx context.Context, d reconcile.Deps, before, after *corev1.Node) (keys []api.Key) {
	if before == nil || after != nil {
		return nil
	}
	volumes, err := client.List[*corev1.PersistentVolume](ctx, d.Client, client.Query{})
	if err != nil {
		d.Log.Warn("list volumes", "err", err)
		return nil
	}
	for _, v := range volumes {
		if claim.OfLocal(v) == before.Name {
			keys = append(keys, api.KeyOf(v))
		}
	}
	return keys
}

func (c controller) run(ctx context.Context, log *slog.Logger, key api.Key) (reconcile.Result, error) {
	switch {
	case key == driverKey:
		return reconcile.Result{}, c.driver(ctx)
	case key.Namespace == "":
		return reconcile.Result{}, c.volume(ctx, log, key)
	}
	pvc, err := client.Get[*corev1.PersistentVolumeClaim](ctx, c.Client, key)
	switch {
	case apierrors.IsNotFound(err):
		return reconcile.Result{}, nil
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("get claim: %w", err)
	case pvc.DeletionTimestamp != nil:
		return reconcile.Result{}, nil
	case claim.Bound(pvc):
		return reconcile.Result{}, c.grow(ctx, log, pvc)
	case pvc.Spec.VolumeName == "" && claim.Provisioner(pvc) == claim.LocalDriver:
		return reconcile.Result{}, c.provision(ctx, log, pvc)
	}
	return reconcile.Result{}, nil
}

// driver keeps the CSIDriver, and makes the first class before it is made.
func (c controller) driver(ctx context.Context) error {
	d, err := client.Get[*storagev1.CSIDriver](ctx, c.Client, api.Key{Name: claim.LocalDriver})
	if err == nil {
		_, err = client.Mutate(ctx, c.Client, d, "", func(d *storagev1.CSIDriver) { d.Spec = driver().Spec })
		return err
	}
	if !apierrors.IsNotFound(err) {
		return fmt.Errorf("get driver: %w", err)
	}
	classes, err := client.List[*storagev1.StorageClass](ctx, c.Client, client.Query{})
	if err != nil {
		return fmt.Errorf("list storage classes: %w", err)
	}
	first := class(claim.Default(classes) == nil)
	if _, err := client.Create(ctx, c.Client, first); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make storage class %s: %w", claim.LocalClass, err)
	}
	if _, err := client.Create(ctx, c.Client, driver()); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("make driver: %w", err)
	}
	return nil
}

// provision makes the volume of a claim.
func (c controller) provision(ctx context.Context, log *slog.Logger, pvc *corev1.PersistentVolumeClaim) error {
	class, err := client.Get[*storagev1.StorageClass](ctx, c.Client, api.Key{Name: claim.Class(pvc)})
	if apierrors.IsNotFound(err) || err == nil && class.Provisioner != claim.LocalDriver {
		return nil // the binder tells of it; when there is one again, it wakes us
	}
	if err != nil {
		return fmt.Errorf("get storage class: %w", err)
	}
	node := pvc.Annotations[claim.SelectedNode]
	if why := errors.Join(refuse(pvc, class)...); why != nil {
		c.Events.Event(pvc, corev1.EventTypeWarning, "ProvisioningFailed", fmt.Sprintf("failed to provision volume with StorageClass %q: %v", class.Name, why))
		return nil
	}
	if node == "" {
		return nil // the scheduler chooses it
	}
	n, err := client.Get[*corev1.Node](ctx, c.Client, api.Key{Name: node})
	switch {
	case apierrors.IsNotFound(err):
		return c.otherNode(ctx, pvc, "node "+node+" is gone")
	case err != nil:
		return fmt.Errorf("get node: %w", err)
	case unfit(n) != "":
		return c.otherNode(ctx, pvc, unfit(n))
	}
	v := volume(pvc, class, n)
	name := v.Name
	switch _, err := client.Create(ctx, c.Client, v); {
	case apierrors.IsAlreadyExists(err):
		return nil // the binder takes it from here
	case err != nil:
		return fmt.Errorf("make volume: %w", err)
	}
	log.Info("made a volume", "volume", name, "node", node)
	c.Events.Event(pvc, corev1.EventTypeNormal, "ProvisioningSucceeded", "Successfully provisioned volume "+name)
	return nil
}

// otherNode has the scheduler choose again.
func (c controller) otherNode(ctx context.Context, pvc *corev1.PersistentVolumeClaim, why string) error {
	c.Events.Event(pvc, corev1.EventTypeWarning, "ProvisioningFailed", fmt.Sprintf("failed to provision volume: %s", why))
	_, err := client.Mutate(ctx, c.Client, pvc, "", func(o *corev1.PersistentVolumeClaim) { delete(o.Annotations, claim.SelectedNode) })
	return err
}

// grow gives a claim what it asks for: a folder has the room of its disk anyway.
func (c controller) grow(ctx context.Context, log *slog.Logger, pvc *corev1.PersistentVolumeClaim) error {
	want, have := pvc.Spec.Resources.Requests[corev1.ResourceStorage], pvc.Status.Capacity[corev1.ResourceStorage]
	if pvc.Status.Phase != corev1.ClaimBound || want.Cmp(have) <= 0 {
		return nil
	}
	v, err := client.Get[*corev1.PersistentVolume](ctx, c.Client, api.Key{Name: pvc.Spec.VolumeName})
	if apierrors.IsNotFound(err) || err == nil && (!ours(v) || !claim.ReservedFor(v, pvc)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get volume: %w", err)
	}
	if has := v.Spec.Capacity[corev1.ResourceStorage]; has.Cmp(want) < 0 {
		if _, err := client.Mutate(ctx, c.Client, v, "", func(v *corev1.PersistentVolume) { v.Spec.Capacity[corev1.ResourceStorage] = want }); err != nil {
			return fmt.Errorf("write capacity of volume %s: %w", v.Name, err)
		}
	}
	if _, err := client.Mutate(ctx, c.Client, pvc, "status", func(o *corev1.PersistentVolumeClaim) { claim.SetResized(&o.Status, want) }); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	log.Info("a volume has grown", "volume", v.Name, "size", want.String())
	c.Events.Event(pvc, corev1.EventTypeNormal, "VolumeResizeSuccessful", "Resize volume succeeded")
	return nil
}

// volume follows what becomes of a volume of ours.
func (c controller) volume(ctx context.Context, log *slog.Logger, key api.Key) error {
	v, err := client.Get[*corev1.PersistentVolume](ctx, c.Client, key)
	if apierrors.IsNotFound(err) || err == nil && !ours(v) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get volume: %w", err)
	}
	if v, err = client.Mutate(ctx, c.Client, v, "", mend); err != nil {
		return fmt.Errorf("mend volume: %w", err)
	}
	if v.DeletionTimestamp == nil && v.Status.Phase == corev1.VolumeReleased && deletes(v) {
		log.Info("deleting a volume that was released", "volume", v.Name)
		if err := c.Client.Delete(ctx, v, client.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete volume: %w", err)
		}
		return nil
	}
	if v.DeletionTimestamp == nil || !slices.Contains(v.Finalizers, claim.LocalData) {
		return nil
	}
	node := claim.OfLocal(v)
	if _, err = client.Get[*corev1.Node](ctx, c.Client, api.Key{Name: node}); !apierrors.IsNotFound(err) {
		return err
	}
	c.Events.Event(v, corev1.EventTypeWarning, "VolumeFailedDelete", fmt.Sprintf("node %s, which has the data, is gone: the volume is deleted when it is back. "+
		"If it will not come back, take the finalizer %s away.", node, claim.LocalData))
	return nil
}
