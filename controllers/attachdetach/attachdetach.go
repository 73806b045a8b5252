// Package attachdetach has the CSI volumes of placed pods attached to their nodes, and detached when they are used no more. It
// replaces upstream's attach/detach controller.
//
//	pod on a node, claim, volume ──> VolumeAttachment ──(attacher outside)──> status.attached ──> Node.status.volumesAttached
//	nobody wants it, not in Node.status.volumesInUse ──> gone from volumesAttached ──> VolumeAttachment deleted
//
// Attaching itself is what external-attacher does for a driver, by the VolumeAttachments. A driver whose CSIDriver says
// attachRequired: false needs none; one without a CSIDriver needs it.
//
// Invariants:
//   - What is wanted follows from pods, claims and volumes; what is, from VolumeAttachments. Nothing else is remembered but since when
//     something waits, and what was told.
//   - A volume that only one node may have gets no second VolumeAttachment while one is there, attached or not.
//   - A VolumeAttachment is deleted only after a write of the Node that took the volume out of volumesAttached and found it not in
//     volumesInUse. A kubelet does it the other way round, so that one of the two sees the other.
//   - That a kubelet uses a volume is overruled where its node is out of service by its taint, or not ready for six minutes after
//     the last pod went.
//
// VolumeAttachments whose names are not ours are left alone. Of ours whose PersistentVolume is gone the handle is told by their name.
package attachdetach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const (
	// least is the time between two looks, so that a storm of pods is looked at once.
	least = 50 * time.Millisecond
	// patience is how long a node that is not ready may claim to use a volume that nobody wants there.
	patience = 6 * time.Minute
	// attachTime is after how long without a word from its attacher a volume's pods are told.
	attachTime = 2 * time.Minute
)

type controller struct {
	reconcile.Deps

	// Only touched by run.
	unwanted map[types.UID]time.Time // VolumeAttachments, since when nobody wants them
	told     map[telling]string      // what pods were told last, so that they are told once
}

// telling is a pod and a volume.
type telling struct {
	pod    types.UID
	volume string
}

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := &controller{Deps: d.Named("attachdetach-controller"), unwanted: map[types.UID]time.Time{}, told: map[telling]string{}}
	return reconcile.NewLoop(c.Deps, reconcile.Loop{
		Controller: "persistentvolume-attach-detach-controller",
		Wake: []*api.Kind{api.PodKind, api.PersistentVolumeClaimKind, api.PersistentVolumeKind, api.NodeKind, api.CSIDriverKind,
			api.VolumeAttachmentKind},
		Heeds: heeds,
		Write: reconcile.Writes{api.VolumeAttachmentKind: {"create", "delete"}, api.NodeKind: {"update/status"}},
		Least: least,
		Run:   c.run,
	})
}

func (c *controller) run(ctx context.Context, log *slog.Logger) (reconcile.Result, error) {
	w, err := look(ctx, c.Client)
	if w == nil || err != nil {
		return reconcile.Result{}, err
	}
	w.since = c.unwanted
	p := w.plan(time.Now())
	c.unwanted = p.unwanted
	c.tell(p.news)
	errs := []error{c.report(ctx, log, p.reports)}
	for _, a := range p.attach {
		log.Info("attaching a volume", "volume", a.volume.Name, "node", a.node)
		if _, err := client.Create(ctx, c.Client, newAttachment(a)); err != nil && !apierrors.IsAlreadyExists(err) { // its coming wakes us
			errs = append(errs, fmt.Errorf("attach volume %s to node %s: %w", a.volume.Name, a.node, err))
		}
	}
	return reconcile.Result{After: p.after}, errors.Join(errs...)
}

// newAttachment is the VolumeAttachment of a volume that is wanted on a node.
func newAttachment(a want) *storagev1.VolumeAttachment {
	csi := a.volume.Spec.CSI
	return &storagev1.VolumeAttachment{
		ObjectMeta: metav1.ObjectMeta{Name: claim.AttachmentName(csi.VolumeHandle, csi.Driver, a.node)},
		Spec: storagev1.VolumeAttachmentSpec{Attacher: csi.Driver, NodeName: a.node,
			Source: storagev1.VolumeAttachmentSource{PersistentVolumeName: &a.volume.Name}},
	}
}

// report brings the volumesAttached of nodes up to date, and then deletes the attachments that were taken out of them.
func (c *controller) report(ctx context.Context, log *slog.Logger, reports []report) error {
	var errs []error
	for _, n := range reports {
		node := n.node
		if node != nil {
			var err error
			if node, err = client.Mutate(ctx, c.Client, node, "status", func(o *corev1.Node) { o.Status.VolumesAttached = n.attached }); err != nil {
				if !apierrors.IsNotFound(err) {
					errs = append(errs, fmt.Errorf("write volumesAttached of node %s: %w", n.node.Name, err))
					continue
				}
				node = nil
			}
		}
		for _, d := range n.detach {
			if node != nil && !d.forced && slices.Contains(node.Status.VolumesInUse, d.name) {
				continue // it was mounted meanwhile, which wakes us
			}
			log.Info("detaching a volume", "volume", *d.Spec.Source.PersistentVolumeName, "node", d.Spec.NodeName, "forced", d.forced)
			if err := c.Client.Delete(ctx, d.VolumeAttachment, client.DeleteOptions{AnyRevision: true}); err != nil && !apierrors.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("detach volume %s from node %s: %w", *d.Spec.Source.PersistentVolumeName, d.Spec.NodeName, err))
			}
		}
	}
	return errors.Join(errs...)
}

// tell makes Events of what pods were not told yet, and forgets what is not so any more.
func (c *controller) tell(news map[telling]event) {
	for at := range c.told {
		if _, still := news[at]; !still {
			delete(c.told, at)
		}
	}
	for at, e := range news {
		text := e.reason + e.message
		if c.told[at] == text {
			continue
		}
		c.told[at] = text
		if e.reason == "" {
			continue
		}
		kind := corev1.EventTypeWarning
		if e.reason == attached {
			kind = corev1.EventTypeNormal
		}
		c.Events.Event(e.pod, kind, e.reason, e.message)
	}
}
