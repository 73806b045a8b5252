package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/csi"
	"github.com/yare-dev/yare/linux"
)

// ErrWaiting is why a volume is not up that only has to be attached first; the Node changes when it is.
var ErrWaiting = errors.New("waiting for attachment")

// podInfo opens the names of what is told drivers about pods, in a volume's context.
const podInfo = "csi.storage.k8s.io/"

// lookEvery is how often a volume that is up is looked after: it is published again where its driver wants that, as often as upstream does, and
// has perhaps grown, as a kubelet may not watch claims. What failed then is tried again as late.
const lookEvery = time.Minute

// mounting is one attempt to bring a disk up, or to publish it again.
type mounting struct {
	pod *corev1.Pod
	src Source
	own *corev1.CSIVolumeSource // nil for a claim's

	claim *corev1.PersistentVolumeClaim // nil for a pod's own volume, as is pv
	pv    *corev1.PersistentVolume

	readOnly bool
	last     time.Time            // when the driver was asked to publish last; zero: it was not by this kubelet
	object   *storagev1.CSIDriver // nil where there is none
	node     csi.Node
	can      csi.Capabilities
	publish  map[string]string // context of the volume's attachment
}

// ownDisk brings a pod's own CSI volume up.
func (v *Volumes) ownDisk(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume, src Source) (*claimed, error) {
	m := &mounting{pod: pod, src: src, own: vol.CSI, readOnly: vol.CSI.ReadOnly != nil && *vol.CSI.ReadOnly, last: v.publishedAt(pod, vol)}
	if _, err := v.folder(pod, vol, "csi"); err != nil { // the name becomes a path's
		return nil, err
	}
	return v.mountDisk(ctx, m, disk{Name: vol.Name, Handle: ownHandle(pod.UID, vol.Name), Driver: vol.CSI.Driver, Node: v.disks.Node,
		Lifecycle: string(storagev1.VolumeLifecycleEphemeral)})
}

// claimedDisk brings up the CSI volume that a claim is bound to.
func (v *Volumes) claimedDisk(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume, b bound, src Source) (*claimed, error) {
	pv, s := b.volume, b.volume.Spec.CSI
	m := &mounting{pod: pod, src: src, claim: b.claim, pv: pv, readOnly: b.readOnly, last: v.publishedAt(pod, vol)}
	return v.mountDisk(ctx, m, disk{Name: pv.Name, Handle: s.VolumeHandle, Driver: s.Driver, Node: v.disks.Node,
		Attachment: claim.AttachmentName(s.VolumeHandle, s.Driver, v.disks.Node), Lifecycle: string(storagev1.VolumeLifecyclePersistent),
		Block: pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock})
}

// mountDisk goes from nothing, or from wherever an earlier attempt came to, to a published volume. Nothing takes a volume from a pod that has
// it: what fails then is told, and tried again.
func (v *Volumes) mountDisk(ctx context.Context, m *mounting, d disk) (*claimed, error) {
	have, err := v.diskOf(m.pod.UID, d.Name)
	if err != nil {
		return nil, err
	}
	if have != nil && have.uniqueName() != d.uniqueName() {
		return nil, fmt.Errorf("the pod has volume %s under the name %s, which volume %s has too: give one of them another name", have.uniqueName(), d.Name, d.uniqueName())
	}
	up, err := v.bringUp(ctx, m, d)
	if err != nil && have != nil && have.Published == v.disks.Boot && ctx.Err() == nil {
		up = &claimed{path: v.target(m.pod.UID, have), readOnly: m.readOnly, block: have.Block, disk: have, published: m.last}
		return up.later(m.pod, m.src, d.Name, err), nil
	}
	return up, err
}

// bringUp is an attempt of mountDisk.
func (v *Volumes) bringUp(ctx context.Context, m *mounting, d disk) (*claimed, error) {
	if err := m.ask(ctx, v, &d); err != nil {
		return nil, err
	}
	defer v.locks.lock(d.uniqueName())()       // one call at a time is made about a volume
	if err := context.Cause(ctx); err != nil { // the pod may have ended while another worked on the volume
		return nil, err
	}
	if err := v.alone(m, &d); err != nil {
		return nil, err
	}
	have, err := v.diskOf(m.pod.UID, d.Name)
	if err != nil {
		return nil, err
	}
	if d.Uncalled = have == nil || have.Uncalled; have != nil {
		d.Published, d.Size = have.Published, have.Size
	}
	if have == nil || *have != d {
		if err := v.save(m.pod.UID, &d); err != nil {
			return nil, err
		}
	}
	up := &claimed{path: v.target(m.pod.UID, &d), readOnly: m.readOnly, block: d.Block, disk: &d, published: m.last}
	if now := time.Now(); d.Published != v.disks.Boot || m.due(now) {
		if d.attached() {
			if !v.isReported(d.uniqueName()) {
				return nil, fmt.Errorf("%w: the Node does not say yet that the volume is in use", ErrWaiting)
			}
			if m.publish, err = m.attachment(&d); err != nil {
				return nil, err
			}
		}
		if err := v.perform(ctx, m, &d); err != nil {
			return nil, err
		}
		up.published = now
	}
	up.again = m.again(time.Now())
	if err := v.grow(ctx, m, &d); err != nil {
		return up.later(m.pod, m.src, d.Name, err), nil
	}
	return up, nil
}

// publishedAt returns when this kubelet had the pod's volume published last.
func (v *Volumes) publishedAt(pod *corev1.Pod, vol *corev1.Volume) time.Time {
	if c := v.claimed(pod, vol); c != nil {
		return c.published
	}
	return time.Time{}
}

// stages reports whether the volume is staged before it is published.
func (m *mounting) stages() bool {
	return m.pv != nil && m.can[spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME]
}

// ask finds the driver, and what is known of it.
func (m *mounting) ask(ctx context.Context, v *Volumes, d *disk) (err error) {
	if m.object, err = m.src.CSIDriver(d.Driver); apierrors.IsNotFound(err) {
		m.object = nil
	} else if err != nil {
		return fmt.Errorf("CSIDriver %s: %w", d.Driver, err)
	}
	if err := supports(m.object, d.Driver, storagev1.VolumeLifecycleMode(d.Lifecycle)); err != nil {
		return err
	}
	if m.node, err = v.driver(d.Driver); err != nil {
		return err
	}
	d.Unattached = m.pv == nil || !claim.NeedsAttaching(m.object)
	m.can, err = m.node.Capabilities(ctx)
	return err
}

// alone refuses a second pod on a volume that only one may have, also before that one has it.
func (v *Volumes) alone(m *mounting, d *disk) error {
	if m.pv == nil || !isAlone(m.pv) {
		return nil
	}
	used, err := v.others(m.pod.UID, d, func(o *disk) bool { return o.uniqueName() == d.uniqueName() })
	if used {
		return errNotAlone
	}
	return err
}

// attachment returns what whoever has attached the volume says to the driver on the node.
func (m *mounting) attachment(d *disk) (map[string]string, error) {
	n := m.src.Node()
	if n == nil {
		return nil, errors.New("this node is not registered yet")
	}
	if !slices.ContainsFunc(n.Status.VolumesAttached, func(a corev1.AttachedVolume) bool { return a.Name == d.uniqueName() }) {
		return nil, fmt.Errorf("%w: the Node does not say yet that the volume is attached", ErrWaiting)
	}
	a, err := m.src.Attachment(d.Attachment)
	switch {
	case err != nil:
		return nil, fmt.Errorf("VolumeAttachment %s: %w", d.Attachment, err)
	case a.DeletionTimestamp != nil:
		return nil, fmt.Errorf("%w: VolumeAttachment %s is being deleted", ErrWaiting, a.Name)
	case !a.Status.Attached && a.Status.AttachError != nil:
		return nil, fmt.Errorf("volume attachment failed: %s", a.Status.AttachError.Message)
	case !a.Status.Attached:
		return nil, fmt.Errorf("%w: VolumeAttachment %s", ErrWaiting, a.Name)
	}
	return a.Status.AttachmentMetadata, nil
}

// perform stages, publishes and gives the volume to the pod's group. Preconditions: the disk is written down and locked.
func (v *Volumes) perform(ctx context.Context, m *mounting, d *disk) error {
	if d.Uncalled {
		d.Uncalled = false
		if err := v.save(m.pod.UID, d); err != nil {
			return err
		}
	}
	path := ""
	if m.stages() {
		path, _ = v.staging(d)
		if err := v.stage(ctx, m, d); err != nil {
			return err
		}
	}
	again := d.Published == v.disks.Boot
	if err := v.publish(ctx, m, d, path); err != nil || again {
		return err
	}
	if err := v.giveDisk(ctx, m, d); err != nil {
		return err
	}
	d.Published = v.disks.Boot
	return v.save(m.pod.UID, d)
}

// stage makes the volume ready for the node, once in a boot.
func (v *Volumes) stage(ctx context.Context, m *mounting, d *disk) error {
	path, record := v.staging(d)
	var s staging
	if err := readJSON(record, &s); err == nil && s.Staged == v.disks.Boot {
		return nil
	}
	s = staging{Driver: d.Driver, Handle: d.Handle, Name: d.Name, Block: d.Block}
	if err := errors.Join(os.MkdirAll(path, 0o750), writeJSON(record, s)); err != nil {
		return err
	}
	source := m.pv.Spec.CSI
	secrets, err := m.secrets(source.NodeStageSecretRef)
	if err != nil {
		return err
	}
	err = m.node.Stage(ctx, &spec.NodeStageVolumeRequest{VolumeId: d.Handle, PublishContext: m.publish, StagingTargetPath: path,
		VolumeCapability: m.capability(d), Secrets: secrets, VolumeContext: source.VolumeAttributes})
	if err != nil {
		return err
	}
	s.Staged = v.disks.Boot
	return writeJSON(record, s)
}

// publish shows the volume to the pod.
func (v *Volumes) publish(ctx context.Context, m *mounting, d *disk, staged string) error {
	target := v.target(m.pod.UID, d)
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	r := &spec.NodePublishVolumeRequest{VolumeId: d.Handle, PublishContext: m.publish, StagingTargetPath: staged, TargetPath: target,
		VolumeCapability: m.capability(d), Readonly: m.readOnly}
	var err error
	if m.pv != nil {
		r.VolumeContext = maps.Clone(m.pv.Spec.CSI.VolumeAttributes)
		r.Secrets, err = m.secrets(m.pv.Spec.CSI.NodePublishSecretRef)
	} else {
		r.VolumeContext = maps.Clone(m.own.VolumeAttributes)
		if ref := m.own.NodePublishSecretRef; ref != nil {
			r.Secrets, err = m.secrets(&corev1.SecretReference{Namespace: m.pod.Namespace, Name: ref.Name})
		}
	}
	if err != nil {
		return err
	}
	if err := m.tellPod(ctx, d, r); err != nil {
		return err
	}
	return m.node.Publish(ctx, r)
}

// tellPod adds what the driver wants to know of the pod.
func (m *mounting) tellPod(ctx context.Context, d *disk, r *spec.NodePublishVolumeRequest) error {
	if m.object == nil {
		return nil
	}
	add := func(to *map[string]string, key, value string) {
		if *to == nil {
			*to = map[string]string{}
		}
		(*to)[key] = value
	}
	if m.object.Spec.PodInfoOnMount != nil && *m.object.Spec.PodInfoOnMount {
		for key, value := range map[string]string{"pod.name": m.pod.Name, "pod.namespace": m.pod.Namespace, "pod.uid": string(m.pod.UID),
			"serviceAccount.name": m.pod.Spec.ServiceAccountName,
			"ephemeral":           strconv.FormatBool(d.Lifecycle == string(storagev1.VolumeLifecycleEphemeral))} {
			add(&r.VolumeContext, podInfo+key, value)
		}
	}
	if len(m.object.Spec.TokenRequests) == 0 {
		return nil
	}
	text, err := m.tokens(ctx)
	if err != nil {
		return fmt.Errorf("tokens for driver %s: %w", d.Driver, err)
	}
	if in := m.object.Spec.ServiceAccountTokenInSecrets; in != nil && *in {
		r.Secrets = maps.Clone(r.Secrets)
		add(&r.Secrets, csi.Tokens, text)
	} else {
		add(&r.VolumeContext, csi.Tokens, text)
	}
	return nil
}

// tokens of the pod's service account, by audience, as the driver reads them.
func (m *mounting) tokens(ctx context.Context) (string, error) {
	all := map[string]authenticationv1.TokenRequestStatus{}
	for _, t := range m.object.Spec.TokenRequests {
		seconds := int64(3600)
		if t.ExpirationSeconds != nil {
			seconds = *t.ExpirationSeconds
		}
		req := authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: m.pod.Name, UID: m.pod.UID}}
		if t.Audience != "" {
			req.Audiences = []string{t.Audience}
		}
		status, _, err := m.src.Token(ctx, m.pod, req)
		if err != nil {
			return "", err
		}
		all[t.Audience] = status
	}
	text, err := json.Marshal(all)
	return string(text), err
}

// republishes reports whether the driver wants its volumes to be published again and again.
func (m *mounting) republishes() bool {
	return m.object != nil && m.object.Spec.RequiresRepublish != nil && *m.object.Spec.RequiresRepublish
}

// due reports whether the volume, which was published, has to be so again. Tokens live ten minutes at least: the driver gets another in time.
func (m *mounting) due(now time.Time) bool {
	return m.republishes() && (m.last.IsZero() || !now.Before(m.last.Add(lookEvery)))
}

// again is when to look after the volume next; zero: never.
func (m *mounting) again(now time.Time) time.Time {
	if m.republishes() || m.pv != nil && !m.readOnly && m.can[spec.NodeServiceCapability_RPC_EXPAND_VOLUME] {
		return now.Add(lookEvery)
	}
	return time.Time{}
}

// secrets returns what is in a Secret that the volume names; nil where it names none.
func (m *mounting) secrets(ref *corev1.SecretReference) (map[string]string, error) {
	if ref == nil {
		return nil, nil
	}
	s, err := m.src.SecretIn(ref.Namespace, ref.Name)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string, len(s.Data))
	for key, value := range s.Data {
		out[key] = string(value)
	}
	return out, nil
}

// capability is how the volume is to be used. Of several access modes the first counts, as upstream has it.
func (m *mounting) capability(d *disk) *spec.VolumeCapability {
	mode := corev1.ReadWriteOnce
	if m.pv != nil && len(m.pv.Spec.AccessModes) > 0 {
		mode = m.pv.Spec.AccessModes[0]
	}
	c := &spec.VolumeCapability{AccessMode: &spec.VolumeCapability_AccessMode{Mode: accessMode(mode, m.can)}}
	if d.Block {
		c.AccessType = &spec.VolumeCapability_Block{Block: &spec.VolumeCapability_BlockVolume{}}
		return c
	}
	mount := &spec.VolumeCapability_MountVolume{FsType: m.fsType()}
	if m.pv != nil {
		mount.MountFlags = mountOptions(m.pv)
	}
	if gid := fsGroup(m.pod); gid != nil && m.can[spec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP] {
		mount.VolumeMountGroup = strconv.FormatInt(*gid, 10)
	}
	c.AccessType = &spec.VolumeCapability_Mount{Mount: mount}
	return c
}

func (m *mounting) fsType() string {
	switch {
	case m.pv != nil:
		return m.pv.Spec.CSI.FSType
	case m.own.FSType != nil:
		return *m.own.FSType
	}
	return ""
}

func accessMode(mode corev1.PersistentVolumeAccessMode, can csi.Capabilities) spec.VolumeCapability_AccessMode_Mode {
	several := can[spec.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER]
	switch {
	case mode == corev1.ReadOnlyMany:
		return spec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	case mode == corev1.ReadWriteMany:
		return spec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	case mode == corev1.ReadWriteOncePod && several:
		return spec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
	case several:
		return spec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
	}
	return spec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
}

// groups reports whether the node has to give the volume's files to the pod's group.
func (m *mounting) groups(d *disk) bool {
	if fsGroup(m.pod) == nil || m.readOnly || d.Block || m.can[spec.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP] {
		return false
	}
	policy := storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy
	if m.object != nil && m.object.Spec.FSGroupPolicy != nil {
		policy = *m.object.Spec.FSGroupPolicy
	}
	switch {
	case policy == storagev1.NoneFSGroupPolicy:
		return false
	case policy == storagev1.FileFSGroupPolicy:
		return true
	case m.fsType() == "":
		return false
	case m.pv == nil:
		return true
	}
	return slices.ContainsFunc(m.pv.Spec.AccessModes, func(a corev1.PersistentVolumeAccessMode) bool {
		return a == corev1.ReadWriteOnce || a == corev1.ReadWriteOncePod
	})
}

func (v *Volumes) giveDisk(ctx context.Context, m *mounting, d *disk) error {
	if !m.groups(d) {
		return nil
	}
	root, err := os.OpenRoot(v.target(m.pod.UID, d))
	if err != nil {
		return err
	}
	defer root.Close()
	return giveRoot(ctx, root, m.pod, d.Name, m.src)
}

// unpublish takes the volume from the pod.
func (v *Volumes) unpublish(ctx context.Context, n csi.Node, uid types.UID, d *disk) error {
	target := v.target(uid, d)
	err := n.Unpublish(ctx, &spec.NodeUnpublishVolumeRequest{VolumeId: d.Handle, TargetPath: target})
	if err = settled(err, target); err != nil {
		return err
	}
	if err := remove(target); err != nil {
		return err
	}
	if d.Block {
		removeEmpty(filepath.Dir(target), v.disks.Dir)
	}
	return nil
}

// unstage undoes stage, where something of it is left.
func (v *Volumes) unstage(ctx context.Context, n csi.Node, d *disk) error {
	path, record := v.staging(d)
	if _, err := os.Lstat(record); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	err := n.Unstage(ctx, &spec.NodeUnstageVolumeRequest{VolumeId: d.Handle, StagingTargetPath: path})
	if err = settled(err, path); err != nil {
		return err
	}
	if err := errors.Join(remove(path), remove(record)); err != nil {
		return err
	}
	removeEmpty(filepath.Dir(path), v.disks.Dir)
	removeEmpty(filepath.Dir(record), v.disks.Dir)
	return nil
}

// settled is the outcome of a call that undoes: a driver that knows nothing of the volume has nothing to undo, and what it has mounted is
// unmounted here; one that says that it is done has nothing mounted there any more.
func settled(err error, path string) error {
	for {
		switch mounted, merr := linux.Mounted(path); {
		case merr != nil:
			return errors.Join(err, merr)
		case !mounted && csi.Code(err) == codes.NotFound:
			return nil
		case mounted && csi.Code(err) == codes.NotFound:
			if uerr := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); uerr != nil {
				return fmt.Errorf("%w; unmount %s: %w", err, path, uerr)
			}
		case mounted && err == nil:
			return fmt.Errorf("the driver says that it is done, and %s is still mounted", path)
		default:
			return err
		}
	}
}

// removeEmpty removes empty folders from dir upwards, but not top.
func removeEmpty(dir, top string) {
	for strings.HasPrefix(dir, top+"/") && os.Remove(dir) == nil {
		dir = filepath.Dir(dir)
	}
}
