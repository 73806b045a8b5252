package reconcile_test

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// breaking is a Reader whose watches of kinds that are defined end when they are told to.
type breaking struct {
	client.Reader
	end chan struct{}
}

func (b breaking) Watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	if !k.Custom() {
		return b.Reader.Watch(ctx, k, q, from)
	}
	return func(yield func(client.Event, error) bool) {
		if !yield(client.Event{Op: client.Synced}, nil) {
			return
		}
		select {
		case <-b.end:
			yield(client.Event{}, errors.New("the watch broke"))
		case <-ctx.Done():
		}
	}
}

// Whenever the objects of a kind are followed anew those are asked who may have missed an end, and not before any was missed.
func TestFollowedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		version := func(name string, stored bool) apiextensionsv1.CustomResourceDefinitionVersion {
			return apiextensionsv1.CustomResourceDefinitionVersion{Name: name, Served: true, Storage: stored}
		}
		crd := rt.Create(t, c, &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.com"},
			Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
				Names:    apiextensionsv1.CustomResourceDefinitionNames{Plural: "widgets", Kind: "Widget"},
				Versions: []apiextensionsv1.CustomResourceDefinitionVersion{version("v1", true), version("v2", false)}},
			Status: apiextensionsv1.CustomResourceDefinitionStatus{Conditions: []apiextensionsv1.CustomResourceDefinitionCondition{
				{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}}})
		b := breaking{c, make(chan struct{})}
		d := rt.Deps(t, c)
		d.Informers = reconcile.NewInformers(b)
		var asked []string
		rt.Start(t, d, reconcile.NewKeyed(d, reconcile.Keyed{Controller: "probe",
			Sources: []reconcile.Source{reconcile.ChangesOfDefined(func(_ context.Context, _ reconcile.Deps, k *api.Kind, before, after api.Object) []api.Key {
				if before == nil && after == nil {
					asked = append(asked, k.Version)
				}
				return nil
			})},
			Run: func(context.Context, *slog.Logger, api.Key) (reconcile.Result, error) { return reconcile.Result{}, nil }}))
		expect := func(when string, want ...string) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			if len(asked) != len(want) || len(want) > 0 && asked[len(asked)-1] != want[len(want)-1] {
				t.Errorf("%s: asked %v, want %v", when, asked, want)
			}
		}
		expect("at first")
		b.end <- struct{}{}
		expect("after a watch that broke", "v1")
		rt.Mutate(t, c, crd, "", func(c *apiextensionsv1.CustomResourceDefinition) {
			c.Spec.Versions = []apiextensionsv1.CustomResourceDefinitionVersion{version("v1", false), version("v2", true)}
		})
		expect("in another version", "v1", "v2")
	})
}
