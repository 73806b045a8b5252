// Package admission holds the checks and completions that need to know who asks, or other objects: it replaces the
// plug-ins that kube-apiserver switches on by default, as far as their kinds exist here. One file each; All is the list,
// in the order of asking.
package admission

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// Deps is what the plug-ins need.
type Deps struct {
	Store *store.Store
	// Roles decides what a user may grant; made over Store when nil.
	Roles *authz.RBAC
	// Access says who may sign, approve and attest; Roles when nil.
	Access authz.Authorizer
	// Configured are those that the operator asks for beside the others (Configured). They are asked before any webhook is.
	Configured []rest.Admission
	// Dynamic are what objects configure, webhooks and policies: they are asked after those that change an object by built-in rules, and before
	// what is counted against quotas.
	Dynamic []rest.Admission
}

// All returns every plug-in.
func All(d Deps) []rest.Admission {
	if d.Roles == nil {
		d.Roles = authz.NewRBAC(d.Store)
	}
	if d.Access == nil {
		d.Access = d.Roles
	}
	get := authn.Stored(d.Store)
	all := []rest.Admission{
		namespaceLifecycle(get),
		limitRanger(d.Store),
		serviceAccount(d.Store),
		nodeRestriction(get, d.Access),
		taintNodesByCondition(),
		podSecurity(d.Store),
		priority(d.Store),
		defaultTolerationSeconds(),
		defaultStorageClass(d.Store),
		storageObjectInUseProtection(),
		claimResize(d.Store),
		runtimeClass(d.Store),
		certificateApproval(d.Access),
		certificateSigning(d.Access),
		clusterTrustBundleAttest(d.Access),
		certificateSubjectRestriction(),
		defaultIngressClass(d.Store),
		podResize(get),
		declaredFeature(get),
		escalation(d.Roles),
	}
	all = slices.Concat(all, d.Configured, d.Dynamic)
	return append(all, resourceQuota(d.Store))
}

// newPod returns the pod that a creates, nil when it is about something else.
func newPod(a *rest.Admitting) *corev1.Pod {
	if a.Kind != api.PodKind || a.Sub != "" || a.Operation != rest.OpCreate {
		return nil
	}
	p, _ := a.Object.(*corev1.Pod)
	return p
}

// forbidden is the refusal of a, with upstream's form of the message.
func forbidden(a *rest.Admitting, format string, args ...any) error {
	name := a.Key.Name
	if name == "" && a.Object != nil {
		name = a.Object.GetName()
	}
	if name == "" && a.Object != nil {
		name = a.Object.GetGenerateName()
	}
	return apierrors.NewForbidden(a.Kind.GroupResource(), name, fmt.Errorf(format, args...))
}

// onMutate and onValidate name a plug-in of one phase.
func onMutate(name string, f func(ctx context.Context, a *rest.Admitting) error) rest.Admission {
	return rest.Admission{Name: name, Mutate: f}
}

func onValidate(name string, f func(ctx context.Context, a *rest.Admitting) error) rest.Admission {
	return rest.Admission{Name: name, Validate: f}
}
