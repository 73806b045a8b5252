package policy

import (
	"fmt"
	"slices"
	"strings"

	celgo "github.com/google/cel-go/cel"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/common"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/library"
	"k8s.io/apiserver/pkg/cel/openapi"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/match"
	yareopenapi "github.com/yare-dev/yare/apiserver/openapi"
)

// Types says what expressions may be about: the kinds that a resource stands for, and their schemas.
type Types struct {
	// Kinds are those that are served as the resource.
	Kinds func(schema.GroupVersionResource) []schema.GroupVersionKind
	// Schema is a kind's, without references; nil of one that is not known.
	Schema func(schema.GroupVersionKind) *spec.Schema
}

// BuiltinTypes are those of the built-in kinds, in all their forms. Their schemas are made when they are asked for.
func BuiltinTypes() Types {
	return Types{
		Kinds: func(r schema.GroupVersionResource) (found []schema.GroupVersionKind) {
			for _, s := range api.Stored() {
				for _, f := range s.Forms() {
					if f.GVR() == r {
						found = append(found, f.GVK())
					}
				}
			}
			return found
		},
		Schema: func(gvk schema.GroupVersionKind) *spec.Schema {
			k := builtin(gvk)
			if k == nil {
				return nil
			}
			s, err := yareopenapi.Inline(k)
			if err != nil {
				return nil // never: each kind's test says so
			}
			return s
		},
	}
}

func builtin(gvk schema.GroupVersionKind) *api.Kind {
	for _, s := range api.Stored() {
		for _, f := range s.Forms() {
			if f.GVK() == gvk {
				return f
			}
		}
	}
	return nil
}

// mostTypes is for how many kinds each rule of a policy is checked.
const mostTypes = 10

// Check compiles the validations of a policy with the types of what it is about, and returns what does not fit: it may be meant for kinds
// that have it. Kinds that are not known are passed over.
func (t Types) Check(p *admissionregv1.ValidatingAdmissionPolicy) []admissionregv1.ExpressionWarning {
	type checked struct {
		gvk      schema.GroupVersionKind
		compiler *cel.CompositedCompiler
	}
	params, typed := t.params(p)
	vars := cel.OptionalVariableDeclarations{HasParams: typed, HasAuthorizer: true}
	var all []checked
	for i, gvk := range t.about(p) {
		object := t.declare(gvk, fmt.Sprintf("%s%d", gvk.Kind, i))
		if object == nil {
			continue
		}
		c, err := typedCompiler(object, params, typed)
		if err != nil {
			continue // type checking never stands in the way of a policy
		}
		for _, v := range p.Spec.Variables {
			c.CompileAndStoreVariable(&expression{name: v.Name, text: v.Expression}, vars, environment.StoredExpressions)
		}
		all = append(all, checked{gvk, c})
	}
	var warnings []admissionregv1.ExpressionWarning
	check := func(at *field.Path, text string) {
		var lines []string
		for _, c := range all {
			if err := c.compiler.CompileCELExpression(&expression{text: text}, vars, environment.StoredExpressions).Error; err != nil {
				what := ""
				if err.Type != apiservercel.ErrorTypeInvalid {
					what = "type checking error: "
				}
				lines = append(lines, fmt.Sprintf("%v: %s%s\n", c.gvk, what, err.Detail))
			}
		}
		if len(lines) > 0 {
			warnings = append(warnings, admissionregv1.ExpressionWarning{FieldRef: at.String(), Warning: strings.Join(lines, "\n")})
		}
	}
	for i, v := range p.Spec.Validations {
		at := field.NewPath("spec", "validations").Index(i)
		check(at.Child("expression"), v.Expression)
		if v.MessageExpression != "" {
			check(at.Child("messageExpression"), v.MessageExpression)
		}
	}
	return warnings
}

// params is the type of the parameters, nil where it is not known, and whether there are any.
func (t Types) params(p *admissionregv1.ValidatingAdmissionPolicy) (*apiservercel.DeclType, bool) {
	k := p.Spec.ParamKind
	if k == nil {
		return nil, false
	}
	gv, err := schema.ParseGroupVersion(k.APIVersion)
	if err != nil {
		return nil, false
	}
	return t.declare(gv.WithKind(k.Kind), k.Kind+"Params"), true
}

func (t Types) declare(gvk schema.GroupVersionKind, name string) *apiservercel.DeclType {
	s := t.Schema(gvk)
	if s == nil {
		return nil
	}
	d := common.SchemaDeclType(&openapi.Schema{Schema: s}, true)
	if d == nil {
		return nil
	}
	return d.MaybeAssignTypeName(name)
}

// about are the kinds that the rules of a policy name, sorted. A rule with a wildcard for groups or versions names none.
func (t Types) about(p *admissionregv1.ValidatingAdmissionPolicy) (found []schema.GroupVersionKind) {
	if p.Spec.MatchConstraints == nil {
		return nil
	}
	wild := func(s string) bool { return strings.Contains(s, "*") }
	for _, r := range p.Spec.MatchConstraints.ResourceRules {
		if slices.ContainsFunc(r.APIGroups, wild) || slices.ContainsFunc(r.APIVersions, wild) {
			continue
		}
		n := 0
		for _, group := range slices.Sorted(slices.Values(r.APIGroups)) {
			for _, version := range slices.Sorted(slices.Values(r.APIVersions)) {
				for _, resource := range slices.Sorted(slices.Values(r.Resources)) {
					if strings.ContainsAny(resource, "*/") {
						continue
					}
					for _, k := range t.Kinds(schema.GroupVersionResource{Group: group, Version: version, Resource: resource}) {
						if n++; n <= mostTypes && !slices.Contains(found, k) {
							found = append(found, k)
						}
					}
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b schema.GroupVersionKind) int {
		return slices.Compare([]string{a.Group, a.Version, a.Kind}, []string{b.Group, b.Version, b.Kind})
	})
	return found
}

// typedCompiler compiles expressions in which the objects have types.
func typedCompiler(object, params *apiservercel.DeclType, hasParams bool) (*cel.CompositedCompiler, error) {
	request, namespace := cel.BuildRequestType(), cel.BuildNamespaceType()
	types := []*apiservercel.DeclType{request, namespace, object}
	vars := []celgo.EnvOption{
		celgo.Variable(cel.RequestVarName, request.CelType()), celgo.Variable(cel.NamespaceVarName, namespace.CelType()),
		celgo.Variable(cel.ObjectVarName, object.CelType()), celgo.Variable(cel.OldObjectVarName, object.CelType()),
		celgo.Variable(cel.AuthorizerVarName, library.AuthorizerType),
	}
	switch {
	case params != nil:
		types = append(types, params)
		vars = append(vars, celgo.Variable(cel.ParamsVarName, params.CelType()))
	case hasParams:
		vars = append(vars, celgo.Variable(cel.ParamsVarName, celgo.DynType))
	}
	env, err := match.Environment().Extend(environment.VersionedOptions{IntroducedVersion: version.MajorMinor(1, 0), EnvOptions: vars, DeclTypes: types})
	if err != nil {
		return nil, err
	}
	c, err := cel.NewCompositedCompilerForTypeChecking(env)
	if err != nil {
		return nil, err
	}
	c.Compiler = checking{c}
	return c, nil
}

// checking compiles an expression no further than to its type, whatever that is.
type checking struct{ of *cel.CompositedCompiler }

// CompileCELExpression implements cel.Compiler.
func (c checking) CompileCELExpression(e cel.ExpressionAccessor, _ cel.OptionalVariableDeclarations, mode environment.Type) cel.CompilationResult {
	failed := func(of apiservercel.ErrorType, text string) cel.CompilationResult {
		return cel.CompilationResult{Error: &apiservercel.Error{Type: of, Detail: text}, ExpressionAccessor: e}
	}
	env, err := c.of.Env(mode)
	if err != nil {
		return failed(apiservercel.ErrorTypeInternal, fmt.Sprintf("fail to build env: %v", err))
	}
	ast, issues := env.Compile(e.GetExpression())
	if issues != nil {
		return failed(apiservercel.ErrorTypeInvalid, issues.String())
	}
	return cel.CompilationResult{OutputType: ast.OutputType()}
}
