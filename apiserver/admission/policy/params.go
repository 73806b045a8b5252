package policy

import (
	"errors"
	"fmt"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/api"
)

// kindOf returns the kind of a policy's parameters, nil where it has none.
func (p *Policies) kindOf(k *admissionregv1.ParamKind) (*api.Kind, error) {
	if k == nil {
		return nil, nil
	}
	gv, err := schema.ParseGroupVersion(k.APIVersion)
	if err != nil {
		return nil, err
	}
	if kind := p.d.Kind(gv.WithKind(k.Kind)); kind != nil {
		return kind, nil
	}
	return nil, fmt.Errorf("failed to find resource referenced by paramKind: '%v'", gv.WithKind(k.Kind))
}

// params returns what a binding has its policy asked with, once for each. One that has no parameters is asked with nil; where there
// are to be none, with none at all, and not. The namespace is the request's.
func (p *Policies) params(kind *api.Kind, ref *admissionregv1.ParamRef, namespace string) ([]runtime.Object, error) {
	if kind == nil || ref == nil {
		return []runtime.Object{nil}, nil
	}
	if kind.Namespaced {
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
	found, err := p.find(kind, ref, namespace)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 && ref.ParameterNotFoundAction != nil && *ref.ParameterNotFoundAction == admissionregv1.DenyAction {
		return nil, errors.New("no params found for policy binding with `Deny` parameterNotFoundAction")
	}
	return found, nil
}

func (p *Policies) find(kind *api.Kind, ref *admissionregv1.ParamRef, namespace string) (found []runtime.Object, err error) {
	stored := kind
	if of := kind.Of(); of != nil {
		stored = of
	}
	snap := p.d.Store.Snapshot(stored)
	switch {
	case ref.Name != "" && ref.Selector != nil:
		return nil, errors.New("paramRef.name and paramRef.selector are mutually exclusive")
	case ref.Name != "":
		if e := snap.Get(api.Key{Namespace: namespace, Name: ref.Name}); e != nil && e.Err() == nil {
			found = append(found, kind.Show(e.Object))
		}
		return found, nil
	case ref.Selector == nil:
		return nil, errors.New("one of name or selector must be provided")
	}
	selector, err := metav1.LabelSelectorAsSelector(ref.Selector)
	if err != nil {
		return nil, err
	}
	for e := range snap.All(namespace, api.Key{}) {
		if e.Err() == nil && selector.Matches(labels.Set(e.Object.GetLabels())) {
			found = append(found, kind.Show(e.Object))
		}
	}
	return found, nil
}
