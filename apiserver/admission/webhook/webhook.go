// Package webhook asks the webhooks that MutatingWebhookConfigurations and ValidatingWebhookConfigurations name about
// requests. It replaces k8s.io/apiserver's webhook admission plug-ins.
//
// A configuration counts from the moment its write was acknowledged: the webhooks are followed in the store, not listed. Mutating webhooks
// are asked one after another, by the names of their configurations and then in their order there; validating ones together. What they
// say, warnings and annotations included, counts in that order, whoever answers first.
//
// A webhook that cannot be asked, or answers nonsense, is a failure, about which its failurePolicy decides; one that says no is heeded.
//
// Invariant: while there is no configuration a request costs the length of a snapshot.
package webhook

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/admission/match"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/follow"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// Deps are what webhooks need.
type Deps struct {
	Store   *store.Store
	Callout *callout.Callout
	// Access answers the variable "authorizer" of match conditions.
	Access  authz.Authorizer
	Metrics prometheus.Registerer
	// Conditions counts evaluations of match conditions; nil: nobody does.
	Conditions *match.Meter
	Log        *slog.Logger
}

// Webhooks are those of the cluster.
type Webhooks struct {
	d                    Deps
	authz                authorizer.UnconditionalAuthorizer
	mutating, validating *hooks
	meter                *meter
}

// New returns the cluster's webhooks.
func New(d Deps) *Webhooks {
	return &Webhooks{
		d: d, authz: match.Authorizer(d.Access), meter: newMeter(d.Metrics),
		mutating: newHooks(d, api.MutatingWebhookConfigurationKind), validating: newHooks(d, api.ValidatingWebhookConfigurationKind),
	}
}

// Mutating is the plug-in that asks mutating webhooks.
func (w *Webhooks) Mutating() rest.Admission {
	return rest.Admission{Name: "MutatingAdmissionWebhook", Mutate: w.mutate}
}

// Validating is the plug-in that asks validating webhooks.
func (w *Webhooks) Validating() rest.Admission {
	return rest.Admission{Name: "ValidatingAdmissionWebhook", Validate: w.validate}
}

// hook is one webhook. It is read-only once made.
type hook struct {
	configuration, name string
	id                  string // of all webhooks of its sort
	target              callout.Target
	criteria            *match.Criteria
	conditions          func() *match.Conditions // compiled when they are needed first
	ignore              bool                     // failures
	timeout             time.Duration            // zero: as long as the request takes
	dryRun              bool                     // may be asked about dry runs
	version             string                   // of AdmissionReview; empty where it takes none of ours
	again               bool                     // may be asked a second time
}

// hooksOf returns the webhooks of a configuration of either sort.
func hooksOf(o api.Object, meter *match.Meter) (all []*hook) {
	step := "admit"
	add := func(name string, client *admissionregv1.WebhookClientConfig, c *match.Criteria, conditions []admissionregv1.MatchCondition, fail *admissionregv1.FailurePolicyType,
		effects *admissionregv1.SideEffectClass, seconds *int32, versions []string) *hook {
		h := &hook{configuration: o.GetName(), name: name, id: fmt.Sprintf("%s/%s/%d", o.GetName(), name, len(all)), target: callout.To(client.URL, (*callout.Reference)(client.Service), client.CABundle), criteria: c}
		h.ignore = fail != nil && *fail == admissionregv1.Ignore
		h.conditions = sync.OnceValue(func() *match.Conditions {
			return match.Compile(conditions, nil, false, !h.ignore).Counted(meter, match.Webhook, name, step)
		})
		h.dryRun = effects != nil && (*effects == admissionregv1.SideEffectClassNone || *effects == admissionregv1.SideEffectClassNoneOnDryRun)
		if seconds != nil {
			h.timeout = time.Duration(*seconds) * time.Second
		}
		if i := slices.IndexFunc(versions, func(v string) bool { return v == "v1" || v == "v1beta1" }); i >= 0 {
			h.version = versions[i]
		}
		all = append(all, h)
		return h
	}
	switch c := o.(type) {
	case *admissionregv1.MutatingWebhookConfiguration:
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			h := add(w.Name, &w.ClientConfig, match.OfWebhook(w.Rules, w.MatchPolicy, w.NamespaceSelector, w.ObjectSelector), w.MatchConditions, w.FailurePolicy, w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions)
			h.again = w.ReinvocationPolicy != nil && *w.ReinvocationPolicy == admissionregv1.IfNeededReinvocationPolicy
		}
	case *admissionregv1.ValidatingWebhookConfiguration:
		step = "validate"
		for i := range c.Webhooks {
			w := &c.Webhooks[i]
			add(w.Name, &w.ClientConfig, match.OfWebhook(w.Rules, w.MatchPolicy, w.NamespaceSelector, w.ObjectSelector), w.MatchConditions, w.FailurePolicy, w.SideEffects, w.TimeoutSeconds, w.AdmissionReviewVersions)
		}
	}
	return all
}

// hooks are the webhooks of one sort, followed in the store.
type hooks struct {
	store      *store.Store
	kind       *api.Kind
	conditions *match.Meter

	mu       sync.RWMutex
	follower *follow.Follower
	byName   map[string][]*hook // of each configuration
	ordered  []*hook            // of all, nil when byName has changed; never changed in place
}

func newHooks(d Deps, k *api.Kind) *hooks {
	h := &hooks{store: d.Store, kind: k, conditions: d.Conditions}
	h.follower = follow.New(d.Store, h, k)
	return h
}

// Reset implements follow.State.
func (h *hooks) Reset() { h.byName, h.ordered = map[string][]*hook{}, nil }

// Change implements follow.State.
func (h *hooks) Change(_ *api.Kind, now, old api.Object) {
	h.ordered = nil
	if now == nil {
		delete(h.byName, old.GetName())
		return
	}
	h.byName[now.GetName()] = hooksOf(now, h.conditions)
}

// all returns the webhooks in the order of asking.
func (h *hooks) all() ([]*hook, error) {
	if h.store.Snapshot(h.kind).Len() == 0 {
		return nil, nil
	}
	h.mu.RLock()
	if h.follower.Current() && h.ordered != nil {
		defer h.mu.RUnlock()
		return h.ordered, nil
	}
	h.mu.RUnlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.follower.CatchUp(); err != nil {
		return nil, err
	}
	if h.ordered == nil {
		h.ordered = []*hook{}
		for _, of := range h.byName {
			h.ordered = append(h.ordered, of...)
		}
		// Stable: those of one configuration stay as they are.
		slices.SortStableFunc(h.ordered, func(a, b *hook) int { return cmp.Compare(a.configuration, b.configuration) })
	}
	return h.ordered, nil
}

// relevant returns the form in which the webhook is to be asked about the request, nil where it is not. The request can be viewed in it.
func (w *Webhooks) relevant(ctx context.Context, r *match.Request, h *hook) (*api.Kind, error) {
	form, err := h.criteria.Match(r)
	if form == nil || err != nil {
		return nil, err
	}
	if _, err := r.View(ctx, form); err != nil {
		return nil, err
	}
	c := h.conditions()
	if c == nil {
		return form, nil
	}
	ok, err := c.Hold(ctx, r, form, nil, w.authz)
	if err != nil {
		w.d.Log.Warn("match conditions of webhook failed", "webhook", h.name, "configuration", h.configuration, "err", err)
		return nil, apierrors.NewForbidden(r.Form().GroupResource(), r.Key.Name, err)
	}
	if !ok {
		return nil, nil
	}
	return form, nil
}
