// Package volumebinder binds PersistentVolumeClaims to PersistentVolumes and follows what becomes of both. It replaces
// upstream's persistentvolume binder controller.
//
//	claim  Pending ──> Bound ──> Lost         volume  Available ──> Bound ──> Released
//
// A binding is written in this order, each step of which can be repeated: the volume's claimRef, the volume's phase, the
// claim's volumeName, the claim's status.
//
// Claims of classes that wait for the node of their first pod are left to the scheduler, which reserves a volume that the pod's
// node reaches, or names the node for a provisioner; the binding is completed here.
//
// Not here: volumes are made and destroyed by provisioners outside, which also delete the volumes that they made. A volume that
// somebody made by hand is never deleted, whatever its policy says, but Failed.
//
// Keys are those of claims, and of volumes, which have no namespace.
package volumebinder

import (
	"context"
	"fmt"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

type controller struct{ reconcile.Deps }

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d.Named("persistentvolume-controller")}
	return reconcile.NewKeyed(c.Deps, reconcile.Keyed{
		Controller: "persistentvolume-binder-controller",
		Workers:    1, // two claims must not get one volume
		Sources: []reconcile.Source{
			reconcile.Mapped(func(c *corev1.PersistentVolumeClaim) []api.Key {
				keys := []api.Key{api.KeyOf(c)}
				if c.Spec.VolumeName != "" {
					keys = append(keys, api.Key{Name: c.Spec.VolumeName})
				}
				return keys
			}),
			reconcile.Changed(wokenBy, api.PersistentVolumeClaimKind),
			reconcile.MappedBy(func(ctx context.Context, d reconcile.Deps, class *storagev1.StorageClass) []api.Key {
				isDefault := claim.Default([]*storagev1.StorageClass{class}) != nil
				return waiting(ctx, d, func(c *corev1.PersistentVolumeClaim) bool {
					return claim.Class(c) == class.Name || isDefault && claim.Classless(c)
				})
			}, api.PersistentVolumeClaimKind),
		},
		Write: reconcile.Writes{
			api.PersistentVolumeKind:      {"update", "update/status"},
			api.PersistentVolumeClaimKind: {"update", "update/status"},
		},
		Run: c.run,
	})
}

// wokenBy returns the keys that a change of a volume concerns: its own, its claim's, and those of all claims that wait.
func wokenBy(ctx context.Context, d reconcile.Deps, before, after *corev1.PersistentVolume) (keys []api.Key) {
	for _, v := range []*corev1.PersistentVolume{before, after} {
		if v != nil && v.Spec.ClaimRef != nil {
			keys = append(keys, api.Key{Namespace: v.Spec.ClaimRef.Namespace, Name: v.Spec.ClaimRef.Name})
		}
	}
	if after == nil {
		return keys
	}
	keys = append(keys, api.KeyOf(after))
	if after.Spec.ClaimRef != nil {
		return keys
	}
	return append(keys, waiting(ctx, d, func(*corev1.PersistentVolumeClaim) bool { return true })...)
}

// waiting returns the keys of the claims that have no volume and for which ok is true.
func waiting(ctx context.Context, d reconcile.Deps, ok func(*corev1.PersistentVolumeClaim) bool) (keys []api.Key) {
	claims, err := client.List[*corev1.PersistentVolumeClaim](ctx, d.Client, client.Query{})
	if err != nil {
		d.Log.Warn("list claims", "err", err)
		return nil
	}
	for _, c := range claims {
		if c.Status.Phase != corev1.ClaimBound && ok(c) {
			keys = append(keys, api.KeyOf(c))
		}
	}
	return keys
}

func (c controller) run(ctx context.Context, log *slog.Logger, key api.Key) (reconcile.Result, error) {
	var err error
	if key.Namespace == "" {
		err = c.volume(ctx, key)
	} else {
		err = c.claim(ctx, log, key)
	}
	return reconcile.Result{}, err
}

func (c controller) claim(ctx context.Context, log *slog.Logger, key api.Key) error {
	pvc, err := client.Get[*corev1.PersistentVolumeClaim](ctx, c.Client, key)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get claim: %w", err)
	}
	if pvc.DeletionTimestamp != nil && pvc.Spec.VolumeName == "" {
		return nil
	}
	volumes, err := client.List[*corev1.PersistentVolume](ctx, c.Client, client.Query{})
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	class, err := c.class(ctx, claim.Class(pvc))
	if err != nil {
		return fmt.Errorf("get storage class: %w", err)
	}
	j := judge(pvc, volumes, class)
	if j.volume != nil {
		if pvc.Status.Phase != corev1.ClaimBound {
			log.Info("binding a claim", "volume", j.volume.Name)
		}
		return c.bind(ctx, pvc, j.volume)
	}
	if j.classless {
		if done, err := c.assignClass(ctx, pvc); done || err != nil {
			return err
		}
	}
	if j.reason != "" && (pvc.Status.Phase != j.phase || j.phase == corev1.ClaimPending) {
		kind := corev1.EventTypeNormal
		if j.warning {
			kind = corev1.EventTypeWarning
		}
		c.Events.Event(pvc, kind, j.reason, j.message)
	}
	if j.maker != "" {
		if pvc, err = client.Mutate(ctx, c.Client, pvc, "", func(o *corev1.PersistentVolumeClaim) { claim.Ask(o, j.maker) }); err != nil {
			return fmt.Errorf("ask the provisioner: %w", err)
		}
	}
	_, err = client.Mutate(ctx, c.Client, pvc, "status", func(o *corev1.PersistentVolumeClaim) {
		if o.Status.Phase = j.phase; j.phase == corev1.ClaimPending {
			o.Status.AccessModes, o.Status.Capacity = nil, nil
		}
	})
	return err
}

// assignClass gives a claim the class that has become the default since it was made, and says whether there is one (KEP-3333).
func (c controller) assignClass(ctx context.Context, pvc *corev1.PersistentVolumeClaim) (bool, error) {
	classes, err := client.List[*storagev1.StorageClass](ctx, c.Client, client.Query{})
	if err != nil {
		return false, fmt.Errorf("list storage classes: %w", err)
	}
	class := claim.Default(classes)
	if class == nil {
		return false, nil
	}
	if _, err := client.Mutate(ctx, c.Client, pvc, "", func(o *corev1.PersistentVolumeClaim) { o.Spec.StorageClassName = &class.Name }); err != nil {
		return false, fmt.Errorf("assign the default storage class: %w", err)
	}
	return true, nil // which wakes us
}

// class returns the storage class, nil when there is none of the name.
func (c controller) class(ctx context.Context, name string) (*storagev1.StorageClass, error) {
	if name == "" {
		return nil, nil
	}
	class, err := client.Get[*storagev1.StorageClass](ctx, c.Client, api.Key{Name: name})
	if apierrors.IsNotFound(err) {
		// It may be on its way here, and say that its claims wait.
		class, err = client.Get[*storagev1.StorageClass](client.Live(ctx), c.Client, api.Key{Name: name})
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return class, err
}

func (c controller) bind(ctx context.Context, pvc *corev1.PersistentVolumeClaim, v *corev1.PersistentVolume) error {
	v, err := client.Mutate(ctx, c.Client, v, "", func(v *corev1.PersistentVolume) { claim.Reserve(v, pvc) })
	if err != nil {
		return fmt.Errorf("reserve volume %s: %w", v.Name, err)
	}
	if v, err = client.Mutate(ctx, c.Client, v, "status", func(v *corev1.PersistentVolume) { v.Status.Phase = corev1.VolumeBound }); err != nil {
		return fmt.Errorf("write status of volume %s: %w", v.Name, err)
	}
	if pvc, err = client.Mutate(ctx, c.Client, pvc, "", func(o *corev1.PersistentVolumeClaim) { take(o, v) }); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if _, err = client.Mutate(ctx, c.Client, pvc, "status", func(o *corev1.PersistentVolumeClaim) { fill(&o.Status, v) }); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

func (c controller) volume(ctx context.Context, key api.Key) error {
	v, err := client.Get[*corev1.PersistentVolume](ctx, c.Client, key)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get volume: %w", err)
	}
	pvc, err := c.claimOf(ctx, v)
	if err != nil {
		return fmt.Errorf("get claim: %w", err)
	}
	phase, loose := settle(v, pvc)
	if loose {
		if v, err = client.Mutate(ctx, c.Client, v, "", func(v *corev1.PersistentVolume) {
			if v.Annotations[claim.Ours] != "" {
				v.Spec.ClaimRef = nil
				delete(v.Annotations, claim.Ours)
			} else {
				v.Spec.ClaimRef.UID = ""
			}
		}); err != nil {
			return fmt.Errorf("give up reservation: %w", err)
		}
	}
	message := ""
	policy := v.Spec.PersistentVolumeReclaimPolicy
	if phase == corev1.VolumeReleased && policy != corev1.PersistentVolumeReclaimRetain && policy != "" && v.Annotations[claim.ProvisionedBy] == "" {
		phase, message = corev1.VolumeFailed, fmt.Sprintf("nobody carries out the policy %s for a volume that no provisioner has made", policy)
		c.Events.Event(v, corev1.EventTypeWarning, "VolumeFailedDelete", message)
	}
	if phase == corev1.VolumeFailed && message == "" {
		message = v.Status.Message
	}
	_, err = client.Mutate(ctx, c.Client, v, "status", func(v *corev1.PersistentVolume) {
		v.Status.Phase, v.Status.Message = phase, message
	})
	return err
}

// claimOf returns the claim that v is reserved for, nil when there is none. That v's own claim is gone must be true: who is told
// so destroys what is on the volume.
func (c controller) claimOf(ctx context.Context, v *corev1.PersistentVolume) (*corev1.PersistentVolumeClaim, error) {
	r := v.Spec.ClaimRef
	if r == nil {
		return nil, nil
	}
	key := api.Key{Namespace: r.Namespace, Name: r.Name}
	pvc, err := client.Get[*corev1.PersistentVolumeClaim](ctx, c.Client, key)
	if apierrors.IsNotFound(err) || err == nil && r.UID != "" && pvc.UID != r.UID {
		pvc, err = client.Get[*corev1.PersistentVolumeClaim](client.Live(ctx), c.Client, key)
	}
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return pvc, err
}
