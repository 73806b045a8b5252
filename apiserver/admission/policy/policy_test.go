package policy_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/policy"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/store"
)

var (
	configMaps = rest.Register(api.ConfigMapKind, &rest.Resource[*corev1.ConfigMap]{})
	// What parameters may be of.
	params      = []rest.Any{rest.Register(api.SecretKind, &rest.Resource[*corev1.Secret]{}), rest.Register(api.NamespaceKind, &rest.Resource[*corev1.Namespace]{})}
	deployments = rest.Register(api.DeploymentKind, &rest.Resource[*appsv1.Deployment]{
		Default: func(d *appsv1.Deployment) {
			if d.Spec.Paused {
				d.Spec.MinReadySeconds = 7
			}
		},
		Scale: &rest.Scale[*appsv1.Deployment]{
			Replicas: func(o *appsv1.Deployment) (int32, int32) { return *o.Spec.Replicas, o.Status.Replicas },
			Set:      func(o *appsv1.Deployment, n int32) { o.Spec.Replicas = &n },
			Selector: func(o *appsv1.Deployment) string { return "" },
		},
	})
)

type nobody struct{}

func (nobody) Authorize(_ context.Context, a *authz.Attributes) (bool, string, error) {
	return a.Verb == "wave" && a.User.Name == "u", "", nil
}

type bench struct {
	t      *testing.T
	s      *store.Store
	pipe   *rest.Pipeline
	ctx    context.Context
	warned []string
	noted  map[string]string
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, s: servertest.Store(t), noted: map[string]string{}}
	p := policy.New(policy.Deps{Store: b.s, Access: nobody{}, Metrics: prometheus.NewRegistry(), Kind: func(gvk schema.GroupVersionKind) (rest.Any, bool) {
		i := slices.IndexFunc(params, func(a rest.Any) bool { return a.Kind.GVK() == gvk })
		if i < 0 {
			return rest.Any{}, false
		}
		return params[i], true
	}})
	b.pipe = rest.NewPipeline(b.s, []rest.Admission{p.Mutating(), p.Validating()})
	b.ctx = authn.WithUser(t.Context(), &authn.User{Name: "u"})
	servertest.Put(t, b.s, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Labels: map[string]string{"env": "test"}}})
	return b
}

func (b *bench) request(a rest.Any, name string) *rest.Request {
	return &rest.Request{Any: a, Key: api.Key{Namespace: "ns", Name: name}, Manager: "test",
		Warn:  func(text string) { b.warned = append(b.warned, text) },
		Audit: func(k, v string) { b.noted[k] = v },
	}
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
		b.t.Errorf("got %v (%+v), want code %d and %q", err, status, code, text)
	}
}

func ptr[T any](v T) *T { return &v }

func matching(resources string, change func(m *admissionregv1.MatchResources)) *admissionregv1.MatchResources {
	m := &admissionregv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{}, MatchPolicy: ptr(admissionregv1.Equivalent),
		ResourceRules: []admissionregv1.NamedRuleWithOperations{{RuleWithOperations: admissionregv1.RuleWithOperations{Operations: []admissionregv1.OperationType{"CREATE", "UPDATE"},
			Rule: admissionregv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: strings.Split(resources, ","), Scope: ptr(admissionregv1.AllScopes)}}}}}
	if change != nil {
		change(m)
	}
	return m
}

// validating stores a policy and a binding of it, by its name.
func (b *bench) validating(spec admissionregv1.ValidatingAdmissionPolicySpec, bind func(s *admissionregv1.ValidatingAdmissionPolicyBindingSpec)) {
	if spec.FailurePolicy == nil {
		spec.FailurePolicy = ptr(admissionregv1.Fail)
	}
	if spec.MatchConstraints == nil {
		spec.MatchConstraints = matching("configmaps", nil)
	}
	binding := admissionregv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: "p", ValidationActions: []admissionregv1.ValidationAction{admissionregv1.Deny}}
	if bind != nil {
		bind(&binding)
	}
	servertest.Put(b.t, b.s, &admissionregv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: spec},
		&admissionregv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}, Spec: binding})
}

func configMap(name string, kv ...string) *corev1.ConfigMap {
	c := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"a": "1"}}
	for i := 0; i < len(kv); i += 2 {
		c.Data[kv[i]] = kv[i+1]
	}
	return c
}

func expressions(texts ...string) (vs []admissionregv1.Validation) {
	for _, t := range texts {
		vs = append(vs, admissionregv1.Validation{Expression: t})
	}
	return vs
}

// What a policy makes of a request to create a ConfigMap with a=1.
func TestValidating(t *testing.T) {
	type spec = admissionregv1.ValidatingAdmissionPolicySpec
	type bindingSpec = admissionregv1.ValidatingAdmissionPolicyBindingSpec
	const denied = `configmaps "x" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: `
	params := func(ref admissionregv1.ParamRef) func(*bindingSpec) {
		return func(s *bindingSpec) { s.ParamRef = &ref }
	}
	kind := &admissionregv1.ParamKind{APIVersion: "v1", Kind: "Secret"}
	for name, tt := range map[string]struct {
		spec spec
		bind func(*bindingSpec)
		code int32
		text string
	}{
		"holds":            {spec: spec{Validations: expressions(`object.data.a == "1"`)}},
		"does not":         {spec{Validations: expressions(`object.data.a == "1"`, ` object.data.a == "2" `)}, nil, 422, denied + `failed expression: object.data.a == "2"`},
		"message":          {spec{Validations: []admissionregv1.Validation{{Expression: "false", Message: " not so ", Reason: ptr(metav1.StatusReasonForbidden)}}}, nil, 403, denied + "not so"},
		"computed":         {spec{Validations: []admissionregv1.Validation{{Expression: "false", Message: "no", MessageExpression: `"a is " + object.data.a`}}}, nil, 422, denied + "a is 1"},
		"two lines":        {spec{Validations: []admissionregv1.Validation{{Expression: "false", Message: "no", MessageExpression: `"a\nb"`}}}, nil, 422, denied + "no"},
		"broken":           {spec{Validations: expressions(`object.data.b == "1"`)}, nil, 422, "no such key: b"},
		"ignored":          {spec: spec{FailurePolicy: ptr(admissionregv1.Ignore), Validations: expressions(`object.data.b == "1"`)}},
		"not CEL":          {spec{Validations: expressions(`object.`)}, nil, 422, "compilation error"},
		"variables":        {spec: spec{Validations: expressions(`variables.two == 2`), Variables: []admissionregv1.Variable{{Name: "one", Expression: "int(object.data.a)"}, {Name: "two", Expression: "variables.one + 1"}}}},
		"context":          {spec: spec{Validations: expressions(`namespaceObject.metadata.labels.env == "test"`, `request.operation == "CREATE"`, `request.userInfo.username == "u"`, `oldObject == null`, `authorizer.group("").resource("pods").check("wave").allowed()`, `!authorizer.requestResource.check("dance").allowed()`)}},
		"condition":        {spec: spec{Validations: expressions("false"), MatchConditions: []admissionregv1.MatchCondition{{Name: "c", Expression: `object.data.a == "2"`}}}},
		"condition broken": {spec{Validations: expressions("true"), MatchConditions: []admissionregv1.MatchCondition{{Name: "c", Expression: `object.data.b == "2"`}}}, nil, 422, "no such key: b"},
		"excluded": {spec: spec{Validations: expressions("false"), MatchConstraints: matching("*", func(m *admissionregv1.MatchResources) {
			m.ExcludeResourceRules = matching("configmaps", nil).ResourceRules
		})}},
		"other name": {spec: spec{Validations: expressions("false"), MatchConstraints: matching("*", func(m *admissionregv1.MatchResources) { m.ResourceRules[0].ResourceNames = []string{"y"} })}},
		"name":       {spec{Validations: expressions("false"), MatchConstraints: matching("*", func(m *admissionregv1.MatchResources) { m.ResourceRules[0].ResourceNames = []string{"x"} })}, nil, 422, denied},
		"binding elsewhere": {spec: spec{Validations: expressions("false")}, bind: func(s *bindingSpec) {
			s.MatchResources = matching("*", func(m *admissionregv1.MatchResources) {
				m.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"env": "prod"}}
			})
		}},
		"unbound":        {spec: spec{Validations: expressions("false")}, bind: func(s *bindingSpec) { s.PolicyName = "other" }},
		"too costly":     {spec{Validations: expressions(`[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, [1,2,3,4,5,6,7,8,9,10].all(f, a+b+c+d+e+f > 0))))))`)}, nil, 422, "actual cost limit exceeded"},
		"param":          {spec{ParamKind: kind, Validations: expressions(`params.type == "never"`)}, params(admissionregv1.ParamRef{Name: "s1", ParameterNotFoundAction: ptr(admissionregv1.DenyAction)}), 422, denied + `failed expression: params.type == "never"`},
		"param is typed": {spec: spec{ParamKind: kind, Validations: expressions(`params.kind == "Secret"`, `params.metadata.name == "s1"`)}, bind: params(admissionregv1.ParamRef{Name: "s1", Namespace: "ns", ParameterNotFoundAction: ptr(admissionregv1.DenyAction)})},
		"no ref":         {spec: spec{ParamKind: kind, Validations: expressions(`params == null`)}},
		"selected":       {spec{ParamKind: kind, Validations: expressions(`params.metadata.name != "s2"`)}, params(admissionregv1.ParamRef{Selector: &metav1.LabelSelector{}, ParameterNotFoundAction: ptr(admissionregv1.DenyAction)}), 422, denied},
		"missing":        {spec{ParamKind: kind, Validations: expressions(`true`)}, params(admissionregv1.ParamRef{Name: "s3", ParameterNotFoundAction: ptr(admissionregv1.DenyAction)}), 422, denied + "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction"},
		"may miss":       {spec: spec{ParamKind: kind, Validations: expressions(`false`)}, bind: params(admissionregv1.ParamRef{Name: "s3", ParameterNotFoundAction: ptr(admissionregv1.AllowAction)})},
		"elsewhere":      {spec{ParamKind: kind, Validations: expressions(`true`)}, params(admissionregv1.ParamRef{Name: "s1", Namespace: "other", ParameterNotFoundAction: ptr(admissionregv1.DenyAction)}), 422, "no params found"},
		"unknown kind":   {spec{ParamKind: &admissionregv1.ParamKind{APIVersion: "x.y/v1", Kind: "Z"}, Validations: expressions(`true`)}, nil, 422, "ValidatingAdmissionPolicy 'p' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'x.y/v1, Kind=Z'"},
		"cluster param":  {spec{ParamKind: &admissionregv1.ParamKind{APIVersion: "v1", Kind: "Namespace"}, Validations: expressions(`true`)}, params(admissionregv1.ParamRef{Name: "ns", Namespace: "ns"}), 422, "paramRef.namespace must not be provided for a cluster-scoped `paramKind`"},
		"bad annotation": {spec{AuditAnnotations: []admissionregv1.AuditAnnotation{{Key: "k", ValueExpression: `"" + object.data.b`}}}, nil, 422, "no such key: b"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			for _, s := range []string{"s1", "s2"} {
				servertest.Put(t, b.s, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: s}, Type: "kind"})
			}
			b.validating(tt.spec, tt.bind)
			_, err := b.create(configMaps, configMap("x"))
			switch {
			case tt.code != 0:
				b.want(err, tt.code, tt.text)
			case err != nil:
				t.Error(err)
			}
		})
	}
}

// Warnings, audit annotations and the state before an update.
func TestActions(t *testing.T) {
	b := newBench(t)
	b.validating(admissionregv1.ValidatingAdmissionPolicySpec{
		Validations:      []admissionregv1.Validation{{Expression: `oldObject == null || oldObject.data.a == object.data.a`, Message: "a stays"}, {Expression: "true"}},
		AuditAnnotations: []admissionregv1.AuditAnnotation{{Key: "was", ValueExpression: `oldObject == null ? "" : "it was " + oldObject.data.a`}},
	}, func(s *admissionregv1.ValidatingAdmissionPolicyBindingSpec) {
		s.ValidationActions = []admissionregv1.ValidationAction{admissionregv1.Warn, admissionregv1.Audit}
	})
	if _, err := b.create(configMaps, configMap("x")); err != nil {
		t.Fatal(err)
	}
	if len(b.warned) > 0 || len(b.noted) > 0 {
		t.Errorf("a creation is warned of: %q, %v", b.warned, b.noted)
	}
	_, _, err := b.pipe.Patch(b.ctx, b.request(configMaps, "x"), rest.Patch{Type: types.MergePatchType, Data: []byte(`{"data":{"a":"2"}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': a stays"}; !slices.Equal(b.warned, want) {
		t.Errorf("warned %q", b.warned)
	}
	want := map[string]string{"p/was": "it was 1",
		"validation.policy.admission.k8s.io/validation_failure": `[{"message":"a stays","policy":"p","binding":"b","expressionIndex":0,"validationActions":["Warn","Audit"]}]`}
	if !maps.Equal(b.noted, want) {
		t.Errorf("noted %v", b.noted)
	}

	// Policies count from their writes on, until they are removed.
	b.validating(admissionregv1.ValidatingAdmissionPolicySpec{Validations: expressions("false")}, nil)
	_, err = b.create(configMaps, configMap("y"))
	b.want(err, 422, "false")
	servertest.Remove(t, b.s, &admissionregv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "b"}})
	if _, err := b.create(configMaps, configMap("y")); err != nil {
		t.Error(err)
	}
}

// mutating stores a policy of that name and a binding of it.
func (b *bench) mutating(name string, spec admissionregv1.MutatingAdmissionPolicySpec, ref *admissionregv1.ParamRef) {
	if spec.FailurePolicy == nil {
		spec.FailurePolicy = ptr(admissionregv1.Fail)
	}
	if spec.MatchConstraints == nil {
		spec.MatchConstraints = matching("configmaps,deployments,deployments/scale", nil)
	}
	servertest.Put(b.t, b.s, &admissionregv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec},
		&admissionregv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionregv1.MutatingAdmissionPolicyBindingSpec{PolicyName: name, ParamRef: ref}})
}

func apply(text string) admissionregv1.Mutation {
	return admissionregv1.Mutation{PatchType: admissionregv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionregv1.ApplyConfiguration{Expression: text}}
}

func jsonPatch(text string) admissionregv1.Mutation {
	return admissionregv1.Mutation{PatchType: admissionregv1.PatchTypeJSONPatch, JSONPatch: &admissionregv1.JSONPatch{Expression: text}}
}

func TestMutating(t *testing.T) {
	type spec = admissionregv1.MutatingAdmissionPolicySpec
	one := func(ms ...admissionregv1.Mutation) []spec { return []spec{{Mutations: ms}} }
	for name, tt := range map[string]struct {
		specs []spec // of policies in the order of their names
		want  map[string]string
		text  string // of the error, of code 403
	}{
		"apply":    {specs: one(apply(`Object{data: {"b": object.data.a + "!"}}`)), want: map[string]string{"a": "1", "b": "1!"}},
		"patch":    {specs: one(jsonPatch(`[JSONPatch{op: "test", path: "/data/a", value: "1"}, JSONPatch{op: "add", path: "/data/" + jsonpatch.escapeKey("b/c"), value: "2"}]`)), want: map[string]string{"a": "1", "b/c": "2"}},
		"untested": {specs: one(jsonPatch(`[JSONPatch{op: "test", path: "/data/a", value: "7"}, JSONPatch{op: "add", path: "/data/b", value: "2"}]`)), want: map[string]string{"a": "1"}},
		"in order": {specs: one(apply(`Object{data: {"b": "2"}}`), apply(`Object{data: {"c": object.data.b}}`)), want: map[string]string{"a": "1", "b": "2", "c": "2"}},
		"variables": {specs: []spec{{Variables: []admissionregv1.Variable{{Name: "v", Expression: `object.data.a + namespaceObject.metadata.name`}}, Mutations: []admissionregv1.Mutation{apply(`Object{data: {"b": variables.v}}`)}}},
			want: map[string]string{"a": "1", "b": "1ns"}},
		"params":    {specs: []spec{{ParamKind: &admissionregv1.ParamKind{APIVersion: "v1", Kind: "Secret"}, Mutations: []admissionregv1.Mutation{apply(`Object{data: {"b": params.type}}`)}}}, want: map[string]string{"a": "1", "b": "kind"}},
		"condition": {specs: []spec{{MatchConditions: []admissionregv1.MatchCondition{{Name: "c", Expression: "false"}}, Mutations: []admissionregv1.Mutation{apply(`Object{data: {"b": "2"}}`)}}}, want: map[string]string{"a": "1"}},
		"again": {specs: []spec{
			{ReinvocationPolicy: admissionregv1.IfNeededReinvocationPolicy, Mutations: []admissionregv1.Mutation{apply(`Object{data: {"b": has(object.data.c) ? object.data.c : "none"}}`)}},
			{ReinvocationPolicy: admissionregv1.NeverReinvocationPolicy, Mutations: []admissionregv1.Mutation{apply(`Object{data: {"c": "3"}}`)}},
		}, want: map[string]string{"a": "1", "b": "3", "c": "3"}},
		"not again": {specs: []spec{
			{ReinvocationPolicy: admissionregv1.NeverReinvocationPolicy, Mutations: []admissionregv1.Mutation{apply(`Object{data: {"b": has(object.data.c) ? object.data.c : "none"}}`)}},
			{ReinvocationPolicy: admissionregv1.NeverReinvocationPolicy, Mutations: []admissionregv1.Mutation{apply(`Object{data: {"c": "3"}}`)}},
		}, want: map[string]string{"a": "1", "b": "none", "c": "3"}},
		"broken":  {specs: one(apply(`Object{data: {"b": object.data.none}}`)), text: "policy 'p0' with binding 'p0' denied request: "},
		"ignored": {specs: []spec{{FailurePolicy: ptr(admissionregv1.Ignore), Mutations: []admissionregv1.Mutation{apply(`Object{data: {"b": object.data.none}}`)}}}, want: map[string]string{"a": "1"}},
		"unknown": {specs: one(apply(`Object{nothing: "x"}`)), text: "error applying patch"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t)
			servertest.Put(t, b.s, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}, Type: "kind"})
			for i, s := range tt.specs {
				b.mutating("p"+string(rune('0'+i)), s, &admissionregv1.ParamRef{Name: "s", ParameterNotFoundAction: ptr(admissionregv1.DenyAction)})
			}
			o, err := b.create(configMaps, configMap("x"))
			switch {
			case tt.text != "":
				b.want(err, 403, tt.text)
			case err != nil:
				t.Error(err)
			case !maps.Equal(o.(*corev1.ConfigMap).Data, tt.want):
				t.Errorf("stored %v, want %v", o.(*corev1.ConfigMap).Data, tt.want)
			}
		})
	}
}

// Typed lists are merged by their keys, what is left out is filled in again, and scales are changed as scales.
func TestMutatingTyped(t *testing.T) {
	b := newBench(t)
	b.mutating("p", admissionregv1.MutatingAdmissionPolicySpec{MatchConstraints: matching("deployments", nil), Mutations: []admissionregv1.Mutation{
		apply(`Object{spec: Object.spec{paused: true, template: Object.spec.template{spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: "b", image: "img"}]}}}}`)}}, nil)
	b.mutating("s", admissionregv1.MutatingAdmissionPolicySpec{MatchConstraints: matching("deployments/scale", nil), Mutations: []admissionregv1.Mutation{
		apply(`Object{spec: Object.spec{replicas: object.spec.replicas * 2}}`)}}, nil)
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "d"}, Spec: appsv1.DeploymentSpec{Replicas: ptr(int32(1))}}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "a"}, {Name: "b"}}
	o, err := b.create(deployments, d)
	if err != nil {
		t.Fatal(err)
	}
	got := o.(*appsv1.Deployment)
	if cs := got.Spec.Template.Spec.Containers; len(cs) != 2 || cs[1].Image != "img" || got.Spec.MinReadySeconds != 7 {
		t.Errorf("stored %+v", got.Spec)
	}
	e, _, err := b.pipe.Patch(b.ctx, &rest.Request{Any: deployments, Key: api.Key{Namespace: "ns", Name: "d"}, Sub: "scale", Manager: "test"},
		rest.Patch{Type: types.MergePatchType, Data: []byte(`{"spec":{"replicas":3}}`)})
	if err != nil {
		t.Fatal(err)
	}
	if n, _ := b.pipe.Get(b.ctx, b.request(deployments, "d"), ""); *n.Object.(*appsv1.Deployment).Spec.Replicas != 6 {
		t.Errorf("scaled to %+v", e.Object)
	}
}

// Where nothing is configured, requests pass at no cost.
func TestIdle(t *testing.T) {
	s := servertest.Store(t)
	w := policy.New(policy.Deps{Store: s, Access: nobody{}, Metrics: prometheus.NewRegistry()})
	a := &rest.Admitting{User: &authn.User{Name: "u"}, Operation: rest.OpCreate, Kind: api.ConfigMapKind, Key: api.Key{Namespace: "ns"}, Object: configMap("x")}
	mutate, validate := w.Mutating().Mutate, w.Validating().Validate
	if n := testing.AllocsPerRun(100, func() {
		if mutate(t.Context(), a) != nil || validate(t.Context(), a) != nil {
			t.Error("refused")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}
