package builtin_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/client"
)

// late is the server's own client, which is there when the server is.
type late struct{ client.Client }

// wholeServer returns the own client of a server.
func wholeServer(t *testing.T) client.Client {
	t.Helper()
	s := servertest.Store(t)
	rbac, self := authz.NewRBAC(s), &late{}
	srv, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: s, Authorizer: rbac, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Resources: builtin.All(builtin.Deps{Store: s, Client: self, Authorizer: rbac})})
	if err != nil {
		t.Fatal(err)
	}
	self.Client = srv.ClientAs(&authn.User{Name: "root", Groups: []string{authn.Masters}})
	return self
}

// TestEviction evicts a pod through a whole server, as `kubectl drain` does: gracefully, and only the pod that was meant.
func TestEviction(t *testing.T) {
	t.Parallel()
	self := wholeServer(t)
	p := pod("web")
	p.Spec.NodeName = "n1"
	if _, err := client.Create(t.Context(), self, p); err != nil {
		t.Fatal(err)
	}
	key := api.Key{Namespace: "default", Name: "web"}
	seconds := int64(7)
	got, err := self.Post(t.Context(), api.PodKind, key, "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		DeleteOptions: &metav1.DeleteOptions{GracePeriodSeconds: &seconds}})
	if err != nil {
		t.Fatalf("%v %v", got, err)
	}
	now, err := client.Get[*corev1.Pod](t.Context(), self, key)
	if err != nil {
		t.Fatal(err)
	}
	if now.DeletionTimestamp == nil || *now.DeletionGracePeriodSeconds != seconds {
		t.Errorf("after the eviction: %v %v", now.DeletionTimestamp, now.DeletionGracePeriodSeconds)
	}
	if i := slices.IndexFunc(now.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == "EvictionByEvictionAPI"
	}); i < 0 {
		t.Errorf("the pod does not say that it is evicted: %v", now.Status.Conditions)
	}
}

// TestBudgets evicts pods that budgets guard.
func TestBudgets(t *testing.T) {
	t.Parallel()
	always := policyv1.AlwaysAllow
	type status = policyv1.PodDisruptionBudgetStatus
	busy := map[string]metav1.Time{}
	for i := range 2001 {
		busy[fmt.Sprint("p", i)] = metav1.Now()
	}
	for _, c := range []struct {
		name    string
		phase   corev1.PodPhase
		unready bool
		policy  *policyv1.UnhealthyPodEvictionPolicyType
		budgets []status // as the controller wrote them
		code    int32    // of the refusal, zero for none
		want    string   // cause or message
		again   int32    // the seconds after which a client is to try again
		left    int32    // disruptions that the first budget allows then
	}{
		{name: "none", phase: corev1.PodRunning},
		{name: "allowed", budgets: []status{{ObservedGeneration: 1, DisruptionsAllowed: 2}}, left: 1},
		{name: "the last", budgets: []status{{ObservedGeneration: 1, DisruptionsAllowed: 1}}},
		{name: "exhausted", budgets: []status{{ObservedGeneration: 1, DesiredHealthy: 2, CurrentHealthy: 2}}, code: 429, want: "The disruption budget b0 needs 2 healthy pods and has 2 currently"},
		{name: "for a reason", budgets: []status{{ObservedGeneration: 1, DesiredHealthy: 1, CurrentHealthy: 2,
			Conditions: []metav1.Condition{{Type: "DisruptionAllowed", Status: "False", Reason: "Own", Message: "so", LastTransitionTime: metav1.Now()}}}},
			code: 429, want: "The disruption budget b0 does not allow evicting pods currently (Own): so"},
		{name: "not computed", budgets: []status{{DesiredHealthy: 2}}, code: 429, want: "The disruption budget b0 is still being processed by the server.", again: 10},
		{name: "controller far behind", budgets: []status{{ObservedGeneration: 1, DisruptionsAllowed: 1, DisruptedPods: busy}}, code: 403,
			want: "The disruption budget b0 does not allow evicting pods currently: too many pending evictions not confirmed by PDB controller", left: 1},
		{name: "two", budgets: []status{{ObservedGeneration: 1, DisruptionsAllowed: 1}, {ObservedGeneration: 1, DisruptionsAllowed: 1}}, code: 500,
			want: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.", left: 1},
		{name: "not begun", phase: corev1.PodPending, budgets: []status{{ObservedGeneration: 1}}},
		{name: "ended", phase: corev1.PodFailed, budgets: []status{{ObservedGeneration: 1}}},
		{name: "unready", unready: true, budgets: []status{{ObservedGeneration: 1}}, code: 429, want: "The disruption budget b0 needs 0 healthy pods and has 0 currently"},
		{name: "unready beside enough", unready: true, budgets: []status{{ObservedGeneration: 1, DesiredHealthy: 1, CurrentHealthy: 1}}},
		{name: "unready, by policy", unready: true, policy: &always, budgets: []status{{ObservedGeneration: 1, DesiredHealthy: 2}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			self := wholeServer(t)
			p := pod("web")
			p.Labels = map[string]string{"app": "web"}
			made, err := client.Create(t.Context(), self, p)
			if err != nil {
				t.Fatal(err)
			}
			if c.phase == "" {
				c.phase = corev1.PodRunning
			}
			if _, err := client.Mutate(t.Context(), self, made, "status", func(p *corev1.Pod) {
				p.Status.Phase = c.phase
				if !c.unready {
					p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
				}
			}); err != nil {
				t.Fatal(err)
			}
			for i, s := range c.budgets {
				b, err := client.Create(t.Context(), self, &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("b", i)},
					Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: p.Labels}, UnhealthyPodEvictionPolicy: c.policy}})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := client.Mutate(t.Context(), self, b, "status", func(b *policyv1.PodDisruptionBudget) { b.Status = s }); err != nil {
					t.Fatal(err)
				}
			}
			key := api.Key{Namespace: "default", Name: "web"}
			_, err = self.Post(t.Context(), api.PodKind, key, "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}})
			_, gone := self.Get(t.Context(), api.PodKind, key)
			var got *apierrors.StatusError
			switch errors.As(err, &got); {
			case c.code == 0 && (err != nil || !apierrors.IsNotFound(gone)):
				t.Fatalf("not evicted: %v, %v", err, gone)
			case c.code == 0:
			case got == nil || got.ErrStatus.Code != c.code || gone != nil:
				t.Fatalf("want %d: %v, %v", c.code, err, gone)
			case c.code == 500:
				if got.ErrStatus.Message != c.want {
					t.Errorf("message %q", got.ErrStatus.Message)
				}
			default:
				if cs := got.ErrStatus.Details.Causes; len(cs) != 1 || cs[0].Type != policyv1.DisruptionBudgetCause || cs[0].Message != c.want {
					t.Errorf("causes %+v", cs)
				}
				if n := got.ErrStatus.Details.RetryAfterSeconds; n != c.again {
					t.Errorf("to be tried again after %d s, not %d", n, c.again)
				}
			}
			if len(c.budgets) == 0 {
				return
			}
			b, err := client.Get[*policyv1.PodDisruptionBudget](t.Context(), self, api.Key{Namespace: "default", Name: "b0"})
			if err != nil || b.Status.DisruptionsAllowed != c.left {
				t.Errorf("%d disruptions left, want %d (%v)", b.Status.DisruptionsAllowed, c.left, err)
			}
			_, noted := b.Status.DisruptedPods["web"]
			if paid := c.code == 0 && c.budgets[0].DisruptionsAllowed > 0; noted != paid {
				t.Errorf("pod noted as disrupted: %v", noted)
			}
		})
	}
}
