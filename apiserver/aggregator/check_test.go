package aggregator

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/yare-dev/yare/apiserver/authn"
)

func remote(port int32) *Service {
	return &Service{ObjectMeta: metav1.ObjectMeta{Name: "v1.g.io"}, Spec: apiregistrationv1.APIServiceSpec{Group: "g.io", Version: "v1",
		Service: &apiregistrationv1.ServiceReference{Namespace: "ns", Name: "api", Port: &port}}}
}

func TestJudge(t *testing.T) {
	yes, no, https, other, port := true, false, "https", "other", int32(8443)
	service := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Name: "web", Port: 80}, {Name: "https", Port: 443}}}}
	slice := func(name *string, ready ...*bool) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Name: name, Port: &port}}}
		for _, r := range ready {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: r}})
		}
		return s
	}
	for _, tt := range []struct {
		name   string
		port   int32
		behind behind
		want   verdict
	}{
		{"no Service", 443, behind{}, verdict{"False", "ServiceNotFound", `service/api in "ns" is not present`}},
		{"another port", 6443, behind{service: service}, verdict{"False", "ServicePortError", `service/api in "ns" is not listening on port 6443`}},
		{"no slices", 443, behind{service: service}, verdict{"False", "EndpointsNotFound", `cannot find endpointslices for service/api in "ns"`}},
		{"no endpoints", 443, behind{service: service, slices: []*discoveryv1.EndpointSlice{slice(&https)}},
			verdict{"False", "MissingEndpoints", `endpointslices for service/api in "ns" have no addresses with port name "https"`}},
		{"none is ready", 443, behind{service: service, slices: []*discoveryv1.EndpointSlice{slice(&https, &no)}},
			verdict{"False", "MissingEndpoints", `endpointslices for service/api in "ns" have no addresses with port name "https"`}},
		{"of another port", 443, behind{service: service, slices: []*discoveryv1.EndpointSlice{slice(&other, &yes), slice(nil, &yes)}},
			verdict{"False", "MissingEndpoints", `endpointslices for service/api in "ns" have no addresses with port name "https"`}},
		{"ready", 443, behind{service: service, slices: []*discoveryv1.EndpointSlice{slice(&other, &yes), slice(&https, &no, &yes)}}, verdict{}},
		{"perhaps ready", 443, behind{service: service, slices: []*discoveryv1.EndpointSlice{slice(&https, nil)}}, verdict{}},
		{"elsewhere", 6443, behind{service: &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName}}}, verdict{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := judge(remote(tt.port), tt.behind); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestApply(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	svc := remote(443)
	svc.Status.Conditions = []apiregistrationv1.APIServiceCondition{{Type: "Other"}}
	for i, step := range []struct {
		verdict verdict
		since   int // the step at which the status became what it is
	}{
		{unavailable("A", "a"), 0}, {unavailable("B", "b"), 0}, {passed, 2}, {passed, 2}, {unavailable("B", "b"), 4},
	} {
		apply(svc, step.verdict, start.Add(time.Duration(i)*time.Second))
		c := condition(svc)
		if !same(svc, step.verdict) || !c.LastTransitionTime.Time.Equal(start.Add(time.Duration(step.since)*time.Second)) || len(svc.Status.Conditions) != 2 {
			t.Errorf("step %d: %v", i, svc.Status.Conditions)
		}
	}
}

func TestSpeakFor(t *testing.T) {
	h := http.Header{"Authorization": {"Bearer x"}, "Impersonate-User": {"y"}, "X-Remote-User": {"root"}, "X-Remote-Group": {"system:masters"},
		"X-Remote-Extra-A": {"b"}, "Accept": {"z"}}
	r := &http.Request{Header: h}
	speakFor(r, &authn.User{Name: "jane", UID: "7", Groups: []string{"a", "b"}, Extra: map[string][]string{"example.com/scope%": {"1", "2"}}})
	want := http.Header{"Accept": {"z"}, "X-Remote-User": {"jane"}, "X-Remote-Uid": {"7"}, "X-Remote-Group": {"a", "b"},
		http.CanonicalHeaderKey("X-Remote-Extra-example.com%2Fscope%25"): {"1", "2"}}
	if !reflect.DeepEqual(h, want) {
		t.Errorf("got %v, want %v", h, want)
	}
	speakFor(r, &authn.User{Name: "joe"})
	if want := (http.Header{"Accept": {"z"}, "X-Remote-User": {"joe"}}); !reflect.DeepEqual(h, want) {
		t.Errorf("got %v, want %v", h, want)
	}
}

// A panic while a server is asked is a check that failed.
func TestAskPanics(t *testing.T) {
	a := New(Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}) // it has no Callout to ask by
	if err := a.ask(t.Context(), remote(443)); err == nil || !strings.HasPrefix(err.Error(), "the check panicked: ") {
		t.Errorf("%v", err)
	}
}

func TestForPath(t *testing.T) {
	here := &Service{Spec: apiregistrationv1.APIServiceSpec{Group: "apps", Version: "v1"}}
	there, core := remote(443), remote(443)
	core.Spec.Group = ""
	services := remote(443)
	services.Spec.Group = "apiregistration.k8s.io"
	s := &State{all: map[schema.GroupVersion]*Service{{Group: "apps", Version: "v1"}: here, {Group: "g.io", Version: "v1"}: there, {Version: "v1"}: core,
		{Group: "apiregistration.k8s.io", Version: "v1"}: services}}
	for path, want := range map[string]*Service{
		"/apis/g.io/v1": there, "/apis/g.io/v1/": there, "/apis/g.io/v1/namespaces/x/y": there,
		"/apis/g.io": nil, "/apis/g.io/": nil, "/apis/g.io/v2": nil, "/apis/g.io/v10": nil, "/apis": nil, "/api/v1": nil, "/apis//v1": nil,
		"/apis/apps/v1/deployments": nil, "/": nil, "/apis/apiregistration.k8s.io/v1/apiservices": nil,
	} {
		if got := s.ForPath(path); got != want {
			t.Errorf("%s: got %v", path, got)
		}
	}
	if (*State)(nil).ForPath("/apis/g.io/v1") != nil || (*Aggregator)(nil).State() != nil {
		t.Error("nothing is something")
	}
}

func TestDescribed(t *testing.T) {
	got, err := json.Marshal(described([]metav1.APIResource{
		{Name: "b/status", Namespaced: true, Kind: "B", Verbs: metav1.Verbs{"get"}},
		{Name: "b", SingularName: "bee", Namespaced: true, Kind: "B", Verbs: metav1.Verbs{"get", "list"}, ShortNames: []string{"x"}, Categories: []string{"all"}},
		{Name: "b/scale", Namespaced: true, Group: "autoscaling", Version: "v1", Kind: "Scale", Verbs: metav1.Verbs{"get"}},
		{Name: "a", Kind: "A", Verbs: metav1.Verbs{"create"}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	const want = `[{"resource":"a","responseKind":{"group":"","version":"","kind":"A"},"scope":"Cluster","singularResource":"","verbs":["create"]},` +
		`{"resource":"b","responseKind":{"group":"","version":"","kind":"B"},"scope":"Namespaced","singularResource":"bee","verbs":["get","list"],"shortNames":["x"],"categories":["all"],` +
		`"subresources":[{"subresource":"status","responseKind":{"group":"","version":"","kind":"B"},"verbs":["get"]},` +
		`{"subresource":"scale","responseKind":{"group":"autoscaling","version":"v1","kind":"Scale"},"verbs":["get"]}]}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestRegistered(t *testing.T) {
	crd := &apiextensionsv1.CustomResourceDefinition{Spec: apiextensionsv1.CustomResourceDefinitionSpec{Group: "g.io",
		Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true}, {Name: "v2"}}}}
	got := registered(crd)
	if len(got) != 1 || got[0].Name != "v1.g.io" || got[0].Labels["kube-aggregator.kubernetes.io/automanaged"] != "true" ||
		got[0].Spec.GroupPriorityMinimum != 1000 || got[0].Spec.VersionPriority != 100 || got[0].Spec.Service != nil {
		t.Errorf("%v", got)
	}
}
