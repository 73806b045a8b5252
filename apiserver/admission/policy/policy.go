// Package policy enforces ValidatingAdmissionPolicies and MutatingAdmissionPolicies where their bindings say. It replaces k8s.io/apiserver's
// policy admission plug-ins, and the controller that checks the types of policies' expressions.
//
// Policies and bindings count from the moment their writes were acknowledged: they are followed in the store. The expressions of a policy
// are compiled once for each revision of it, when the first request comes that it is about. Policies are asked in the order of their names,
// for each the bindings in the order of theirs.
//
// Invariant: while there is no binding a request costs the length of a snapshot.
package policy

import (
	"cmp"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/match"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/follow"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// Deps are what policies need.
type Deps struct {
	Store *store.Store
	// Access answers the variable "authorizer".
	Access  authz.Authorizer
	Metrics prometheus.Registerer
	// Conditions counts evaluations of match conditions; nil: nobody does.
	Conditions *match.Meter
	// Kind finds what is served that parameters may be of. It is asked by requests only.
	Kind func(schema.GroupVersionKind) (rest.Any, bool)
}

// Policies are those of the cluster.
type Policies struct {
	d                    Deps
	authz                authorizer.UnconditionalAuthorizer
	read                 *rest.Pipeline // reads parameters
	validating, mutating *policies
	meter                *meter
}

// New returns the cluster's policies.
func New(d Deps) *Policies {
	return &Policies{
		d: d, authz: match.Authorizer(d.Access), read: rest.NewPipeline(d.Store, nil), meter: newMeter(d.Metrics),
		validating: newPolicies(d, api.ValidatingAdmissionPolicyKind, api.ValidatingAdmissionPolicyBindingKind),
		mutating:   newPolicies(d, api.MutatingAdmissionPolicyKind, api.MutatingAdmissionPolicyBindingKind),
	}
}

// Mutating is the plug-in of MutatingAdmissionPolicies.
func (p *Policies) Mutating() rest.Admission {
	return rest.Admission{Name: mutatingPlugin, Mutate: p.mutate}
}

// Validating is the plug-in of ValidatingAdmissionPolicies.
func (p *Policies) Validating() rest.Admission {
	return rest.Admission{Name: "ValidatingAdmissionPolicy", Validate: p.validate}
}

// definition is a policy of either sort. It is read-only once made, but for what is compiled later.
type definition struct {
	name     string
	fail     bool
	params   *admissionregv1.ParamKind
	criteria *match.Criteria
	check    func() *validator // of a validating one
	change   func() *mutator   // of a mutating one

	bindings []*binding // by name; set when the policies are put in order, on a copy
}

type binding struct {
	name, policy string
	ref          *admissionregv1.ParamRef
	criteria     *match.Criteria
	actions      []admissionregv1.ValidationAction
}

func definitionOf(o api.Object, meter *match.Meter) *definition {
	d := &definition{name: o.GetName()}
	set := func(fail *admissionregv1.FailurePolicyType, kind *admissionregv1.ParamKind, m *admissionregv1.MatchResources) {
		d.fail, d.params, d.criteria = fail == nil || *fail != admissionregv1.Ignore, kind, match.OfPolicy(m)
	}
	switch p := o.(type) {
	case *admissionregv1.ValidatingAdmissionPolicy:
		set(p.Spec.FailurePolicy, p.Spec.ParamKind, p.Spec.MatchConstraints)
		d.check = sync.OnceValue(func() *validator { return compileValidator(p, d.fail, meter) })
	case *admissionregv1.MutatingAdmissionPolicy:
		set(p.Spec.FailurePolicy, p.Spec.ParamKind, p.Spec.MatchConstraints)
		d.change = sync.OnceValue(func() *mutator { return compileMutator(p, d.fail, meter) })
	}
	return d
}

func bindingOf(o api.Object) *binding {
	switch b := o.(type) {
	case *admissionregv1.ValidatingAdmissionPolicyBinding:
		return &binding{name: b.Name, policy: b.Spec.PolicyName, ref: b.Spec.ParamRef, criteria: match.OfPolicy(b.Spec.MatchResources), actions: b.Spec.ValidationActions}
	case *admissionregv1.MutatingAdmissionPolicyBinding:
		return &binding{name: b.Name, policy: b.Spec.PolicyName, ref: b.Spec.ParamRef, criteria: match.OfPolicy(b.Spec.MatchResources)}
	}
	return nil
}

// policies are those of one sort with their bindings, followed in the store.
type policies struct {
	store         *store.Store
	kind, binding *api.Kind
	conditions    *match.Meter

	mu          sync.RWMutex
	follower    *follow.Follower
	definitions map[string]*definition
	bindings    map[string]*binding
	ordered     []*definition // those that are bound; never changed in place
	stale       bool          // definitions or bindings are newer than ordered
}

func newPolicies(d Deps, kind, bound *api.Kind) *policies {
	p := &policies{store: d.Store, kind: kind, binding: bound, conditions: d.Conditions}
	p.follower = follow.New(d.Store, p, kind, bound)
	return p
}

// Reset implements follow.State.
func (p *policies) Reset() {
	p.definitions, p.bindings, p.stale = map[string]*definition{}, map[string]*binding{}, true
}

// Change implements follow.State.
func (p *policies) Change(k *api.Kind, now, old api.Object) {
	p.stale = true
	switch {
	case now == nil && k == p.kind:
		delete(p.definitions, old.GetName())
	case now == nil:
		delete(p.bindings, old.GetName())
	case k == p.kind:
		p.definitions[now.GetName()] = definitionOf(now, p.conditions)
	default:
		p.bindings[now.GetName()] = bindingOf(now)
	}
}

// all returns the policies that are bound, in the order of asking.
func (p *policies) all() ([]*definition, error) {
	if p.store.Snapshot(p.binding).Len() == 0 {
		return nil, nil
	}
	p.mu.RLock()
	if p.follower.Current() && !p.stale {
		defer p.mu.RUnlock()
		return p.ordered, nil
	}
	p.mu.RUnlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.follower.CatchUp(); err != nil {
		return nil, err
	}
	if p.stale {
		p.order()
	}
	return p.ordered, nil
}

func (p *policies) order() {
	bound := map[string][]*binding{}
	for _, b := range p.bindings {
		bound[b.policy] = append(bound[b.policy], b)
	}
	var all []*definition
	for name, bs := range bound {
		if d := p.definitions[name]; d != nil {
			slices.SortFunc(bs, func(a, b *binding) int { return cmp.Compare(a.name, b.name) })
			with := *d
			with.bindings = bs
			all = append(all, &with)
		}
	}
	slices.SortFunc(all, func(a, b *definition) int { return cmp.Compare(a.name, b.name) })
	p.ordered, p.stale = all, false
}
