package devicetainteviction

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// period is the least time between two looks at all claims for the status of a rule.
const period = 10 * time.Second

// progress is how far rules have come since the controller began.
type progress struct {
	mu    sync.Mutex
	rules map[string]*state // by name
}

type state struct {
	uid        types.UID
	generation int64
	evicted    int
	looked     time.Time
}

func newProgress() *progress { return &progress{rules: map[string]*state{}} }

// of returns the state of the rule as it is now. Preconditions: mu is held.
func (p *progress) of(r *resourcev1.DeviceTaintRule) *state {
	s := p.rules[r.Name]
	if s == nil || s.uid != r.UID {
		s = &state{uid: r.UID}
		p.rules[r.Name] = s
	}
	return s
}

func (p *progress) count(r *resourcev1.DeviceTaintRule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of(r).evicted++
}

func (p *progress) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.rules, name)
}

// look returns for how long the rule's status stays as it is, or, when it is time for another look, how many pods were evicted.
func (p *progress) look(r *resourcev1.DeviceTaintRule, now time.Time) (evicted int, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.of(r)
	if left := period - now.Sub(s.looked); left > 0 && s.generation == r.Generation {
		return 0, left
	}
	s.looked, s.generation = now, r.Generation
	return s.evicted, 0
}

// runRule tells in the rule's status how far the eviction has come.
func (c *controller) runRule(ctx context.Context, name string) (reconcile.Result, error) {
	r, err := client.Get[*resourcev1.DeviceTaintRule](ctx, c.Client, api.Key{Name: name})
	if apierrors.IsNotFound(err) {
		c.progress.forget(name)
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get rule: %w", err)
	}
	have := meta.FindStatusCondition(r.Status.Conditions, resourcev1.DeviceTaintConditionEvictionInProgress)
	if have != nil && have.ObservedGeneration == r.Generation && r.Spec.Taint.Effect != resourcev1.DeviceTaintEffectNoExecute {
		return reconcile.Result{}, nil // told once
	}
	evicted, wait := c.progress.look(r, time.Now())
	if wait > 0 {
		return reconcile.Result{After: wait}, nil
	}
	found, err := c.survey(ctx, r)
	if err != nil {
		return reconcile.Result{}, err
	}
	want := found.condition(r.Spec.Taint.Effect, evicted)
	want.ObservedGeneration = r.Generation
	_, err = client.Mutate(ctx, c.Client, r, "status", func(r *resourcev1.DeviceTaintRule) { meta.SetStatusCondition(&r.Status.Conditions, want) })
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("update status: %w", err)
	}
	return reconcile.Result{}, nil
}

// findings are what a rule is about.
type findings struct{ published, allocated, pods, namespaces int }

// survey counts the devices that the rule taints, and the pods that it evicts or, if its effect was NoExecute, would.
func (c *controller) survey(ctx context.Context, r *resourcev1.DeviceTaintRule) (f findings, err error) {
	claims, err := client.List[*resourcev1.ResourceClaim](ctx, c.Client, client.Query{})
	if err != nil {
		return f, fmt.Errorf("list claims: %w", err)
	}
	as := &resourcev1.DeviceTaintRule{Spec: r.Spec}
	as.Spec.Taint.Effect = resourcev1.DeviceTaintEffectNoExecute
	rules := []*resourcev1.DeviceTaintRule{as}
	nothing := func(device) []resourcev1.DeviceTaint { return nil }
	f.published = c.pools.selected(r)
	pods, namespaces := sets.New[*corev1.Pod](), sets.New[string]()
	for _, claim := range claims {
		f.allocated += selected(r, claim)
		if !reserved(claim) {
			continue
		}
		if at, _ := due(claim, nothing, rules); at == nil {
			continue
		}
		for _, ref := range claim.Status.ReservedFor {
			p, err := c.user(ctx, claim.Namespace, ref)
			if err != nil {
				return f, err
			}
			if p != nil && p.Spec.NodeName != "" {
				pods.Insert(p)
				namespaces.Insert(p.Namespace)
			}
		}
	}
	f.pods, f.namespaces = len(pods), len(namespaces)
	return f, nil
}

// condition is what a rule's status says of f, in upstream's words.
func (f findings) condition(effect resourcev1.DeviceTaintEffect, evicted int) metav1.Condition {
	c := metav1.Condition{Type: resourcev1.DeviceTaintConditionEvictionInProgress, Status: metav1.ConditionFalse}
	pods, where := number(f.pods, "pod"), number(f.namespaces, "different namespace")
	if f.namespaces == 1 {
		where = "1 namespace"
	}
	switch {
	case effect == resourcev1.DeviceTaintEffectNone:
		c.Reason = "NoEffect"
		c.Message = fmt.Sprintf("%s selected. %s selected. %s would be evicted in %s if the effect was NoExecute. This information will not be updated again. "+
			"Recreate the DeviceTaintRule to trigger an update.", number(f.published, "published device"), number(f.allocated, "allocated device"), pods, where)
	case effect != resourcev1.DeviceTaintEffectNoExecute:
		c.Reason, c.Message = "OtherEffect", "Eviction only happens for the NoExecute effect."
	case f.pods == 1:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, "PodsPendingEviction", fmt.Sprintf("1 pod needs to be evicted in %s.", where)
	case f.pods > 1:
		c.Status, c.Reason, c.Message = metav1.ConditionTrue, "PodsPendingEviction", fmt.Sprintf("%s need to be evicted in %s.", pods, where)
	case evicted > 0:
		c.Reason = "Completed"
	default:
		c.Reason = "NotStarted"
	}
	if evicted > 0 {
		c.Message = strings.TrimSpace(c.Message + " " + number(evicted, "pod") + " evicted since starting the controller.")
	}
	return c
}

// number is "1 pod", "2 pods".
func number(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
