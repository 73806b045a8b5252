package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// ingressClass named an Ingress' class before there was a field for it.
const ingressClass = "kubernetes.io/ingress.class"

// defaultStorageClass names the default class in claims that name none. A claim with an empty name wants none.
func defaultStorageClass(s *store.Store) rest.Admission {
	return onMutate("DefaultStorageClass", func(ctx context.Context, a *rest.Admitting) error {
		c, ok := a.Object.(*corev1.PersistentVolumeClaim)
		if !ok || a.Sub != "" || a.Operation != rest.OpCreate || c.Spec.StorageClassName != nil {
			return nil
		}
		if _, named := c.Annotations[corev1.BetaStorageClassAnnotation]; named {
			return nil
		}
		name, err := newest(ctx, s, api.StorageClassKind, claim.DefaultClass, claim.DefaultClassBeta)
		c.Spec.StorageClassName = name
		return err
	})
}

// defaultIngressClass names the default class in Ingresses that name none.
func defaultIngressClass(s *store.Store) rest.Admission {
	return onMutate("DefaultIngressClass", func(ctx context.Context, a *rest.Admitting) error {
		i, ok := a.Object.(*networkingv1.Ingress)
		if !ok || a.Sub != "" || a.Operation != rest.OpCreate || i.Spec.IngressClassName != nil {
			return nil
		}
		if _, named := i.Annotations[ingressClass]; named {
			return nil
		}
		name, err := newest(ctx, s, api.IngressClassKind, networkingv1.AnnotationIsDefaultIngressClass)
		i.Spec.IngressClassName = name
		return err
	})
}

// newest returns the name of the youngest object of k that one of the annotations marks, nil where there is none.
func newest(ctx context.Context, s *store.Store, k *api.Kind, marks ...string) (*string, error) {
	if err := s.Sync(ctx); err != nil {
		return nil, err
	}
	var found api.Object
	for e := range s.Snapshot(k).All("", api.Key{}) {
		for _, mark := range marks {
			// They come ordered by name, and the first of equally old ones counts.
			if e.Object.GetAnnotations()[mark] == "true" && (found == nil || e.Object.GetCreationTimestamp().After(found.GetCreationTimestamp().Time)) {
				found = e.Object
			}
		}
	}
	if found == nil {
		return nil, nil
	}
	name := found.GetName()
	return &name, nil
}
