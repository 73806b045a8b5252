package admission

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
)

// namespaceLifecycle keeps objects out of namespaces that do not exist or are being emptied, and keeps the namespaces that
// the cluster itself needs.
func namespaceLifecycle(get authn.Getter) rest.Admission {
	return onMutate("NamespaceLifecycle", func(ctx context.Context, a *rest.Admitting) error {
		if a.Kind == api.NamespaceKind {
			if a.Operation == rest.OpDelete && lasting(a.Key.Name) {
				return forbidden(a, "this namespace may not be deleted")
			}
			return nil
		}
		// What is there may change and go, whatever its namespace does; questions are not in any.
		if a.Key.Namespace == "" || a.Operation != rest.OpCreate || a.Kind == api.LocalSubjectAccessReviewKind {
			return nil
		}
		o, err := get.Get(ctx, api.NamespaceKind, api.Key{Name: a.Key.Namespace})
		if err != nil {
			return err
		}
		ns := o.(*corev1.Namespace)
		if ns.DeletionTimestamp == nil && ns.Status.Phase != corev1.NamespaceTerminating {
			return nil
		}
		return terminating(a, ns.Name)
	})
}

func terminating(a *rest.Admitting, namespace string) error {
	err := forbidden(a, "unable to create new content in namespace %s because it is being terminated", namespace)
	var status *apierrors.StatusError
	if errors.As(err, &status) {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{
			Type: corev1.NamespaceTerminatingCause, Message: "namespace " + namespace + " is being terminated", Field: "metadata.namespace"})
	}
	return err
}

// lasting says whether the cluster cannot be without a namespace.
func lasting(name string) bool {
	switch name {
	case metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic:
		return true
	}
	return false
}
