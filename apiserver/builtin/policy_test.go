package builtin_test

import (
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/apiserver/authn"
)

// TestPolicyParameters makes policies and bindings as a user who may read some of their parameters.
func TestPolicyParameters(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.must(c.create(&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "read"}, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"get", "list"}, APIGroups: []string{""}, Resources: []string{"configmaps"}}}}))
	c.must(c.create(&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "read"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "read"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "jane"}}}))
	jane := *c
	jane.ctx = authn.WithUser(t.Context(), &authn.User{Name: "jane", Groups: []string{"dev"}})
	policy := func(name, kind string) *admissionv1.ValidatingAdmissionPolicy {
		return &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicySpec{
			ParamKind: &admissionv1.ParamKind{APIVersion: "v1", Kind: kind},
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
				Operations: []admissionv1.OperationType{"*"}, Rule: admissionv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*"}}}}}},
			Validations: []admissionv1.Validation{{Expression: "params.data.x == 'y'"}}}}
	}
	binding := func(policy string) *admissionv1.ValidatingAdmissionPolicyBinding {
		deny := admissionv1.DenyAction
		return &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "b-" + policy}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: policy, ParamRef: &admissionv1.ParamRef{Name: "x", Namespace: "default", ParameterNotFoundAction: &deny}, ValidationActions: []admissionv1.ValidationAction{"Deny"}}}
	}
	c.must(jane.create(policy("mine", "ConfigMap")))
	c.must(jane.create(binding("mine")))
	refused := func(_ any, err error, want string) {
		t.Helper()
		if err == nil || problems(err) != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	o, err := jane.create(policy("secret", "Secret"))
	refused(o, err, "spec.paramKind: Forbidden: user &{jane  [dev] map[]} must have \"get\" permission on all objects of the referenced paramKind (kind=Secret, apiVersion=v1)\n")
	c.must(c.create(policy("secret", "Secret")))
	o, err = jane.create(binding("secret"))
	refused(o, err, "spec.paramRef: Forbidden: user &{jane  [dev] map[]} does not have \"get\" permission on the object referenced by paramRef\n")
	o, err = jane.create(binding("none"))
	refused(o, err, "spec.paramRef: Forbidden: unable to get policy none to determine minimum required permissions and user &{jane  [dev] map[]} does not have \"get\" permission for all groups, versions and resources\n")
	c.must(c.create(binding("secret")))
}
