package builtin

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/google/cel-go/cel"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	policycel "k8s.io/apiserver/pkg/admission/plugin/cel"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
)

const maxMatchConditions = 64

// expressions compiles what is written in CEL, to say what is wrong with it. Its compiler is made when the first
// expression comes. The zero value is ready.
type expressions struct {
	once     sync.Once
	compiler policycel.Compiler
}

// expression is one text and what it may yield.
type expression struct {
	name, text string
	types      []*cel.Type
}

func (e expression) GetName() string          { return e.name }
func (e expression) GetExpression() string    { return e.text }
func (e expression) ReturnTypes() []*cel.Type { return e.types }

func base() *environment.EnvSet {
	return environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
}

// plain is the compiler of expressions that use no variables of a policy.
func (e *expressions) plain() policycel.Compiler {
	e.once.Do(func() { e.compiler = policycel.NewCompiler(base()) })
	return e.compiler
}

// kindOf says with which library an expression is compiled: those that were stored before may use what new ones may not yet.
func kindOf(text string, stored map[string]bool) environment.Type {
	if stored[text] {
		return environment.StoredExpressions
	}
	return environment.NewExpressions
}

func compile(c policycel.Compiler, x expression, vars policycel.OptionalVariableDeclarations, kind environment.Type, at *field.Path) field.ErrorList {
	result := c.CompileCELExpression(x, vars, kind)
	if result.Error == nil {
		return nil
	}
	return celError(result.Error, x.text, at)
}

func celError(err *apicel.Error, text string, at *field.Path) field.ErrorList {
	switch err.Type {
	case apicel.ErrorTypeRequired:
		return field.ErrorList{field.Required(at, err.Detail)}
	case apicel.ErrorTypeInvalid:
		return field.ErrorList{field.Invalid(at, text, err.Detail)}
	}
	return field.ErrorList{field.InternalError(at, err)}
}

// conditions checks the conditions under which a webhook or policy is asked at all.
func (e *expressions) conditions(cs []admissionv1.MatchCondition, params bool, stored map[string]bool, at *field.Path) (errs field.ErrorList) {
	if len(cs) > maxMatchConditions {
		errs = append(errs, field.TooMany(at, len(cs), maxMatchConditions))
	}
	vars := policycel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}
	for i, c := range cs {
		at := at.Index(i)
		if text := strings.TrimSpace(c.Expression); text == "" {
			errs = append(errs, field.Required(at.Child("expression"), ""))
		} else {
			errs = append(errs, compile(e.plain(), expression{text: text, types: []*cel.Type{cel.BoolType}}, vars, kindOf(text, stored), at.Child("expression"))...)
		}
		if c.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
			continue
		}
		errs = append(errs, texts(at.Child("name"), c.Name, validation.IsQualifiedName(c.Name))...)
		if slices.ContainsFunc(cs[:i], func(o admissionv1.MatchCondition) bool { return o.Name == c.Name }) {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
	}
	return errs
}

// composed makes a compiler whose expressions may use the variables of a policy, and checks these.
func composed(variables []admissionv1.Variable, params bool, stored map[string]bool, at *field.Path) (policycel.Compiler, field.ErrorList) {
	c, err := policycel.NewCompositedCompiler(base())
	if err != nil {
		return nil, field.ErrorList{field.InternalError(at, fmt.Errorf("make a CEL compiler: %w", err))}
	}
	var errs field.ErrorList
	for i, v := range variables {
		at := at.Index(i)
		if strings.TrimSpace(v.Name) == "" {
			errs = append(errs, field.Required(at.Child("name"), "name is not specified"))
		} else if !isIdentifier(v.Name) {
			errs = append(errs, field.Invalid(at.Child("name"), v.Name, "must be a valid CEL identifier"))
		}
		if strings.TrimSpace(v.Expression) == "" {
			errs = append(errs, field.Required(at.Child("expression"), "expression is not specified"))
			continue
		}
		x := expression{v.Name, v.Expression, []*cel.Type{cel.AnyType, cel.DynType}}
		result := c.CompileAndStoreVariable(x, policycel.OptionalVariableDeclarations{HasParams: params, HasAuthorizer: true}, kindOf(v.Expression, stored))
		if result.Error != nil {
			errs = append(errs, celError(result.Error, v.Expression, at.Child("expression"))...)
		}
	}
	return c, errs
}

// isIdentifier says whether CEL takes s for a name.
func isIdentifier(s string) bool {
	ok, err := regexp.MatchString("^[_a-zA-Z][_a-zA-Z0-9]*$", s)
	return ok && err == nil && !slices.Contains([]string{"true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function",
		"if", "import", "let", "loop", "package", "namespace", "return", "var", "void", "while"}, s)
}
