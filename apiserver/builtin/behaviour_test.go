package builtin_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/store"
)

func service(name string, t corev1.ServiceType) *corev1.Service {
	return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.ServiceSpec{Type: t, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(80)}}}}
}

func pod(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "img"}}}}
}

func (c *cluster) remove(o api.Object) {
	c.t.Helper()
	if _, err := c.pipe.Delete(c.ctx, c.request(o, ""), &metav1.DeleteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// TestAddresses fills the range from many goroutines: no address is given twice, the reserved one to nobody, and what a
// deleted Service had can be had again.
func TestAddresses(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	const all = 256 - 3 // the network, the broadcast and the reserved address
	var wg sync.WaitGroup
	errs := make(chan error, all)
	for n := range all {
		wg.Go(func() {
			_, err := c.create(service(fmt.Sprint("s", n), ""))
			errs <- err
		})
	}
	wg.Wait()
	for range all {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]bool{}
	for e := range c.store.Snapshot(api.ServiceKind).All("", api.Key{}) {
		ip := e.Object.(*corev1.Service).Spec.ClusterIP
		if seen[ip] || ip == "10.43.0.1" || ip == "10.43.0.0" || ip == "10.43.0.255" {
			t.Errorf("address %s was given to %s", ip, e.Key)
		}
		seen[ip] = true
	}
	if _, err := c.create(service("more", "")); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Errorf("one more than there are: %v", err)
	}
	c.remove(service("s7", ""))
	if _, err := c.create(service("more", "")); err != nil {
		t.Errorf("a freed address: %v", err)
	}
	// Who asks for the reserved address by name gets it, once.
	named := service("named", "")
	named.Spec.ClusterIP = "10.43.0.1"
	if _, err := c.create(named); err != nil {
		t.Errorf("the reserved address by name: %v", err)
	}
	again := service("again", "")
	again.Spec.ClusterIP = "10.43.0.1"
	if _, err := c.create(again); err == nil || !strings.Contains(err.Error(), "provided IP is already allocated") {
		t.Errorf("a taken address: %v", err)
	}
}

// What a load balancer says of its addresses is looked at, and an address that says no more is taken as one that nodes have.
func TestBalancerStatus(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	vip, other := corev1.LoadBalancerIPModeVIP, corev1.LoadBalancerIPMode("Odd")
	tests := []struct {
		of   corev1.ServiceType
		in   corev1.LoadBalancerIngress
		want string
	}{
		{corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{IP: "1.2.3.4"}, ""},
		{corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{Hostname: "lb.example.com"}, ""},
		{corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{IP: "1.2.3"}, "status.loadBalancer.ingress[0].ip: "},
		{corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{Hostname: "1.2.3.4"}, "status.loadBalancer.ingress[0].hostname: "},
		{corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{IP: "1.2.3.4", IPMode: &other}, "status.loadBalancer.ingress[0].ipMode: Unsupported value"},
		{corev1.ServiceTypeLoadBalancer, corev1.LoadBalancerIngress{Hostname: "a", IPMode: &vip}, "status.loadBalancer.ingress[0].ipMode: Forbidden"},
		{corev1.ServiceTypeClusterIP, corev1.LoadBalancerIngress{IP: "1.2.3.4"}, "status.loadBalancer.ingress: Forbidden"},
	}
	for i, tt := range tests {
		o, err := c.create(service(fmt.Sprint("s", i), tt.of))
		c.must(o, err)
		s := o.(*corev1.Service).DeepCopy()
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{tt.in}
		o, err = c.update(s, "status")
		if err != nil {
			if tt.want == "" || !strings.HasPrefix(problems(err), tt.want) {
				t.Errorf("%+v: %s, want %q", tt.in, problems(err), tt.want)
			}
			c.remove(s)
			continue
		}
		got := o.(*corev1.Service).Status.LoadBalancer.Ingress[0]
		if tt.want != "" || (got.IP != "") != (got.IPMode != nil && *got.IPMode == vip) {
			t.Errorf("%+v became %+v, want %q", tt.in, got, tt.want)
		}
		c.remove(s)
	}
}

// TestNodePorts follows ports through failed writes, dry runs, changes of type and deletion.
func TestNodePorts(t *testing.T) {
	t.Parallel()
	c := newCluster(t) // has four node ports
	for n := range 4 {
		if _, err := c.create(service(fmt.Sprint("s", n), corev1.ServiceTypeNodePort)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.create(service("s4", corev1.ServiceTypeNodePort)); err == nil {
		t.Fatal("a fifth port of four")
	}
	c.remove(service("s0", ""))
	// A failed create keeps nothing.
	for range 3 {
		if _, err := c.create(service("s1", corev1.ServiceTypeNodePort)); !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		dry := service("dry", corev1.ServiceTypeNodePort)
		r := c.request(dry, "")
		r.DryRun = true
		if _, err := c.pipe.Create(c.ctx, r, dry); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.create(service("s4", corev1.ServiceTypeNodePort)); err != nil {
		t.Fatal(err)
	}
	// A Service that is no node port any more gives its port away with the update.
	e := c.store.Snapshot(api.ServiceKind).Get(api.Key{Namespace: "default", Name: "s1"})
	plain := e.Object.(*corev1.Service).DeepCopy()
	plain.Spec.Type = corev1.ServiceTypeClusterIP
	if _, err := c.update(plain, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.create(service("s5", corev1.ServiceTypeNodePort)); err != nil {
		t.Fatal(err)
	}
	// The same number may serve TCP and UDP, and is preferred for that.
	c.remove(service("s2", ""))
	both := service("both", corev1.ServiceTypeNodePort)
	both.Spec.Ports = []corev1.ServicePort{{Name: "t", Port: 53}, {Name: "u", Port: 53, Protocol: corev1.ProtocolUDP}}
	got, err := c.create(both)
	if err != nil {
		t.Fatal(err)
	}
	if p := got.(*corev1.Service).Spec.Ports; p[0].NodePort != p[1].NodePort || p[0].NodePort == 0 {
		t.Errorf("ports %d and %d", p[0].NodePort, p[1].NodePort)
	}
}

func (c *cluster) post(o api.Object, sub string, body api.Object) (any, error) {
	return c.pipe.Post(c.ctx, c.request(o, sub), body, &metav1.CreateOptions{})
}

func (c *cluster) pod(name string) *corev1.Pod {
	c.t.Helper()
	e := c.store.Snapshot(api.PodKind).Get(api.Key{Namespace: "default", Name: name})
	if e == nil {
		c.t.Fatalf("no pod %s", name)
	}
	return e.Object.(*corev1.Pod)
}

func TestBinding(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.must(c.create(pod("web")))
	bind := func(b corev1.Binding) error {
		b.Name, b.Namespace = "web", "default"
		_, err := c.post(pod("web"), "binding", &b)
		return err
	}
	if err := bind(corev1.Binding{}); !apierrors.IsInvalid(err) {
		t.Errorf("no target: %v", err)
	}
	if err := bind(corev1.Binding{Target: corev1.ObjectReference{Kind: "Pod", Name: "n"}}); !apierrors.IsInvalid(err) {
		t.Errorf("another kind: %v", err)
	}
	if err := bind(corev1.Binding{ObjectMeta: metav1.ObjectMeta{UID: "other"}, Target: corev1.ObjectReference{Name: "n"}}); !apierrors.IsConflict(err) {
		t.Errorf("another pod: %v", err)
	}
	if err := bind(corev1.Binding{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"a": "b"}, Labels: map[string]string{"zone": "z"}},
		Target: corev1.ObjectReference{Kind: "Node", Name: "n1"}}); err != nil {
		t.Fatal(err)
	}
	p := c.pod("web")
	cond := api.PodCondition(p, corev1.PodScheduled)
	if p.Spec.NodeName != "n1" || cond == nil || cond.Status != corev1.ConditionTrue || p.Annotations["a"] != "b" || p.Labels["zone"] != "z" || p.Generation != 1 {
		t.Errorf("bound to %+v", p)
	}
	if err := bind(corev1.Binding{Target: corev1.ObjectReference{Name: "n2"}}); !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `already assigned to node "n1"`) {
		t.Errorf("a second time: %v", err)
	}
	gated := pod("gated")
	gated.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "a"}}
	c.must(c.create(gated))
	_, err := c.post(pod("gated"), "binding", &corev1.Binding{Target: corev1.ObjectReference{Name: "n1"}})
	if !apierrors.IsConflict(err) {
		t.Errorf("a gated pod: %v", err)
	}
}

// TestBindings binds pods by Bindings that are posted on their own.
func TestBindings(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.must(c.create(pod("web")))
	to := func(name, node string) *corev1.Binding {
		return &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}
	}
	stale := to("web", "n1")
	stale.ResourceVersion = "1"
	foreign := to("web", "n1")
	foreign.Namespace = "kube-system"
	for _, tt := range []struct {
		name string
		b    *corev1.Binding
		dry  bool
		want string // the reason of the refusal, "" for none
	}{
		{"no name", to("", "n1"), false, "BadRequest: Name parameter required."},
		{"no target", to("web", ""), false, "target.name: Required value"},
		{"bad target", to("web", "N_1"), false, "target.name: Invalid value"},
		{"no such pod", to("none", "n1"), false, `NotFound: pods "none" not found`},
		{"another namespace", foreign, false, "BadRequest: the namespace of the provided object does not match"},
		{"another revision", stale, false, `Conflict: Operation cannot be fulfilled on pods/binding "web": Precondition failed: ResourceVersion`},
		{"dry", to("web", "n1"), true, ""},
		{"good", to("web", "n1"), false, ""},
		{"again", to("web", "n2"), false, `Conflict: Operation cannot be fulfilled on pods/binding "web": pod web is already assigned to node "n1"`},
	} {
		before := c.pod("web").Spec.NodeName
		r := c.request(tt.b, "")
		r.Key, r.DryRun = api.Key{Namespace: "default"}, tt.dry
		out, err := c.pipe.Answer(c.ctx, r, tt.b)
		switch after := c.pod("web").Spec.NodeName; {
		case tt.want != "":
			if err == nil || !strings.HasPrefix(problems(err), tt.want) || before != after {
				t.Errorf("%s: %v, on %q", tt.name, err, after)
			}
		case err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case out.(*metav1.Status).Status != metav1.StatusSuccess || (after == "n1") == tt.dry:
			t.Errorf("%s: %v, on %q", tt.name, out, after)
		}
	}
}

// TestGrace deletes pods in the states that differ.
func TestGrace(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for _, tc := range []struct {
		name  string
		node  string
		phase corev1.PodPhase
		ask   *int64
		want  int64 // -1: gone
	}{
		{"nowhere", "", "", nil, -1},
		{"default", "n1", "", nil, 30},
		{"asked", "n1", "", new(int64(5)), 5},
		{"now", "n1", "", new(int64(0)), -1},
		{"ended", "n1", corev1.PodSucceeded, nil, -1},
	} {
		p := pod(tc.name)
		p.Spec.NodeName = tc.node
		c.must(c.create(p))
		if tc.phase != "" {
			p := c.pod(tc.name).DeepCopy()
			p.Status.Phase = tc.phase
			c.must(c.update(p, "status"))
		}
		if _, err := c.pipe.Delete(c.ctx, c.request(pod(tc.name), ""), &metav1.DeleteOptions{GracePeriodSeconds: tc.ask}); err != nil {
			t.Fatal(err)
		}
		e := c.store.Snapshot(api.PodKind).Get(api.Key{Namespace: "default", Name: tc.name})
		switch {
		case tc.want < 0 && e != nil:
			t.Errorf("%s: still there", tc.name)
		case tc.want >= 0 && (e == nil || *e.Object.GetDeletionGracePeriodSeconds() != tc.want):
			t.Errorf("%s: want %d seconds of grace", tc.name, tc.want)
		}
	}
}

func TestEvictionPreconditions(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.must(c.create(pod("web")))
	other := metav1.ObjectMeta{}.UID + "other"
	_, err := c.post(pod("web"), "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &other}}})
	if !apierrors.IsConflict(err) {
		t.Errorf("another pod: %v", err)
	}
	if _, err := c.post(pod("web"), "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		DeleteOptions: &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}}); err != nil {
		t.Error(err)
	}
	c.pod("web")
}

func TestTokenRequest(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.must(c.create(pod("web")))
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}}
	ask := func(seconds int64, ref *authenticationv1.BoundObjectReference) (*authenticationv1.TokenRequest, error) {
		got, err := c.post(sa, "token", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds, BoundObjectRef: ref}})
		if err != nil {
			return nil, err
		}
		return got.(*authenticationv1.TokenRequest), nil
	}
	review := func(token string) authenticationv1.TokenReviewStatus {
		t.Helper()
		r := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
		o, err := c.pipe.Answer(c.ctx, c.request(r, ""), r)
		if err != nil {
			t.Fatal(err)
		}
		return o.(*authenticationv1.TokenReview).Status
	}
	if _, err := ask(60, nil); !apierrors.IsInvalid(err) {
		t.Errorf("a minute: %v", err)
	}
	if _, err := ask(600, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "ConfigMap", Name: "x"}); !apierrors.IsBadRequest(err) {
		t.Errorf("bound to another kind: %v", err)
	}
	if _, err := ask(600, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: "other"}); !apierrors.IsConflict(err) {
		t.Errorf("bound to another pod: %v", err)
	}
	got, err := ask(600, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "web", UID: c.pod("web").UID})
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(got.Status.ExpirationTimestamp.Time); left < 590*time.Second || left > 600*time.Second {
		t.Errorf("the token is good for %v", left)
	}
	s := review(got.Status.Token)
	if !s.Authenticated || s.User.Username != "system:serviceaccount:default:default" || !slices.Contains(s.User.Groups, "system:serviceaccounts:default") ||
		len(s.User.Extra["authentication.kubernetes.io/pod-name"]) != 1 {
		t.Errorf("review: %+v", s)
	}
	c.remove(pod("web"))
	if s := review(got.Status.Token); s.Authenticated || !strings.Contains(s.Error, "pod has been deleted") {
		t.Errorf("the pod is gone: %+v", s)
	}
	if s := review("nonsense"); s.Authenticated {
		t.Errorf("nonsense: %+v", s)
	}
}

func TestAccessReviews(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.must(c.create(&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "r"}, Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}}))
	c.must(c.create(&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "r"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "u"}}}))
	ask := func(ns string) bool {
		t.Helper()
		r := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "u",
			ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: ns, Verb: "get", Resource: "pods"}}}
		o, err := c.pipe.Answer(c.ctx, c.request(r, ""), r)
		if err != nil {
			t.Fatal(err)
		}
		return o.(*authorizationv1.SubjectAccessReview).Status.Allowed
	}
	if !ask("default") || ask("kube-system") || ask("") {
		t.Error("wrong answers")
	}
	u := &cluster{t: t, pipe: c.pipe, kinds: c.kinds, store: c.store, ctx: authn.WithUser(c.ctx, &authn.User{Name: "u", Groups: []string{authn.Authenticated}})}
	rules := &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}
	o, err := u.pipe.Answer(u.ctx, u.request(rules, ""), rules)
	if err != nil {
		t.Fatal(err)
	}
	if s := o.(*authorizationv1.SelfSubjectRulesReview).Status; len(s.ResourceRules) != 1 || s.Incomplete || s.ResourceRules[0].Resources[0] != "pods" {
		t.Errorf("rules %+v", s)
	}
	self := &authenticationv1.SelfSubjectReview{}
	if o, err = u.pipe.Answer(u.ctx, u.request(self, ""), self); err != nil || o.(*authenticationv1.SelfSubjectReview).Status.UserInfo.Username != "u" {
		t.Errorf("who am I: %v %v", o, err)
	}
	bad := &authorizationv1.SubjectAccessReview{}
	if _, err := u.pipe.Answer(u.ctx, u.request(bad, ""), bad); !apierrors.IsInvalid(err) {
		t.Errorf("a question about nothing: %v", err)
	}
}

// TestColumns prints objects as kubectl get does.
func TestColumns(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	running := &corev1.ContainerStateRunning{}
	waiting := func(r string) corev1.ContainerState {
		return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: r}}
	}
	ended := func(code int32, reason string) corev1.ContainerState {
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason}}
	}
	status := func(phase corev1.PodPhase, ss ...corev1.ContainerStatus) corev1.PodStatus {
		return corev1.PodStatus{Phase: phase, ContainerStatuses: ss}
	}
	now := metav1.Now()
	for _, tc := range []struct {
		name   string
		pod    corev1.Pod
		expect string
	}{
		{"new", corev1.Pod{Status: status(corev1.PodPending)}, "0/1 Pending 0"},
		{"runs", corev1.Pod{Status: status(corev1.PodRunning, corev1.ContainerStatus{Ready: true, State: corev1.ContainerState{Running: running}})}, "1/1 Running 0"},
		{"crashes", corev1.Pod{Status: status(corev1.PodRunning, corev1.ContainerStatus{RestartCount: 3, State: waiting("CrashLoopBackOff"),
			LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(now.Add(-5 * time.Minute))}}})}, "0/1 CrashLoopBackOff 3 (5m ago)"},
		{"completed", corev1.Pod{Status: status(corev1.PodSucceeded, corev1.ContainerStatus{State: ended(0, "Completed")})}, "0/1 Completed 0"},
		{"failed", corev1.Pod{Status: status(corev1.PodFailed, corev1.ContainerStatus{State: ended(7, "")})}, "0/1 ExitCode:7 0"},
		{"terminating", corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}, Status: status(corev1.PodRunning)}, "0/1 Terminating 0"},
		{"evicted", corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodFailed, Reason: "Evicted"}}, "0/1 Evicted 0"},
		{"init", corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "i"}, {Name: "j"}}},
			Status: corev1.PodStatus{Phase: corev1.PodPending, InitContainerStatuses: []corev1.ContainerStatus{{Name: "i", State: ended(0, "")}, {Name: "j", RestartCount: 2, State: corev1.ContainerState{Running: running}}}}}, "0/1 Init:1/2 2"},
		{"init fails", corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{{Name: "i"}}},
			Status: corev1.PodStatus{Phase: corev1.PodPending, InitContainerStatuses: []corev1.ContainerStatus{{Name: "i", State: ended(1, "Error")}}}}, "0/1 Init:Error 0"},
		{"gated", corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodPending, Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Reason: corev1.PodReasonSchedulingGated}}}}, "0/1 SchedulingGated 0"},
	} {
		tc.pod.Spec.Containers = []corev1.Container{{Name: "a"}}
		row := c.row(&tc.pod)
		if got := fmt.Sprint(row[1], " ", row[2], " ", row[3]); got != tc.expect {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.expect)
		}
	}
	svc := service("web", corev1.ServiceTypeNodePort)
	svc.Spec.Ports[0].NodePort, svc.Spec.Ports[0].Protocol = 30000, corev1.ProtocolTCP
	if got := fmt.Sprint(c.row(svc)...); !strings.Contains(got, "80:30000/TCP") {
		t.Errorf("service: %s", got)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"node-role.kubernetes.io/control-plane": "", "node-role.kubernetes.io/etcd": ""}},
		Spec: corev1.NodeSpec{Unschedulable: true}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
	if got := c.row(node); got[1] != "Ready,SchedulingDisabled" || got[2] != "control-plane,etcd" {
		t.Errorf("node: %v", got)
	}
}

func (c *cluster) row(o api.Object) []any {
	return c.any(o).Table([]*store.Entry{{Object: o}}, metav1.IncludeNone, true).Rows[0].Cells
}

// TestHeaders holds the columns of every kind to those of kubectl get -o wide.
func TestHeaders(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for kind, want := range map[string]string{
		"v1 Pod":                            "Name Ready Status Restarts Age IP Node Nominated-Node Readiness-Gates",
		"v1 Service":                        "Name Type Cluster-IP External-IP Port(s) Age Selector",
		"v1 Node":                           "Name Status Roles Age Version Internal-IP External-IP OS-Image Kernel-Version Container-Runtime",
		"v1 Namespace":                      "Name Status Age",
		"v1 ConfigMap":                      "Name Data Age",
		"v1 Secret":                         "Name Type Data Age",
		"v1 ServiceAccount":                 "Name Secrets Age",
		"v1 Endpoints":                      "Name Endpoints Age",
		"apps/v1 Deployment":                "Name Ready Up-to-date Available Age Containers Images Selector",
		"apps/v1 ReplicaSet":                "Name Desired Current Ready Age Containers Images Selector",
		"apps/v1 DaemonSet":                 "Name Desired Current Ready Up-to-date Available Node-Selector Age Containers Images Selector",
		"apps/v1 ControllerRevision":        "Name Controller Revision Age",
		"batch/v1 Job":                      "Name Status Completions Duration Age Containers Images Selector",
		"coordination.k8s.io/v1 Lease":      "Name Holder Age",
		"discovery.k8s.io/v1 EndpointSlice": "Name AddressType Ports Endpoints Age",
		"v1 Event":                          "Last-Seen Type Reason Object Subobject Source Message First-Seen Count Name",
		"rbac.authorization.k8s.io/v1 Role": "Name Created-At",
		"rbac.authorization.k8s.io/v1 ClusterRole":        "Name Created-At",
		"rbac.authorization.k8s.io/v1 RoleBinding":        "Name Role Age Users Groups ServiceAccounts",
		"rbac.authorization.k8s.io/v1 ClusterRoleBinding": "Name Role Age Users Groups ServiceAccounts",
	} {
		var got []string
		for _, d := range c.kinds[kind].Table(nil, metav1.IncludeNone, true).ColumnDefinitions {
			got = append(got, strings.ReplaceAll(d.Name, " ", "-"))
			if d.Description == "" {
				t.Errorf("%s: column %s has no description", kind, d.Name)
			}
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s:\ngot  %s\nwant %s", kind, text, want)
		}
	}
}
