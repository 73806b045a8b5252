package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/google/cel-go/common/types"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	admissionauthorizer "k8s.io/apiserver/pkg/admission/plugin/authorizer"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	apiservercel "k8s.io/apiserver/pkg/cel"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/match"
	"github.com/yare-dev/yare/apiserver/rest"
)

// verdict is what came of one validation.
type verdict struct {
	denied  bool
	broken  bool // the expression could not be evaluated
	message string
	reason  metav1.StatusReason
	took    time.Duration
}

// annotation is what came of one audit annotation: a value, or an error where failures count.
type annotation struct {
	key, value, err string
	took            time.Duration
}

// denial is why a request is refused.
type denial struct {
	policy, binding string // there may be no binding
	message         string
	reason          metav1.StatusReason
}

// failed is one validation that failed where that is to be audited, as the audit annotation has it.
type failed struct {
	Message           string                            `json:"message"`
	Policy            string                            `json:"policy"`
	Binding           string                            `json:"binding"`
	ExpressionIndex   int                               `json:"expressionIndex"`
	ValidationActions []admissionregv1.ValidationAction `json:"validationActions"`
}

// Bounds of what is written to the audit log, as upstream's.
const (
	mostFailed     = 50
	mostAnnotation = 10 << 10 // bytes of one value
)

// validating is one request on its way through the policies.
type validating struct {
	p       *Policies
	r       *match.Request
	authz   authorizer.UnconditionalAuthorizer
	denials []denial
	failed  []failed
}

func (p *Policies) validate(ctx context.Context, a *rest.Admitting) error {
	all, err := p.validating.all()
	if err != nil || len(all) == 0 || match.Exempt(a) {
		return err
	}
	v := &validating{p: p, r: match.New(p.d.Store, a), authz: admissionauthorizer.NewCachingAuthorizer(p.authz)}
	for _, d := range all {
		if err := v.policy(ctx, d); err != nil {
			return err
		}
	}
	if len(v.failed) > 0 {
		if text, err := json.Marshal(v.failed[:min(len(v.failed), mostFailed)]); err == nil {
			a.Annotate("validation.policy.admission.k8s.io/validation_failure", string(text))
		}
	}
	if len(v.denials) > 0 {
		return v.refusal(&v.denials[0])
	}
	return nil
}

// misconfigured notes that a policy, or a binding of it, cannot be used.
func (v *validating) misconfigured(d *definition, b *binding, err error) {
	if !d.fail {
		return
	}
	n := denial{policy: d.name, message: fmt.Sprintf("failed to configure policy: %v", err)}
	if b != nil {
		n.binding, n.message = b.name, fmt.Sprintf("failed to configure binding: %v", err)
	}
	v.denials = append(v.denials, n)
}

// policy asks one. The error is of the request, not of the policy.
func (v *validating) policy(ctx context.Context, d *definition) error {
	form, err := d.criteria.Match(v.r)
	if err != nil {
		v.misconfigured(d, nil, err)
		return nil
	}
	if form == nil {
		return nil
	}
	view, err := v.r.View(ctx, form)
	if err != nil {
		v.misconfigured(d, nil, fmt.Errorf("failed to convert object version: %w", err))
		return nil
	}
	kind, err := v.p.kindOf(d.params)
	if err != nil {
		v.misconfigured(d, nil, err)
		return nil
	}
	values := map[string][]string{} // of audit annotations, from all bindings
	for _, b := range d.bindings {
		if bound, err := b.criteria.Match(v.r); err != nil || bound == nil {
			if err != nil {
				v.misconfigured(d, b, err)
			}
			continue
		}
		params, err := v.p.params(ctx, kind, b.ref, v.r.Namespace)
		if err != nil {
			v.misconfigured(d, b, err)
			continue
		}
		if len(params) == 0 {
			continue
		}
		namespace, err := v.r.NamespaceObject()
		if err != nil {
			return err
		}
		for _, param := range params {
			verdicts, notes := d.check().ask(ctx, v.r, form, view, param, namespace, v.authz, d.fail)
			v.heed(d, b, verdicts)
			v.note(d, b, notes, values)
		}
	}
	for key, vs := range values {
		v.r.Annotate(d.name+"/"+key, strings.Join(vs, ", "))
	}
	return nil
}

// heed does with verdicts what the binding says.
func (v *validating) heed(d *definition, b *binding, verdicts []verdict) {
	for i := range verdicts {
		t := &verdicts[i]
		if !t.denied {
			if t.broken {
				v.p.meter.checked(d, b, t, "allow")
			}
			continue
		}
		for _, action := range b.actions {
			switch action {
			case admissionregv1.Deny:
				v.denials = append(v.denials, denial{d.name, b.name, t.message, t.reason})
				v.p.meter.checked(d, b, t, "deny")
			case admissionregv1.Audit:
				v.failed = append(v.failed, failed{t.message, b.policy, b.name, i, b.actions})
				v.p.meter.checked(d, b, t, "audit")
			case admissionregv1.Warn:
				v.r.Warn(fmt.Sprintf("Validation failed for ValidatingAdmissionPolicy '%s' with binding '%s': %s", d.name, b.name, t.message))
				v.p.meter.checked(d, b, t, "warn")
			}
		}
	}
}

// note gathers audit annotations; a value that several bindings yield is written once.
func (v *validating) note(d *definition, b *binding, notes []annotation, values map[string][]string) {
	for _, n := range notes {
		switch {
		case n.err != "":
			v.denials = append(v.denials, denial{policy: d.name, binding: b.name, message: n.err})
			v.p.meter.checked(d, b, &verdict{broken: true, message: n.err, took: n.took}, "deny")
		case n.value != "":
			value := n.value[:min(len(n.value), mostAnnotation)]
			if !slices.Contains(values[n.key], value) {
				values[n.key] = append(values[n.key], value)
			}
		}
	}
}

// refusal is the error that the client gets.
func (v *validating) refusal(n *denial) error {
	message := fmt.Sprintf("ValidatingAdmissionPolicy '%s' denied request: %s", n.policy, n.message)
	if n.binding != "" {
		message = fmt.Sprintf("ValidatingAdmissionPolicy '%s' with binding '%s' denied request: %s", n.policy, n.binding, n.message)
	}
	err := v.r.Forbidden(errors.New(message))
	var status *apierrors.StatusError
	if !errors.As(err, &status) {
		return err
	}
	if status.ErrStatus.Reason = n.reason; n.reason == "" {
		status.ErrStatus.Reason = metav1.StatusReasonInvalid
	}
	status.ErrStatus.Code = codeOf(status.ErrStatus.Reason)
	if status.ErrStatus.Details != nil {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Message: message})
	}
	return status
}

func codeOf(r metav1.StatusReason) int32 {
	switch r {
	case metav1.StatusReasonForbidden:
		return http.StatusForbidden
	case metav1.StatusReasonUnauthorized:
		return http.StatusUnauthorized
	case metav1.StatusReasonRequestEntityTooLarge:
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusUnprocessableEntity
}

// ask evaluates the policy with one parameter. Fail says that an expression that cannot be evaluated denies.
func (c *validator) ask(ctx context.Context, r *match.Request, form *api.Kind, view *admission.VersionedAttributes, param runtime.Object, ns *corev1.Namespace, authz authorizer.UnconditionalAuthorizer, fail bool) ([]verdict, []annotation) {
	broken := func(err error) ([]verdict, []annotation) {
		return []verdict{{denied: fail, broken: true, message: err.Error()}}, nil
	}
	if c.err != nil {
		return broken(c.err)
	}
	if ok, err := c.conditions.Hold(ctx, r, form, param, authz); err != nil {
		return broken(err)
	} else if !ok {
		return nil, nil
	}
	request, shown := match.Review(view, form), cel.CreateNamespaceObject(ns)
	vars := cel.OptionalVariableBindings{VersionedParams: param, Authorizer: authz}
	results, left, err := c.validations.ForInput(ctx, view, request, vars, shown, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return broken(err)
	}
	messages, _, unspoken := c.messages.ForInput(ctx, view, request, cel.OptionalVariableBindings{VersionedParams: param}, shown, left)
	verdicts := make([]verdict, len(results))
	for i := range results {
		var message *cel.EvaluationResult
		if i < len(messages) {
			message = &messages[i]
		}
		verdicts[i] = c.judge(&c.policy.Spec.Validations[i], &results[i], message, unspoken, fail)
	}
	notes, err := c.audit(ctx, view, request, vars, shown, fail)
	if err != nil {
		return broken(err)
	}
	return verdicts, notes
}

// judge turns the result of a validation into a verdict. Unspoken is why there are no messages.
func (c *validator) judge(s *admissionregv1.Validation, result, message *cel.EvaluationResult, unspoken error, fail bool) verdict {
	t := verdict{took: result.Elapsed}
	switch {
	case result.Error != nil:
		t.denied, t.broken, t.message = fail, true, result.Error.Error()
	case errors.Is(unspoken, apiservercel.ErrInternal) || errors.Is(unspoken, apiservercel.ErrOutOfBudget):
		t.denied, t.broken, t.message = fail, true, fmt.Sprintf("failed messageExpression: %s", unspoken)
	case result.EvalResult != types.True:
		t.denied, t.reason, t.message = true, metav1.StatusReasonInvalid, spoken(message)
		if s.Reason != nil {
			t.reason = *s.Reason
		}
		if t.message == "" {
			t.message = strings.TrimSpace(s.Message)
		}
		if t.message == "" {
			t.message = "failed expression: " + strings.TrimSpace(s.Expression)
		}
	}
	return t
}

// spoken is the message that an expression yields, empty where that is none to be shown.
func spoken(m *cel.EvaluationResult) string {
	if m == nil || m.Error != nil || m.EvalResult == nil {
		return ""
	}
	text, ok := m.EvalResult.Value().(string)
	text = strings.TrimSpace(text)
	if !ok || len(text) > celconfig.MaxEvaluatedMessageExpressionSizeBytes || strings.Contains(text, "\n") {
		return ""
	}
	return text
}

func (c *validator) audit(ctx context.Context, view *admission.VersionedAttributes, request *admissionv1.AdmissionRequest, vars cel.OptionalVariableBindings, ns *corev1.Namespace, fail bool) ([]annotation, error) {
	results, _, err := c.audits.ForInput(ctx, view, request, cel.OptionalVariableBindings{VersionedParams: vars.VersionedParams}, ns, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return nil, err
	}
	notes := make([]annotation, len(results))
	for i, result := range results {
		s, n := &c.policy.Spec.AuditAnnotations[i], &notes[i]
		n.key, n.took = s.Key, result.Elapsed
		switch {
		case result.Error != nil && fail:
			n.err = result.Error.Error()
		case result.Error != nil || result.EvalResult.Type() == types.NullType:
		case result.EvalResult.Type() == types.StringType:
			n.value = strings.TrimSpace(result.EvalResult.Value().(string))
		default:
			n.err = fmt.Sprintf("valueExpression '%v' resulted in unsupported return type: %v. Return type must be either string or null.", s.ValueExpression, result.EvalResult.Type())
		}
	}
	return notes, nil
}
