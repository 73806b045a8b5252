package webhook_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/match"
	"github.com/yare-dev/yare/apiserver/admission/webhook"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/store"
)

// reply answers a review.
type reply func(q *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse

// bench is a pipeline with webhooks that are served at one URL, by path.
type bench struct {
	t       *testing.T
	s       *store.Store
	pipe    *rest.Pipeline
	ctx     context.Context
	server  *httptest.Server
	metrics *prometheus.Registry
	ca      []byte

	mu      sync.Mutex
	replies map[string]reply
	asked   []string // path and operation of each call
	warned  []string
	noted   map[string]string
	last    map[string]*admissionv1.AdmissionReview
}

var (
	configMaps  = rest.Register(api.ConfigMapKind, &rest.Resource[*corev1.ConfigMap]{CreateOnUpdate: true})
	namespaces  = rest.Register(api.NamespaceKind, &rest.Resource[*corev1.Namespace]{})
	deployments = rest.Register(api.DeploymentKind, &rest.Resource[*appsv1.Deployment]{
		Default: func(d *appsv1.Deployment) {
			if d.Spec.Paused {
				d.Spec.MinReadySeconds = 7 // what is filled in shows that the object was defaulted again
			}
		},
		Scale: &rest.Scale[*appsv1.Deployment]{
			Replicas: func(o *appsv1.Deployment) (int32, int32) { return *o.Spec.Replicas, o.Status.Replicas },
			Set:      func(o *appsv1.Deployment, n int32) { o.Spec.Replicas = &n },
			Selector: func(o *appsv1.Deployment) string { return "" },
		},
	})
	scalers   = rest.Register(api.HorizontalPodAutoscalerKind, &rest.Resource[*autoscalingv2.HorizontalPodAutoscaler]{})
	scalersV1 = rest.RegisterView(api.HorizontalPodAutoscalerV1Kind, scalers, &rest.View[*autoscalingv2.HorizontalPodAutoscaler]{})
	hooksKind = rest.Register(api.ValidatingWebhookConfigurationKind, &rest.Resource[*admissionregv1.ValidatingWebhookConfiguration]{})
	pods      = rest.Register(api.PodKind, &rest.Resource[*corev1.Pod]{Sub: map[string]*rest.Subresource{
		"exec": {Kind: "PodExecOptions", Opens: func() runtime.Object { return &corev1.PodExecOptions{} }},
		"eviction": {Body: api.EvictionKind, Create: func(context.Context, api.Object, api.Object, *metav1.CreateOptions) (runtime.Object, error) {
			return &metav1.Status{Status: metav1.StatusSuccess}, nil
		}},
	}})
)

type nobody struct{}

func (nobody) Authorize(_ context.Context, a *authz.Attributes) (bool, string, error) {
	return a.Verb == "wave", "", nil
}

func newBench(t *testing.T, before ...rest.Admission) *bench {
	t.Helper()
	b := &bench{t: t, s: servertest.Store(t), metrics: prometheus.NewRegistry(), replies: map[string]reply{}, noted: map[string]string{}, last: map[string]*admissionv1.AdmissionReview{}}
	b.server = httptest.NewTLSServer(http.HandlerFunc(b.serve))
	t.Cleanup(b.server.Close)
	b.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.server.Certificate().Raw})
	w := webhook.New(webhook.Deps{Store: b.s, Callout: callout.New(callout.Deps{Store: b.s}), Access: nobody{}, Metrics: b.metrics, Conditions: match.NewMeter(b.metrics),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	b.pipe = rest.NewPipeline(b.s, append(before, w.Mutating(), w.Validating()))
	b.ctx = authn.WithUser(t.Context(), &authn.User{Name: "u", UID: "1", Groups: []string{"g"}, Extra: map[string][]string{"k": {"v"}}})
	servertest.Put(t, b.s, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{"asked": "yes"}}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
	return b
}

func (b *bench) serve(w http.ResponseWriter, r *http.Request) {
	var q admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	b.mu.Lock()
	f := b.replies[r.URL.Path]
	b.asked = append(b.asked, r.URL.Path+" "+string(q.Request.Operation))
	b.last[r.URL.Path] = &q
	b.mu.Unlock()
	if f == nil {
		http.Error(w, "no such hook", http.StatusNotFound)
		return
	}
	a := f(q.Request)
	if a != nil && a.UID == "" {
		a.UID = q.Request.UID
	}
	_ = json.NewEncoder(w).Encode(&admissionv1.AdmissionReview{TypeMeta: q.TypeMeta, Response: a})
}

func (b *bench) calls() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.asked
	b.asked = nil
	return out
}

func (b *bench) request(a rest.Any, name string) *rest.Request {
	r := &rest.Request{Any: a, Key: api.Key{Namespace: "ns", Name: name}, Manager: "test",
		Warn:  func(text string) { b.warned = append(b.warned, text) },
		Audit: func(k, v string) { b.noted[k] = v },
	}
	if !a.Kind.Namespaced {
		r.Key.Namespace = ""
	}
	return r
}

func ptr[T any](v T) *T { return &v }

// rule is about the operations of resources in all groups.
func rule(resources string, ops ...admissionregv1.OperationType) []admissionregv1.RuleWithOperations {
	return []admissionregv1.RuleWithOperations{{Operations: ops, Rule: admissionregv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: strings.Split(resources, ","), Scope: ptr(admissionregv1.AllScopes)}}}
}

func (b *bench) client(path string) admissionregv1.WebhookClientConfig {
	return admissionregv1.WebhookClientConfig{URL: ptr(b.server.URL + path), CABundle: b.ca}
}

// validating configures a webhook of that name, at its path; change may adjust it.
func (b *bench) validating(config, path string, rules []admissionregv1.RuleWithOperations, change func(w *admissionregv1.ValidatingWebhook)) {
	w := admissionregv1.ValidatingWebhook{Name: path + ".example.com", ClientConfig: b.client("/" + path), Rules: rules, FailurePolicy: ptr(admissionregv1.Fail), MatchPolicy: ptr(admissionregv1.Equivalent),
		NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{}, SideEffects: ptr(admissionregv1.SideEffectClassNone), TimeoutSeconds: ptr(int32(10)), AdmissionReviewVersions: []string{"v1"}}
	if change != nil {
		change(&w)
	}
	servertest.Put(b.t, b.s, &admissionregv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: config}, Webhooks: []admissionregv1.ValidatingWebhook{w}})
}

func (b *bench) mutating(config, path string, rules []admissionregv1.RuleWithOperations, change func(w *admissionregv1.MutatingWebhook)) {
	w := admissionregv1.MutatingWebhook{Name: path + ".example.com", ClientConfig: b.client("/" + path), Rules: rules, FailurePolicy: ptr(admissionregv1.Fail), MatchPolicy: ptr(admissionregv1.Equivalent),
		NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{}, SideEffects: ptr(admissionregv1.SideEffectClassNone), TimeoutSeconds: ptr(int32(10)), AdmissionReviewVersions: []string{"v1"}, ReinvocationPolicy: ptr(admissionregv1.NeverReinvocationPolicy)}
	if change != nil {
		change(&w)
	}
	servertest.Put(b.t, b.s, &admissionregv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: config}, Webhooks: []admissionregv1.MutatingWebhook{w}})
}

func allow(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true}
}

func deny(message string, code int32) reply {
	return func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		r := &admissionv1.AdmissionResponse{}
		if message != "" || code != 0 {
			r.Result = &metav1.Status{Message: message, Code: code}
		}
		return r
	}
}

func patch(text string) reply {
	return func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(text), PatchType: ptr(admissionv1.PatchTypeJSONPatch)}
	}
}

func configMap(name string, labels ...string) *corev1.ConfigMap {
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"a": "1"}}
	for _, l := range labels {
		c.Labels = map[string]string{l: "yes"}
	}
	return c
}

func (b *bench) create(a rest.Any, o api.Object) (api.Object, error) {
	e, err := b.pipe.Create(b.ctx, b.request(a, ""), o)
	if err != nil {
		return nil, err
	}
	return e.Object, nil
}

func (b *bench) want(err error, code int32, text string) {
	b.t.Helper()
	var status apierrors.APIStatus
	if !errors.As(err, &status) || status.Status().Code != code || !strings.Contains(err.Error(), text) {
		b.t.Errorf("got %v, want code %d and %q", err, code, text)
	}
}

func (b *bench) wantCalls(want ...string) {
	b.t.Helper()
	got := b.calls()
	if !slices.Equal(got, want) {
		b.t.Errorf("asked %q, want %q", got, want)
	}
}

// What a validating webhook is told, and what its answers come to.
func TestValidating(t *testing.T) {
	b := newBench(t)
	if _, err := b.create(configMaps, configMap("before")); err != nil {
		t.Fatal(err)
	}
	b.validating("c", "v", rule("configmaps", admissionregv1.OperationAll), nil)
	for name, tt := range map[string]struct {
		f    reply
		code int32
		text string
	}{
		"allowed": {f: allow},
		"no":      {deny("", 0), 400, `admission webhook "v.example.com" denied the request without explanation`},
		"why":     {deny("it is late", 0), 400, `admission webhook "v.example.com" denied the request: it is late`},
		"code":    {deny("tea", 418), 418, `denied the request: tea`},
		"absent":  {func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse { return nil }, 500, `Internal error occurred: failed calling webhook "v.example.com": received invalid webhook response: webhook response was absent`},
		"stranger": {func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
			return &admissionv1.AdmissionResponse{UID: "x"}
		}, 500, `expected response.uid=`},
		"patch": {patch("[]"), 500, "validating webhook may not return response.patch"},
	} {
		b.replies["/v"] = tt.f
		_, err := b.create(configMaps, configMap(name))
		if tt.code == 0 {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		b.want(err, tt.code, tt.text)
	}
	b.replies["/v"] = nil
	_, err := b.create(configMaps, configMap("nothing"))
	b.want(err, 500, `failed calling webhook "v.example.com": failed to call webhook: `)

	b.replies["/v"] = allow
	q := b.last["/v"]
	if q.APIVersion != "admission.k8s.io/v1" || q.Kind != "AdmissionReview" {
		t.Errorf("asked in %v", q.TypeMeta)
	}
	r := q.Request
	if r.Kind.Kind != "ConfigMap" || r.Resource.Resource != "configmaps" || r.RequestKind.Kind != "ConfigMap" || r.Namespace != "ns" || r.Name != "nothing" || *r.DryRun ||
		r.UserInfo.Username != "u" || r.UserInfo.UID != "1" || r.UserInfo.Extra["k"][0] != "v" || r.OldObject.Raw != nil ||
		!strings.Contains(string(r.Options.Raw), `"kind":"CreateOptions"`) || !strings.Contains(string(r.Object.Raw), `"name":"nothing"`) || !strings.Contains(string(r.Object.Raw), `"uid":`) {
		t.Errorf("asked %+v\n%s\n%s", r, r.Object.Raw, r.Options.Raw)
	}

	// Updates, patches, applies and deletions.
	b.calls()
	if _, _, err := b.pipe.Patch(b.ctx, b.request(configMaps, "before"), rest.Patch{Type: types.MergePatchType, Data: []byte(`{"data":{"b":"2"}}`)}); err != nil {
		t.Fatal(err)
	}
	if r := b.last["/v"].Request; !strings.Contains(string(r.Object.Raw), `"b":"2"`) || strings.Contains(string(r.OldObject.Raw), `"b":"2"`) || !strings.Contains(string(r.Options.Raw), "UpdateOptions") {
		t.Errorf("asked %s\n%s", r.Object.Raw, r.OldObject.Raw)
	}
	if _, err := b.pipe.Delete(b.ctx, b.request(configMaps, "before"), &metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(0))}); err != nil {
		t.Fatal(err)
	}
	if r := b.last["/v"].Request; r.Object.Raw != nil || !strings.Contains(string(r.OldObject.Raw), `"b":"2"`) || !strings.Contains(string(r.Options.Raw), `"gracePeriodSeconds":0`) {
		t.Errorf("asked %s\n%s", r.OldObject.Raw, r.Options.Raw)
	}
	b.wantCalls("/v UPDATE", "/v DELETE")
	b.replies["/v"] = deny("kept", 403)
	_, err = b.pipe.DeleteCollection(b.ctx, b.request(configMaps, ""), &metav1.DeleteOptions{}, rest.ListOptions{})
	b.want(err, 403, "kept")

	// The object that configures it can always be mended.
	if _, err := b.create(hooksKind, &admissionregv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "mended"}}); err != nil {
		t.Error(err)
	}
}

// Which requests a webhook is asked about.
func TestRelevant(t *testing.T) {
	type hook = admissionregv1.ValidatingWebhook
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"asked": "yes"}}
	for name, tt := range map[string]struct {
		rules  []admissionregv1.RuleWithOperations
		change func(h *hook)
		do     func(b *bench) error
		want   string
	}{
		"resource":       {rules: rule("secrets", "*")},
		"subresource":    {rules: rule("configmaps/status", "*")},
		"any":            {rules: rule("*/*", "*"), want: "/v CREATE"},
		"operation":      {rules: rule("*", admissionregv1.Update)},
		"cluster scope":  {rules: rule("*", "*"), change: func(h *hook) { h.Rules[0].Scope = ptr(admissionregv1.ClusterScope) }},
		"namespaced":     {rules: rule("*", "*"), change: func(h *hook) { h.Rules[0].Scope = ptr(admissionregv1.NamespacedScope) }, want: "/v CREATE"},
		"group":          {rules: rule("*", "*"), change: func(h *hook) { h.Rules[0].APIGroups = []string{"apps"} }},
		"namespace":      {rules: rule("*", "*"), change: func(h *hook) { h.NamespaceSelector = selector }, want: "/v CREATE"},
		"not namespace":  {rules: rule("*", "*"), change: func(h *hook) { h.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"no": "no"}} }},
		"object":         {rules: rule("*", "*"), change: func(h *hook) { h.ObjectSelector = selector }},
		"object matches": {rules: rule("*", "*"), change: func(h *hook) { h.ObjectSelector = selector }, want: "/v CREATE", do: func(b *bench) error { _, err := b.create(configMaps, configMap("x", "asked")); return err }},
		"condition": {rules: rule("*", "*"), want: "/v CREATE", change: func(h *hook) {
			h.MatchConditions = []admissionregv1.MatchCondition{{Name: "a", Expression: `object.data.a == "1" && request.userInfo.username == "u"`}, {Name: "b", Expression: `authorizer.group("").resource("configmaps").check("wave").allowed()`}}
		}},
		"condition fails": {rules: rule("*", "*"), change: func(h *hook) {
			h.MatchConditions = []admissionregv1.MatchCondition{{Name: "a", Expression: `object.data.nothing == "1"`}, {Name: "b", Expression: `false`}}
		}},
		"condition ignored": {rules: rule("*", "*"), change: func(h *hook) {
			h.FailurePolicy = ptr(admissionregv1.Ignore)
			h.MatchConditions = []admissionregv1.MatchCondition{{Name: "a", Expression: `object.data.nothing == "1"`}}
		}},
		"exact form": {rules: rule("horizontalpodautoscalers", "*"), change: func(h *hook) { h.MatchPolicy = ptr(admissionregv1.Exact); h.Rules[0].APIVersions = []string{"v2"} }, do: scaler},
		"equal form": {rules: rule("horizontalpodautoscalers", "*"), change: func(h *hook) { h.Rules[0].APIVersions = []string{"v2"} }, do: scaler, want: "/v CREATE"},
		"a namespace": {rules: rule("namespaces", "*"), change: func(h *hook) { h.NamespaceSelector = selector; h.Rules[0].Scope = ptr(admissionregv1.ClusterScope) }, want: "/v CREATE", do: func(b *bench) error {
			_, err := b.create(namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "made", Labels: selector.MatchLabels}})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.replies["/v"] = allow
			b.validating("c", "v", tt.rules, tt.change)
			if tt.do == nil {
				tt.do = func(b *bench) error { _, err := b.create(configMaps, configMap("x")); return err }
			}
			if err := tt.do(b); err != nil {
				t.Error(err)
			}
			if got := strings.Join(b.calls(), ","); got != tt.want {
				t.Errorf("asked %q, want %q", got, tt.want)
			}
			if name == "equal form" {
				r := b.last["/v"].Request
				if r.Kind.Version != "v2" || r.Resource.Version != "v2" || r.RequestKind.Version != "v1" || !strings.Contains(string(r.Object.Raw), `"apiVersion":"autoscaling/v2"`) {
					t.Errorf("asked %+v %s", r, r.Object.Raw)
				}
			}
		})
	}
	b := newBench(t)
	b.validating("c", "v", rule("*", "*"), func(h *hook) {
		h.MatchConditions = []admissionregv1.MatchCondition{{Name: "a", Expression: `object.data.nothing == "1"`}}
	})
	_, err := b.create(configMaps, configMap("x"))
	b.want(err, 403, "no such key: nothing")
}

func scaler(b *bench) error {
	_, err := b.create(scalersV1, &autoscalingv1.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "h"}, Spec: autoscalingv1.HorizontalPodAutoscalerSpec{MaxReplicas: 3}})
	return err
}

// Failures, dry runs, old versions, warnings and annotations.
func TestPolicies(t *testing.T) {
	b := newBench(t)
	b.validating("a", "broken", rule("configmaps", "*"), func(h *admissionregv1.ValidatingWebhook) { h.FailurePolicy = ptr(admissionregv1.Ignore) })
	b.validating("b", "v", rule("configmaps", "*"), func(h *admissionregv1.ValidatingWebhook) {
		h.AdmissionReviewVersions = []string{"v7", "v1beta1"}
		h.SideEffects = ptr(admissionregv1.SideEffectClassSome)
	})
	b.replies["/v"] = func(q *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{UID: "any", Allowed: true, Warnings: []string{"careful"}, AuditAnnotations: map[string]string{"k": "v"}}
	}
	if _, err := b.create(configMaps, configMap("x")); err != nil {
		t.Fatal(err)
	}
	if got := b.last["/v"].APIVersion; got != "admission.k8s.io/v1beta1" {
		t.Errorf("asked in %s", got)
	}
	want := map[string]string{"v.example.com/k": "v", "failed-open.validating.webhook.admission.k8s.io/round_0_index_0": "broken.example.com"}
	if !maps.Equal(b.noted, want) || !slices.Equal(b.warned, []string{"careful"}) {
		t.Errorf("noted %v, warned %q", b.noted, b.warned)
	}
	r := b.request(configMaps, "")
	r.DryRun = true
	_, err := b.pipe.Create(b.ctx, r, configMap("dry"))
	b.want(err, 400, `admission webhook "v.example.com" does not support dry run`)

	// A webhook that takes too long is a failure.
	b.replies["/slow"] = func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		<-t.Context().Done()
		return &admissionv1.AdmissionResponse{Allowed: true}
	}
	b.validating("c", "slow", rule("configmaps", "*"), func(h *admissionregv1.ValidatingWebhook) { h.TimeoutSeconds = ptr(int32(1)) })
	_, err = b.create(configMaps, configMap("y"))
	b.want(err, 500, "context deadline exceeded")
	if !strings.Contains(err.Error(), "?timeout=1s") {
		t.Errorf("%v does not name the timeout", err)
	}
}

// What mutating webhooks change, in which order, and who is asked again.
func TestMutating(t *testing.T) {
	rounds := 0
	b := newBench(t, rest.Admission{Name: "first", Mutate: func(_ context.Context, a *rest.Admitting) error { rounds++; return nil }})
	both := rule("configmaps,pods,deployments/scale,pods/eviction,pods/exec", "*")
	b.mutating("b", "second", both, nil)
	b.mutating("a", "first", both, func(h *admissionregv1.MutatingWebhook) {
		h.ReinvocationPolicy = ptr(admissionregv1.IfNeededReinvocationPolicy)
	})
	b.replies["/first"] = patch(`[{"op":"add","path":"/data/first","value":"x"}]`)
	b.replies["/second"] = patch(`[{"op":"add","path":"/data/second","value":"y"}]`)
	o, err := b.create(configMaps, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "made-"}, Data: map[string]string{"a": "1"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := o.(*corev1.ConfigMap); !maps.Equal(got.Data, map[string]string{"a": "1", "first": "x", "second": "y"}) || !strings.HasPrefix(got.Name, "made-") || got.UID == "" {
		t.Errorf("stored %+v", got)
	}
	b.wantCalls("/first CREATE", "/second CREATE", "/first CREATE")
	if rounds != 2 {
		t.Errorf("plug-ins were asked %d times", rounds)
	}
	if r := b.last["/second"].Request; r.Name != "" || !strings.Contains(string(r.Object.Raw), `"first":"x"`) || strings.Contains(string(r.Object.Raw), `"uid"`) {
		t.Errorf("the second was asked %+v %s", r, r.Object.Raw)
	}
	if got := b.noted["mutation.webhook.admission.k8s.io/round_0_index_1"]; got != `{"configuration":"b","webhook":"second.example.com","mutated":true}` {
		t.Errorf("noted %s", got)
	}
	if got := b.noted["patch.webhook.admission.k8s.io/round_0_index_0"]; !strings.Contains(got, `"patch":[{"op":"add","path":"/data/first","value":"x"}],"patchType":"JSONPatch"`) {
		t.Errorf("noted %s", got)
	}
	if got := b.noted["mutation.webhook.admission.k8s.io/round_1_index_0"]; !strings.Contains(got, `"mutated":false`) {
		t.Errorf("noted %s", got)
	}

	// A deletion has nothing that could be changed.
	_, err = b.pipe.Delete(b.ctx, b.request(configMaps, o.GetName()), &metav1.DeleteOptions{})
	b.want(err, 500, `admission webhook "first.example.com" attempted to modify the object, which is not supported for this operation`)
	b.replies["/first"], b.replies["/second"] = patch(`nonsense`), allow
	_, err = b.create(configMaps, configMap("x"))
	b.want(err, 500, "received undecodable patch in webhook response")
	b.replies["/first"] = patch(`[{"op":"remove","path":"/data/none"}]`)
	_, err = b.create(configMaps, configMap("x"))
	b.want(err, 500, "none")
	b.replies["/first"] = patch(`[{"op":"add","path":"/metadata/managedFields","value":[{"manager":"m","operation":"Update","apiVersion":"v1","fieldsType":"Nonsense"}]}]`)
	o, err = b.create(configMaps, configMap("x"))
	if err != nil || len(o.GetManagedFields()) != 1 || o.GetManagedFields()[0].Manager != "test" || len(b.warned) != 1 {
		t.Errorf("%v %v, warned %q", o, err, b.warned)
	}
}

// The bodies of subresources are what webhooks see of them.
func TestSubresources(t *testing.T) {
	b := newBench(t)
	b.mutating("m", "m", rule("deployments/scale,deployments,pods/eviction,pods/exec", "*"), nil)
	b.replies["/m"] = patch(`[{"op":"add","path":"/spec/paused","value":true}]`)
	d, err := b.create(deployments, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{Replicas: ptr(int32(1))}})
	if err != nil || d.(*appsv1.Deployment).Spec.MinReadySeconds != 7 {
		t.Fatalf("%+v, %v: not defaulted after it was changed", d, err)
	}
	b.replies["/m"] = patch(`[{"op":"replace","path":"/spec/replicas","value":5}]`)
	e, _, err := b.pipe.Patch(b.ctx, &rest.Request{Any: deployments, Key: api.Key{Namespace: "ns", Name: "d"}, Sub: "scale", Manager: "test"},
		rest.Patch{Type: types.MergePatchType, Data: []byte(`{"spec":{"replicas":3}}`)})
	if err != nil || e.Object.(*autoscalingv1.Scale).Spec.Replicas != 5 {
		t.Errorf("%+v, %v", e, err)
	}
	if r := b.last["/m"].Request; r.Kind.Kind != "Scale" || r.Kind.Group != "autoscaling" || r.SubResource != "scale" || r.Resource.Resource != "deployments" ||
		!strings.Contains(string(r.Object.Raw), `"spec":{"replicas":3}`) || !strings.Contains(string(r.OldObject.Raw), `"spec":{"replicas":1}`) {
		t.Errorf("asked %+v %s %s", r, r.Object.Raw, r.OldObject.Raw)
	}

	if _, err := b.create(pods, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}); err != nil {
		t.Fatal(err)
	}
	b.replies["/m"] = allow
	sub := &rest.Request{Any: pods, Key: api.Key{Namespace: "ns", Name: "p"}, Sub: "eviction", Manager: "test"}
	if _, err := b.pipe.Post(b.ctx, sub, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "p"}}, &metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if r := b.last["/m"].Request; r.Kind.Kind != "Eviction" || r.Resource.Resource != "pods" || r.SubResource != "eviction" || r.Operation != "CREATE" {
		t.Errorf("asked %+v", r)
	}

	p, err := b.pipe.Get(b.ctx, b.request(pods, "p"), "")
	if err != nil {
		t.Fatal(err)
	}
	sub.Sub = "exec"
	b.replies["/m"] = patch(`[{"op":"replace","path":"/command/0","value":"cat"}]`)
	q, err := b.pipe.Connect(b.ctx, sub, p.Object, map[string][]string{"command": {"ls", "/"}, "stdin": {"1"}})
	if err != nil || fmt.Sprint(q["command"]) != "[cat /]" || q.Get("stdin") != "true" {
		t.Errorf("opened by %v, %v", q, err)
	}
	if r := b.last["/m"].Request; r.Operation != "CONNECT" || r.Kind.Kind != "PodExecOptions" || r.Name != "p" || !strings.Contains(string(r.Object.Raw), `"command":["ls","/"]`) || r.OldObject.Raw != nil {
		t.Errorf("asked %+v %s", r, r.Object.Raw)
	}
	b.replies["/m"] = deny("no shells", 403)
	_, err = b.pipe.Connect(b.ctx, sub, p.Object, nil)
	b.want(err, 403, "no shells")
}
