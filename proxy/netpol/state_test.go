package netpol

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
)

// TestWhoseAddress follows one address of this node's range through those who have it, say that they have it and had it: it opens the server's
// door only while the friend is attached with it.
func TestWhoseAddress(t *testing.T) {
	t.Parallel()
	c := parse(t, `kind: Namespace
metadata: {name: a}
---
kind: NetworkPolicy
metadata: {namespace: a, name: p}
spec: {podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]}
---
kind: NetworkPolicy
metadata: {namespace: a, name: q}
spec: {podSelector: {matchLabels: {app: stranger}}, policyTypes: [Egress], egress: [{ports: [{port: 80}]}]}
---
kind: Pod
metadata: {namespace: a, name: server, labels: {app: server}}
status: {podIPs: [{ip: 10.42.1.2}]}
---
kind: Pod
metadata: {namespace: a, name: friend, uid: u1, labels: {app: friend}}
status: {podIPs: [{ip: 10.42.1.3}]}
---
kind: Pod
metadata: {namespace: a, name: stranger, uid: u2, labels: {app: stranger}}
`)
	s := stateOf(c)
	server, at := netip.MustParseAddr("10.42.1.2"), netip.MustParseAddr("10.42.1.3")
	as := func(sandbox, name, uid string) *Attachment {
		return &Attachment{Sandbox: sandbox, Namespace: "a", Name: name, UID: uid, Addrs: []netip.Addr{at}}
	}
	s.detach(attachment(c.pods[1]).Sandbox)
	for _, step := range []struct {
		name       string
		do         func()
		opens      bool
		restricted bool // the address, in what it sends
	}{
		{"its status says so, but it is not attached", func() {}, false, false},
		{"attached", func() { s.attach(as("1", "friend", "u1")) }, true, false},
		{"another pod of that name", func() { s.attach(as("1", "friend", "u0")) }, false, true},
		{"itself again", func() { s.attach(as("1", "friend", "u1")) }, true, false},
		{"a stranger has it", func() { s.attach(as("2", "stranger", "u2")) }, false, true},
		{"the end of the friend's sandbox comes late", func() { s.detach("1") }, false, true},
		{"nobody has it", func() { s.detach("2") }, false, false},
		{"the friend's next sandbox", func() { s.attach(as("3", "friend", "u1")) }, true, false},
		{"a stranger has it before the friend is gone", func() { s.attach(as("4", "stranger", "u2")) }, false, true},
		{"and goes", func() { s.detach("4") }, false, false},
		{"known by name only", func() { s.attach(as("5", "friend", "")) }, true, false},
		{"with an address of IPv6 too", func() {
			a := as("5", "friend", "")
			a.Addrs = append(a.Addrs, netip.MustParseAddr("fd00::3"))
			s.attach(a)
		}, true, false},
		{"its object goes", func() { s.setPod(api.Key{Namespace: "a", Name: "friend"}, nil) }, false, true},
		{"and comes", func() { s.setPod(api.Key{Namespace: "a", Name: "friend"}, parsePod(c.pods[1])) }, true, false},
	} {
		step.do()
		s.update()
		if got := verdict(t, s.wanted(), connection{at, server, 6, 80}); got != step.opens {
			t.Errorf("%s: it opens: %v", step.name, got)
		}
		_, got := s.table.Sets["egress"].Elems[string(at.AsSlice())]
		if got != step.restricted {
			t.Errorf("%s: it is restricted: %v", step.name, got)
		}
		if l := leaks(s); l != "" {
			t.Errorf("%s: left over: %s", step.name, l)
		}
	}
}

// TestUnknownNamespace checks that a namespace that is not known has no labels to be selected by, not even by what it lacks.
func TestUnknownNamespace(t *testing.T) {
	t.Parallel()
	c := parse(t, `kind: NetworkPolicy
metadata: {namespace: a, name: p}
spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: secret, operator: DoesNotExist}]}}]}]}
---
kind: Pod
metadata: {namespace: a, name: server}
status: {podIPs: [{ip: 10.42.1.2}]}
---
kind: Pod
metadata: {namespace: b, name: early}
status: {podIPs: [{ip: 10.42.2.2}]}
`)
	s := stateOf(c)
	conn := connection{netip.MustParseAddr("10.42.2.2"), netip.MustParseAddr("10.42.1.2"), 6, 80}
	for _, step := range []struct {
		labels labels.Set
		opens  bool
	}{{nil, false}, {labels.Set{}, true}, {labels.Set{"secret": ""}, false}, {labels.Set{}, true}, {nil, false}} {
		s.setNamespace("b", step.labels)
		s.update()
		if got := verdict(t, s.wanted(), conn); got != step.opens {
			t.Errorf("with labels %v it opens: %v", step.labels, got)
		}
	}
}

// TestLongLists checks that a rule that lists many peers and many ports makes no rule for each of one with each of the other.
func TestLongLists(t *testing.T) {
	t.Parallel()
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "long"}}
	var peers []networkingv1.NetworkPolicyPeer
	var ports []networkingv1.NetworkPolicyPort
	for i := range int32(2000) {
		selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint(i)}}
		peers = append(peers, networkingv1.NetworkPolicyPeer{PodSelector: selector}, networkingv1.NetworkPolicyPeer{NamespaceSelector: selector},
			networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.%d.0/24", i/200, i%200)}})
		ports = append(ports, networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(10 * i))},
			networkingv1.NetworkPolicyPort{Port: new(intstr.FromInt32(10*i + 2)), EndPort: new(10*i + 5)},
			networkingv1.NetworkPolicyPort{Port: new(intstr.FromString(fmt.Sprintf("n%d", i)))})
	}
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	np.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peers, Ports: ports}}
	c := compile(out, "a", parsePod(&corev1.Pod{}), map[string]*policy{"long": parsePolicy(np)})
	if len(c.rules) > 10 || len(c.fixed)+len(c.peers) > 10 {
		t.Errorf("%d rules, %d sets", len(c.rules), len(c.fixed)+len(c.peers))
	}
}
