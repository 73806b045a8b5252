package attachdetach

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
)

// The reasons of Events.
const (
	attached     = "SuccessfulAttachVolume"
	failedAttach = "FailedAttachVolume"
)

// plan is what to do.
type plan struct {
	reports  []report
	attach   []want
	news     map[telling]event
	unwanted map[types.UID]time.Time
	after    time.Duration // until time alone changes something; zero: never
}

// report is what to write to a Node, and what to detach from it afterwards. Node is nil for one that is gone.
type report struct {
	node     *corev1.Node
	attached []corev1.AttachedVolume
	detach   []detachment
}

type detachment struct {
	*attachment
	name   corev1.UniqueVolumeName
	forced bool
}

// event is what a pod is told; without a reason it has been told, or need not be.
type event struct {
	pod             *corev1.Pod
	reason, message string
}

// planner is a plan in the making.
type planner struct {
	*world
	*plan
	now    time.Time
	wanted map[place]*want
	placed []*attachment
	have   map[place]*attachment
	named  map[string]*storagev1.VolumeAttachment // all
	held   map[place]bool                         // where volumes are, or get to; without a node: that they are somewhere
}

// plan decides.
func (w *world) plan(now time.Time) *plan {
	x := &planner{world: w, plan: &plan{news: map[telling]event{}, unwanted: map[types.UID]time.Time{}}, now: now,
		wanted: map[place]*want{}, have: map[place]*attachment{}, named: map[string]*storagev1.VolumeAttachment{}, held: map[place]bool{}}
	wants := w.wants()
	x.placed = w.placed(wants)
	for _, want := range wants {
		x.wanted[want.place] = want
	}
	for _, a := range w.attachments {
		x.named[a.Name] = a
	}
	for _, a := range x.placed {
		x.have[a.place] = a
		x.hold(a.place)
	}
	x.planNodes()
	nodes := map[string]*corev1.Node{}
	for _, n := range w.nodes {
		nodes[n.Name] = n
	}
	for _, want := range wants {
		if n := nodes[want.node]; n != nil {
			x.planWant(want, n)
		}
	}
	return x.plan
}

func (x *planner) hold(at place) { x.held[at], x.held[at.anywhere()] = true, true }

func (x *planner) sooner(after time.Duration) {
	if after > 0 && (x.after == 0 || after < x.after) {
		x.after = after
	}
}

// planNodes decides what is reported of every node as attached, and what is detached.
func (x *planner) planNodes() {
	by := map[string][]*attachment{}
	for _, a := range x.placed {
		by[a.node] = append(by[a.node], a)
	}
	for _, n := range x.nodes {
		out := report{node: n}
		for _, a := range by[n.Name] {
			name := claim.OnNode(a.driver, a.handle)
			if forced, ok := x.mayDetach(a, n); ok {
				out.detach = append(out.detach, detachment{a, name, forced})
			} else if a.Status.Attached && a.DeletionTimestamp == nil {
				out.attached = append(out.attached, corev1.AttachedVolume{Name: name})
			}
		}
		slices.SortFunc(out.attached, func(a, b corev1.AttachedVolume) int { return strings.Compare(string(a.Name), string(b.Name)) })
		if len(out.detach) > 0 || !slices.Equal(out.attached, n.Status.VolumesAttached) {
			x.reports = append(x.reports, out)
		}
		delete(by, n.Name)
	}
	for _, as := range by {
		var out report
		for _, a := range as {
			if _, ok := x.mayDetach(a, nil); ok {
				out.detach = append(out.detach, detachment{attachment: a})
			}
		}
		if len(out.detach) > 0 {
			x.reports = append(x.reports, out)
		}
	}
}

// mayDetach says whether a, on node n (nil: gone), is to be deleted, and whether that is against what the node says. One that no attacher
// can attach, because its volume is gone, makes room for that of the volume that has the handle now.
func (x *planner) mayDetach(a *attachment, n *corev1.Node) (forced, ok bool) {
	wanted := x.wanted[a.place] != nil && (a.Status.Attached || !a.lost)
	if wanted || a.DeletionTimestamp != nil || !a.ours() {
		return false, false
	}
	if n == nil || !slices.Contains(n.Status.VolumesInUse, claim.OnNode(a.driver, a.handle)) {
		return false, true
	}
	if outOfService(n) {
		return true, true
	}
	since, known := x.since[a.UID]
	if !known {
		since = x.now
	}
	x.unwanted[a.UID] = since
	if api.NodeReady(n) {
		return false, false
	}
	left := patience - x.now.Sub(since)
	x.sooner(left)
	return true, left <= 0
}

// planWant decides about a volume that pods want on n.
func (x *planner) planWant(w *want, n *corev1.Node) {
	a := x.have[w.place]
	switch {
	case a == nil && x.taken(w) != "":
		x.tell(w, failedAttach, fmt.Sprintf("AttachVolume.Attach failed for volume %q : %s", w.volume.Name, x.taken(w)))
	case a == nil && x.held[w.anywhere()] && !shared(w.volume):
		x.planExclusive(w)
	case a == nil:
		x.hold(w.place)
		x.attach = append(x.attach, *w)
		x.tell(w, "", "")
	case a.DeletionTimestamp != nil: // when it is gone it is made anew
		x.tell(w, "", "")
	case a.Status.Attached:
		x.planAttached(w, n)
	case a.Status.AttachError != nil:
		x.tell(w, failedAttach, fmt.Sprintf("AttachVolume.Attach failed for volume %q : %s", w.volume.Name, a.Status.AttachError.Message))
	default:
		left := attachTime - x.now.Sub(a.CreationTimestamp.Time)
		if x.sooner(left); left > 0 {
			x.tell(w, "", "")
			return
		}
		x.tell(w, failedAttach, fmt.Sprintf("AttachVolume.Attach failed for volume %q : timed out waiting for external-attacher of %s CSI driver to "+
			"attach volume %s", w.volume.Name, w.driver, w.handle))
	}
}

// taken says who has the name that w's attachment is to have; "" when nobody has.
func (x *planner) taken(w *want) string {
	a := x.named[claim.AttachmentName(w.handle, w.driver, w.node)]
	if a == nil {
		return ""
	}
	of := "an inline volume"
	if name := a.Spec.Source.PersistentVolumeName; name != nil {
		of = fmt.Sprintf("volume %q", *name)
	}
	return fmt.Sprintf("VolumeAttachment %s, whose name it needs, is of %s: delete that VolumeAttachment", a.Name, of)
}

// planExclusive tells the pods of a volume that another node has, and that only one may have, unless it leaves already.
func (x *planner) planExclusive(w *want) {
	for at := range x.held {
		if a := x.have[at]; at.anywhere() == w.anywhere() && at.node != "" && (a == nil || a.DeletionTimestamp == nil) {
			x.tell(w, failedAttach, fmt.Sprintf("Multi-Attach error for volume %q %s", w.volume.Name, x.holders(w)))
			return
		}
	}
	x.tell(w, "", "")
}

// planAttached tells the pods that wait when their node is told.
func (x *planner) planAttached(w *want, n *corev1.Node) {
	name := claim.OnNode(w.driver, w.handle)
	if slices.ContainsFunc(n.Status.VolumesAttached, func(v corev1.AttachedVolume) bool { return v.Name == name }) {
		x.tell(w, "", "")
		return
	}
	x.tell(w, attached, fmt.Sprintf("AttachVolume.Attach succeeded for volume %q ", w.volume.Name))
}

func (x *planner) tell(w *want, reason, message string) {
	for _, p := range w.pods {
		x.news[telling{p.UID, w.volume.Name}] = event{p, reason, message}
	}
}

// holders says by whom the volume that w's pods want is held.
func (x *planner) holders(w *want) string {
	var pods []*corev1.Pod
	for at, other := range x.wanted {
		if x.held[at] && at.anywhere() == w.anywhere() && at.node != w.node {
			pods = append(pods, other.pods...)
		}
	}
	slices.SortFunc(pods, comparePods)
	var names []string
	others := 0
	for _, p := range pods {
		if p.Namespace == w.pods[0].Namespace {
			names = append(names, p.Name)
		} else {
			others++
		}
	}
	switch {
	case len(pods) == 0:
		return "Volume is already exclusively attached to one node and can't be attached to another"
	case len(names) == 0:
		return fmt.Sprintf("Volume is already used by %d pod(s) in different namespaces", others)
	case others == 0:
		return "Volume is already used by pod(s) " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("Volume is already used by pod(s) %s and %d pod(s) in different namespaces", strings.Join(names, ", "), others)
}
