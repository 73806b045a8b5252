package statefulset

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var now = time.Unix(1e9, 0)

// member reads "2:ready@old": an ordinal, a state and a revision.
func member(set *appsv1.StatefulSet, text string) *corev1.Pod {
	n, rest, _ := strings.Cut(text, ":")
	state, rev, _ := strings.Cut(rest, "@")
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: set.Name + "-" + n, Namespace: set.Namespace, UID: "u",
		Labels: map[string]string{appsv1.StatefulSetPodNameLabel: set.Name + "-" + n, appsv1.StatefulSetRevisionLabel: rev}}}
	ready := func(since time.Duration) {
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-since))}}
	}
	switch state {
	case "ready":
		ready(time.Hour)
	case "fresh": // ready, and not yet for long enough
		ready(time.Second)
	case "going":
		ready(time.Hour)
		p.DeletionTimestamp = &metav1.Time{Time: now}
	case "running":
		p.Status.Phase = corev1.PodRunning
	case "failed":
		p.Status.Phase = corev1.PodFailed
	default:
		p.Status.Phase = corev1.PodPending
	}
	return p
}

func (p plan) String() string {
	var parts []string
	add := func(verb string, pods []*corev1.Pod) {
		for _, pod := range pods {
			text := verb + pod.Name[len("web-"):]
			if verb == "+" {
				text += "@" + revisionOf(pod)
			}
			parts = append(parts, text)
		}
	}
	add("~", p.mend)
	add("+", p.create)
	add("-", p.remove)
	if p.outdated > 0 {
		parts = append(parts, fmt.Sprintf("(%d outdated)", p.outdated))
	}
	return strings.Join(parts, " ")
}

func statefulSet(replicas int32, change ...func(*appsv1.StatefulSetSpec)) *appsv1.StatefulSet {
	app := map[string]string{"app": "web"}
	s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "set"}, Spec: appsv1.StatefulSetSpec{
		Replicas: &replicas, ServiceName: "svc", Selector: &metav1.LabelSelector{MatchLabels: app},
		Template:       corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app}},
		UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType}}}
	for _, f := range change {
		f(&s.Spec)
	}
	return s
}

func parallel(s *appsv1.StatefulSetSpec) { s.PodManagementPolicy = appsv1.ParallelPodManagement }
func onDelete(s *appsv1.StatefulSetSpec) {
	s.UpdateStrategy.Type = appsv1.OnDeleteStatefulSetStrategyType
}

func rolling(partition int32, unavailable string) func(*appsv1.StatefulSetSpec) {
	max := intstr.Parse(unavailable)
	return func(s *appsv1.StatefulSetSpec) {
		s.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{Partition: &partition, MaxUnavailable: &max}
	}
}

func from(first int32) func(*appsv1.StatefulSetSpec) {
	return func(s *appsv1.StatefulSetSpec) { s.Ordinals = &appsv1.StatefulSetOrdinals{Start: first} }
}

func claims(s *appsv1.StatefulSetSpec) {
	s.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
}

func seconds(n int32) func(*appsv1.StatefulSetSpec) {
	return func(s *appsv1.StatefulSetSpec) { s.MinReadySeconds = n }
}

func TestPlan(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  *appsv1.StatefulSet
		pods string
		want string
	}{
		{"the first", statefulSet(3), "", "+0@new"},
		{"the next, when the one before is ready", statefulSet(3), "0:ready@new", "+1@new"},
		{"not before", statefulSet(3), "0:running@new", ""},
		{"nor before it is available", statefulSet(3, seconds(10)), "0:fresh@new", ""},
		{"a gap is filled first", statefulSet(3), "0:ready@new 2:ready@new", "+1@new"},
		{"all at once", statefulSet(3, parallel), "1:pending@new", "+0@new +2@new"},
		{"done", statefulSet(2), "0:ready@new 1:ready@new", ""},
		{"other ordinals", statefulSet(2, from(5)), "5:ready@new 0:ready@new", "+6@new"},
		{"what is before the first ordinal goes", statefulSet(1, from(5)), "5:ready@new 0:ready@new", "-0"},
		{"a failed one is replaced", statefulSet(2), "0:failed@new 1:ready@new", "-0"},
		{"claims that are missing of a pod that waits for them", statefulSet(1, claims), "0:pending@new", "~0"},
		{"scale down, the last first", statefulSet(1), "0:ready@new 1:ready@new 2:ready@new", "-2"},
		{"one at a time", statefulSet(1), "0:ready@new 1:ready@new 2:going@new", ""},
		{"not while one that stays is not ready", statefulSet(1), "0:running@new 1:ready@new", ""},
		{"one that is not wanted need not be ready", statefulSet(1), "0:ready@new 1:running@new", "-1"},
		{"but those below it first", statefulSet(1), "0:ready@new 1:running@new 2:running@new", ""},
		{"scale down at once", statefulSet(0, parallel), "0:running@new 1:ready@new", "-1 -0"},
		{"update, the last first", statefulSet(3), "0:ready@old 1:ready@old 2:ready@old", "-2 (1 outdated)"},
		{"a roll-out before the current one", statefulSet(3, rolling(0, "2")), "0:ready@old 1:ready@old 2:ready@older", "-2 -1 (1 outdated)"},
		{"update waits", statefulSet(3), "0:ready@old 1:ready@old 2:running@new", ""},
		{"update goes on", statefulSet(3), "0:ready@old 1:ready@old 2:ready@new", "-1 (1 outdated)"},
		{"a broken update waits for somebody", statefulSet(2), "0:ready@old 1:pending@old", ""},
		{"partition", statefulSet(3, rolling(2, "1")), "0:ready@old 1:ready@old 2:ready@new", ""},
		{"pods below the partition stay what they were", statefulSet(3, rolling(2, "1")), "0:ready@old 2:ready@new", "+1@old"},
		{"several may be unavailable", statefulSet(4, rolling(0, "50%")), "0:ready@old 1:ready@old 2:ready@old 3:ready@old", "-3 -2 (2 outdated)"},
		{"parallel: the broken go at once", statefulSet(3, parallel, rolling(0, "1")), "0:running@old 1:ready@old 2:ready@old", "-0 (1 outdated)"},
		{"parallel: within the budget", statefulSet(3, parallel, rolling(0, "2")), "0:running@old 1:ready@old 2:ready@old", "-0 -2 (2 outdated)"},
		{"on delete", statefulSet(2, onDelete), "0:ready@old 1:ready@old", ""},
		{"on delete, after one was", statefulSet(2, onDelete), "0:ready@old", "+1@new"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var pods []*corev1.Pod
			for _, text := range strings.Fields(tt.pods) {
				pods = append(pods, member(tt.set, text))
			}
			v := look(tt.set, revision{"old", &tt.set.Spec.Template}, revision{"new", &tt.set.Spec.Template}, pods, nil, now)
			if got := v.plan().String(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// As many replicas as can be asked for cost no more than is done about them, or exists.
func TestManyReplicas(t *testing.T) {
	for _, tt := range []struct {
		name string
		set  *appsv1.StatefulSet
		last string
	}{
		{"ordered", statefulSet(math.MaxInt32), "web-1"},
		{"parallel", statefulSet(math.MaxInt32, parallel), "web-500"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pods := []*corev1.Pod{member(tt.set, "0:ready@old"), member(tt.set, "2000000000:failed@old")}
			p := look(tt.set, revision{"old", &tt.set.Spec.Template}, revision{"new", &tt.set.Spec.Template}, pods, nil, now).plan()
			if n := len(p.create); n == 0 || n > burst || p.create[n-1].Name != tt.last {
				t.Errorf("%d are created", n)
			}
			if parallel := tt.name == "parallel"; parallel != (len(p.remove) == 1) || parallel && p.remove[0] != pods[1] {
				t.Errorf("%s are removed", p)
			}
		})
	}
}

// What a roll-out before the current one has left is not counted for the current one.
func TestSupersededRollout(t *testing.T) {
	set := statefulSet(1)
	v := look(set, revision{"old", &set.Spec.Template}, revision{"new", &set.Spec.Template}, []*corev1.Pod{member(set, "0:ready@older")}, nil, now)
	p := v.plan()
	if s, _ := v.status(p.outdated); len(p.remove) != 1 || s.CurrentReplicas != 0 {
		t.Errorf("%s, and %d current replicas", p, s.CurrentReplicas)
	}
}

// Claims have the owners that the retention policy asks for.
func TestOwners(t *testing.T) {
	const keep, remove = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	yes := true
	ref := func(kind, name, uid string) metav1.OwnerReference {
		r := metav1.OwnerReference{APIVersion: "apps/v1", Kind: kind, Name: name, Controller: &yes}
		r.UID = "u"
		if kind == "Pod" {
			r.APIVersion = "v1"
		}
		if uid != "" {
			r.UID = "set"
		}
		if uid == "stale" {
			r.UID = "gone"
		}
		return r
	}
	set, pod := ref("StatefulSet", "web", "set"), func(n string) metav1.OwnerReference { return ref("Pod", "web-"+n, "") }
	for _, tt := range []struct {
		name                    string
		whenDeleted, whenScaled appsv1.PersistentVolumeClaimRetentionPolicyType
		pod                     string // web-0 is wanted, web-1 is not
		has                     []metav1.OwnerReference
		want                    string
	}{
		{"retained", keep, keep, "0", nil, "as it is"},
		{"not any more deleted", keep, keep, "0", []metav1.OwnerReference{set}, ""},
		{"with the set", remove, keep, "0", nil, "StatefulSet/web"},
		{"with the set, already", remove, keep, "0", []metav1.OwnerReference{set}, "as it is"},
		{"with the pod, which stays", keep, remove, "0", nil, "as it is"},
		{"with the pod, which goes", keep, remove, "1", nil, "Pod/web-1"},
		{"with both: the set while the pod stays", remove, remove, "0", []metav1.OwnerReference{pod("0")}, "StatefulSet/web"},
		{"with both: the pod when it goes", remove, remove, "1", []metav1.OwnerReference{set}, "Pod/web-1"},
		{"somebody else's", remove, remove, "0", []metav1.OwnerReference{ref("Backup", "b", "")}, "as it is"},
		{"a set that is gone", remove, keep, "0", []metav1.OwnerReference{ref("StatefulSet", "web", "stale")}, "as it is"},
	} {
		s := statefulSet(1, claims)
		s.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: tt.whenDeleted, WhenScaled: tt.whenScaled}
		v := look(s, revision{}, revision{}, nil, nil, now)
		refs, change := v.owners(&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{OwnerReferences: tt.has}}, member(s, tt.pod+":ready@new"))
		got := "as it is"
		if change {
			got = ""
			for _, r := range refs {
				got += r.Kind + "/" + r.Name
			}
		}
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
