package policy

import (
	"context"
	"fmt"

	celgo "github.com/google/cel-go/cel"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/cel/environment"

	"github.com/yare-dev/yare/apiserver/admission/match"
)

// expression is one, as the compiler takes it.
type expression struct {
	name, text string
	types      []*celgo.Type
}

func (e *expression) GetName() string            { return e.name }
func (e *expression) GetExpression() string      { return e.text }
func (e *expression) ReturnTypes() []*celgo.Type { return e.types }

// variables returns a compiler whose expressions may use them. What is wrong with a variable, who uses it is told.
func variables(vs []admissionregv1.Variable, vars cel.OptionalVariableDeclarations) (*cel.CompositedCompiler, error) {
	c, err := cel.NewCompositedCompiler(match.Environment())
	if err != nil {
		return nil, fmt.Errorf("failed to initialize CEL compiler: %w", err)
	}
	var all []cel.NamedExpressionAccessor
	for _, v := range vs {
		all = append(all, &expression{v.Name, v.Expression, []*celgo.Type{celgo.AnyType, celgo.DynType}})
	}
	c.CompileAndStoreVariables(all, vars, environment.StoredExpressions)
	return c, nil
}

// validator is a ValidatingAdmissionPolicy, compiled.
type validator struct {
	policy                        *admissionregv1.ValidatingAdmissionPolicy
	err                           error // of the compiler itself
	conditions                    *match.Conditions
	validations, messages, audits cel.ConditionEvaluator
}

func compileValidator(p *admissionregv1.ValidatingAdmissionPolicy, fail bool, meter *match.Meter) *validator {
	v := &validator{policy: p}
	params := p.Spec.ParamKind != nil
	vars := cel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}
	c, err := variables(p.Spec.Variables, vars)
	if err != nil {
		v.err = err
		return v
	}
	v.conditions = match.Compile(p.Spec.MatchConditions, c, params, fail).Counted(meter, match.Policy, p.Name, "validate")
	validations, messages := make([]cel.ExpressionAccessor, len(p.Spec.Validations)), make([]cel.ExpressionAccessor, len(p.Spec.Validations))
	for i, s := range p.Spec.Validations {
		validations[i] = &expression{text: s.Expression, types: []*celgo.Type{celgo.BoolType}}
		if s.MessageExpression != "" {
			messages[i] = &expression{text: s.MessageExpression, types: []*celgo.Type{celgo.StringType}}
		}
	}
	audits := make([]cel.ExpressionAccessor, len(p.Spec.AuditAnnotations))
	for i, a := range p.Spec.AuditAnnotations {
		audits[i] = &expression{text: a.ValueExpression, types: []*celgo.Type{celgo.StringType, celgo.NullType}}
	}
	v.validations = c.CompileCondition(validations, vars, environment.StoredExpressions)
	v.messages = c.CompileCondition(messages, cel.OptionalVariableDeclarations{HasParams: params}, environment.StoredExpressions)
	v.audits = c.CompileCondition(audits, vars, environment.StoredExpressions)
	return v
}

// mutator is a MutatingAdmissionPolicy, compiled.
type mutator struct {
	policy     *admissionregv1.MutatingAdmissionPolicy
	err        error // of the compiler itself
	conditions *match.Conditions
	patchers   []patch.Patcher // one for each mutation
	context    func(context.Context) cel.CompositionContext
}

func compileMutator(p *admissionregv1.MutatingAdmissionPolicy, fail bool, meter *match.Meter) *mutator {
	m := &mutator{policy: p}
	params := p.Spec.ParamKind != nil
	vars := cel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}
	c, err := variables(p.Spec.Variables, vars)
	if err != nil {
		m.err = err
		return m
	}
	m.context = c.CreateContext
	m.conditions = match.Compile(p.Spec.MatchConditions, c, params, fail).Counted(meter, match.Policy, p.Name, "validate")
	vars.HasPatchTypes = true
	for _, s := range p.Spec.Mutations {
		switch {
		case s.PatchType == admissionregv1.PatchTypeJSONPatch && s.JSONPatch != nil:
			e := c.CompileMutatingEvaluator(&patch.JSONPatchCondition{Expression: s.JSONPatch.Expression}, vars, environment.StoredExpressions)
			m.patchers = append(m.patchers, patch.NewJSONPatcher(e))
		case s.PatchType == admissionregv1.PatchTypeApplyConfiguration && s.ApplyConfiguration != nil:
			e := c.CompileMutatingEvaluator(&patch.ApplyConfigurationCondition{Expression: s.ApplyConfiguration.Expression}, vars, environment.StoredExpressions)
			m.patchers = append(m.patchers, patch.NewApplyConfigurationPatcher(e))
		default:
			m.err = fmt.Errorf("mutation of type %q is not specified", s.PatchType)
		}
	}
	return m
}
