package builtin

import (
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// webhook is what validating and mutating webhooks have alike; the fields point into either.
type webhook struct {
	name       string
	client     *admissionv1.WebhookClientConfig
	rules      []admissionv1.RuleWithOperations
	fail       **admissionv1.FailurePolicyType
	match      **admissionv1.MatchPolicyType
	namespaces **metav1.LabelSelector
	objects    **metav1.LabelSelector
	effects    *admissionv1.SideEffectClass
	timeout    **int32
	versions   []string
	conditions []admissionv1.MatchCondition
	again      **admissionv1.ReinvocationPolicyType // of mutating ones
}

const webhooksText = "Webhooks indicates the number of webhooks registered in this configuration"

func validatingWebhooks(c *admissionv1.ValidatingWebhookConfiguration) (all []webhook) {
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		all = append(all, webhook{name: w.Name, client: &w.ClientConfig, rules: w.Rules, fail: &w.FailurePolicy, match: &w.MatchPolicy, namespaces: &w.NamespaceSelector,
			objects: &w.ObjectSelector, effects: w.SideEffects, timeout: &w.TimeoutSeconds, versions: w.AdmissionReviewVersions, conditions: w.MatchConditions})
	}
	return all
}

func mutatingWebhooks(c *admissionv1.MutatingWebhookConfiguration) (all []webhook) {
	for i := range c.Webhooks {
		w := &c.Webhooks[i]
		all = append(all, webhook{name: w.Name, client: &w.ClientConfig, rules: w.Rules, fail: &w.FailurePolicy, match: &w.MatchPolicy, namespaces: &w.NamespaceSelector,
			objects: &w.ObjectSelector, effects: w.SideEffects, timeout: &w.TimeoutSeconds, versions: w.AdmissionReviewVersions, conditions: w.MatchConditions,
			again: &w.ReinvocationPolicy})
	}
	return all
}

func validatingWebhookConfigurations(cel *expressions) *rest.Resource[*admissionv1.ValidatingWebhookConfiguration] {
	return webhookConfigurations(cel, validatingWebhooks, func(now, old *admissionv1.ValidatingWebhookConfiguration) bool {
		return equality.Semantic.DeepEqual(now.Webhooks, old.Webhooks)
	})
}

func mutatingWebhookConfigurations(cel *expressions) *rest.Resource[*admissionv1.MutatingWebhookConfiguration] {
	return webhookConfigurations(cel, mutatingWebhooks, func(now, old *admissionv1.MutatingWebhookConfiguration) bool {
		return equality.Semantic.DeepEqual(now.Webhooks, old.Webhooks)
	})
}

// webhookConfigurations are those of one sort, whose webhooks are all.
func webhookConfigurations[T any, C pointer[T]](cel *expressions, all func(C) []webhook, same func(now, old C) bool) *rest.Resource[C] {
	return &rest.Resource[C]{
		RequireRevision: true,
		AnyFinalizer:    true,
		Default:         func(c C) { defaultWebhooks(all(c)) },
		Prepare:         func(c C) { c.SetGeneration(1) },
		PrepareUpdate: func(now, old C) {
			if !same(now, old) {
				now.SetGeneration(old.GetGeneration() + 1)
			}
		},
		ValidateCreate: func(c C) field.ErrorList { return append(cel.webhooks(all(c), nil), notStatic(c.GetName())...) },
		ValidateUpdate: func(now, old C) field.ErrorList { return cel.webhooksUpdate(all(now), all(old)) },
		Warn:           func(c, old C) []string { return warnStatic(c, asMeta(old)) },
		Columns: []rest.Column[C]{
			{Name: "Webhooks", Type: "integer", Description: webhooksText, Cell: func(c C) any { return int64(len(all(c))) }},
			{Name: "Age"},
		},
	}
}

// asMeta is o, or nil when o is a nil pointer.
func asMeta[T any, P interface {
	*T
	metav1.Object
}](o P) metav1.Object {
	if o == nil {
		return nil
	}
	return o
}

func defaultWebhooks(all []webhook) {
	for _, w := range all {
		setPtr(w.fail, admissionv1.Fail)
		setPtr(w.match, admissionv1.Equivalent)
		setPtr(w.namespaces, metav1.LabelSelector{})
		setPtr(w.objects, metav1.LabelSelector{})
		setPtr(w.timeout, 10)
		if w.again != nil {
			setPtr(w.again, admissionv1.NeverReinvocationPolicy)
		}
		if s := w.client.Service; s != nil {
			setPtr(&s.Port, 443)
		}
		for i := range w.rules {
			defaultRule(&w.rules[i].Rule)
		}
	}
}

// webhooks checks all; stored are the expressions that the API accepted before.
func (e *expressions) webhooks(all []webhook, stored map[string]bool) (errs field.ErrorList) {
	for i, w := range all {
		at := field.NewPath("webhooks").Index(i)
		errs = append(errs, validation.IsFullyQualifiedName(at.Child("name"), w.name)...)
		for j := range w.rules {
			errs = append(errs, operationsRule(&w.rules[j], at.Child("rules").Index(j))...)
		}
		errs = append(errs, failMode(*w.fail, at)...)
		errs = append(errs, matchPolicy(*w.match, at)...)
		none := []admissionv1.SideEffectClass{admissionv1.SideEffectClassNone, admissionv1.SideEffectClassNoneOnDryRun}
		if w.effects == nil {
			errs = append(errs, field.Required(at.Child("sideEffects"), "must specify one of None, NoneOnDryRun"))
		} else if !slices.Contains(none, *w.effects) {
			errs = append(errs, field.NotSupported(at.Child("sideEffects"), *w.effects, none))
		}
		if n := deref(*w.timeout); n < 1 || n > 30 {
			errs = append(errs, field.Invalid(at.Child("timeoutSeconds"), n, "the timeout value must be between 1 and 30 seconds"))
		}
		errs = append(errs, podspec.Selector(*w.namespaces, at.Child("namespaceSelector"))...)
		errs = append(errs, podspec.Selector(*w.objects, at.Child("objectSelector"))...)
		if w.again != nil {
			errs = append(errs, oneOfPtr(at.Child("reinvocationPolicy"), *w.again, admissionv1.IfNeededReinvocationPolicy, admissionv1.NeverReinvocationPolicy)...)
		}
		errs = append(errs, webhookClient(w.client, at.Child("clientConfig"))...)
		errs = append(errs, e.conditions(w.conditions, false, stored, at.Child("matchConditions"))...)
		errs = append(errs, reviewVersions(w.versions, at.Child("admissionReviewVersions"))...)
		if w.name != "" && slices.ContainsFunc(all[:i], func(o webhook) bool { return o.name == w.name }) {
			errs = append(errs, field.Duplicate(at.Child("name"), w.name))
		}
	}
	return errs
}

func (e *expressions) webhooksUpdate(now, old []webhook) field.ErrorList {
	stored := map[string]bool{}
	for _, w := range old {
		for _, c := range w.conditions {
			stored[c.Expression] = true
		}
	}
	errs := e.webhooks(now, stored)
	if len(errs) == 0 {
		return nil
	}
	return newErrors(errs, e.webhooks(old, stored))
}

func webhookClient(c *admissionv1.WebhookClientConfig, at *field.Path) field.ErrorList {
	switch {
	case (c.URL == nil) == (c.Service == nil):
		return field.ErrorList{field.Required(at, "exactly one of url or service is required")}
	case c.URL != nil:
		return webhookURL(*c.URL, at.Child("url"))
	}
	s := c.Service
	return webhookService(s.Name, s.Namespace, s.Path, deref(s.Port), at.Child("service"))
}

// reviewVersions checks the versions of AdmissionReview that a webhook understands, of which the API has two.
func reviewVersions(versions []string, at *field.Path) (errs field.ErrorList) {
	ours := []string{"v1", "v1beta1"}
	list := strings.Join(ours, ", ")
	if len(versions) == 0 {
		return field.ErrorList{field.Required(at, "must specify one of "+list)}
	}
	known := false
	for i, v := range versions {
		if slices.Contains(versions[:i], v) {
			errs = append(errs, field.Invalid(at.Index(i), v, "duplicate version"))
			continue
		}
		errs = append(errs, texts(at.Index(i), v, validation.IsDNS1035Label(v))...)
		known = known || slices.Contains(ours, v)
	}
	if !known {
		errs = append(errs, field.Invalid(at, versions, "must include at least one of "+list))
	}
	return errs
}
