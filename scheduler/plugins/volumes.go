package plugins

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/scheduler/cluster"
)

// Reasons for which a node cannot have a pod's volumes.
const (
	unreachable = "node(s) didn't match PersistentVolume's node affinity"
	noVolume    = "node(s) didn't find available persistent volumes to bind"
	noSpace     = "node(s) did not have enough free storage"
)

// volumes keeps a pod where its volumes can be: those of its claims, and those that claims which wait for their first pod can get.
var volumes = Filter{
	Name:  "VolumeBinding",
	Wakes: NodeAdded | NodeLabels | Volumes | Capacities,
	Prepare: func(c *cluster.Cluster, p *cluster.Pod) (*Check, error) {
		w, err := wantsOf(c, p)
		if w == nil || err != nil {
			return nil, err
		}
		return &Check{
			Pass: func(slot int) bool { _, why := w.on(c.Nodes[slot]); return len(why) == 0 },
			Why:  func(slot int) []string { _, why := w.on(c.Nodes[slot]); return why },
		}, nil
	},
}

// Binding is what has to be written before a pod can be bound to the node that was chosen for it. When both are empty, and in any case
// when they are written, others have to act: the volume binder, a provisioner.
type Binding struct {
	Reserve map[*corev1.PersistentVolume]*corev1.PersistentVolumeClaim // volumes for claims
	Select  []*corev1.PersistentVolumeClaim                            // to be told the node
}

// VolumesOn returns what has to be done for p's claims on a node that passed. Nil: they all are bound.
func VolumesOn(c *cluster.Cluster, p *cluster.Pod, slot int) *Binding {
	w, err := wantsOf(c, p)
	if w == nil || err != nil || len(w.waiting) == 0 {
		return nil
	}
	b, _ := w.on(c.Nodes[slot])
	return b
}

// wantedVolumes are what a pod's claims want.
type wantedVolumes struct {
	bound   []*corev1.PersistentVolume
	waiting []waitingClaim // those that want least first
}

// waitingClaim is a claim that waits for the node of its first pod.
type waitingClaim struct {
	*corev1.PersistentVolumeClaim
	class   *storagev1.StorageClass
	volumes []*corev1.PersistentVolume // that it may get, the best first
	space   *space                     // for one that is made for it
}

// wantsOf returns what p's claims want, nil when it has none. An error says why no node will do.
func wantsOf(c *cluster.Cluster, p *cluster.Pod) (*wantedVolumes, error) {
	var w *wantedVolumes
	var all []*corev1.PersistentVolume
	immediate := false
	for i := range p.Spec.Volumes {
		pvc, err := claimOf(c, p, &p.Spec.Volumes[i])
		if err != nil {
			return nil, err
		}
		if pvc == nil {
			continue
		}
		if w == nil {
			w = &wantedVolumes{}
		}
		if claim.Bound(pvc) {
			v := c.Volumes[pvc.Spec.VolumeName]
			if v == nil {
				return nil, fmt.Errorf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", pvc.Name, pvc.Spec.VolumeName)
			}
			w.bound = append(w.bound, v)
			continue
		}
		class := c.Classes[claim.Class(pvc)]
		if pvc.Spec.VolumeName != "" || !claim.Waits(class) {
			immediate = true
			continue
		}
		if all == nil {
			all = slices.Collect(maps.Values(c.Volumes))
		}
		w.waiting = append(w.waiting, waitingClaim{pvc, class, claim.Candidates(pvc, all), spaceFor(c, class, pvc)})
	}
	if immediate {
		return nil, errors.New("pod has unbound immediate PersistentVolumeClaims")
	}
	if w != nil {
		slices.SortStableFunc(w.waiting, func(a, b waitingClaim) int {
			x, y := a.Spec.Resources.Requests[corev1.ResourceStorage], b.Spec.Resources.Requests[corev1.ResourceStorage]
			return x.Cmp(y)
		})
	}
	return w, nil
}

// claimOf returns the claim of a volume, nil for volumes without.
func claimOf(c *cluster.Cluster, p *cluster.Pod, v *corev1.Volume) (*corev1.PersistentVolumeClaim, error) {
	name, missing := claim.Name(p.Pod, v), "persistentvolumeclaim %q not found"
	if name == "" {
		return nil, nil
	}
	if v.Ephemeral != nil {
		missing = "waiting for ephemeral volume controller to create the persistentvolumeclaim %q"
	}
	pvc := c.Claims[api.Key{Namespace: p.Namespace, Name: name}]
	switch {
	case pvc == nil:
		return nil, fmt.Errorf(missing, name)
	case v.Ephemeral != nil && !metav1.IsControlledBy(pvc, p.Pod):
		return nil, fmt.Errorf("PVC %q was not created for pod %q (pod is not owner)", api.KeyOf(pvc), api.KeyOf(p))
	case pvc.Status.Phase == corev1.ClaimLost:
		return nil, fmt.Errorf("persistentvolumeclaim %q bound to non-existent persistentvolume %q", name, pvc.Spec.VolumeName)
	case pvc.DeletionTimestamp != nil:
		return nil, fmt.Errorf("persistentvolumeclaim %q is being deleted", name)
	}
	return pvc, nil
}

// on returns what to do for the claims on node n, or why they cannot be had there.
func (w *wantedVolumes) on(n *corev1.Node) (*Binding, []string) {
	b := &Binding{Reserve: map[*corev1.PersistentVolume]*corev1.PersistentVolumeClaim{}}
	var why []string
	for _, v := range w.bound {
		if !claim.Reaches(n, v) {
			why = append(why, unreachable)
			break
		}
	}
	for _, c := range w.waiting {
		if reason := c.on(n, b); reason != "" {
			return nil, append(why, reason)
		}
	}
	return b, why
}

// on adds to b what the claim needs on n, or returns why it cannot be had there.
func (c waitingClaim) on(n *corev1.Node, b *Binding) string {
	if selected := c.Annotations[claim.SelectedNode]; selected != "" {
		if selected != n.Name {
			return noVolume
		}
		return "" // whether there was space for it is the provisioner's to say now
	}
	if len(c.volumes) > 0 && c.volumes[0].Spec.ClaimRef != nil { // reserved for it
		if !claim.Reaches(n, c.volumes[0]) {
			return noVolume
		}
		return ""
	}
	for _, v := range c.volumes {
		if _, taken := b.Reserve[v]; !taken && claim.Reaches(n, v) {
			b.Reserve[v] = c.PersistentVolumeClaim
			return ""
		}
	}
	switch {
	case c.class.Provisioner == claim.Unprovisioned || !offered(n, c.class.AllowedTopologies):
		return noVolume
	case !c.space.on(n):
		return noSpace
	}
	b.Select = append(b.Select, c.PersistentVolumeClaim)
	return ""
}

// offered says whether a class makes volumes for n.
func offered(n *corev1.Node, terms []corev1.TopologySelectorTerm) bool {
	return len(terms) == 0 || slices.ContainsFunc(terms, func(t corev1.TopologySelectorTerm) bool {
		return !slices.ContainsFunc(t.MatchLabelExpressions, func(r corev1.TopologySelectorLabelRequirement) bool {
			value, ok := n.Labels[r.Key]
			return !ok || !slices.Contains(r.Values, value)
		})
	})
}
