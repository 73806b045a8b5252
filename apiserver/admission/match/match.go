// Package match says which requests admission webhooks and policies are about, and shows these requests to them: in the form of the kind
// that they ask for, and to expressions in CEL. It replaces the predicates and match conditions of k8s.io/apiserver's webhook and
// policy plug-ins.
//
// Vocabulary: a form is a group and version that a kind can be spoken of in (api.Kind.Forms); Criteria are what a webhook, a policy or a
// binding says about requests; Conditions are the expressions that it says it in.
package match

import (
	"context"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// Request is a request under admission. It is used by one goroutine, but for views that were made before.
type Request struct {
	*rest.Admitting
	// Namespace is empty where there is none; that of a Namespace is itself.
	Namespace string

	store *store.Store
	forms []*api.Kind // made when they are needed
	views map[*api.Kind]*admission.VersionedAttributes
}

// New returns a as webhooks and policies see it.
func New(s *store.Store, a *rest.Admitting) *Request {
	r := &Request{Admitting: a, Namespace: a.Key.Namespace, store: s}
	if a.Kind == api.NamespaceKind {
		if r.Namespace = a.Key.Name; r.Namespace == "" && a.Object != nil {
			r.Namespace = a.Object.GetName()
		}
	}
	return r
}

// virtual are the questions about who asks and what he may do: no webhook or policy may come between.
var virtual = []*api.Kind{api.SelfSubjectReviewKind, api.TokenReviewKind, api.LocalSubjectAccessReviewKind, api.SelfSubjectAccessReviewKind,
	api.SelfSubjectRulesReviewKind, api.SubjectAccessReviewKind}

// Exempt says that no webhook or policy is asked about a: what they are made of must stay in reach of who has to mend it.
func Exempt(a *rest.Admitting) bool {
	switch a.Kind {
	case api.MutatingWebhookConfigurationKind, api.ValidatingWebhookConfigurationKind, api.ValidatingAdmissionPolicyKind, api.ValidatingAdmissionPolicyBindingKind,
		api.MutatingAdmissionPolicyKind, api.MutatingAdmissionPolicyBindingKind:
		return true
	}
	return slices.Contains(virtual, a.Kind)
}

// View returns the request as who speaks of the form sees it. It is read-only, and counts until Take is used. It fails where the object
// cannot be converted, with an error for the client.
func (r *Request) View(ctx context.Context, form *api.Kind) (*admission.VersionedAttributes, error) {
	if v := r.views[form]; v != nil {
		return v, nil
	}
	now, old, err := r.As(ctx, form)
	if err != nil {
		return nil, err
	}
	v := &admission.VersionedAttributes{VersionedKind: r.GVK(form), VersionedObject: admission.NewLazyObject(now), VersionedOldObject: admission.NewLazyObject(old)}
	v.Attributes = r.attributes(now, old)
	if r.views == nil {
		r.views = map[*api.Kind]*admission.VersionedAttributes{}
	}
	r.views[form] = v
	return v, nil
}

func (r *Request) attributes(now, old runtime.Object) admission.Attributes {
	own := r.Form()
	u := &user.DefaultInfo{Name: r.User.Name, UID: r.User.UID, Groups: r.User.Groups, Extra: r.User.Extra}
	return admission.NewAttributesRecord(now, old, r.GVK(own), r.Namespace, r.Key.Name, own.GVR(), r.Sub, admission.Operation(r.Operation),
		r.Options(), r.DryRun, u)
}

// Forbidden is the refusal of the request for a reason.
func (r *Request) Forbidden(reason error) error {
	return admission.NewForbidden(r.attributes(r.Object, r.Old), reason)
}

// Take puts now, which has the form, in the place of the object.
func (r *Request) Take(ctx context.Context, form *api.Kind, now runtime.Object) error {
	r.views = nil
	return r.Admitting.Take(ctx, form, now)
}

// NamespaceObject returns the namespace that the request is in, nil where there is none. A Namespace is in none.
func (r *Request) NamespaceObject() (*corev1.Namespace, error) {
	if r.Namespace == "" || r.Kind == api.NamespaceKind {
		return nil, nil
	}
	return r.namespace()
}

func (r *Request) namespace() (*corev1.Namespace, error) {
	e := r.store.Snapshot(api.NamespaceKind).Get(api.Key{Name: r.Namespace})
	if e == nil || e.Err() != nil {
		return nil, apierrors.NewNotFound(api.NamespaceKind.GroupResource(), r.Namespace)
	}
	return e.Object.(*corev1.Namespace), nil
}

// Criteria are which requests something is about. They are read-only once made.
type Criteria struct {
	rules, excluded     []rule
	everything          bool // without rules all requests match
	equivalent          bool
	namespaces, objects labels.Selector
	err                 error // of the selectors
}

type rule struct {
	admissionv1.RuleWithOperations
	names []string
}

// OfWebhook returns the criteria of a webhook.
func OfWebhook(rules []admissionv1.RuleWithOperations, policy *admissionv1.MatchPolicyType, namespaces, objects *metav1.LabelSelector) *Criteria {
	c := &Criteria{}
	for _, r := range rules {
		c.rules = append(c.rules, rule{RuleWithOperations: r})
	}
	c.set(policy, namespaces, objects)
	return c
}

// OfPolicy returns the criteria of a policy or binding; m may be nil, which is about every request.
func OfPolicy(m *admissionv1.MatchResources) *Criteria {
	if m == nil {
		m = &admissionv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{}}
	}
	named := func(rules []admissionv1.NamedRuleWithOperations) (out []rule) {
		for _, r := range rules {
			out = append(out, rule{r.RuleWithOperations, r.ResourceNames})
		}
		return out
	}
	c := &Criteria{rules: named(m.ResourceRules), excluded: named(m.ExcludeResourceRules), everything: len(m.ResourceRules) == 0}
	c.set(m.MatchPolicy, m.NamespaceSelector, m.ObjectSelector)
	return c
}

func (c *Criteria) set(policy *admissionv1.MatchPolicyType, namespaces, objects *metav1.LabelSelector) {
	c.equivalent = policy != nil && *policy == admissionv1.Equivalent
	var err error
	if c.namespaces, err = metav1.LabelSelectorAsSelector(namespaces); err != nil {
		c.err = err
	}
	if c.objects, err = metav1.LabelSelectorAsSelector(objects); err != nil {
		c.err = err
	}
}

// Match returns the form in which the criteria are about the request, nil where they are not about it.
func (c *Criteria) Match(r *Request) (*api.Kind, error) {
	if c.find(c.excluded, r) != nil {
		return nil, nil
	}
	form := r.Form()
	if !c.everything {
		form = c.find(c.rules, r)
	}
	if form == nil {
		return nil, nil
	}
	if c.err != nil {
		return nil, apierrors.NewInternalError(c.err)
	}
	if !c.objects.Empty() {
		if now, old := r.labelled(); !selects(c.objects, now) && !selects(c.objects, old) {
			return nil, nil
		}
	}
	ok, err := c.inNamespace(r)
	if !ok || err != nil {
		return nil, err
	}
	return form, nil
}

// labelled are the objects whose labels count: a Scale has none of its parent's, and the parent of what is opened is none.
func (r *Request) labelled() (now, old api.Object) {
	switch {
	case r.Operation == rest.OpConnect:
		return nil, nil
	case r.Sub == "scale":
		return &autoscalingv1.Scale{}, nil
	}
	return r.Object, r.Old
}

func selects(s labels.Selector, o api.Object) bool {
	return o != nil && s.Matches(labels.Set(o.GetLabels()))
}

func (c *Criteria) inNamespace(r *Request) (bool, error) {
	if c.namespaces.Empty() || r.Namespace == "" && r.Kind != api.NamespaceKind {
		return true, nil
	}
	if r.Kind == api.NamespaceKind && r.Sub == "" && r.Object != nil { // its labels are what they are going to be
		return selects(c.namespaces, r.Object), nil
	}
	ns, err := r.namespace()
	if err != nil {
		return false, err
	}
	return selects(c.namespaces, ns), nil
}

// find returns the form of the request's kind that one of the rules names: that which the client speaks of first, others where those
// count.
func (c *Criteria) find(rules []rule, r *Request) *api.Kind {
	own := r.Form()
	for i := range rules {
		if rules[i].match(r, own) {
			return own
		}
	}
	if !c.equivalent || len(rules) == 0 {
		return nil
	}
	if r.forms == nil {
		r.forms = r.Forms()
	}
	for i := range rules {
		for _, f := range r.forms {
			if f != own && rules[i].match(r, f) {
				return f
			}
		}
	}
	return nil
}

func (u *rule) match(r *Request, form *api.Kind) bool {
	return has(u.APIGroups, form.Group) && has(u.APIVersions, form.Version) && u.resource(form.Plural, r.Sub) && u.operation(r.Operation) && u.scope(r) &&
		(len(u.names) == 0 || slices.Contains(u.names, r.Key.Name))
}

func has(all []string, s string) bool {
	for _, a := range all {
		if a == "*" || a == s {
			return true
		}
	}
	return false
}

func (u *rule) operation(op rest.Operation) bool {
	for _, o := range u.Operations {
		if o == admissionv1.OperationAll || string(o) == string(op) {
			return true
		}
	}
	return false
}

func (u *rule) resource(plural, sub string) bool {
	for _, text := range u.Resources {
		p, s, _ := strings.Cut(text, "/")
		if (p == "*" || p == plural) && (s == "*" || s == sub) {
			return true
		}
	}
	return false
}

func (u *rule) scope(r *Request) bool {
	if u.Scope == nil || *u.Scope == admissionv1.AllScopes {
		return true
	}
	namespaced := r.Namespace != "" && r.Kind != api.NamespaceKind
	return namespaced == (*u.Scope == admissionv1.NamespacedScope)
}
