package policy

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	admissionregv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	admissionauthorizer "k8s.io/apiserver/pkg/admission/plugin/authorizer"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/match"
	"github.com/yare-dev/yare/apiserver/rest"
)

const mutatingPlugin = "MutatingAdmissionPolicy"

// invocation is a policy by a binding with one parameter.
type invocation struct {
	d     *definition
	b     *binding
	form  *api.Kind
	param runtime.Object
}

// id names an invocation in both rounds of asking.
type id struct {
	policy, binding string
	param           api.Key
}

func (i *invocation) id() id {
	out := id{policy: i.d.name, binding: i.b.name}
	if i.param != nil {
		if m, err := meta.Accessor(i.param); err == nil {
			out.param = api.KeyOf(m)
		}
	}
	return out
}

// mutating is one request on its way through the policies.
type mutating struct {
	p       *Policies
	r       *match.Request
	rounds  *match.Rounds[id]
	authz   authorizer.UnconditionalAuthorizer
	denials []denial
	applied bool // a mutation was done, whether it changed something or not
}

func (p *Policies) mutate(ctx context.Context, a *rest.Admitting) error {
	all, err := p.mutating.all()
	if err != nil || len(all) == 0 || match.Exempt(a) {
		return err
	}
	m := &mutating{p: p, r: match.New(p.d.Store, a), authz: admissionauthorizer.NewCachingAuthorizer(p.authz)}
	invocations := m.relevant(ctx, all)
	if len(invocations) > 0 {
		m.rounds = match.RoundsOf[id](a, mutatingPlugin)
		if err := m.run(ctx, invocations); err != nil {
			return err
		}
		if m.applied {
			m.rounds.Changed()
			a.AskAgain()
		}
		m.rounds.Leave(a)
	}
	return m.refusal()
}

func (m *mutating) deny(d *definition, b *binding, reason metav1.StatusReason, message string) {
	if !d.fail {
		return
	}
	n := denial{policy: d.name, message: message, reason: reason}
	if b != nil {
		n.binding = b.name
	}
	m.denials = append(m.denials, n)
}

// relevant finds what is to be asked about the request as it came.
func (m *mutating) relevant(ctx context.Context, all []*definition) (found []*invocation) {
	for _, d := range all {
		form, err := d.criteria.Match(m.r)
		var kind rest.Any
		if err == nil && form != nil {
			kind, err = m.p.kindOf(d.params)
		}
		if err != nil {
			m.deny(d, nil, "", fmt.Sprintf("failed to configure policy: %v", err))
			continue
		}
		if form == nil {
			continue
		}
		for _, b := range d.bindings {
			bound, err := b.criteria.Match(m.r)
			var params []runtime.Object
			if err == nil && bound != nil {
				params, err = m.p.params(ctx, kind, b.ref, m.r.Namespace)
			}
			if err != nil {
				m.deny(d, b, "", fmt.Sprintf("failed to configure binding: %v", err))
				continue
			}
			for _, param := range params {
				found = append(found, &invocation{d, b, form, param})
			}
		}
	}
	return found
}

// run asks the policies, in order. The error is of the request, not of a policy.
func (m *mutating) run(ctx context.Context, all []*invocation) error {
	ns, err := m.r.NamespaceObject()
	if err != nil {
		return err
	}
	for _, i := range all {
		c := i.d.change()
		if c.err != nil {
			m.deny(i.d, i.b, metav1.StatusReasonInvalid, c.err.Error())
			continue
		}
		ctx := c.context(ctx)
		if _, err := m.r.View(ctx, i.form); err != nil {
			m.deny(i.d, i.b, "", fmt.Sprintf("failed to convert object version: %v", err))
			continue
		}
		ok, err := c.conditions.Hold(ctx, m.r, i.form, i.param, m.authz)
		if err != nil {
			m.deny(i.d, i.b, metav1.StatusReasonInvalid, err.Error())
			continue
		}
		if !ok || m.r.Again && !m.rounds.Again(i.id()) {
			continue
		}
		view, err := m.r.View(ctx, i.form)
		if err != nil {
			return err
		}
		before := view.VersionedObject.Object()
		for _, p := range c.patchers {
			if before == nil {
				continue
			}
			begin := time.Now()
			err := m.apply(ctx, i, p, ns)
			m.p.meter.mutated(i.d, i.b, time.Since(begin), err)
			var status *apierrors.StatusError
			if errors.As(err, &status) {
				return status
			}
			if err != nil {
				m.deny(i.d, i.b, metav1.StatusReasonInvalid, err.Error())
			}
		}
		if view, err = m.r.View(ctx, i.form); err != nil {
			return err
		}
		if !equality.Semantic.DeepEqual(before, view.VersionedObject.Object()) {
			m.rounds.Changed()
			m.r.AskAgain()
		}
		if c.policy.Spec.ReinvocationPolicy == admissionregv1.IfNeededReinvocationPolicy {
			m.rounds.Asked(i.id())
		}
	}
	return nil
}

// apply does one mutation.
func (m *mutating) apply(ctx context.Context, i *invocation, p patch.Patcher, ns *corev1.Namespace) error {
	view, err := m.r.View(ctx, i.form)
	if err != nil {
		return err
	}
	q := patch.Request{
		MatchedResource: i.form.GVR(), VersionedAttributes: view, TypeConverter: m.r.Types(i.form), ObjectInterfaces: objects{r: m.r, form: i.form}, Namespace: ns,
		OptionalVariables: cel.OptionalVariableBindings{VersionedParams: i.param, Authorizer: m.authz},
	}
	if q.TypeConverter == nil {
		return apierrors.NewServiceUnavailable(fmt.Sprintf("Resource kind %s not found. There can be a delay between when CustomResourceDefinitions are created and when they are available.", m.r.GVK(i.form)))
	}
	now, err := p.Patch(ctx, q, celconfig.RuntimeCELCostBudget)
	if err != nil {
		return err
	}
	if u, ok := now.(*unstructured.Unstructured); ok {
		into := m.r.Empty(i.form)
		if _, custom := into.(*unstructured.Unstructured); !custom {
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, into); err != nil {
				return err
			}
			now = into
		}
	}
	m.applied = true
	return m.r.Take(ctx, i.form, now)
}

// refusal is the error that the client gets, nil where no policy failed.
func (m *mutating) refusal() error {
	if len(m.denials) == 0 {
		return nil
	}
	err := m.r.Forbidden(errors.New("admission request denied by policy"))
	var status *apierrors.StatusError
	if !errors.As(err, &status) {
		return err
	}
	for i, n := range m.denials {
		message := fmt.Sprintf("policy %q denied request: %s", n.policy, n.message)
		if n.binding != "" {
			message = fmt.Sprintf("policy '%s' with binding '%s' denied request: %s", n.policy, n.binding, n.message)
		}
		if i == 0 {
			status.ErrStatus.Message = message
			if n.reason != "" {
				status.ErrStatus.Reason = n.reason
			}
		}
		if status.ErrStatus.Details != nil {
			status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Message: message})
		}
	}
	return status
}

// objects makes the objects that patched JSON is read into. The rest of the interface is not asked for.
type objects struct {
	admission.ObjectInterfaces
	r    *match.Request
	form *api.Kind
}

func (o objects) GetObjectCreater() runtime.ObjectCreater { return o }
func (o objects) GetObjectTyper() runtime.ObjectTyper     { return o }

// New implements runtime.ObjectCreater.
func (o objects) New(schema.GroupVersionKind) (runtime.Object, error) { return o.r.Empty(o.form), nil }

// ObjectKinds implements runtime.ObjectTyper: what an object is read into is given always, and knows by itself what it is.
func (o objects) ObjectKinds(of runtime.Object) ([]schema.GroupVersionKind, bool, error) {
	return nil, false, runtime.NewNotRegisteredErrForType("admission", reflect.TypeOf(of))
}

// Recognizes implements runtime.ObjectTyper.
func (o objects) Recognizes(schema.GroupVersionKind) bool { return false }
