package namespace

import (
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func fill(t *testing.T, c *rt.Cluster, namespace string) {
	for _, k := range api.Stored() {
		if k.Namespaced {
			o := k.New()
			o.SetNamespace(namespace)
			o.SetName("x")
			if p, ok := o.(*corev1.Pod); ok {
				p.Spec.NodeName = "n"
			}
			rt.Create(t, c, o)
		}
	}
}

func count(t *testing.T, c *rt.Cluster, namespace string) (pods, others int) {
	for _, k := range api.Stored() {
		if !k.Namespaced {
			continue
		}
		os, _, err := c.List(t.Context(), k, client.Query{Namespace: namespace})
		if err != nil {
			t.Fatal(err)
		}
		if k == api.PodKind {
			pods = len(os)
		} else {
			others += len(os)
		}
	}
	return pods, others
}

// Pods go first, then everything else, then the namespace; its neighbour stays.
func TestDeletion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d, api.Stored()))
		for _, n := range []string{"a", "b"} {
			rt.Create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n}})
			fill(t, c, n)
		}
		_, all := count(t, c, "a")
		rt.Delete(t, c, rt.Get[*corev1.Namespace](t, c, "", "a"), client.DeleteOptions{})
		synctest.Wait()
		if pods, others := count(t, c, "a"); pods != 1 || others != all {
			t.Errorf("while a pod terminates there are %d pods and %d of %d others", pods, others, all)
		}
		var got []string
		for _, cond := range rt.Get[*corev1.Namespace](t, c, "", "a").Status.Conditions {
			if cond.Status == corev1.ConditionTrue {
				got = append(got, cond.Message)
			}
		}
		if d := cmp.Diff([]string{"Some resources are remaining: pods has 1 resource instances"}, got); d != "" {
			t.Error(d)
		}
		zero := int64(0)
		rt.Delete(t, c, rt.Get[*corev1.Pod](t, c, "a", "x"), client.DeleteOptions{Grace: &zero})
		synctest.Wait()
		if n := len(rt.List[*corev1.Namespace](t, c)); n != 1 {
			t.Errorf("%d namespaces are left", n)
		}
		if pods, others := count(t, c, "a"); pods+others != 0 {
			t.Errorf("%d pods and %d others are left", pods, others)
		}
		if pods, others := count(t, c, "b"); pods != 1 || others != all {
			t.Errorf("the neighbour has %d pods and %d of %d others", pods, others, all)
		}
	})
}

func TestObstacles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		var locked atomic.Bool
		locked.Store(true)
		c.Refuse = func(verb string, k *api.Kind, _ api.Key) error {
			if locked.Load() && verb == "delete" && k == api.SecretKind {
				return errors.New("locked")
			}
			return nil
		}
		rt.Start(t, d, New(d, api.Stored()))
		ns := rt.Create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
		rt.Create(t, c, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "s"}})
		cm := rt.Create(t, c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "c", Finalizers: []string{"x/y"}}})
		rt.Delete(t, c, ns, client.DeleteOptions{})
		time.Sleep(time.Second)
		var got []string
		for _, cond := range rt.Get[*corev1.Namespace](t, c, "", "a").Status.Conditions {
			got = append(got, fmt.Sprint(cond.Type, " ", cond.Status, " ", cond.Reason))
		}
		want := []string{
			"NamespaceDeletionDiscoveryFailure False ResourcesDiscovered",
			"NamespaceDeletionGroupVersionParsingFailure False ParsedGroupVersions",
			"NamespaceDeletionContentFailure True ContentDeletionFailed",
			"NamespaceContentRemaining True SomeResourcesRemain",
			"NamespaceFinalizersRemaining True SomeFinalizersRemain",
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		locked.Store(false)
		rt.Mutate(t, c, cm, "", func(cm *corev1.ConfigMap) { cm.Finalizers = nil })
		time.Sleep(time.Hour)
		if n := len(rt.List[*corev1.Namespace](t, c)); n != 0 {
			t.Errorf("%d namespaces are left", n)
		}
	})
}
