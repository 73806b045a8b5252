package apiserver_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/cli-runtime/pkg/resource"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/openapi3"
	clientrest "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/rest"
)

// overTLS serves s as the program does, with HTTP/2, and returns how to reach it.
func overTLS(t testing.TB, s *apiserver.Server) *clientrest.Config {
	t.Helper()
	h := httptest.NewUnstartedServer(s)
	h.EnableHTTP2 = true
	h.StartTLS()
	t.Cleanup(h.Close)
	return &clientrest.Config{
		Host: h.URL, QPS: -1,
		TLSClientConfig: clientrest.TLSClientConfig{Insecure: true},
		WrapTransport: func(rt http.RoundTripper) http.RoundTripper {
			return roundTripper(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(r.Context())
				r.Header.Set("X-User", "admin")
				return rt.RoundTrip(r)
			})
		},
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// Upstream's client does everything it can, in each of the formats.
func TestClientGo(t *testing.T) {
	for _, media := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		t.Run(media, func(t *testing.T) {
			t.Parallel()
			cfg := overTLS(t, serve(t))
			cfg.ContentType, cfg.AcceptContentTypes = media, media
			cs, err := kubernetes.NewForConfig(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			walk(t, ctx, cs)
		})
	}
}

func walk(t *testing.T, ctx context.Context, cs *kubernetes.Clientset) {
	cms := cs.CoreV1().ConfigMaps("default")
	made, err := cms.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "gen-"}, Data: map[string]string{"a": "b"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := cms.Watch(ctx, metav1.ListOptions{ResourceVersion: made.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	next := func(want watch.EventType) *corev1.ConfigMap {
		t.Helper()
		ev, ok := <-w.ResultChan()
		if !ok || ev.Type != want {
			t.Fatalf("got %v %v, want %v", ok, ev, want)
		}
		return ev.Object.(*corev1.ConfigMap)
	}
	made.Data["c"] = "d"
	changed, err := cms.Update(ctx, made, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := next(watch.Modified); got.Data["c"] != "d" || got.ResourceVersion != changed.ResourceVersion {
		t.Error(got)
	}
	if _, err := cms.Update(ctx, made, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Error(err)
	}
	if _, err := cms.Patch(ctx, made.Name, types.MergePatchType, []byte(`{"data":{"c":null}}`), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
	if got := next(watch.Modified); len(got.Data) != 1 {
		t.Error(got)
	}
	if _, err := cms.Apply(ctx, applycorev1.ConfigMap("applied", "default").WithData(map[string]string{"x": "y"}), metav1.ApplyOptions{FieldManager: "m"}); err != nil {
		t.Error(err)
	}
	next(watch.Added)
	list, err := cms.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil || len(list.Items) != 1 || list.Continue == "" || *list.RemainingItemCount != 1 {
		t.Fatal(list, err)
	}
	list, err = cms.List(ctx, metav1.ListOptions{Limit: 5, Continue: list.Continue})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != made.Name || list.Items[0].Data["a"] != "b" {
		t.Fatal(list, err)
	}
	if err := cms.Delete(ctx, made.Name, metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
	next(watch.Deleted)
	if _, err := cms.Get(ctx, made.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
	if err := cms.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Error(err)
	}
	next(watch.Deleted)
	scales(t, ctx, cs)
}

func scales(t *testing.T, ctx context.Context, cs *kubernetes.Clientset) {
	ds := cs.AppsV1().Deployments("default")
	if _, err := ds.Create(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := ds.GetScale(ctx, "d", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Spec.Replicas = 4
	if s, err = ds.UpdateScale(ctx, "d", s, metav1.UpdateOptions{}); err != nil || s.Spec.Replicas != 4 {
		t.Error(s, err)
	}
	if d, err := ds.Get(ctx, "d", metav1.GetOptions{}); err != nil || *d.Spec.Replicas != 4 || d.Generation != 2 {
		t.Error(d, err)
	}
}

// An informer with watch-list semantics, a dynamic and a metadata client all see the same.
func TestInformer(t *testing.T) {
	t.Parallel()
	cfg := overTLS(t, serve(t))
	cs, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for i := range 10 {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i)}}
		if _, err := cs.CoreV1().ConfigMaps("default").Create(ctx, cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	f := informers.NewSharedInformerFactory(cs, 0)
	inf := f.Core().V1().ConfigMaps().Informer()
	f.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), inf.HasSynced) || len(inf.GetStore().List()) != 10 {
		t.Error(len(inf.GetStore().List()))
	}
	gvr := schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := dyn.Resource(gvr).List(ctx, metav1.ListOptions{}); err != nil || len(l.Items) != 10 || l.GetKind() != "ConfigMapList" {
		t.Error(l, err)
	}
	mc, err := metadata.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if l, err := mc.Resource(gvr).List(ctx, metav1.ListOptions{}); err != nil || len(l.Items) != 10 || l.Items[0].Name != "c0" {
		t.Error(l, err)
	}
	cancel()
	f.Shutdown()
}

func TestDiscoveryAndOpenAPI(t *testing.T) {
	t.Parallel()
	cs, err := kubernetes.NewForConfig(overTLS(t, serve(t)))
	if err != nil {
		t.Fatal(err)
	}
	groups, lists, err := cs.Discovery().ServerGroupsAndResources()
	if err != nil || len(groups) != 5 {
		t.Fatal(groups, err)
	}
	var names []string
	for _, l := range lists {
		for _, r := range l.APIResources {
			names = append(names, r.Name)
		}
	}
	slices.Sort(names)
	if got, want := fmt.Sprint(names), "[configmaps deployments deployments/scale deployments/status events events horizontalpodautoscalers horizontalpodautoscalers horizontalpodautoscalers/status horizontalpodautoscalers/status namespaces namespaces/finalize namespaces/status pods pods/status selfsubjectreviews]"; got != want {
		t.Errorf("got %s", got)
	}
	if v, err := cs.Discovery().ServerVersion(); err != nil || v.GitVersion != "v1.37.2+yare" {
		t.Error(v, err)
	}
	if d, err := cs.Discovery().OpenAPISchema(); err != nil || len(d.Definitions.AdditionalProperties) < 100 {
		t.Error(err)
	}
	root := openapi3.NewRoot(cs.Discovery().OpenAPIV3())
	doc, err := root.GVSpec(schema.GroupVersion{Group: "apps", Version: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	patch := doc.Paths.Paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"].Patch
	if patch == nil || patch.Extensions["x-kubernetes-group-version-kind"] == nil {
		t.Fatal("no patch operation", patch)
	}
	spec := doc.Components.Schemas["io.k8s.api.core.v1.PodSpec"]
	c := spec.Properties["containers"]
	if c.Extensions["x-kubernetes-patch-merge-key"] != "name" || c.Extensions["x-kubernetes-list-type"] != "map" || c.Description == "" {
		t.Errorf("%+v", c)
	}
}

// TestUnknownKind sees that kubectl's question whether an unknown kind is a custom one is answered with no.
func TestUnknownKind(t *testing.T) {
	t.Parallel()
	cfg := overTLS(t, serve(t, func(_ *apiserver.Config, d *apiserver.Deps) {
		d.Resources = append(d.Resources, rest.Register(api.CustomResourceDefinitionKind, &rest.Resource[*apiextensionsv1.CustomResourceDefinition]{}))
	}))
	cs, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	definitions := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	list, err := dyn.Resource(definitions).List(t.Context(), metav1.ListOptions{})
	if err != nil || list.GetKind() != "CustomResourceDefinitionList" || len(list.Items) != 0 {
		t.Errorf("list of definitions: %v, %v", list, err)
	}
	verifier := resource.NewQueryParamVerifier(dyn, cs.Discovery(), resource.QueryParamFieldValidation)
	err = verifier.HasSupport(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "StatefulSet"})
	if !resource.IsParamUnsupportedError(err) {
		t.Errorf("unknown kind: %v", err)
	}
}
