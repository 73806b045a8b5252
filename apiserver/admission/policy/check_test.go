package policy_test

import (
	"slices"
	"strings"
	"testing"

	admissionregv1 "k8s.io/api/admissionregistration/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/policy"
)

var known = policy.BuiltinTypes()

// Every kind has a schema that expressions can be checked with.
func TestSchemas(t *testing.T) {
	for _, k := range api.Stored() {
		p := about(k.Group, k.Version, k.Plural)
		p.Spec.Validations = expressions(`object.metadata.name != "" && object.kind == "x" && oldObject.apiVersion != ""`, `object.nonsense == 1`)
		got := known.Check(p)
		if len(got) != 1 || got[0].FieldRef != "spec.validations[1].expression" || !strings.Contains(got[0].Warning, "undefined field 'nonsense'") {
			t.Errorf("%v: %+v", k, got)
		}
	}
}

func about(group, version string, resources ...string) *admissionregv1.ValidatingAdmissionPolicy {
	p := &admissionregv1.ValidatingAdmissionPolicy{}
	p.Spec.MatchConstraints = &admissionregv1.MatchResources{ResourceRules: []admissionregv1.NamedRuleWithOperations{{
		RuleWithOperations: admissionregv1.RuleWithOperations{Rule: admissionregv1.Rule{APIGroups: []string{group}, APIVersions: []string{version}, Resources: resources}}}}}
	return p
}

func TestCheck(t *testing.T) {
	deployments := about("apps", "v1", "deployments", "replicasets", "deployments/status")
	for name, tt := range map[string]struct {
		policy    *admissionregv1.ValidatingAdmissionPolicy
		variables []admissionregv1.Variable
		params    *admissionregv1.ParamKind
		text      string
		message   string
		want      []string // parts of the warnings
	}{
		"fits":          {policy: deployments, text: `object.spec.replicas > 1 && object.spec.template.spec.containers.all(c, c.image != "") && request.operation == "CREATE" && namespaceObject.metadata.name != ""`},
		"wrong type":    {policy: deployments, text: `object.spec.replicas > "1"`, want: []string{"apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'", "apps/v1, Kind=ReplicaSet: "}},
		"one of two":    {policy: deployments, text: `object.spec.paused`, want: []string{"apps/v1, Kind=ReplicaSet: ERROR: <input>:1:12: undefined field 'paused'"}},
		"message":       {policy: deployments, text: "true", message: `"a" + object.kind + object.spec.replica`, want: []string{"undefined field 'replica'"}},
		"variable":      {policy: deployments, variables: []admissionregv1.Variable{{Name: "n", Expression: "object.spec.replicas"}}, text: `variables.n == "x"`, want: []string{"'(int, string)'"}},
		"param":         {policy: deployments, params: &admissionregv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"}, text: `params.data.x == "x" && params.dat == 1`, want: []string{"undefined field 'dat'"}},
		"unknown param": {policy: deployments, params: &admissionregv1.ParamKind{APIVersion: "x/v1", Kind: "Y"}, text: `params.dat == 1`},
		"unknown kind":  {policy: about("x", "v1", "ys"), text: `object.dat == 1`},
		"wildcard":      {policy: about("*", "v1", "pods"), text: `object.dat == 1`},
		"either":        {policy: about("", "v1", "services"), text: `object.spec.ports.all(p, p.targetPort == 80 || p.targetPort == "http")`},
	} {
		t.Run(name, func(t *testing.T) {
			p := tt.policy.DeepCopy()
			p.Spec.Variables, p.Spec.ParamKind = tt.variables, tt.params
			p.Spec.Validations = []admissionregv1.Validation{{Expression: tt.text, MessageExpression: tt.message}}
			got := known.Check(p)
			if (len(tt.want) > 0) != (len(got) > 0) {
				t.Fatalf("got %+v, want %q", got, tt.want)
			}
			for _, part := range tt.want {
				if !slices.ContainsFunc(got, func(w admissionregv1.ExpressionWarning) bool { return strings.Contains(w.Warning, part) }) {
					t.Errorf("got %+v without %q", got, part)
				}
			}
		})
	}
}
