package aggregator

import (
	"context"
	"errors"
	"fmt"
	"reflect"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/client"
)

// always is the value of the label builtin.AutoManaged of APIServices that are kept at any time. Those of built-in versions are
// brought to what they are to be once, at the start.
const always = "true"

// register brings the APIServices of what is served here to what they are to be.
func (w *worker) register(ctx context.Context) error {
	defined, services := w.d.Store.Snapshot(api.CustomResourceDefinitionKind), w.d.Store.Snapshot(api.APIServiceKind)
	looked := [2]api.Revision{defined.Changed(), services.Changed()}
	if w.begun && looked == w.looked {
		return nil // it is a Service or its endpoints that changed
	}
	want := map[string]*Service{}
	for e := range defined.All("", api.Key{}) {
		for _, s := range registered(e.Object.(*apiextensionsv1.CustomResourceDefinition)) {
			want[s.Name] = s
		}
	}
	for name := range w.builtIn {
		delete(want, name)
	}
	var errs []error
	for e := range services.All("", api.Key{}) {
		now := e.Object.(*Service)
		if now.Spec.Service == nil && !same(now, local) && !w.write(ctx, now, local) {
			errs = append(errs, fmt.Errorf("status of %s not written", now.Name))
		}
		wanted := want[now.Name]
		delete(want, now.Name)
		errs = append(errs, w.settle(ctx, now, wanted))
	}
	for _, s := range want {
		_, err := client.Create(ctx, w.d.Client, s)
		errs = append(errs, unless(err, apierrors.IsAlreadyExists))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	w.begun, w.looked = true, looked
	return nil
}

// settle brings an APIService that exists to what is wanted, nil for none. Those that somebody else made are his.
func (w *worker) settle(ctx context.Context, now, want *Service) error {
	kept := now.Labels[builtin.AutoManaged]
	switch {
	case kept != always && kept != builtin.OnStart:
		return nil
	case kept == builtin.OnStart && (w.begun || w.builtIn[now.Name]):
		return nil // package bootstrap makes these
	case want == nil:
		return unless(w.d.Client.Delete(ctx, now, client.DeleteOptions{}), apierrors.IsNotFound, apierrors.IsConflict)
	case reflect.DeepEqual(now.Spec, want.Spec):
		return nil
	}
	_, err := client.Mutate(ctx, w.d.Client, now, "", func(s *Service) { s.Spec = want.Spec })
	return unless(err, apierrors.IsNotFound, apierrors.IsConflict)
}

// unless is err but for those that say that somebody else was faster: his change is seen as well.
func unless(err error, but ...func(error) bool) error {
	for _, is := range but {
		if is(err) {
			return nil
		}
	}
	return err
}

// registered are the APIServices of the versions of a definition that are served.
func registered(crd *apiextensionsv1.CustomResourceDefinition) (all []*Service) {
	for _, v := range crd.Spec.Versions {
		if !v.Served {
			continue
		}
		all = append(all, &Service{
			ObjectMeta: metav1.ObjectMeta{Name: v.Name + "." + crd.Spec.Group, Labels: map[string]string{builtin.AutoManaged: always}},
			Spec: apiregistrationv1.APIServiceSpec{Group: crd.Spec.Group, Version: v.Name,
				GroupPriorityMinimum: customGroupPriority, VersionPriority: customVersionPriority},
		})
	}
	return all
}
