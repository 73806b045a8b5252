package builtin

import (
	"context"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// namespaces live until the namespace controller has emptied them and taken the finalizer "kubernetes" away through
// /finalize. The label kubernetes.io/metadata.name always says their name.
func namespaces() *rest.Resource[*corev1.Namespace] {
	label := func(n *corev1.Namespace) {
		if n.Name == "" || n.Labels[corev1.LabelMetadataName] == n.Name {
			return
		}
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		n.Labels[corev1.LabelMetadataName] = n.Name
	}
	return &rest.Resource[*corev1.Namespace]{
		AnswerDeleted: true,
		NoCollection:  true,
		Default:       label,
		Name:          apivalidation.NameIsDNSLabel,
		Prepare: func(n *corev1.Namespace) {
			n.Status.Phase = corev1.NamespaceActive
			if !slices.Contains(n.Spec.Finalizers, corev1.FinalizerKubernetes) {
				n.Spec.Finalizers = append(n.Spec.Finalizers, corev1.FinalizerKubernetes)
			}
			label(n)
		},
		PrepareUpdate: func(now, old *corev1.Namespace) {
			now.Spec.Finalizers = slices.Clone(old.Spec.Finalizers)
		},
		PrepareStatus: func(now, old *corev1.Namespace) {
			if now.DeletionTimestamp == nil {
				now.Status.Phase = corev1.NamespaceActive
			}
		},
		ValidateStatus: func(now, old *corev1.Namespace) (errs field.ErrorList) {
			at := field.NewPath("status", "Phase")
			if now.DeletionTimestamp == nil && now.Status.Phase != corev1.NamespaceActive {
				errs = append(errs, field.Invalid(at, now.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty"))
			}
			if now.DeletionTimestamp != nil && now.Status.Phase != corev1.NamespaceTerminating {
				errs = append(errs, field.Invalid(at, now.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty"))
			}
			return errs
		},
		Validate: func(n *corev1.Namespace) (errs field.ErrorList) {
			for _, f := range n.Spec.Finalizers {
				errs = append(errs, namespaceFinalizer(f, field.NewPath("spec", "finalizers"))...)
			}
			return errs
		},
		NoGeneration: true,
		Fields: func(n *corev1.Namespace) fields.Set {
			return fields.Set{"status.phase": string(n.Status.Phase), "name": n.Name}
		},
		Finalizing: func(n *corev1.Namespace) bool { return len(n.Spec.Finalizers) > 0 },
		Deleting:   func(n *corev1.Namespace) { n.Status.Phase = corev1.NamespaceTerminating },
		Columns: []rest.Column[*corev1.Namespace]{
			{Name: "Status", Description: "The status of the namespace", Cell: func(n *corev1.Namespace) any { return string(n.Status.Phase) }},
			{Name: "Age"},
		},
		Sub: map[string]*rest.Subresource{"finalize": {Update: finalizeNamespace, Methods: []string{http.MethodPut}}},
	}
}

// finalizeNamespace lets spec.finalizers change, and metadata as any write.
func finalizeNamespace(_ context.Context, now, old api.Object) (errs field.ErrorList) {
	n, o := now.(*corev1.Namespace), old.(*corev1.Namespace)
	n.Status = *o.Status.DeepCopy()
	for i, f := range n.Spec.Finalizers {
		errs = append(errs, namespaceFinalizer(f, field.NewPath("spec", "finalizers").Index(i))...)
	}
	return errs
}

func namespaceFinalizer(f corev1.FinalizerName, at *field.Path) field.ErrorList {
	return append(apivalidation.ValidateFinalizerName(string(f), at), rest.StandardFinalizer(string(f), at)...)
}
