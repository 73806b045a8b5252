package reconcile

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
)

// Revisions keeps the history of an owner's template as ControllerRevisions. Its writes are "create", "delete" and
// "update" of these.
type Revisions struct {
	Owner     api.Object
	Template  *corev1.PodTemplateSpec
	HashLabel string // of a revision: the hash of what it records
	Collided  *int32 // the owner's status.collisionCount
	History   []*appsv1.ControllerRevision
}

// data returns the template in the form in which `kubectl rollout undo` applies it as a patch.
func (r *Revisions) data() ([]byte, error) {
	raw, err := json.Marshal(r.Template)
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

// RevisionTemplate returns the template that rev records.
func RevisionTemplate(rev *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var patch struct {
		Spec struct{ Template corev1.PodTemplateSpec }
	}
	if err := json.Unmarshal(rev.Data.Raw, &patch); err != nil {
		return nil, fmt.Errorf("decode revision %s: %w", rev.Name, err)
	}
	return &patch.Spec.Template, nil
}

func sameData(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	var x, y any
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && reflect.DeepEqual(x, y)
}

// Current returns the revision of the template, which is the newest afterwards. When another template has the same hash, it
// fails and raises *Collided, which the caller has to store before it tries again.
func (r *Revisions) Current(ctx context.Context, c client.Client) (*appsv1.ControllerRevision, error) {
	data, err := r.data()
	if err != nil {
		return nil, err
	}
	last := int64(0)
	var current *appsv1.ControllerRevision
	for _, rev := range r.History {
		last = max(last, rev.Revision)
		if sameData(rev.Data.Raw, data) && (current == nil || rev.Revision > current.Revision) {
			current = rev
		}
	}
	switch {
	case current == nil:
		return r.add(ctx, c, data, last+1)
	case current.Revision == last:
		return current, nil
	}
	got, err := client.Mutate(ctx, c, current, "", func(rev *appsv1.ControllerRevision) { rev.Revision = last + 1 })
	if err != nil {
		return nil, fmt.Errorf("renew revision %s: %w", current.Name, err)
	}
	return got, nil
}

func (r *Revisions) add(ctx context.Context, c client.Client, data []byte, number int64) (*appsv1.ControllerRevision, error) {
	h := fnv.New32a()
	_, _ = h.Write(data) // a hash does not fail
	if r.Collided != nil && *r.Collided > 0 {
		fmt.Fprint(h, *r.Collided)
	}
	hash := rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
	labels := maps.Clone(r.Template.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[r.HashLabel] = hash
	rev := &appsv1.ControllerRevision{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ControllerRevision"},
		ObjectMeta: metav1.ObjectMeta{Namespace: r.Owner.GetNamespace(), Name: r.Owner.GetName() + "-" + hash, Labels: labels,
			Annotations: maps.Clone(r.Owner.GetAnnotations()), OwnerReferences: []metav1.OwnerReference{*ControllerRef(r.Owner)}},
		Data: runtime.RawExtension{Raw: data}, Revision: number,
	}
	delete(rev.Annotations, corev1.LastAppliedConfigAnnotation)
	got, err := client.Create(ctx, c, rev.DeepCopy())
	if apierrors.IsAlreadyExists(err) {
		taken, gerr := client.Get[*appsv1.ControllerRevision](ctx, c, api.KeyOf(rev))
		if gerr == nil && metav1.IsControlledBy(taken, r.Owner) && sameData(taken.Data.Raw, data) {
			return taken, nil
		}
		n := int32(1)
		if r.Collided != nil {
			n = *r.Collided + 1
		}
		r.Collided = &n
	}
	if err != nil {
		return nil, fmt.Errorf("create revision %s: %w", rev.Name, err)
	}
	return got, nil
}

// Forget deletes the oldest revisions beyond limit (nil: none) that are not live.
func (r *Revisions) Forget(ctx context.Context, c client.Client, limit *int32, live func(*appsv1.ControllerRevision) bool) error {
	if limit == nil {
		return nil
	}
	old := slices.DeleteFunc(slices.Clone(r.History), live)
	slices.SortFunc(old, func(a, b *appsv1.ControllerRevision) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, rev := range old[:max(0, len(old)-int(*limit))] {
		if err := c.Delete(ctx, rev, client.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete revision %s: %w", rev.Name, err)
		}
	}
	return nil
}
