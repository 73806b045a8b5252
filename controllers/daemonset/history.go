package daemonset

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"reflect"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// generationLabel is a deprecated label that upstream still sets.
const generationLabel = "pod-template-generation"

func hashOf(r *appsv1.ControllerRevision) string {
	return r.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]
}

// snapshot returns the template in the form in which `kubectl rollout undo` applies it as a patch.
func snapshot(ds *appsv1.DaemonSet) ([]byte, error) {
	raw, err := json.Marshal(&ds.Spec.Template)
	if err != nil {
		return nil, fmt.Errorf("encode template: %w", err)
	}
	var template map[string]any
	if err := json.Unmarshal(raw, &template); err != nil {
		return nil, fmt.Errorf("decode template: %w", err)
	}
	template["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": template}})
}

func sameData(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// revise returns the revision of ds' template, which is the newest afterwards.
func (c *controller) revise(ctx context.Context, ds *appsv1.DaemonSet, status *appsv1.DaemonSetStatus,
	history []*appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
	data, err := snapshot(ds)
	if err != nil {
		return nil, err
	}
	last := int64(0)
	var current *appsv1.ControllerRevision
	for _, r := range history {
		last = max(last, r.Revision)
		if sameData(r.Data.Raw, data) && (current == nil || r.Revision > current.Revision) {
			current = r
		}
	}
	if current != nil {
		if current.Revision == last {
			return current, nil
		}
		got, err := client.Mutate(ctx, c.Client, current, "", func(r *appsv1.ControllerRevision) { r.Revision = last + 1 })
		if err != nil {
			return nil, fmt.Errorf("renew revision %s: %w", current.Name, err)
		}
		return got, nil
	}
	return c.addRevision(ctx, ds, status, data, last+1)
}

func (c *controller) addRevision(ctx context.Context, ds *appsv1.DaemonSet, status *appsv1.DaemonSetStatus, data []byte,
	number int64) (*appsv1.ControllerRevision, error) {
	h := fnv.New32a()
	_, _ = h.Write(data) // a hash does not fail
	if n := ds.Status.CollisionCount; n != nil {
		fmt.Fprint(h, *n)
	}
	hash := rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
	labels := maps.Clone(ds.Spec.Template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[appsv1.DefaultDaemonSetUniqueLabelKey] = hash
	r := &appsv1.ControllerRevision{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ControllerRevision"},
		ObjectMeta: metav1.ObjectMeta{Namespace: ds.Namespace, Name: ds.Name + "-" + hash, Labels: labels,
			Annotations: maps.Clone(ds.Annotations), OwnerReferences: []metav1.OwnerReference{*reconcile.ControllerRef(ds)}},
		Data: runtime.RawExtension{Raw: data}, Revision: number,
	}
	delete(r.Annotations, corev1.LastAppliedConfigAnnotation)
	got, err := client.Create(ctx, c.Client, r.DeepCopy())
	if apierrors.IsAlreadyExists(err) {
		taken, gerr := client.Get[*appsv1.ControllerRevision](ctx, c.Client, api.KeyOf(r))
		if gerr == nil && metav1.IsControlledBy(taken, ds) && sameData(taken.Data.Raw, data) {
			return taken, nil
		}
		n := int32(1) // another template has the same hash: the next pass tries with another collision count
		if ds.Status.CollisionCount != nil {
			n = *ds.Status.CollisionCount + 1
		}
		status.CollisionCount = &n
	}
	if err != nil {
		return nil, fmt.Errorf("create revision %s: %w", r.Name, err)
	}
	return got, nil
}

// forget deletes revisions beyond the history limit that no pod has.
func (c *controller) forget(ctx context.Context, ds *appsv1.DaemonSet, current *appsv1.ControllerRevision,
	history []*appsv1.ControllerRevision, pods []*corev1.Pod) error {
	if ds.Spec.RevisionHistoryLimit == nil {
		return nil
	}
	live := map[string]bool{hashOf(current): true}
	for _, p := range pods {
		live[p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]] = true
	}
	var old []*appsv1.ControllerRevision
	for _, r := range history {
		if !live[hashOf(r)] {
			old = append(old, r)
		}
	}
	slices.SortFunc(old, func(a, b *appsv1.ControllerRevision) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, r := range old[:max(0, len(old)-int(*ds.Spec.RevisionHistoryLimit))] {
		if err := c.Client.Delete(ctx, r, client.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete revision %s: %w", r.Name, err)
		}
	}
	return nil
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
