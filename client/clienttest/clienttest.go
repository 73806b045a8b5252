// Package clienttest is what every client.Client has to pass, whether it is in the server's process or far away.
package clienttest

import (
	"context"
	"fmt"
	"iter"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// Suite runs the tests. Fresh returns a Client that may do everything on a server that is empty but serves the built-in
// kinds.
func Suite(t *testing.T, fresh func(t *testing.T) client.Client) {
	for name, f := range map[string]func(*testing.T, client.Client){
		"write":     testWrite,
		"list":      testList,
		"patch":     testPatch,
		"delete":    testDelete,
		"post":      testPost,
		"scale":     testScale,
		"own reads": testOwnReads,
		"watch":     testWatch,
		"selection": testSelection,
		"from":      testFrom,
	} {
		t.Run(name, func(t *testing.T) {
			c := fresh(t)
			ns := &corev1.Namespace{}
			ns.Name = "ns"
			create(t, c, ns)
			f(t, c)
		})
	}
}

func create[T api.Object](t *testing.T, c client.Client, o T) T {
	t.Helper()
	got, err := client.Create(t.Context(), c, o)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func configMap(name string, set map[string]string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{Data: map[string]string{"k": "v"}}
	cm.Namespace, cm.Name, cm.Labels = "ns", name, set
	return cm
}

func pod(name string) *corev1.Pod {
	p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	p.Namespace, p.Name = "ns", name
	return p
}

func testWrite(t *testing.T, c client.Client) {
	ctx := t.Context()
	a := create(t, c, configMap("a", nil))
	if a.UID == "" || a.ResourceVersion == "" || a.Kind != "ConfigMap" || a.APIVersion != "v1" {
		t.Errorf("created: %+v", a)
	}
	if _, err := client.Create(ctx, c, configMap("a", nil)); !apierrors.IsAlreadyExists(err) {
		t.Errorf("create again: %v", err)
	}
	bad := configMap("B!", nil)
	if _, err := client.Create(ctx, c, bad); !apierrors.IsInvalid(err) {
		t.Errorf("create with a bad name: %v", err)
	}
	b, err := client.Mutate(ctx, c, a, "", func(cm *corev1.ConfigMap) { cm.Data["k"] = "w" })
	if err != nil || b.Data["k"] != "w" || b.ResourceVersion == a.ResourceVersion || a.Data["k"] != "v" {
		t.Errorf("update: %v, %v", b, err)
	}
	if _, err := client.Mutate(ctx, c, a, "", func(cm *corev1.ConfigMap) { cm.Data["k"] = "x" }); !apierrors.IsConflict(err) {
		t.Errorf("update of an old state: %v", err)
	}
	if _, err := client.Get[*corev1.ConfigMap](ctx, c, api.Key{Namespace: "ns", Name: "none"}); !apierrors.IsNotFound(err) {
		t.Errorf("get what does not exist: %v", err)
	}
	p := create(t, c, pod("p"))
	q, err := client.Mutate(ctx, c, p, "status", func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodRunning
		p.Labels = map[string]string{"not": "changed"}
	})
	if err != nil || q.Status.Phase != corev1.PodRunning || q.Spec.Containers[0].Image != "i" {
		t.Errorf("write of status: %v, %v", q, err)
	}
}

func names[T api.Object](os []T) (out []string) {
	for _, o := range os {
		out = append(out, o.GetName())
	}
	return out
}

func testList(t *testing.T, c client.Client) {
	for i := range 4 {
		cm := configMap(fmt.Sprint("c", 3-i), map[string]string{"odd": fmt.Sprint(i % 2)})
		create(t, c, cm)
	}
	other := &corev1.Namespace{}
	other.Name = "other"
	create(t, c, other)
	far := configMap("c1", nil)
	far.Namespace = "other"
	create(t, c, far)
	for _, tt := range []struct {
		what string
		q    client.Query
		want string
	}{
		{"all", client.Query{}, "[c0 c1 c2 c3 c1]"},
		{"namespace", client.Query{Namespace: "other"}, "[c1]"},
		{"labels", client.Query{Labels: labels.SelectorFromSet(labels.Set{"odd": "1"})}, "[c0 c2]"},
		{"fields", client.Query{Fields: fields.OneTermEqualSelector("metadata.name", "c1")}, "[c1 c1]"},
		{"nothing", client.Query{Namespace: "none"}, "[]"},
	} {
		os, err := client.List[*corev1.ConfigMap](t.Context(), c, tt.q)
		if got := fmt.Sprint(names(os)); got != tt.want || err != nil {
			t.Errorf("%s: got %s, want %s; %v", tt.what, got, tt.want, err)
		}
	}
}

func testPatch(t *testing.T, c client.Client) {
	create(t, c, configMap("a", nil))
	key := api.Key{Namespace: "ns", Name: "a"}
	for _, p := range []client.Patch{
		{Type: types.MergePatchType, Data: []byte(`{"data":{"k":"1"}}`)},
		{Type: types.JSONPatchType, Data: []byte(`[{"op":"replace","path":"/data/k","value":"1"}]`)},
		{Type: types.StrategicMergePatchType, Data: []byte(`{"data":{"k":"1"}}`)},
		{Type: types.ApplyYAMLPatchType, Manager: "m", Force: true, Data: []byte("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: ns}\ndata: {k: '1'}")},
	} {
		o, err := c.Patch(t.Context(), api.ConfigMapKind, key, p)
		if err != nil || o.(*corev1.ConfigMap).Data["k"] != "1" {
			t.Errorf("%s: %v, %v", p.Type, o, err)
		}
	}
}

func testDelete(t *testing.T, c client.Client) {
	ctx := t.Context()
	a := create(t, c, configMap("a", nil))
	b, err := client.Mutate(ctx, c, a, "", func(cm *corev1.ConfigMap) { cm.Data["k"] = "w" })
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx, a, client.DeleteOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("delete of an old state: %v", err)
	}
	other := b.DeepCopy()
	other.UID = "other"
	if err := c.Delete(ctx, other, client.DeleteOptions{AnyRevision: true}); !apierrors.IsConflict(err) {
		t.Errorf("delete of another object of the name: %v", err)
	}
	if err := c.Delete(ctx, a, client.DeleteOptions{AnyRevision: true}); err != nil {
		t.Errorf("delete whatever its revision: %v", err)
	}
	if _, err := client.Get[*corev1.ConfigMap](ctx, c, api.KeyOf(a)); !apierrors.IsNotFound(err) {
		t.Errorf("get what was deleted: %v", err)
	}
	if err := c.Delete(ctx, a, client.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("delete again: %v", err)
	}
	held := configMap("held", nil)
	held.Finalizers = []string{"example.com/hold"}
	h := create(t, c, held)
	if err := c.Delete(ctx, h, client.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if h, err = client.Get[*corev1.ConfigMap](ctx, c, api.KeyOf(h)); err != nil || h.DeletionTimestamp == nil {
		t.Errorf("held object after deletion: %v, %v", h, err)
	}
}

func testPost(t *testing.T, c client.Client) {
	p := create(t, c, pod("p"))
	b := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}
	b.Namespace, b.Name, b.UID = p.Namespace, p.Name, p.UID
	if _, err := c.Post(t.Context(), api.PodKind, api.KeyOf(p), "binding", b); err != nil {
		t.Fatal(err)
	}
	got, err := c.Get(client.Live(t.Context()), api.PodKind, api.KeyOf(p))
	if err != nil || got.(*corev1.Pod).Spec.NodeName != "n" {
		t.Errorf("bound pod: %v, %v", got, err)
	}
	again := b.DeepCopy()
	if _, err := c.Post(t.Context(), api.PodKind, api.KeyOf(p), "binding", again); !apierrors.IsConflict(err) {
		t.Errorf("bind again: %v", err)
	}
}

// What a write returned is what later reads see, at once.
func testScale(t *testing.T, c client.Client) {
	one := int32(1)
	d := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Replicas: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}}}
	d.Namespace, d.Name, d.Spec.Template.Labels = "ns", "d", d.Spec.Selector.MatchLabels
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
	key := api.KeyOf(create(t, c, d))
	s, err := c.GetScale(t.Context(), api.DeploymentKind, key)
	if err != nil || s.Spec.Replicas != 1 || s.Status.Selector != "app=a" {
		t.Fatal(s, err)
	}
	old := s.DeepCopy()
	s.Spec.Replicas = 3
	if s, err = c.UpdateScale(t.Context(), api.DeploymentKind, s); err != nil || s.Spec.Replicas != 3 {
		t.Fatal(s, err)
	}
	if _, err := c.UpdateScale(t.Context(), api.DeploymentKind, old); !apierrors.IsConflict(err) {
		t.Errorf("of an old state: %v", err)
	}
	if s, err = c.GetScale(t.Context(), api.DeploymentKind, key); err != nil || s.Spec.Replicas != 3 {
		t.Error(s, err)
	}
	create(t, c, configMap("cm", nil))
	for _, k := range []*api.Kind{api.DeploymentKind, api.ConfigMapKind} {
		if _, err := c.GetScale(t.Context(), k, api.Key{Namespace: "ns", Name: "cm"}); !apierrors.IsNotFound(err) {
			t.Errorf("%v: %v", k, err)
		}
	}
}

func testOwnReads(t *testing.T, c client.Client) {
	ctx := t.Context()
	for i := range 50 {
		a := create(t, c, configMap("a", nil))
		b, err := client.Mutate(ctx, c, a, "", func(cm *corev1.ConfigMap) { cm.Data["k"] = fmt.Sprint(i) })
		if err != nil {
			t.Fatal(err)
		}
		got, err := client.Get[*corev1.ConfigMap](ctx, c, api.KeyOf(a))
		if err != nil || got.ResourceVersion != b.ResourceVersion {
			t.Fatalf("round %d: read %v, %v after writing %s", i, got, err, b.ResourceVersion)
		}
		all, err := client.List[*corev1.ConfigMap](ctx, c, client.Query{Namespace: "ns"})
		if err != nil || len(all) != 1 || all[0].ResourceVersion != b.ResourceVersion {
			t.Fatalf("round %d: listed %v, %v after writing %s", i, all, err, b.ResourceVersion)
		}
		if err := c.Delete(ctx, b, client.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if all, err = client.List[*corev1.ConfigMap](ctx, c, client.Query{Namespace: "ns"}); err != nil || len(all) != 0 {
			t.Fatalf("round %d: listed %v, %v after deleting", i, all, err)
		}
	}
}

// stream reads a watch step by step.
type stream struct {
	t    *testing.T
	next func() (client.Event, error, bool)
}

func watch(t *testing.T, c client.Client, k *api.Kind, q client.Query, from api.Revision) *stream {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	next, stop := iter.Pull2(c.Watch(ctx, k, q, from))
	t.Cleanup(func() { cancel(); stop() })
	return &stream{t, next}
}

func (s *stream) expect(want ...string) {
	s.t.Helper()
	for _, w := range want {
		e, err, ok := s.next()
		if !ok || err != nil {
			s.t.Fatalf("watch ended waiting for %q: %v", w, err)
		}
		got := [...]string{"", "added", "modified", "deleted", "synced"}[e.Op]
		if e.Object != nil {
			got += " " + e.Object.GetName()
		}
		if e.Old != nil {
			got += " after " + e.Old.(*corev1.ConfigMap).Data["k"]
		}
		if got != w {
			s.t.Fatalf("got %q, want %q", got, w)
		}
	}
}

func testWatch(t *testing.T, c client.Client) {
	ctx := t.Context()
	create(t, c, configMap("a", nil))
	w := watch(t, c, api.ConfigMapKind, client.Query{}, 0)
	w.expect("added a", "synced")
	b := create(t, c, configMap("b", nil))
	if _, err := client.Mutate(ctx, c, b, "", func(cm *corev1.ConfigMap) { cm.Data["k"] = "w" }); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(ctx, b, client.DeleteOptions{AnyRevision: true}); err != nil {
		t.Fatal(err)
	}
	w.expect("added b", "modified b after v", "deleted b after w")
}

// An object that enters or leaves a selection is added or deleted.
func testSelection(t *testing.T, c client.Client) {
	ctx := t.Context()
	w := watch(t, c, api.ConfigMapKind, client.Query{Namespace: "ns", Labels: labels.SelectorFromSet(labels.Set{"in": "yes"})}, 0)
	w.expect("synced")
	a := create(t, c, configMap("a", map[string]string{"in": "no"}))
	for _, in := range []string{"yes", "no", "yes"} {
		var err error
		if a, err = client.Mutate(ctx, c, a, "", func(cm *corev1.ConfigMap) { cm.Labels["in"] = in }); err != nil {
			t.Fatal(err)
		}
	}
	w.expect("added a", "deleted a after v", "added a")
}

func testFrom(t *testing.T, c client.Client) {
	a := create(t, c, configMap("a", nil))
	create(t, c, configMap("b", nil))
	w := watch(t, c, api.ConfigMapKind, client.Query{}, api.RevisionOf(a))
	w.expect("added b")
}
