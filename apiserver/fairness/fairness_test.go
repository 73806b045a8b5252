package fairness

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/servertest"
)

func ptr[T any](v T) *T { return &v }

func limited(name string, shares int32, queues, hand, length int32) *flowcontrolv1.PriorityLevelConfiguration {
	c := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-1"}}
	c.Spec.Type = flowcontrolv1.PriorityLevelEnablementLimited
	c.Spec.Limited = &flowcontrolv1.LimitedPriorityLevelConfiguration{NominalConcurrencyShares: &shares}
	c.Spec.Limited.LimitResponse.Type = flowcontrolv1.LimitResponseTypeReject
	if queues > 0 {
		c.Spec.Limited.LimitResponse = flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeQueue,
			Queuing: &flowcontrolv1.QueuingConfiguration{Queues: queues, HandSize: hand, QueueLengthLimit: length}}
	}
	return c
}

// TestClassify asks upstream's bootstrap schemas.
func TestClassify(t *testing.T) {
	t.Parallel()
	s := servertest.Store(t)
	for _, o := range bootstrap.SuggestedFlowSchemas {
		servertest.PutAs(t, s, api.FlowSchemaKind, o.DeepCopy())
	}
	for _, o := range bootstrap.SuggestedPriorityLevelConfigurations {
		servertest.PutAs(t, s, api.PriorityLevelConfigurationKind, o.DeepCopy())
	}
	f := New(s, 600)
	f.refresh(time.Now())
	user := func(name string, groups ...string) *authn.User {
		return &authn.User{Name: name, Groups: append(groups, authn.Authenticated)}
	}
	for what, tc := range map[string]struct {
		a    authz.Attributes
		want string
	}{
		"master":      {authz.Attributes{User: user("admin", authn.Masters), Verb: "list", Resource: "pods"}, "exempt"},
		"probe":       {authz.Attributes{User: &authn.User{Name: authn.Anonymous, Groups: []string{authn.Unauthenticated}}, Verb: "get", Path: "/readyz"}, "probes"},
		"lease":       {authz.Attributes{User: user("system:node:n", authn.Nodes), Verb: "update", Group: "coordination.k8s.io", Resource: "leases", Namespace: "kube-node-lease"}, "system-leader-election system-node-high"},
		"node status": {authz.Attributes{User: user("system:node:n", authn.Nodes), Verb: "patch", Resource: "nodes", Subresource: "status"}, "system-node-high"},
		"node's pods": {authz.Attributes{User: user("system:node:n", authn.Nodes), Verb: "get", Resource: "pods", Namespace: "x"}, "system-nodes"},
		"scheduler":   {authz.Attributes{User: user("system:kube-scheduler"), Verb: "list", Resource: "pods"}, "kube-scheduler"},
		"controller":  {authz.Attributes{User: user("system:serviceaccount:kube-system:job-controller"), Verb: "list", Resource: "pods"}, "kube-system-service-accounts"},
		"account":     {authz.Attributes{User: user("system:serviceaccount:default:x", authn.ServiceAccounts), Verb: "list", Resource: "pods"}, "service-accounts"},
		"person":      {authz.Attributes{User: user("jane"), Verb: "list", Resource: "pods"}, "global-default"},
		"stranger":    {authz.Attributes{User: &authn.User{Name: "x"}, Verb: "list", Resource: "pods"}, "catch-all"},
	} {
		if got := f.rules.Load().classify(&tc.a).schema.Name; !strings.Contains(tc.want, got) {
			t.Errorf("%s: %s, want %s", what, got, tc.want)
		}
	}
	if got := New(servertest.Store(t), 600).rules.Load().classify(&authz.Attributes{User: user("jane"), Verb: "get", Path: "/"}).level.name; got != "catch-all" {
		t.Errorf("without a configuration: %s", got)
	}
}

// TestLevel fills a level and watches who is served next.
func TestLevel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &level{}
		l.configure(limited("l", 1, 8, 1, 4), share{2, 2, 2})
		var mu sync.Mutex
		var order []string
		leaves := map[string]func(time.Duration){}
		enter := func(name string, hash uint64, seats int) {
			go func() {
				leave, waited, why := l.enter(t.Context(), hash, seats)
				mu.Lock()
				defer mu.Unlock()
				order = append(order, fmt.Sprint(name, waited, why))
				leaves[name] = leave
			}()
			synctest.Wait()
		}
		done := func(name string) {
			mu.Lock()
			leave := leaves[name]
			mu.Unlock()
			leave(time.Second)
			synctest.Wait()
		}
		enter("a1", 0, 1)
		enter("a2", 0, 1)
		enter("a3", 0, 1) // waits
		enter("a4", 0, 1)
		enter("a5", 0, 1)
		enter("b1", 1, 1) // of a flow that had nothing yet
		done("a1")
		done("a2")
		done("b1")
		enter("a6", 0, 9) // as many as there are
		enter("a7", 0, 1)
		enter("a8", 0, 1)
		enter("a9", 0, 1) // one too many
		time.Sleep(patience)
		synctest.Wait()
		got := strings.Join(order, " ")
		want := "a1false a2false b1true a3true a4true a9falsequeue-full a5truetime-out a6truetime-out a7truetime-out a8truetime-out"
		head, tail := got[:min(len(got), strings.Index(want, "a5"))], strings.Fields(got)[6:]
		if head != want[:len(head)] || len(tail) != 4 {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		done("a3")
		done("a4")
		if l.seats != 0 || l.wait != 0 || l.asked != 0 {
			t.Errorf("seats %d, waiting %d, asked %d", l.seats, l.wait, l.asked)
		}
	})
}

func TestReject(t *testing.T) {
	t.Parallel()
	l := &level{}
	l.configure(limited("l", 1, 0, 0, 0), share{1, 1, 1})
	leave, _, why := l.enter(t.Context(), 0, 1)
	if why != "" {
		t.Fatal(why)
	}
	if _, _, why := l.enter(t.Context(), 0, 1); why != noQueue {
		t.Errorf("got %q", why)
	}
	leave(0)
	if _, _, why := l.enter(t.Context(), 0, 1); why != "" {
		t.Error(why)
	}
	exempt := &level{}
	exempt.configure(bootstrap.MandatoryPriorityLevelConfigurationExempt, share{})
	for range 1000 {
		if _, _, why := exempt.enter(t.Context(), 0, 10); why != "" {
			t.Fatal(why)
		}
	}
}

func TestCancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := &level{}
		l.configure(limited("l", 1, 1, 1, 10), share{1, 1, 1})
		leave, _, _ := l.enter(t.Context(), 0, 1)
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan string, 1)
		go func() { _, _, why := l.enter(ctx, 0, 1); got <- why }()
		synctest.Wait()
		cancel()
		if why := <-got; why != cancelled {
			t.Errorf("got %q", why)
		}
		leave(0)
		if l.seats != 0 || l.wait != 0 {
			t.Errorf("seats %d, waiting %d", l.seats, l.wait)
		}
	})
}

func TestAllocate(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		total  int
		wishes []wish
		want   string
	}{
		{100, []wish{{50, 100, 50}, {50, 100, 50}}, "[50 50]"},
		{100, []wish{{10, 100, 10}, {50, 100, 90}}, "[10 90]"},
		{100, []wish{{25, 100, 1}, {25, 60, 500}, {25, 100, 25}}, "[25 50 25]"},
		{100, []wish{{0, 100, 0}, {50, 60, 90}}, "[0 60]"},
		{100, []wish{{60, 60, 60}, {60, 60, 60}}, "[60 60]"}, // more than there is, by rounding up
	} {
		if got := fmt.Sprint(allocate(tc.total, tc.wishes)); got != tc.want {
			t.Errorf("%v: %s, want %s", tc.wishes, got, tc.want)
		}
	}
}

// TestBorrowing lends the seats of an idle level to a busy one, and takes them back.
func TestBorrowing(t *testing.T) {
	t.Parallel()
	f := New(servertest.Store(t), 100)
	busy, idle := limited("busy", 1, 1, 1, 100), limited("idle", 1, 1, 1, 100)
	idle.Spec.Limited.LendablePercent = ptr(int32(50))
	f.configs["busy"], f.configs["idle"] = busy, idle
	f.rebuild()
	for name, want := range map[string]share{"busy": {29, 29, 100}, "idle": {29, 14, 100}, "catch-all": {43, 43, 100}} {
		if name == "catch-all" {
			continue // its shares are upstream's
		}
		if got := f.levels[name].share; got.most != want.most || got.nominal != got.least && name == "busy" || name == "idle" && got.least >= got.nominal {
			t.Errorf("%s: %+v", name, got)
		}
	}
	b := f.levels["busy"]
	before := b.limit
	b.peak = 100
	f.divide()
	if b.limit <= before {
		t.Errorf("a busy level has %d seats, as before", b.limit)
	}
	if i := f.levels["idle"]; i.limit != i.share.least {
		t.Errorf("an idle level keeps %d of %+v", i.limit, i.share)
	}
	f.levels["idle"].peak = 100
	f.divide()
	if i := f.levels["idle"]; i.limit < i.share.nominal {
		t.Errorf("a level that needs its own has %d of %+v", i.limit, i.share)
	}
}

func TestEnter(t *testing.T) {
	t.Parallel()
	f := New(servertest.Store(t), 10)
	a := &authz.Attributes{User: &authn.User{Name: "jane", Groups: []string{authn.Authenticated}}, Verb: "get", Resource: "pods"}
	var tickets []Ticket
	refused := 0
	for range 20 {
		k, why := f.Enter(t.Context(), a, 1, time.Now())
		if why != "" {
			refused++
			continue
		}
		tickets = append(tickets, k)
	}
	if len(tickets) != 10 || refused != 10 {
		t.Errorf("%d served, %d refused", len(tickets), refused)
	}
	for i := range tickets {
		tickets[i].Leave()
	}
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(f)
	all, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]float64{}
	for _, m := range all {
		for _, v := range m.Metric {
			if strings.Contains(v.String(), `"catch-all"`) {
				found[m.GetName()] += v.GetCounter().GetValue() + v.GetGauge().GetValue() + float64(v.GetHistogram().GetSampleCount())
			}
		}
	}
	for name, want := range map[string]float64{"rejected_requests_total": 10, "dispatched_requests_total": 10, "current_executing_requests": 0, "current_limit_seats": 10, "request_execution_seconds": 10} {
		if got := found["apiserver_flowcontrol_"+name]; got != want {
			t.Errorf("%s %v, want %v", name, got, want)
		}
	}
}

func BenchmarkEnter(b *testing.B) {
	f := New(servertest.Store(b), 600)
	a := &authz.Attributes{User: &authn.User{Name: "jane", Groups: []string{authn.Authenticated}}, Verb: "get", Resource: "pods"}
	b.ReportAllocs()
	for b.Loop() {
		k, _ := f.Enter(b.Context(), a, 1, time.Now())
		k.Leave()
	}
}
