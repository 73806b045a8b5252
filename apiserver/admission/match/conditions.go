package match

import (
	"context"
	"sync"
	"time"

	celgo "github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/types"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/admission"
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

// What has conditions, as metrics call it.
const (
	Webhook = "webhook"
	Policy  = "policy"
)

// Conditions are the match conditions of a webhook or policy, compiled. A nil *Conditions always holds.
type Conditions struct {
	eval  cel.ConditionEvaluator
	fail  bool
	meter *Meter
	owner owner
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

// Counted has evaluations be counted as those of a Webhook or Policy of that name, in a step: "admit" or "validate".
func (c *Conditions) Counted(m *Meter, kind, name, step string) *Conditions {
	if c != nil {
		c.meter, c.owner = m, owner{name, kind, step}
	}
	return c
}

// Hold says whether all conditions are true of the request in the form. One that is false decides, whatever came of the others.
func (c *Conditions) Hold(ctx context.Context, r *Request, form *api.Kind, params runtime.Object, authz authorizer.UnconditionalAuthorizer) (bool, error) {
	if c == nil {
		return true, nil
	}
	begin := time.Now()
	ok, errs, err := c.evaluate(ctx, r, form, cel.OptionalVariableBindings{VersionedParams: params, Authorizer: authz})
	if err == nil && ok {
		err = utilerrors.NewAggregate(errs)
	}
	if err != nil {
		ok = false
		if !c.fail {
			err = nil
		}
	}
	c.meter.evaluated(c.owner, r, time.Since(begin), !ok && err == nil, len(errs))
	return ok, err
}

// evaluate says whether no condition is false, and which could not be evaluated. The last error is about all.
func (c *Conditions) evaluate(ctx context.Context, r *Request, form *api.Kind, vars cel.OptionalVariableBindings) (ok bool, errs []error, err error) {
	v, err := r.View(ctx, form)
	if err != nil {
		return false, nil, err
	}
	results, _, err := c.eval.ForInput(ctx, v, Review(v, form), vars, nil, celconfig.RuntimeCELCostBudgetMatchConditions)
	if err != nil {
		return false, nil, err
	}
	for _, result := range results {
		if result.Error != nil {
			errs = append(errs, result.Error)
		}
		if result.EvalResult == types.False {
			return false, errs, nil
		}
	}
	return true, errs, nil
}

// Review describes the request that is viewed in the form, but for its objects: the variable "request" of expressions.
func Review(v *admission.VersionedAttributes, form *api.Kind) *admissionv1.AdmissionRequest {
	return cel.CreateAdmissionRequest(v.Attributes, metav1.GroupVersionResource(form.GVR()), metav1.GroupVersionKind(v.VersionedKind))
}
