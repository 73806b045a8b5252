package policy

import (
	"context"
	"errors"
	"fmt"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

// kindOf returns what the parameters of a policy are served as; the zero value where it has none.
func (p *Policies) kindOf(k *admissionregv1.ParamKind) (rest.Any, error) {
	if k == nil {
		return rest.Any{}, nil
	}
	gv, err := schema.ParseGroupVersion(k.APIVersion)
	if err != nil {
		return rest.Any{}, err
	}
	if kind, ok := p.d.Kind(gv.WithKind(k.Kind)); ok {
		return kind, nil
	}
	return rest.Any{}, fmt.Errorf("failed to find resource referenced by paramKind: '%v'", gv.WithKind(k.Kind))
}

// params returns what a binding has its policy asked with, once for each. One that has no parameters is asked with nil; where there
// are to be none, with none at all, and not. The namespace is the request's.
func (p *Policies) params(ctx context.Context, kind rest.Any, ref *admissionregv1.ParamRef, namespace string) ([]runtime.Object, error) {
	if kind.Kind == nil || ref == nil {
		return []runtime.Object{nil}, nil
	}
	if kind.Kind.Namespaced {
		if ref.Namespace != "" {
			namespace = ref.Namespace
		}
		if namespace == "" {
			return nil, errors.New("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources")
		}
	} else {
		if ref.Namespace != "" {
			return nil, errors.New("paramRef.namespace must not be provided for a cluster-scoped `paramKind`")
		}
		namespace = ""
	}
	found, err := p.find(ctx, kind, ref, namespace)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 && ref.ParameterNotFoundAction != nil && *ref.ParameterNotFoundAction == admissionregv1.DenyAction {
		return nil, errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")
	}
	return found, nil
}

// find reads the parameters as this server has them.
func (p *Policies) find(ctx context.Context, kind rest.Any, ref *admissionregv1.ParamRef, namespace string) (found []runtime.Object, err error) {
	const newest = "0" // that is here, without asking the database
	r := &rest.Request{Any: kind, Key: api.Key{Namespace: namespace, Name: ref.Name}}
	switch {
	case ref.Name != "" && ref.Selector != nil:
		return nil, errors.New("paramRef.name and paramRef.selector are mutually exclusive")
	case ref.Name != "":
		e, err := p.read.Get(ctx, r, newest)
		switch {
		case apierrors.IsNotFound(err):
			return nil, nil
		case err != nil:
			return nil, err
		}
		return []runtime.Object{e.Object}, nil
	case ref.Selector == nil:
		return nil, errors.New("one of name or selector must be provided")
	}
	selector, err := metav1.LabelSelectorAsSelector(ref.Selector)
	if err != nil {
		return nil, err
	}
	page, err := p.read.List(ctx, r, rest.ListOptions{Selection: rest.Selection{Labels: selector}, Version: newest})
	if err != nil {
		return nil, err
	}
	for _, e := range page.Entries {
		found = append(found, e.Object)
	}
	return found, nil
}
