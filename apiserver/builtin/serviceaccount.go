package builtin

import (
	"context"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
)

// Bounds of the life of tokens, in seconds.
const (
	defaultTokenLife = 60 * 60
	minTokenLife     = 10 * 60
	maxTokenLife     = 1 << 32
)

func serviceAccounts(d Deps) *rest.Resource[*corev1.ServiceAccount] {
	return &rest.Resource[*corev1.ServiceAccount]{
		AnswerDeleted: true,
		PrepareUpdate: func(now, _ *corev1.ServiceAccount) { namedSecrets(now) },
		Prepare: func(s *corev1.ServiceAccount) {
			s.Secrets = dropEmpty(s.Secrets)
			namedSecrets(s)
		},
		Columns: []rest.Column[*corev1.ServiceAccount]{
			{Name: "Secrets", Description: corev1.ServiceAccount{}.SwaggerDoc()["secrets"],
				Cell: func(s *corev1.ServiceAccount) any { return len(s.Secrets) }},
			{Name: "Age"},
		},
		Sub: map[string]*rest.Subresource{"token": {Body: api.TokenRequestKind, Create: func(ctx context.Context, parent, body api.Object, opts *metav1.CreateOptions) (runtime.Object, error) {
			return d.token(ctx, parent.(*corev1.ServiceAccount), body.(*authenticationv1.TokenRequest))
		}}},
	}
}

func dropEmpty(refs []corev1.ObjectReference) (out []corev1.ObjectReference) {
	for _, r := range refs {
		if r.Name != "" {
			out = append(out, r)
		}
	}
	return out
}

// namedSecrets keeps of references to Secrets nothing but their names: they are of the same namespace.
func namedSecrets(a *corev1.ServiceAccount) {
	for i, s := range a.Secrets {
		a.Secrets[i] = corev1.ObjectReference{Name: s.Name}
	}
}

// token issues a token for sa, bound to what the request names.
func (d Deps) token(ctx context.Context, sa *corev1.ServiceAccount, req *authenticationv1.TokenRequest) (runtime.Object, error) {
	if req.Name != sa.Name && req.Name != "" {
		return nil, apierrors.NewInvalid(api.TokenRequestKind.GVK().GroupKind(), sa.Name, field.ErrorList{
			field.Invalid(field.NewPath("metadata", "name"), req.Name, "must match the service account name if specified")})
	}
	if req.UID != "" && req.UID != sa.UID {
		k := api.TokenRequestKind // upstream names the kind where a resource is due
		return nil, apierrors.NewConflict(schema.GroupResource{Group: k.Group, Resource: k.Kind}, sa.Name, fmt.Errorf(
			"the UID in the token request (%s) does not match the UID of the service account (%s)", req.UID, sa.UID))
	}
	setPtr(&req.Spec.ExpirationSeconds, int64(defaultTokenLife))
	life, at := *req.Spec.ExpirationSeconds, field.NewPath("spec").Child("expirationSeconds")
	var errs field.ErrorList
	if life < minTokenLife {
		errs = append(errs, field.Invalid(at, life, "may not specify a duration less than 10 minutes"))
	}
	if life > maxTokenLife {
		errs = append(errs, field.Invalid(at, life, "may not specify a duration larger than 2^32 seconds"))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(api.TokenRequestKind.GVK().GroupKind(), "", errs)
	}
	bound := authn.Bound{Namespace: sa.Namespace, ServiceAccount: *authn.BoundTo(sa)}
	if err := d.bind(ctx, &bound, sa, req.Spec.BoundObjectRef); err != nil {
		return nil, err
	}
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = append([]string(nil), d.Tokens.Audiences()...)
	}
	token, expires, err := d.Tokens.Issue(bound, req.Spec.Audiences, time.Duration(life)*time.Second)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	req.Name, req.Namespace, req.UID, req.CreationTimestamp = sa.Name, sa.Namespace, sa.UID, metav1.Now()
	req.Status = authenticationv1.TokenRequestStatus{Token: token, ExpirationTimestamp: metav1.NewTime(expires)}
	return req, nil
}

// bind looks up what a token is to be bound to and names it in b.
func (d Deps) bind(ctx context.Context, b *authn.Bound, sa *corev1.ServiceAccount, ref *authenticationv1.BoundObjectReference) error {
	if ref == nil {
		return nil
	}
	kind, namespace := (*api.Kind)(nil), sa.Namespace
	switch gvk := ref.APIVersion + " " + ref.Kind; gvk {
	case "v1 Pod":
		kind = api.PodKind
	case "v1 Secret":
		kind = api.SecretKind
	case "v1 Node":
		kind, namespace = api.NodeKind, ""
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk))
	}
	o, err := d.lookup(ctx, kind, api.Key{Namespace: namespace, Name: ref.Name})
	if err != nil {
		return err
	}
	if ref.UID != "" && ref.UID != o.GetUID() {
		return apierrors.NewConflict(kind.GroupResource(), ref.Name, fmt.Errorf(
			"the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID))
	}
	switch o := o.(type) {
	case *corev1.Pod:
		if o.Spec.ServiceAccountName != sa.Name {
			return apierrors.NewBadRequest(fmt.Sprintf("cannot bind token for serviceaccount %q to pod running with different serviceaccount name %q", sa.Name, o.Spec.ServiceAccountName))
		}
		b.Pod = authn.BoundTo(o)
		if o.Spec.NodeName == "" {
			return nil
		}
		// The node is told for information; it may have gone.
		b.Node = &authn.Ref{Name: o.Spec.NodeName}
		if n, err := d.lookup(ctx, api.NodeKind, api.Key{Name: o.Spec.NodeName}); err == nil {
			b.Node.UID = n.GetUID()
		}
	case *corev1.Secret:
		b.Secret = authn.BoundTo(o)
	case *corev1.Node:
		b.Node = authn.BoundTo(o)
	}
	return nil
}

// lookup reads one object as new as any write acknowledged before.
func (d Deps) lookup(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	return authn.Stored(d.Store).Get(ctx, k, key)
}
