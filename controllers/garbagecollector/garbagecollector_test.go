package garbagecollector

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// node is an object of the test's graph: a ConfigMap, or a Secret where the name begins with "s". Owners are names; one
// with "!" blocks its deletion.
type node struct {
	name   string
	owners []string
	mods   []func(api.Object)
}

func (n node) object() api.Object {
	var o api.Object = &corev1.ConfigMap{}
	if strings.HasPrefix(n.name, "s") {
		o = &corev1.Secret{}
	}
	o.SetNamespace("ns")
	o.SetName(n.name)
	o.SetUID(types.UID("uid-of-" + n.name))
	var refs []metav1.OwnerReference
	for _, owner := range n.owners {
		name := strings.TrimPrefix(owner, "!")
		blocks := name != owner
		kind := "ConfigMap"
		if strings.HasPrefix(name, "s") {
			kind = "Secret"
		}
		refs = append(refs, metav1.OwnerReference{APIVersion: "v1", Kind: kind, Name: name, UID: types.UID("uid-of-" + name), BlockOwnerDeletion: &blocks})
	}
	o.SetOwnerReferences(refs)
	for _, m := range n.mods {
		m(o)
	}
	return o
}

func finalizer(o api.Object) { o.SetFinalizers([]string{"x/y"}) }

func left(t *testing.T, c *rt.Cluster) string {
	var out []string
	line := func(o api.Object) {
		s := o.GetName()
		for _, r := range o.GetOwnerReferences() {
			s += "<" + r.Name
		}
		if o.GetDeletionTimestamp() != nil {
			s += "(deleting)"
		}
		out = append(out, s)
	}
	for _, o := range rt.List[*corev1.ConfigMap](t, c) {
		line(o)
	}
	for _, o := range rt.List[*corev1.Secret](t, c) {
		line(o)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestPropagation(t *testing.T) {
	chain := []node{{name: "a"}, {name: "s1", owners: []string{"!a"}}, {name: "b", owners: []string{"!s1"}}, {name: "z"}}
	tests := []struct {
		name   string
		nodes  []node
		delete string
		how    metav1.DeletionPropagation
		want   string
	}{
		{"background", chain, "a", metav1.DeletePropagationBackground, "z"},
		{"foreground", chain, "a", metav1.DeletePropagationForeground, "z"},
		{"orphan", chain, "a", metav1.DeletePropagationOrphan, "b<s1 s1 z"},
		{"another owner keeps", append(chain[:3:3], node{name: "m", owners: []string{"a", "z"}}, node{name: "z"}), "a",
			metav1.DeletePropagationBackground, "m<z z"},
		{"in the foreground too", append(chain[:3:3], node{name: "m", owners: []string{"!a", "z"}}, node{name: "z"}), "a",
			metav1.DeletePropagationForeground, "m<z z"},
		{"foreground waits for who blocks", []node{{name: "a"}, {name: "b", owners: []string{"!a"}, mods: []func(api.Object){finalizer}}}, "a",
			metav1.DeletePropagationForeground, "a(deleting) b<a(deleting)"},
		{"and for nobody else", []node{{name: "a"}, {name: "b", owners: []string{"a"}, mods: []func(api.Object){finalizer}}}, "a",
			metav1.DeletePropagationForeground, "b<a(deleting)"},
		{"owner never was", []node{{name: "b", owners: []string{"never"}}, {name: "z"}}, "", "", "z"},
		{"owner was replaced", []node{{name: "a", mods: []func(api.Object){func(o api.Object) { o.SetUID("other") }}},
			{name: "b", owners: []string{"a"}}}, "", "", "a"},
		{"owner of an unknown kind", []node{{name: "b", mods: []func(api.Object){func(o api.Object) {
			o.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "x/v1", Kind: "X", Name: "x", UID: "x"}})
		}}}}, "", "", "b<x"},
		{"circle", []node{{name: "a", owners: []string{"!b"}}, {name: "b", owners: []string{"!a"}}}, "a",
			metav1.DeletePropagationForeground, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := rt.New(t)
				d := rt.Deps(t, c)
				for _, n := range tt.nodes {
					rt.Create(t, c, n.object())
				}
				rt.Start(t, d, New(d, api.Stored()))
				synctest.Wait()
				if tt.delete != "" {
					rt.Delete(t, c, node{name: tt.delete}.object(), client.DeleteOptions{Propagation: tt.how})
				}
				time.Sleep(time.Minute)
				if got := left(t, c); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
			})
		})
	}
}

// Owners may be cluster-scoped; a cluster-scoped object cannot have a namespaced owner, and is left alone.
func TestScopes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d, api.Stored()))
		n := rt.Create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
		byNode := node{name: "b"}.object()
		byNode.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n", UID: n.UID}})
		rt.Create(t, c, byNode)
		odd := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "odd",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "x", UID: "x"}}}}
		rt.Create(t, c, odd)
		synctest.Wait()
		if got := left(t, c); got != "b<n" {
			t.Error(got)
		}
		rt.Delete(t, c, n, client.DeleteOptions{})
		synctest.Wait()
		if got := left(t, c); got != "" {
			t.Error(got)
		}
		rt.Get[*corev1.Node](t, c, "", "odd")
	})
}

func TestManyDependents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Create(t, c, node{name: "a"}.object())
		for i := range 300 {
			rt.Create(t, c, node{name: fmt.Sprint("d", i), owners: []string{"!a"}}.object())
		}
		rt.Start(t, d, New(d, api.Stored()))
		synctest.Wait()
		rt.Delete(t, c, node{name: "a"}.object(), client.DeleteOptions{Propagation: metav1.DeletePropagationForeground})
		synctest.Wait()
		if got := left(t, c); got != "" {
			t.Error(got)
		}
	})
}
