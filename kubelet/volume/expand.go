package volume

import (
	"context"
	"fmt"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/csi"
)

// noNodeExpansion on a claim says that its volume grows without its nodes.
const noNodeExpansion = "volume.kubernetes.io/node-expansion-not-required"

// growth returns to which size the node has to expand the volume, nil: to none; and whether the claim's status is to tell. A volume of many nodes
// is expanded on each, by which the claim may have its size already: known is the size in bytes with which this node has it.
func growth(c *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, known int64) (size *resource.Quantity, tells bool) {
	want := pv.Spec.Capacity[corev1.ResourceStorage]
	have := c.Status.Capacity[corev1.ResourceStorage]
	switch c.Status.AllocatedResourceStatuses[corev1.ResourceStorage] {
	case corev1.PersistentVolumeClaimNodeResizePending, corev1.PersistentVolumeClaimNodeResizeInProgress:
		return &want, true
	case "":
		if want.Cmp(have) > 0 {
			return &want, true
		}
		_, not := c.Annotations[noNodeExpansion]
		if known > 0 && want.CmpInt64(known) > 0 && !not && slices.Contains(pv.Spec.AccessModes, corev1.ReadWriteMany) {
			return &want, false
		}
	}
	return nil, false // the controller is at it, or it was found that it cannot be
}

// grow expands a published volume where its claim has grown. What fails is told and tried again: the pod has its volume meanwhile.
func (v *Volumes) grow(ctx context.Context, m *mounting, d *disk) error {
	if m.pv == nil || m.readOnly {
		return nil
	}
	size, tells := growth(m.claim, m.pv, d.Size)
	if size == nil || !m.can[spec.NodeServiceCapability_RPC_EXPAND_VOLUME] { // a driver without it has nothing to do here
		return v.noteSize(m, d)
	}
	c := m.claim
	var err error
	if tells {
		c, err = m.src.SetClaim(c, func(s *corev1.PersistentVolumeClaimStatus) {
			setResize(s, corev1.PersistentVolumeClaimNodeResizeInProgress)
		})
		if err != nil {
			return err
		}
	}
	if failed := v.expand(ctx, m, d, size.Value()); failed != nil {
		m.src.Say(m.pod, corev1.EventTypeWarning, "VolumeResizeFailed", fmt.Sprintf("NodeExpandVolume failed for volume %q : %v", d.Name, failed))
		if !tells || unsure(failed) {
			return nil
		}
		_, err = m.src.SetClaim(c, func(s *corev1.PersistentVolumeClaimStatus) { setFailed(s, failed, metav1.Now()) })
		return err
	}
	const done = "MountVolume.NodeExpandVolume succeeded for volume %q"
	m.src.Say(m.pod, corev1.EventTypeNormal, "FileSystemResizeSuccessful", fmt.Sprintf(done, d.Name))
	m.src.Say(c, corev1.EventTypeNormal, "FileSystemResizeSuccessful", fmt.Sprintf(done, d.Name))
	if tells {
		if _, err := m.src.SetClaim(c, func(s *corev1.PersistentVolumeClaimStatus) { claim.SetResized(s, *size) }); err != nil {
			return err
		}
	}
	return v.noteSize(m, d)
}

// noteSize notes with which size the node has the volume.
func (v *Volumes) noteSize(m *mounting, d *disk) error {
	size := m.pv.Spec.Capacity[corev1.ResourceStorage]
	if d.Size == size.Value() {
		return nil
	}
	d.Size = size.Value()
	return v.save(m.pod.UID, d)
}

// expand asks the driver.
func (v *Volumes) expand(ctx context.Context, m *mounting, d *disk, bytes int64) error {
	secrets, err := m.secrets(m.pv.Spec.CSI.NodeExpandSecretRef)
	if err != nil {
		return err
	}
	r := &spec.NodeExpandVolumeRequest{VolumeId: d.Handle, VolumePath: v.target(m.pod.UID, d), CapacityRange: &spec.CapacityRange{RequiredBytes: bytes},
		VolumeCapability: m.capability(d), Secrets: secrets}
	if m.stages() {
		r.StagingTargetPath, _ = v.staging(d)
	}
	return m.node.Expand(ctx, r)
}

// unsure says of a failed call that it may be carried out yet, or be when it is repeated.
func unsure(err error) bool {
	return slices.Contains([]codes.Code{codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted}, csi.Code(err))
}

func setResize(s *corev1.PersistentVolumeClaimStatus, to corev1.ClaimResourceStatus) {
	if s.AllocatedResourceStatuses == nil {
		s.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{}
	}
	s.AllocatedResourceStatuses[corev1.ResourceStorage] = to
}

// setFailed tells of a failure; one that cannot be mended by trying again is for the controller.
func setFailed(s *corev1.PersistentVolumeClaimStatus, err error, now metav1.Time) {
	if csi.Infeasible(err) {
		setResize(s, corev1.PersistentVolumeClaimNodeResizeInfeasible)
	}
	text := fmt.Sprintf("failed to expand pvc with %v", err)
	c := corev1.PersistentVolumeClaimCondition{Type: corev1.PersistentVolumeClaimNodeResizeError, Status: corev1.ConditionTrue, LastTransitionTime: now, Message: text}
	for i := range s.Conditions {
		if have := &s.Conditions[i]; have.Type == c.Type {
			if have.Message != text || have.Status != c.Status {
				*have = c
			}
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}
