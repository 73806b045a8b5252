// Package podcertcleaner deletes PodCertificateRequests some time after they were made, whether they were issued, denied, failed
// or nobody answered: a kubelet that still wants a certificate asks anew. It replaces upstream's
// podcertificaterequest-cleaner-controller.
package podcertcleaner

import (
	"context"
	"log/slog"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// Life is how long a request is kept, as upstream's is.
const Life = 15 * time.Minute

// New returns the controller.
func New(d reconcile.Deps) *reconcile.Controller {
	return reconcile.New(d, reconcile.For[*certificatesv1.PodCertificateRequest]{
		Controller: "podcertificaterequest-cleaner-controller",
		Heeds:      func(_, _ *certificatesv1.PodCertificateRequest) bool { return false }, // its age is all that counts
		Write:      reconcile.Writes{api.PodCertificateRequestKind: {"delete"}},
		Reconcile: func(ctx context.Context, _ *slog.Logger, r *certificatesv1.PodCertificateRequest) (reconcile.Result, error) {
			if left := time.Until(r.CreationTimestamp.Add(Life)); left > 0 {
				return reconcile.Result{After: left}, nil
			}
			if r.DeletionTimestamp != nil {
				return reconcile.Result{}, nil
			}
			return reconcile.Result{}, d.Client.Delete(ctx, r, client.DeleteOptions{AnyRevision: true})
		},
	})
}
