package match

import (
	"context"
	"sync"

	celgo "github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/yare-dev/yare/api"
)

// Environment is what all expressions of admission are compiled in. It is made when the first one is, which takes some milliseconds.
var Environment = sync.OnceValue(func() *environment.EnvSet {
	return environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
})

var plain = sync.OnceValue(func() cel.ConditionCompiler { return cel.NewConditionCompiler(Environment()) })

// Conditions are the match conditions of a webhook or policy, compiled. A nil *Conditions always holds.
type Conditions struct {
	eval cel.ConditionEvaluator
	fail bool
}

// condition is one, as the compiler takes it.
type condition admissionregv1.MatchCondition

func (c *condition) GetExpression() string      { return c.Expression }
func (c *condition) ReturnTypes() []*celgo.Type { return []*celgo.Type{celgo.BoolType} }

// Compile returns the conditions, nil where there are none. Fail says that an expression that cannot be evaluated is an error.
// The compiler is nil where there are no variables that the conditions may use.
func Compile(cs []admissionregv1.MatchCondition, c cel.ConditionCompiler, params, fail bool) *Conditions {
	if len(cs) == 0 {
		return nil
	}
	if c == nil {
		c = plain()
	}
	var all []cel.ExpressionAccessor
	for i := range cs {
		all = append(all, (*condition)(&cs[i]))
	}
	vars := cel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}
	return &Conditions{eval: c.CompileCondition(all, vars, environment.StoredExpressions), fail: fail}
}

// Hold says whether all conditions are true of the request in the form. One that is false decides, whatever came of the others.
func (c *Conditions) Hold(ctx context.Context, r *Request, form *api.Kind, params runtime.Object, authz authorizer.UnconditionalAuthorizer) (bool, error) {
	if c == nil {
		return true, nil
	}
	results, _, err := c.eval.ForInput(ctx, r.View(form), r.Review(form), cel.OptionalVariableBindings{VersionedParams: params, Authorizer: authz}, nil,
		celconfig.RuntimeCELCostBudgetMatchConditions)
	if err != nil {
		return c.broken(err)
	}
	var errs []error
	for _, result := range results {
		if result.Error != nil {
			errs = append(errs, result.Error)
		}
		if result.EvalResult == types.False {
			return false, nil
		}
	}
	if len(errs) > 0 {
		return c.broken(utilerrors.NewAggregate(errs))
	}
	return true, nil
}

func (c *Conditions) broken(err error) (bool, error) {
	if c.fail {
		return false, err
	}
	return false, nil
}

// Review describes the request, but for its objects, in the form: the variable "request" of expressions.
func (r *Request) Review(form *api.Kind) *admissionv1.AdmissionRequest {
	v := r.View(form)
	return cel.CreateAdmissionRequest(v.Attributes, metav1.GroupVersionResource(form.GVR()), metav1.GroupVersionKind(v.VersionedKind))
}
