package admission

import (
	"context"
	"fmt"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	psapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
)

// podSecurity holds pods to the Pod Security Standards that their namespace's labels name: pod-security.kubernetes.io/enforce
// refuses, warn warns, also about templates of workloads. Without labels everything is allowed. There is no audit log yet
// that the level audit could write to.
func podSecurity(get authn.Getter) rest.Admission {
	s := &standards{get: get, evaluator: sync.OnceValues(func() (policy.Evaluator, error) {
		return policy.NewEvaluator(policy.DefaultChecks(), nil)
	})}
	return onValidate("PodSecurity", s.validate)
}

type standards struct {
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
	if ns, ok := a.Object.(*corev1.Namespace); ok && a.Sub == "" {
		if _, errs := psapi.PolicyToEvaluate(ns.Labels, privileged()); len(errs) > 0 && !sameLabels(a.Old, ns) {
			return apierrors.NewInvalid(a.Kind.GVK().GroupKind(), ns.Name, errs)
		}
		return nil
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
		return nil
	}
	e, err := s.evaluator()
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("read pod security checks: %w", err))
	}
	if a.Kind == api.PodKind {
		if r := policy.AggregateCheckResults(e.EvaluatePod(want.Enforce, meta, spec)); !r.Allowed {
			return forbidden(a, "violates PodSecurity %q: %s", want.Enforce.String(), r.ForbiddenDetail())
		}
	}
	if r := policy.AggregateCheckResults(e.EvaluatePod(want.Warn, meta, spec)); !r.Allowed && a.Warn != nil {
		a.Warn(fmt.Sprintf("would violate PodSecurity %q: %s", want.Warn.String(), r.ForbiddenDetail()))
	}
	return nil
}

// sameLabels lets a namespace whose labels became invalid be changed otherwise, and be deleted.
func sameLabels(old api.Object, now *corev1.Namespace) bool {
	return old != nil && equality.Semantic.DeepEqual(old.GetLabels(), now.Labels)
}

// podOf returns the pod or pod template that a is about, nil when a changes nothing that matters.
func podOf(a *rest.Admitting) (*metav1.ObjectMeta, *corev1.PodSpec) {
	if a.Sub != "" && a.Sub != "ephemeralcontainers" {
		return nil, nil
	}
	var t *corev1.PodTemplateSpec
	switch o := a.Object.(type) {
	case *corev1.Pod:
		if old, ok := a.Old.(*corev1.Pod); ok && equality.Semantic.DeepEqual(old.Spec, o.Spec) && equality.Semantic.DeepEqual(old.Annotations, o.Annotations) {
			return nil, nil
		}
		return &o.ObjectMeta, &o.Spec
	case *appsv1.Deployment:
		t = &o.Spec.Template
	case *appsv1.ReplicaSet:
		t = &o.Spec.Template
	case *appsv1.DaemonSet:
		t = &o.Spec.Template
	case *batchv1.Job:
		t = &o.Spec.Template
	default:
		return nil, nil
	}
	return &t.ObjectMeta, &t.Spec
}
