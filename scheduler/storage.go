package scheduler

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/scheduler/cluster"
	"github.com/yare-dev/yare/scheduler/plugins"
)

// await starts the binding of p's claims, for volumes and for devices, for a node that was chosen. The pod is promised the node, and tried
// again when claims or volumes have changed: it fits there alone from then on. So a pod waits for its volumes and for drivers that
// prepare its devices without any write being under way, and after a restart as before. Either of b and a may be nil.
func (s *Scheduler) await(ctx context.Context, it *item, p *cluster.Pod, b *plugins.Binding, a *plugins.Allotment, node string, now time.Time) {
	pod := it.pod
	known := s.promises[p.UID].node == node
	s.promises[p.UID] = promise{pod, node}
	s.queue.fail(it, plugins.Volumes|plugins.Devices|plugins.NodeAdded|plugins.NodeLabels, now)
	if a != nil && !a.Until.IsZero() {
		s.queue.patience(it, a.Until.Add(time.Second)) // the API's times are whole seconds
	}
	if b == nil {
		b = &plugins.Binding{}
	}
	claims := s.allot(pod, a)
	if known && len(b.Reserve)+len(b.Select) == 0 && claims == nil {
		return
	}
	var writes []func() error
	var undo []func()
	for v, pvc := range b.Reserve {
		// Others do not get it meanwhile.
		assumed := v.DeepCopy()
		claim.Reserve(assumed, pvc)
		s.cluster.Volumes[v.Name] = assumed
		undo = append(undo, func() {
			if s.cluster.Volumes[v.Name] == assumed {
				s.cluster.Volumes[v.Name] = v
			}
		})
		writes = append(writes, func() error {
			if _, err := s.c.Client.Update(ctx, assumed.DeepCopy(), ""); err != nil {
				return fmt.Errorf("reserve volume %s for claim %s: %w", v.Name, api.KeyOf(pvc), err)
			}
			return nil
		})
	}
	for _, pvc := range b.Select {
		writes = append(writes, func() error {
			if err := s.selectNode(ctx, pvc, node); err != nil {
				return fmt.Errorf("select the node of claim %s: %w", api.KeyOf(pvc), err)
			}
			return nil
		})
	}
	s.write(result{undo: undo, claims: claims}, func() error {
		errs := []error{s.writeClaims(ctx, claims)}
		for _, w := range writes {
			errs = append(errs, w())
		}
		return errors.Join(append(errs, s.status(ctx, pod, func(p *corev1.Pod) { p.Status.NominatedNodeName = node }))...)
	})
}

// selectNode tells the provisioner of a claim for which node it is, whatever was written to the claim meanwhile, unless it has its volume
// or is gone by now.
func (s *Scheduler) selectNode(ctx context.Context, pvc *corev1.PersistentVolumeClaim, node string) error {
	for {
		_, err := client.Mutate(ctx, s.c.Client, pvc, "", func(o *corev1.PersistentVolumeClaim) {
			metav1.SetMetaDataAnnotation(&o.ObjectMeta, claim.SelectedNode, node)
		})
		if !apierrors.IsConflict(err) {
			return err
		}
		now, err := client.Get[*corev1.PersistentVolumeClaim](ctx, s.c.Client, api.KeyOf(pvc))
		if apierrors.IsNotFound(err) || err == nil && (now.UID != pvc.UID || now.Spec.VolumeName != "") {
			return nil
		}
		if err != nil {
			return err
		}
		pvc = now
	}
}

// storageKinds are the kinds that takeStorage takes in.
func storageKinds() []*api.Kind {
	return []*api.Kind{api.StorageClassKind, api.PersistentVolumeKind, api.PersistentVolumeClaimKind, api.CSIDriverKind, api.CSINodeKind,
		api.VolumeAttachmentKind, api.CSIStorageCapacityKind}
}

// takeStorage takes in a change of what volumes are made of.
func (s *Scheduler) takeStorage(o api.Object, deleted bool) plugins.Change {
	switch o := o.(type) {
	case *corev1.PersistentVolumeClaim:
		put(s.cluster.Claims, api.KeyOf(o), o, deleted)
	case *corev1.PersistentVolume:
		put(s.cluster.Volumes, o.Name, o, deleted)
	case *storagev1.StorageClass:
		put(s.cluster.Classes, o.Name, o, deleted)
	case *storagev1.CSIDriver:
		put(s.cluster.Drivers, o.Name, o, deleted)
		return plugins.Capacities | plugins.Attachments
	case *storagev1.CSINode:
		put(s.cluster.DriversOn, o.Name, o, deleted)
		return plugins.Attachments
	case *storagev1.VolumeAttachment:
		putIn(s.cluster.Attached, o.Spec.NodeName, o.Name, o, deleted)
		if !deleted {
			return 0 // takes room, and makes none
		}
		return plugins.Attachments
	case *storagev1.CSIStorageCapacity:
		putIn(s.cluster.Capacities, o.StorageClassName, api.KeyOf(o), o, deleted)
		return plugins.Capacities
	}
	return plugins.Volumes
}

func put[K comparable, V any](m map[K]V, k K, v V, deleted bool) {
	if deleted {
		delete(m, k)
	} else {
		m[k] = v
	}
}

// putIn is put for maps by two keys, of which the first never changes of a v.
func putIn[J, K comparable, V any](m map[J]map[K]V, j J, k K, v V, deleted bool) {
	if m[j] == nil {
		m[j] = map[K]V{}
	}
	if put(m[j], k, v, deleted); len(m[j]) == 0 {
		delete(m, j)
	}
}
