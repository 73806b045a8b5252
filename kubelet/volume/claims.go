package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
)

// Storage is where claims and volumes of drivers lead. Errors are API errors.
type Storage interface {
	// Claim returns the claim of that name in the pod's namespace.
	Claim(name string) (*corev1.PersistentVolumeClaim, error)
	// Volume returns the PersistentVolume of that name.
	Volume(name string) (*corev1.PersistentVolume, error)
	// Node returns this node, nil before it is registered.
	Node() *corev1.Node
	// SetClaim changes the status of a claim, and returns what it is then.
	SetClaim(c *corev1.PersistentVolumeClaim, change func(*corev1.PersistentVolumeClaimStatus)) (*corev1.PersistentVolumeClaim, error)
	// Say tells users, by an Event of that type about o, of something that does not hold the pod up.
	Say(o api.Object, kind, reason, message string)
	// CSIDriver returns what the cluster says of a driver.
	CSIDriver(name string) (*storagev1.CSIDriver, error)
	// Attachment returns the VolumeAttachment of that name.
	Attachment(name string) (*storagev1.VolumeAttachment, error)
	// SecretIn returns a Secret that a volume names.
	SecretIn(namespace, name string) (*corev1.Secret, error)
}

// groupAnnotation of a volume names the group that its files belong to: containers that use it are in it.
const groupAnnotation = "pv.beta.kubernetes.io/gid"

// claimed is where a volume is that Mount has brought up.
type claimed struct {
	path     string
	readOnly bool
	group    *int64 // that containers are to be in
	volume   string // name of the PersistentVolume; empty for a pod's own volume
	alone    bool   // only one pod may have it
	block    bool   // path is a device
	local    bool   // a local volume's folder
	disk     *disk  // of a CSI driver's volume

	published time.Time // when its driver was asked to publish last; zero: it was not by this kubelet
	again     time.Time // when to look after it; zero: never
}

// slow says that the volume is one of a claim or a driver: to bring it up may take long.
func slow(vol *corev1.Volume) bool {
	return vol.PersistentVolumeClaim != nil || vol.Ephemeral != nil || vol.CSI != nil
}

// Next returns when Mount has something to do for the pod: a time of the past where a volume is not up yet; zero: never.
func (v *Volumes) Next(pod *corev1.Pod) (next time.Time) {
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		if !slow(vol) {
			continue
		}
		c := v.claimed(pod, vol)
		if c == nil {
			return time.Unix(0, 0)
		}
		if !c.again.IsZero() && (next.IsZero() || c.again.Before(next)) {
			next = c.again
		}
	}
	return next
}

// Mounted reports whether all that Mount makes for the pod is up.
func (v *Volumes) Mounted(pod *corev1.Pod) bool {
	for i := range pod.Spec.Volumes {
		if vol := &pod.Spec.Volumes[i]; slow(vol) && v.claimed(pod, vol) == nil {
			return false
		}
	}
	return true
}

// Mount brings up the pod's volumes of claims and drivers, and looks after those that are up. It may take long: a driver is asked, files
// are given to a group. It must not be called for a pod while Down is. The error joins one *Error for each volume that cannot be; where it is
// ErrWaiting, the volume only has to be attached first.
func (v *Volumes) Mount(ctx context.Context, pod *corev1.Pod, src Source) error {
	var errs []error
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		if !slow(vol) {
			continue
		}
		if err := v.claim(ctx, pod, vol, src); err != nil {
			errs = append(errs, &Error{vol.Name, err})
		}
	}
	return errors.Join(errs...)
}

// claimed returns where the volume is, nil while it is not up.
func (v *Volumes) claimed(pod *corev1.Pod, vol *corev1.Volume) *claimed {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.claims[pod.UID][vol.Name]
}

// Groups returns the groups that the files of the pod's volumes belong to. The volumes must be Up.
func (v *Volumes) Groups(pod *corev1.Pod) (gids []int64) {
	for i := range pod.Spec.Volumes {
		if c := v.claimed(pod, &pod.Spec.Volumes[i]); c != nil && c.group != nil {
			gids = append(gids, *c.group)
		}
	}
	return gids
}

// claim brings one volume up. One that is up stays: what becomes of its claim does not concern pods that have it.
func (v *Volumes) claim(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume, src Source) error {
	have := v.claimed(pod, vol)
	if have != nil && (have.again.IsZero() || time.Now().Before(have.again)) {
		return nil
	}
	c, err := v.one(ctx, pod, vol, src)
	switch {
	case err != nil && have != nil && ctx.Err() == nil:
		c = have.later(pod, src, vol.Name, err)
	case err != nil:
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if c.alone && v.hasAnother(pod.UID, c.volume) {
		return errNotAlone
	}
	if v.claims[pod.UID] == nil {
		v.claims[pod.UID] = map[string]*claimed{}
	}
	v.claims[pod.UID][vol.Name] = c
	return nil
}

// later returns c, which is up and could not be looked after, to be looked after later. Users are told why, but for what passes by itself.
func (c claimed) later(pod *corev1.Pod, src Storage, name string, err error) *claimed {
	if !errors.Is(err, ErrWaiting) && !apierrors.IsConflict(err) {
		src.Say(pod, corev1.EventTypeWarning, "FailedMount", fmt.Sprintf("volume %q, which the pod has, cannot be looked after now: %v", name, err))
	}
	c.again = time.Now().Add(lookEvery)
	return &c
}

// errNotAlone refuses a second pod on a volume that only one may have, in upstream's words.
var errNotAlone = errors.New("volume uses the ReadWriteOncePod access mode and is already in use by another pod")

// isAlone reports whether only one pod may have the volume.
func isAlone(pv *corev1.PersistentVolume) bool {
	return slices.Equal(pv.Spec.AccessModes, []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod})
}

// hasAnother reports whether another pod has the PersistentVolume. Preconditions: v.mu is held.
func (v *Volumes) hasAnother(uid types.UID, volume string) bool {
	for other, all := range v.claims {
		for _, c := range all {
			if other != uid && c.volume == volume {
				return true
			}
		}
	}
	return false
}

// one brings one volume up, or looks after it.
func (v *Volumes) one(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume, src Source) (*claimed, error) {
	if vol.CSI != nil {
		return v.ownDisk(ctx, pod, vol, src)
	}
	b, err := boundTo(pod, vol, src)
	if err != nil {
		return nil, fmt.Errorf("error processing PVC %s/%s: %w", pod.Namespace, claim.Name(pod, vol), err)
	}
	c, err := v.persistent(ctx, pod, vol, b, src)
	if err != nil {
		return nil, fmt.Errorf("persistentvolume %q: %w", b.volume.Name, err)
	}
	c.volume, c.alone = b.volume.Name, isAlone(b.volume)
	return c, nil
}

// bound is what a pod's volume of a claim is.
type bound struct {
	claim    *corev1.PersistentVolumeClaim
	volume   *corev1.PersistentVolume
	readOnly bool // the pod or the claim want it only to be read
}

// boundTo returns what the pod's volume is. Its texts are those of upstream's kubelet, which users look for.
func boundTo(pod *corev1.Pod, vol *corev1.Volume, src Storage) (none bound, err error) {
	c, err := src.Claim(claim.Name(pod, vol))
	switch {
	case err != nil:
		return none, err
	case vol.Ephemeral != nil && !metav1.IsControlledBy(c, pod):
		return none, fmt.Errorf("PVC %s/%s was not created for pod %s/%s (pod is not owner)", c.Namespace, c.Name, pod.Namespace, pod.Name)
	case c.DeletionTimestamp != nil && pod.Status.Phase != corev1.PodRunning: // a pod that has run keeps its claim
		return none, errors.New("PVC is being deleted")
	case !claim.Bound(c):
		return none, errors.New("PVC is not bound")
	}
	pv, err := src.Volume(c.Spec.VolumeName)
	if err != nil {
		return none, err
	}
	if r := pv.Spec.ClaimRef; r == nil || r.UID != c.UID {
		return none, fmt.Errorf("persistentvolume %q: spec.claimRef does not name this claim, of UID %s", pv.Name, c.UID)
	}
	readOnly := vol.PersistentVolumeClaim != nil && vol.PersistentVolumeClaim.ReadOnly
	return bound{c, pv, readOnly || onlyRead(c.Spec.AccessModes)}, nil
}

// onlyRead says whether a claim asks for reading alone.
func onlyRead(modes []corev1.PersistentVolumeAccessMode) bool {
	for _, m := range modes {
		if m != corev1.ReadOnlyMany {
			return false
		}
	}
	return len(modes) > 0
}

// persistent makes what pv has appear for the pod.
func (v *Volumes) persistent(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume, b bound, src Source) (*claimed, error) {
	pv, readOnly := b.volume, b.readOnly
	n := src.Node()
	if n == nil {
		return nil, errors.New("this node is not registered yet")
	}
	if !claim.Reaches(n, pv) {
		return nil, fmt.Errorf("spec.nodeAffinity: no matching NodeSelectorTerms for node %s", n.Name)
	}
	c := &claimed{readOnly: readOnly}
	if text, ok := pv.Annotations[groupAnnotation]; ok {
		gid, err := strconv.ParseInt(text, 10, 64)
		if err != nil || gid < 0 {
			return nil, fmt.Errorf("metadata.annotations[%s]: %q is not the number of a group", groupAnnotation, text)
		}
		c.group = &gid
	}
	options := mountOptions(pv)
	block := pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock
	switch {
	case pv.Spec.CSI != nil:
		up, err := v.claimedDisk(ctx, pod, vol, b, src)
		if up != nil {
			up.group = c.group
		}
		return up, err
	case block && pv.Spec.Local != nil:
		c.path, c.block = pv.Spec.Local.Path, true
		return c, hostDevice(pv.Spec.Local.Path)
	case block:
		return nil, fmt.Errorf("spec.volumeMode: Block is not supported by this node for %s volumes", typeName(pv.Spec.PersistentVolumeSource))
	case pv.Spec.HostPath != nil:
		if len(options) > 0 {
			return nil, fmt.Errorf("spec.mountOptions: hostPath volumes, which are not mounted, have none, not %s", strings.Join(options, ","))
		}
		c.path = pv.Spec.HostPath.Path
		return c, hostPath(pv.Spec.HostPath)
	case pv.Spec.Local != nil:
		attr, err := attributes(options, readOnly)
		if err != nil {
			return nil, err
		}
		if c.path, err = v.folder(pod, vol, localVolumes); err != nil {
			return nil, err
		}
		c.local = true
		return c, v.local(ctx, pod, pv, c.path, attr, src)
	}
	return nil, fmt.Errorf("%s volumes are not supported by this node", typeName(pv.Spec.PersistentVolumeSource))
}

// mountOptions of pv; the annotation is older than the field.
func mountOptions(pv *corev1.PersistentVolume) []string {
	if text := pv.Annotations[corev1.MountOptionAnnotation]; text != "" {
		return strings.Split(text, ",")
	}
	return pv.Spec.MountOptions
}
