package deployment

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	"github.com/yare-dev/yare/reconcile"
)

// Annotations that kubectl and other readers of upstream's objects know.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history" // earlier revisions of the same set
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas" // the Deployment's size when the set was scaled
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"     // that plus maxSurge
)

// maxHistory bounds the history annotation, in bytes.
const maxHistory = 2000

// ownAnnotations are not copied from a Deployment to its sets.
func ownAnnotation(name string) bool {
	switch name {
	case corev1.LastAppliedConfigAnnotation, revisionAnnotation, historyAnnotation, desiredAnnotation, maxAnnotation,
		appsv1.DeprecatedRollbackTo:
		return true
	}
	return false
}

// newSet returns the oldest set with d's template, as sets is sorted by age.
func newSet(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) *appsv1.ReplicaSet {
	for _, rs := range sets {
		if sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			return rs
		}
	}
	return nil
}

// sameTemplate compares templates without the label that tells sets apart.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	plain := func(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
		c := *t
		c.Labels = maps.Clone(t.Labels)
		delete(c.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
		return &c
	}
	return equality.Semantic.DeepEqual(plain(a), plain(b))
}

// templateHash names a template. Sets are found by their templates, so it need not be upstream's.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	// A struct of the API without cycles always encodes.
	_ = json.NewEncoder(h).Encode(t)
	if collisions != nil {
		fmt.Fprint(h, *collisions)
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// makeSet returns the new set of d, not yet stored.
func makeSet(d *appsv1.Deployment, old []*appsv1.ReplicaSet) *appsv1.ReplicaSet {
	template := d.Spec.Template.DeepCopy()
	hash := templateHash(template, d.Status.CollisionCount)
	if template.Labels == nil {
		template.Labels = map[string]string{}
	}
	template.Labels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	selector := d.Spec.Selector.DeepCopy()
	if selector.MatchLabels == nil {
		selector.MatchLabels = map[string]string{}
	}
	selector.MatchLabels[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	size := newSize(d, 0, old)
	rs := &appsv1.ReplicaSet{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "ReplicaSet"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: d.Namespace, Name: d.Name + "-" + hash, Labels: maps.Clone(template.Labels),
			OwnerReferences: []metav1.OwnerReference{*reconcile.ControllerRef(d)},
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &size, MinReadySeconds: d.Spec.MinReadySeconds, Selector: selector, Template: *template,
		},
	}
	annotate(d, rs, lastRevision(old)+1)
	annotateSize(d, rs)
	return rs
}

// annotate copies d's annotations to the new set and raises its revision to at least rev.
func annotate(d *appsv1.Deployment, rs *appsv1.ReplicaSet, rev int64) {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	for k, v := range d.Annotations {
		if !ownAnnotation(k) {
			rs.Annotations[k] = v
		}
	}
	before, known := rs.Annotations[revisionAnnotation]
	if revision(rs) >= rev {
		return
	}
	rs.Annotations[revisionAnnotation] = strconv.FormatInt(rev, 10)
	if !known {
		return
	}
	history := strings.FieldsFunc(rs.Annotations[historyAnnotation], func(r rune) bool { return r == ',' })
	history = append(history, before)
	for len(strings.Join(history, ",")) > maxHistory {
		history = history[1:]
	}
	rs.Annotations[historyAnnotation] = strings.Join(history, ",")
}

func annotateSize(d *appsv1.Deployment, rs *appsv1.ReplicaSet) {
	if rs.Annotations == nil {
		rs.Annotations = map[string]string{}
	}
	surge, _ := limits(d)
	rs.Annotations[desiredAnnotation] = strconv.Itoa(int(*d.Spec.Replicas))
	rs.Annotations[maxAnnotation] = strconv.Itoa(int(*d.Spec.Replicas + surge))
}

// revision returns rs's revision, 0 when it has none.
func revision(rs *appsv1.ReplicaSet) int64 {
	n, err := strconv.ParseInt(rs.Annotations[revisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func lastRevision(sets []*appsv1.ReplicaSet) int64 {
	last := int64(0)
	for _, rs := range sets {
		last = max(last, revision(rs))
	}
	return last
}
