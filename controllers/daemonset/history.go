package daemonset

import (
	"context"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/reconcile"
)

// generationLabel is a deprecated label that upstream still sets.
const generationLabel = "pod-template-generation"

func hashOf(r *appsv1.ControllerRevision) string {
	return r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
}

// forget deletes revisions beyond the history limit that no pod has.
func (c *controller) forget(ctx context.Context, ds *appsv1.DaemonSet, current *appsv1.ControllerRevision,
	revisions *reconcile.Revisions, pods []*corev1.Pod) error {
	live := map[string]bool{hashOf(current): true}
	for _, p := range pods {
		live[p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
	}
	return revisions.Forget(ctx, c.Client, ds.Spec.RevisionHistoryLimit, func(r *appsv1.ControllerRevision) bool { return live[hashOf(r)] })
}

// newPod returns a pod of ds for the Node.
func newPod(ds *appsv1.DaemonSet, node, hash string) *corev1.Pod {
	p := reconcile.NewPod(&ds.Spec.Template, ds)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	if g := ds.Annotations[appsv1.DeprecatedTemplateGeneration]; g != "" {
		p.Labels[generationLabel] = g
	}
	for _, t := range automatic(&p.Spec) {
		if !slices.ContainsFunc(p.Spec.Tolerations, func(o corev1.Toleration) bool { return o.MatchToleration(&t) }) {
			p.Spec.Tolerations = append(p.Spec.Tolerations, t)
		}
	}
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	if p.Spec.Affinity.NodeAffinity == nil {
		p.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	// What the user required was decided upon here: the scheduler need only know the Node.
	p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
			{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}
	return p
}
