package controllers_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// define makes a namespaced kind and waits until it is served.
func define(t testing.TB, c client.Client, change ...func(*apiextensionsv1.CustomResourceDefinitionVersion)) *api.Kind {
	t.Helper()
	d := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "widgets.example.com"},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Scope: apiextensionsv1.NamespaceScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: "widgets", Kind: "Widget"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}}}}}}
	for _, f := range change {
		f(&d.Spec.Versions[0])
	}
	if _, err := c.Create(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	synctest.Wait()
	got, err := client.Get[*apiextensionsv1.CustomResourceDefinition](t.Context(), c, api.Key{Name: d.Name})
	if err != nil {
		t.Fatal(err)
	}
	return api.Defined(got, "v1")
}

func widget(t testing.TB, c client.Client, k *api.Kind, namespace, name string, owners ...api.Object) api.Object {
	t.Helper()
	o := k.New()
	o.SetNamespace(namespace)
	o.SetName(name)
	o.SetOwnerReferences(owned(owners...))
	return made(t, c, o)
}

func made(t testing.TB, c client.Client, o api.Object) api.Object {
	t.Helper()
	o, err := c.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// owned are references that block.
func owned(owners ...api.Object) (refs []metav1.OwnerReference) {
	for _, o := range owners {
		gvk := o.GetObjectKind().GroupVersionKind()
		refs = append(refs, metav1.OwnerReference{APIVersion: gvk.GroupVersion().String(), Kind: gvk.Kind, Name: o.GetName(), UID: o.GetUID(), BlockOwnerDeletion: ptr(true)})
	}
	return refs
}

// Custom resources are owners and dependents like others, under each policy.
func TestCollectCustom(t *testing.T) {
	for _, policy := range []metav1.DeletionPropagation{metav1.DeletePropagationBackground, metav1.DeletePropagationForeground, metav1.DeletePropagationOrphan} {
		t.Run(string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := cluster(t)
				k := define(t, c)
				owner := widget(t, c, k, "ns", "owner")
				child := widget(t, c, k, "ns", "child", owner)
				widget(t, c, k, "ns", "grandchild", child)
				config := made(t, c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "config", OwnerReferences: owned(owner)}})
				widget(t, c, k, "ns", "of-config", config)
				time.Sleep(time.Second)
				synctest.Wait()
				owner, err := c.Get(t.Context(), k, api.KeyOf(owner))
				if err != nil {
					t.Fatal(err)
				}
				if err := c.Delete(t.Context(), owner, client.DeleteOptions{Propagation: policy}); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
				left, _, err := c.List(t.Context(), k, client.Query{Namespace: "ns"})
				if err != nil {
					t.Fatal(err)
				}
				_, err = c.Get(t.Context(), api.ConfigMapKind, api.KeyOf(config))
				if policy != metav1.DeletePropagationOrphan {
					if len(left) != 0 || !apierrors.IsNotFound(err) {
						t.Errorf("left: %d, and of the ConfigMap: %v", len(left), err)
					}
					return
				}
				if len(left) != 3 || err != nil {
					t.Errorf("left: %d, and of the ConfigMap: %v", len(left), err)
				}
				orphan, err := c.Get(t.Context(), k, api.KeyOf(child))
				if err != nil || len(orphan.GetOwnerReferences()) != 0 {
					t.Error("still owned:", orphan, err)
				}
			})
		})
	}
}

// A dependent of a kind that is defined later is collected when its owner goes; and one of an owner that never was, when the kind is
// known.
func TestCollectDefinedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		missing := &unstructured.Unstructured{}
		missing.SetAPIVersion("example.com/v1")
		missing.SetKind("Widget")
		missing.SetName("missing")
		missing.SetUID("5e2f")
		config := made(t, c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "config", OwnerReferences: owned(missing)}})
		time.Sleep(time.Second)
		synctest.Wait()
		if _, err := c.Get(t.Context(), api.ConfigMapKind, api.KeyOf(config)); err != nil {
			t.Error("nothing is known of its owner, but it is gone:", err)
		}
		define(t, c)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, err := c.Get(t.Context(), api.ConfigMapKind, api.KeyOf(config)); !apierrors.IsNotFound(err) {
			t.Error("its owner is known not to exist, but it is there:", err)
		}
	})
}

// A namespace is emptied of custom resources, and waits for their finalizers; quotas count them.
func TestNamespaceOfCustom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		k := define(t, c)
		made(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
		made(t, c, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "q"},
			Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/widgets.example.com": resource.MustParse("2")}}})
		time.Sleep(time.Second)
		synctest.Wait()
		used := func(want int64) {
			t.Helper()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			q, err := client.Get[*corev1.ResourceQuota](t.Context(), c, api.Key{Namespace: "other", Name: "q"})
			if n := q.Status.Used["count/widgets.example.com"]; err != nil || n.Value() != want {
				t.Errorf("used %v, want %d: %v", n.Value(), want, err)
			}
		}
		widget(t, c, k, "other", "a")
		held := k.New()
		held.SetNamespace("other")
		held.SetName("held")
		held.SetFinalizers([]string{"example.com/hold"})
		held = made(t, c, held)
		used(2)
		third := k.New()
		third.SetNamespace("other")
		third.SetName("third")
		if _, err := c.Create(context.WithoutCancel(t.Context()), third); !apierrors.IsForbidden(err) {
			t.Error("more than the quota:", err)
		}
		ns, err := c.Get(t.Context(), api.NamespaceKind, api.Key{Name: "other"})
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Delete(t.Context(), ns, client.DeleteOptions{AnyRevision: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if left, _, err := c.List(t.Context(), k, client.Query{}); len(left) != 1 || err != nil {
			t.Error("left:", len(left), err)
		}
		if held, err = c.Get(t.Context(), k, api.KeyOf(held)); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Mutate(t.Context(), c, held, "", func(o api.Object) { o.SetFinalizers(nil) }); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if _, err := c.Get(t.Context(), api.NamespaceKind, api.Key{Name: "other"}); !apierrors.IsNotFound(err) {
			t.Error("the namespace is empty, and there:", err)
		}
	})
}
