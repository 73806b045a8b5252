// Package servingtrust publishes the authority of the API server's certificate as a ClusterTrustBundle of the signer
// kubernetes.io/kube-apiserver-serving, for pods that project it (KEP-3257). It replaces upstream's
// kube-apiserver-serving-clustertrustbundle-publisher.
//
// The bundle's name has a hash of what it holds, so that another authority is another bundle: the new one is there before the
// old one goes.
package servingtrust

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// Signer is the name of who signs the API server's certificate.
const Signer = "kubernetes.io/kube-apiserver-serving"

type controller struct {
	reconcile.Deps
	ca string
}

// New returns the publisher of ca, in PEM.
func New(d reconcile.Deps, ca []byte) *reconcile.Controller {
	c := controller{d, string(ca)}
	return reconcile.NewLoop(d, reconcile.Loop{
		Controller: "kube-apiserver-serving-clustertrustbundle-publisher-controller",
		Wake:       []*api.Kind{api.ClusterTrustBundleKind},
		Write:      reconcile.Writes{api.ClusterTrustBundleKind: {"create", "update", "delete"}},
		Run:        c.run,
	})
}

// Name is that of the bundle that holds ca.
func Name(ca string) string {
	sum := sha256.Sum256([]byte(ca))
	return fmt.Sprintf("%s:%x", strings.ReplaceAll(Signer, "/", ":"), sum[:12])
}

func (c controller) run(ctx context.Context, log *slog.Logger) (reconcile.Result, error) {
	all, err := client.List[*certificatesv1.ClusterTrustBundle](ctx, c.Client, client.Query{})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list trust bundles: %w", err)
	}
	name := Name(c.ca)
	var mine *certificatesv1.ClusterTrustBundle
	var others []*certificatesv1.ClusterTrustBundle
	for _, b := range all {
		switch {
		case b.Name == name:
			mine = b
		case b.Spec.SignerName == Signer:
			others = append(others, b)
		}
	}
	if err := c.publish(ctx, name, mine); err != nil {
		return reconcile.Result{}, err
	}
	for _, b := range others {
		log.Info("removing a trust bundle that holds another authority", "name", b.Name)
		if err := c.Client.Delete(ctx, b, client.DeleteOptions{AnyRevision: true}); err != nil && !apierrors.IsNotFound(err) {
			return reconcile.Result{}, fmt.Errorf("delete trust bundle %s: %w", b.Name, err)
		}
	}
	return reconcile.Result{}, nil
}

// publish brings the bundle, nil where there is none, to what it is to hold.
func (c controller) publish(ctx context.Context, name string, mine *certificatesv1.ClusterTrustBundle) error {
	if mine == nil {
		_, err := client.Create(ctx, c.Client, &certificatesv1.ClusterTrustBundle{
			TypeMeta:   metav1.TypeMeta{APIVersion: certificatesv1.SchemeGroupVersion.String(), Kind: "ClusterTrustBundle"},
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       certificatesv1.ClusterTrustBundleSpec{SignerName: Signer, TrustBundle: c.ca},
		})
		if err != nil {
			return fmt.Errorf("create trust bundle: %w", err)
		}
		return nil
	}
	if mine.DeletionTimestamp != nil || mine.Spec.TrustBundle == c.ca {
		return nil
	}
	next := mine.DeepCopy()
	next.Spec.TrustBundle = c.ca
	if _, err := c.Client.Update(ctx, next, ""); err != nil {
		return fmt.Errorf("update trust bundle: %w", err)
	}
	return nil
}
