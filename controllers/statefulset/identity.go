package statefulset

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/reconcile"
)

// ordinal returns the number of a pod that is called like a member of set.
func ordinal(set *appsv1.StatefulSet, p *corev1.Pod) (int, bool) {
	text, ok := strings.CutPrefix(p.Name, set.Name+"-")
	if !ok || text == "" || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 32)
	return int(n), err == nil
}

func start(set *appsv1.StatefulSet) int {
	if o := set.Spec.Ordinals; o != nil {
		return int(o.Start)
	}
	return 0
}

func inRange(set *appsv1.StatefulSet, n int) bool {
	return n >= start(set) && n < start(set)+int(*set.Spec.Replicas)
}

func podName(set *appsv1.StatefulSet, n int) string { return set.Name + "-" + strconv.Itoa(n) }

func claimName(set *appsv1.StatefulSet, template string, n int) string {
	return template + "-" + podName(set, n)
}

func revisionOf(p *corev1.Pod) string { return p.Labels[appsv1.StatefulSetRevisionLabel] }

// newPod returns the pod of a replica, of the revision that it should have.
func (v *view) newPod(n int) *corev1.Pod {
	rev := v.update
	if s := v.set.Spec.UpdateStrategy; s.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		kept := v.set.Status.CurrentReplicas
		if s.RollingUpdate != nil {
			kept = 0
			if s.RollingUpdate.Partition != nil {
				kept = *s.RollingUpdate.Partition
			}
		}
		if n < start(v.set)+int(kept) {
			rev = v.current
		}
	}
	p := reconcile.NewPod(rev.template, v.set)
	p.GenerateName, p.Name = "", podName(v.set, n)
	v.identify(p, n)
	p.Labels[appsv1.StatefulSetRevisionLabel] = rev.name
	p.Spec.Hostname, p.Spec.Subdomain = p.Name, v.set.Spec.ServiceName
	return p
}

// identify gives p the labels and volumes of the replica.
func (v *view) identify(p *corev1.Pod, n int) {
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[appsv1.StatefulSetPodNameLabel] = podName(v.set, n)
	p.Labels[appsv1.PodIndexLabel] = strconv.Itoa(n)
	var volumes []corev1.Volume
	mine := map[string]bool{}
	for i := range v.set.Spec.VolumeClaimTemplates {
		name := v.set.Spec.VolumeClaimTemplates[i].Name
		mine[name] = true
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(v.set, name, n)}}})
	}
	for _, vol := range p.Spec.Volumes {
		if !mine[vol.Name] {
			volumes = append(volumes, vol)
		}
	}
	p.Spec.Volumes = volumes
}

// identified says that p has its replica's name in its labels. Its volumes cannot change any more.
func (v *view) identified(p *corev1.Pod) bool {
	return p.Labels[appsv1.StatefulSetPodNameLabel] == p.Name
}

// newClaims returns the claims of p's replica that do not exist.
func (v *view) newClaims(p *corev1.Pod) (missing []*corev1.PersistentVolumeClaim) {
	n, _ := ordinal(v.set, p)
	for i := range v.set.Spec.VolumeClaimTemplates {
		c := v.set.Spec.VolumeClaimTemplates[i].DeepCopy()
		c.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "PersistentVolumeClaim"}
		c.Name, c.Namespace = claimName(v.set, c.Name, n), v.set.Namespace
		if v.claims[c.Name] != nil {
			continue
		}
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, v.set.Spec.Selector.MatchLabels)
		if refs, change := v.owners(c, p); change {
			c.OwnerReferences = refs
		}
		missing = append(missing, c)
	}
	return missing
}

func (v *view) lacksClaims(p *corev1.Pod) bool { return len(v.newClaims(p)) > 0 }

// claimsOf returns the claims of p's replica that exist.
func (v *view) claimsOf(p *corev1.Pod) (all []*corev1.PersistentVolumeClaim) {
	n, _ := ordinal(v.set, p)
	for i := range v.set.Spec.VolumeClaimTemplates {
		if c := v.claims[claimName(v.set, v.set.Spec.VolumeClaimTemplates[i].Name, n)]; c != nil {
			all = append(all, c)
		}
	}
	return all
}

// policy returns which events delete claims.
func policy(set *appsv1.StatefulSet) (whenDeleted, whenScaled bool) {
	p := set.Spec.PersistentVolumeClaimRetentionPolicy
	if p == nil {
		return false, false
	}
	const remove = appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	return p.WhenDeleted == remove, p.WhenScaled == remove
}

// refersTo says whether ref is one to an object of o's kind and name, whichever its UID.
func refersTo(ref *metav1.OwnerReference, o api.Object) bool {
	k := api.KindOf(o)
	return ref.APIVersion == k.APIVersion() && ref.Kind == k.Kind && ref.Name == o.GetName()
}

// stale says that a claim of p's replica still belongs to a pod that is gone, and will follow it.
func (v *view) stale(p *corev1.Pod) bool {
	if _, scaled := policy(v.set); !scaled {
		return false
	}
	return slices.ContainsFunc(v.claimsOf(p), func(c *corev1.PersistentVolumeClaim) bool {
		return slices.ContainsFunc(c.OwnerReferences, func(r metav1.OwnerReference) bool { return refersTo(&r, p) && r.UID != p.UID })
	})
}

// kept says that the claims of p have the owners that the retention policy asks for.
func (v *view) kept(p *corev1.Pod) bool {
	return !slices.ContainsFunc(v.claimsOf(p), func(c *corev1.PersistentVolumeClaim) bool {
		_, change := v.owners(c, p)
		return change
	})
}

// owners returns the owners that a claim should have, if they are others than it has. The set owns it when the claim is to
// go with the set, the pod when it is to go with a pod that is not wanted any more. Claims of a set or pod that was there
// before, under the same name, are left alone, and nobody is put beside another controller.
func (v *view) owners(c *corev1.PersistentVolumeClaim, p *corev1.Pod) (refs []metav1.OwnerReference, change bool) {
	foreign, had := false, 0
	for i := range c.OwnerReferences {
		r := &c.OwnerReferences[i]
		ours := refersTo(r, v.set) || refersTo(r, p)
		switch {
		case ours && r.UID != v.set.UID && r.UID != p.UID:
			return nil, false
		case ours:
			had++
		default:
			foreign = foreign || r.Controller != nil && *r.Controller
			refs = append(refs, *r)
		}
	}
	whenDeleted, whenScaled := policy(v.set)
	n, _ := ordinal(v.set, p)
	condemned := !inRange(v.set, n)
	var owner api.Object
	switch {
	case foreign && (whenDeleted || whenScaled):
	case whenScaled && condemned:
		owner = p
	case whenDeleted:
		owner = v.set
	}
	if owner == nil {
		return refs, had > 0
	}
	want := *reconcile.ControllerRef(owner)
	same := had == 1 && slices.ContainsFunc(c.OwnerReferences, func(r metav1.OwnerReference) bool {
		return r.UID == want.UID && r.Controller != nil && *r.Controller
	})
	return append(refs, want), !same
}
