package admission

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	psapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

const (
	// podsChecked bounds how many pods of a namespace are looked at when its level rises, podsTime for how long.
	podsChecked = 3000
	podsTime    = time.Second
)

// podSecurity holds pods to the Pod Security Standards that their namespace's labels name: pod-security.kubernetes.io/enforce
// refuses; warn and audit tell the client and the audit log, also about templates of workloads. Without labels everything is
// allowed.
func podSecurity(s *store.Store) rest.Admission {
	p := &standards{store: s, get: authn.Stored(s), evaluator: sync.OnceValues(func() (policy.Evaluator, error) {
		e, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
		if err != nil {
			return nil, apierrors.NewInternalError(fmt.Errorf("read pod security checks: %w", err))
		}
		return e, nil
	})}
	return onValidate("PodSecurity", p.validate)
}

type standards struct {
	store     *store.Store
	get       authn.Getter
	evaluator func() (policy.Evaluator, error)
}

// privileged is what counts where a namespace's labels say nothing.
func privileged() psapi.Policy {
	free := psapi.LevelVersion{Level: psapi.LevelPrivileged, Version: psapi.LatestVersion()}
	return psapi.Policy{Enforce: free, Audit: free, Warn: free}
}

func (s *standards) validate(ctx context.Context, a *rest.Admitting) error {
	if a.Operation != rest.OpCreate && a.Operation != rest.OpUpdate {
		return nil
	}
	if a.Kind == api.NamespaceKind {
		return s.namespace(a)
	}
	meta, spec := podOf(a)
	if spec == nil {
		return nil
	}
	ns, err := s.get.Get(ctx, api.NamespaceKind, api.Key{Name: a.Key.Namespace})
	if err != nil {
		return err
	}
	want, errs := psapi.PolicyToEvaluate(ns.GetLabels(), privileged())
	if len(errs) == 0 && want.FullyPrivileged() {
		if a.Kind == api.PodKind {
			a.Annotate(psapi.AuditAnnotationPrefix+psapi.EnforcedPolicyAnnotationKey, want.Enforce.String())
		}
		return nil
	}
	if err := errs.ToAggregate(); err != nil {
		a.Annotate(psapi.AuditAnnotationPrefix+"error", fmt.Sprintf("Failed to parse policy: %v", err))
	}
	e, err := s.evaluator()
	if err != nil {
		return err
	}
	return judge(a, e, want, meta, spec)
}

// judge refuses a pod, and warns of it or of a template.
func judge(a *rest.Admitting, e policy.Evaluator, want psapi.Policy, meta *metav1.ObjectMeta, spec *corev1.PodSpec) error {
	check := func(l psapi.LevelVersion) policy.AggregateCheckResult {
		return policy.AggregateCheckResults(e.EvaluatePod(l, meta, spec))
	}
	var refusal error
	if a.Kind == api.PodKind {
		a.Annotate(psapi.AuditAnnotationPrefix+psapi.EnforcedPolicyAnnotationKey, want.Enforce.String())
		if r := check(want.Enforce); !r.Allowed {
			refusal = forbidden(a, "violates PodSecurity %q: %s", want.Enforce.String(), r.ForbiddenDetail())
		}
	}
	would := func(l psapi.LevelVersion) string {
		if r := check(l); !r.Allowed {
			return fmt.Sprintf("would violate PodSecurity %q: %s", l.String(), r.ForbiddenDetail())
		}
		return ""
	}
	if text := would(want.Audit); text != "" {
		a.Annotate(psapi.AuditAnnotationPrefix+psapi.AuditViolationsAnnotationKey, text)
	}
	if refusal == nil && a.Warn != nil {
		if text := would(want.Warn); text != "" {
			a.Warn(text)
		}
	}
	return refusal
}

// namespace checks the labels, and warns of pods that a higher level would refuse.
func (s *standards) namespace(a *rest.Admitting) error {
	ns, ok := a.Object.(*corev1.Namespace)
	if !ok || a.Sub != "" {
		return nil
	}
	want, errs := psapi.PolicyToEvaluate(ns.Labels, privileged())
	if a.Old == nil {
		if len(errs) > 0 {
			return apierrors.NewInvalid(a.Kind.GVK().GroupKind(), ns.Name, errs)
		}
		return nil
	}
	had, before := psapi.PolicyToEvaluate(a.Old.GetLabels(), privileged())
	// A namespace whose labels became invalid can be changed otherwise, and deleted.
	if len(errs) > 0 && (len(before) == 0 || !reflect.DeepEqual(errs, before)) {
		return apierrors.NewInvalid(a.Kind.GVK().GroupKind(), ns.Name, errs)
	}
	rises := want.Enforce.Version != had.Enforce.Version || psapi.CompareLevels(want.Enforce.Level, had.Enforce.Level) > 0
	if want.Enforce == had.Enforce || want.Enforce.Level == psapi.LevelPrivileged || !rises || a.Warn == nil {
		return nil
	}
	e, err := s.evaluator()
	if err != nil {
		return err
	}
	for _, w := range s.violations(e, ns.Name, want.Enforce) {
		a.Warn(w)
	}
	return nil
}

// violations are warnings about the pods that run in a namespace, one for each sort of violation.
func (s *standards) violations(e policy.Evaluator, namespace string, level psapi.LevelVersion) (warnings []string) {
	type finding struct {
		first string
		count int
	}
	found := map[string]*finding{}
	checked, total := 0, 0
	until := time.Now().Add(podsTime)
	for entry := range s.store.Snapshot(api.PodKind).All(namespace, api.Key{}) {
		if total++; checked == podsChecked || time.Now().After(until) {
			continue
		}
		checked++
		p := entry.Object.(*corev1.Pod)
		r := policy.AggregateCheckResults(e.EvaluatePod(level, &p.ObjectMeta, &p.Spec))
		if r.Allowed {
			continue
		}
		f := found[r.ForbiddenReason()]
		if f == nil {
			f = &finding{first: p.Name} // they come by name
			found[r.ForbiddenReason()] = f
		}
		f.count++
	}
	if checked < total {
		warnings = append(warnings, fmt.Sprintf("new PodSecurity enforce level only checked against the first %d of %d existing pods", checked, total))
	}
	if len(found) == 0 {
		return warnings
	}
	warnings = append(warnings, fmt.Sprintf("existing pods in namespace %q violate the new PodSecurity enforce level %q", namespace, level.String()))
	var lines []string
	for reason, f := range found {
		switch f.count {
		case 1:
			lines = append(lines, fmt.Sprintf("%s: %s", f.first, reason))
		case 2:
			lines = append(lines, fmt.Sprintf("%s (and 1 other pod): %s", f.first, reason))
		default:
			lines = append(lines, fmt.Sprintf("%s (and %d other pods): %s", f.first, f.count-1, reason))
		}
	}
	slices.Sort(lines)
	return append(warnings, lines...)
}

// podOf returns the pod or pod template that a is about, nil when a changes nothing that matters.
func podOf(a *rest.Admitting) (*metav1.ObjectMeta, *corev1.PodSpec) {
	var t *corev1.PodTemplateSpec
	switch o := a.Object.(type) {
	case *corev1.Pod:
		if a.Sub == "status" || a.Sub == "eviction" || a.Sub == "binding" {
			return nil, nil
		}
		if old, ok := a.Old.(*corev1.Pod); ok && sameImages(&old.Spec, &o.Spec) {
			return nil, nil
		}
		return &o.ObjectMeta, &o.Spec
	case *corev1.PodTemplate:
		t = &o.Template
	case *corev1.ReplicationController:
		t = o.Spec.Template
	case *appsv1.Deployment:
		t = &o.Spec.Template
	case *appsv1.ReplicaSet:
		t = &o.Spec.Template
	case *appsv1.StatefulSet:
		t = &o.Spec.Template
	case *appsv1.DaemonSet:
		t = &o.Spec.Template
	case *batchv1.Job:
		t = &o.Spec.Template
	case *batchv1.CronJob:
		t = &o.Spec.JobTemplate.Spec.Template
	}
	if t == nil || a.Sub != "" {
		return nil, nil
	}
	return &t.ObjectMeta, &t.Spec
}

// sameImages says whether an update of a pod changes nothing that the standards are about: what else they look at
// cannot change.
func sameImages(old, now *corev1.PodSpec) bool {
	images := func(s *corev1.PodSpec) string {
		var all strings.Builder
		for _, cs := range [][]corev1.Container{s.Containers, s.InitContainers} {
			for i := range cs {
				all.WriteString(cs[i].Image + "\n")
			}
			all.WriteString("\n")
		}
		return all.String()
	}
	if images(old) != images(now) {
		return false
	}
	had := map[string]string{}
	for i := range old.EphemeralContainers {
		had[old.EphemeralContainers[i].Name] = old.EphemeralContainers[i].Image
	}
	for i := range now.EphemeralContainers {
		if c := &now.EphemeralContainers[i]; had[c.Name] != c.Image || c.Image == "" {
			return false
		}
	}
	return true
}
