package attachdetach

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
)

// world is what there is.
type world struct {
	pods        []*corev1.Pod // with a node and claims, and not ended; the oldest first
	claims      map[api.Key]*corev1.PersistentVolumeClaim
	volumes     map[string]*corev1.PersistentVolume
	nodes       []*corev1.Node
	drivers     map[string]*storagev1.CSIDriver
	attachments []*storagev1.VolumeAttachment // ours and others'
	since       map[types.UID]time.Time       // of attachments that nobody wants
}

// heeds says whether a change can change what is planned. Most changes of pods and nodes, which are many, do not.
func heeds(e client.Event) bool {
	switch now := e.Object.(type) {
	case *corev1.Pod:
		before, _ := e.Old.(*corev1.Pod)
		if e.Op == client.Modified && before != nil && before.UID == now.UID {
			return counts(before) != counts(now)
		}
		return counts(now) || before != nil && counts(before)
	case *corev1.Node:
		before, _ := e.Old.(*corev1.Node)
		return e.Op != client.Modified || before == nil || api.NodeReady(before) != api.NodeReady(now) || outOfService(before) != outOfService(now) ||
			!slices.Equal(before.Status.VolumesInUse, now.Status.VolumesInUse) || !slices.Equal(before.Status.VolumesAttached, now.Status.VolumesAttached)
	}
	return true
}

// counts says whether a pod may want volumes on a node.
func counts(p *corev1.Pod) bool { return p.Spec.NodeName != "" && !api.PodTerminal(p) && hasClaims(p) }

// outOfService says whether somebody vouches that a node runs nothing any more.
func outOfService(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

// look reads the world; nil when there is nothing in it for us: no volume that is attached, or would be.
func look(ctx context.Context, c client.Client) (*world, error) {
	w := &world{claims: map[api.Key]*corev1.PersistentVolumeClaim{}, volumes: map[string]*corev1.PersistentVolume{}, drivers: map[string]*storagev1.CSIDriver{}}
	drivers, err := client.List[*storagev1.CSIDriver](ctx, c, client.Query{})
	if err != nil {
		return nil, fmt.Errorf("list drivers: %w", err)
	}
	for _, d := range drivers {
		w.drivers[d.Name] = d
	}
	volumes, err := client.List[*corev1.PersistentVolume](ctx, c, client.Query{})
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	some := false
	for _, v := range volumes {
		w.volumes[v.Name] = v
		some = some || v.Spec.CSI != nil && w.needsAttaching(v.Spec.CSI.Driver)
	}
	if w.attachments, err = client.List[*storagev1.VolumeAttachment](ctx, c, client.Query{}); err != nil {
		return nil, fmt.Errorf("list volume attachments: %w", err)
	}
	if w.nodes, err = client.List[*corev1.Node](ctx, c, client.Query{}); err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	some = some || len(w.attachments) > 0 || slices.ContainsFunc(w.nodes, func(n *corev1.Node) bool { return len(n.Status.VolumesAttached) > 0 })
	if !some {
		return nil, nil
	}
	claims, err := client.List[*corev1.PersistentVolumeClaim](ctx, c, client.Query{})
	if err != nil {
		return nil, fmt.Errorf("list claims: %w", err)
	}
	for _, o := range claims {
		w.claims[api.KeyOf(o)] = o
	}
	pods, err := client.List[*corev1.Pod](ctx, c, client.Query{})
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods {
		if counts(p) {
			w.pods = append(w.pods, p)
		}
	}
	slices.SortStableFunc(w.pods, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return w, nil
}

// hasClaims says whether a pod has volumes of claims.
func hasClaims(p *corev1.Pod) bool {
	for i := range p.Spec.Volumes {
		if claim.Name(p, &p.Spec.Volumes[i]) != "" {
			return true
		}
	}
	return false
}

// place is a CSI volume on a node. Several PersistentVolumes of one handle are one volume.
type place struct{ driver, handle, node string }

// anywhere is the volume itself.
func (p place) anywhere() place { return place{driver: p.driver, handle: p.handle} }

// want is a place with the pods that want it.
type want struct {
	place
	volume *corev1.PersistentVolume
	pods   []*corev1.Pod
}

// wants returns what pods want to be attached, in the order of the oldest pod of each.
func (w *world) wants() []*want {
	var out []*want
	at := map[place]*want{}
	for _, p := range w.pods {
		for i := range p.Spec.Volumes {
			v := w.volumeOf(p, &p.Spec.Volumes[i])
			if v == nil || !w.needsAttaching(v.Spec.CSI.Driver) {
				continue
			}
			where := place{v.Spec.CSI.Driver, v.Spec.CSI.VolumeHandle, p.Spec.NodeName}
			if at[where] == nil {
				at[where] = &want{place: where, volume: v}
				out = append(out, at[where])
			}
			if pods := at[where].pods; !slices.Contains(pods, p) {
				at[where].pods = append(pods, p)
			}
		}
	}
	return out
}

// volumeOf returns the CSI volume that a volume of p's is bound to for good, nil when there is none.
func (w *world) volumeOf(p *corev1.Pod, v *corev1.Volume) *corev1.PersistentVolume {
	name := claim.Name(p, v)
	c := w.claims[api.Key{Namespace: p.Namespace, Name: name}]
	if name == "" || c == nil || c.Status.Phase != corev1.ClaimBound || v.Ephemeral != nil && !metav1.IsControlledBy(c, p) {
		return nil
	}
	pv := w.volumes[c.Spec.VolumeName]
	if pv == nil || pv.Spec.CSI == nil || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != c.UID {
		return nil
	}
	return pv
}

// needsAttaching says whether volumes of a driver are attached before they are mounted.
func (w *world) needsAttaching(driver string) bool { return claim.NeedsAttaching(w.drivers[driver]) }

// attachment is a VolumeAttachment of a CSI volume.
type attachment struct {
	*storagev1.VolumeAttachment
	place
	lost bool // one of ours whose PersistentVolume is gone; its handle is "" where nobody has or wants it
}

// ours says whether it is one that this controller makes.
func (a *attachment) ours() bool {
	return a.lost || a.Name == claim.AttachmentName(a.handle, a.driver, a.node)
}

// placed returns the attachments of CSI volumes, but not those that others made of volumes that are gone.
func (w *world) placed(wants []*want) (out []*attachment) {
	for _, a := range w.attachments {
		name := a.Spec.Source.PersistentVolumeName
		if name == nil {
			continue
		}
		at := place{driver: a.Spec.Attacher, node: a.Spec.NodeName}
		switch v := w.volumes[*name]; {
		case v != nil && v.Spec.CSI != nil:
			at.handle = v.Spec.CSI.VolumeHandle
			out = append(out, &attachment{VolumeAttachment: a, place: at})
		case v == nil && ourName.MatchString(a.Name):
			at.handle = w.lostHandle(a, wants)
			out = append(out, &attachment{VolumeAttachment: a, place: at, lost: true})
		}
	}
	return out
}

// ourName is what AttachmentName returns.
var ourName = regexp.MustCompile("^csi-[0-9a-f]{64}$")

// lostHandle returns the handle of one of our attachments whose volume is gone: the one that its name was made of, among those that
// pods want and its node has.
func (w *world) lostHandle(a *storagev1.VolumeAttachment, wants []*want) string {
	named := func(handle string) bool {
		return claim.AttachmentName(handle, a.Spec.Attacher, a.Spec.NodeName) == a.Name
	}
	for _, want := range wants {
		if want.driver == a.Spec.Attacher && named(want.handle) {
			return want.handle
		}
	}
	for _, n := range w.nodes {
		if n.Name != a.Spec.NodeName {
			continue
		}
		has := slices.Clone(n.Status.VolumesInUse)
		for _, v := range n.Status.VolumesAttached {
			has = append(has, v.Name)
		}
		for _, name := range has {
			if handle, ok := strings.CutPrefix(string(name), string(claim.OnNode(a.Spec.Attacher, ""))); ok && named(handle) {
				return handle
			}
		}
	}
	return ""
}

// shared says whether several nodes may have a volume at once. One that does not say how it may be used is not restricted.
func shared(v *corev1.PersistentVolume) bool {
	modes := v.Spec.AccessModes
	return len(modes) == 0 || slices.Contains(modes, corev1.ReadWriteMany) || slices.Contains(modes, corev1.ReadOnlyMany)
}

func comparePods(a, b *corev1.Pod) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
