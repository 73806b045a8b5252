package netpol

import (
	"fmt"
	"net"
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

// TestDNS has pods whom policies allow nothing, or one peer, ask for names: of a node, and of a pod that the Service leads to.
func TestDNS(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(t, namespaces+`---
kind: NetworkPolicy
metadata: {namespace: a, name: locked}
spec: {podSelector: {}, policyTypes: [Egress]}
---
kind: NetworkPolicy
metadata: {namespace: a, name: allowed}
spec: {podSelector: {matchLabels: {app: allowed}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: names}}}]}]}`)
	w.start(t)
	w.services(t)
	w.serve(t, "outside", ":8080")
	w.pod(t, "b", "names", map[string]string{"app": "names"})
	w.pod(t, "a", "locked", nil)
	w.pod(t, "a", "allowed", map[string]string{"app": "allowed"})
	at := netip.AddrPortFrom(testConfig().DNS, 53).String()
	lead := func(to netip.Addr) {
		svc, slice := service("dns", testConfig().DNS.String(), 30053, to)
		for i := range svc.Spec.Ports {
			svc.Spec.Ports[i].Port = 53
		}
		w.api.Put(svc)
		w.api.Put(slice)
	}
	lead(netip.MustParseAddr("192.0.2.1"))
	until(t, "the Service is served", func() bool { return w.ask(t, "locked", "udp", at, silent) == "yes" })
	w.expect(t, "yes", "locked", at)
	lead(w.addrs["names"])
	until(t, "the Service leads to the pod", func() bool { return w.ask(t, "locked", "udp", at, silent) == "silence" })
	w.expect(t, "silence", "locked", at)
	w.expect(t, "yes", "allowed", at)
}

// TestIPv6 checks that an isolated pod is not reached past its policies, nor reaches anybody, by IPv6.
func TestIPv6(t *testing.T) {
	t.Parallel()
	w := newWorld(t, netip.MustParsePrefix("fd00:42:1::/64"))
	w.put(t, namespaces)
	w.start(t)
	w.pod(t, "a", "locked", nil)
	w.pod(t, "b", "other", nil)
	pods, err := w.network.Attached()
	if err != nil {
		t.Fatal(err)
	}
	at := map[string]string{}
	for _, p := range pods {
		at[p.Name] = netip.AddrPortFrom(p.Addrs[1], 8080).String()
		w.in(t, p.Name, func() error {
			l, err := net.Listen("tcp6", ":8080")
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
	}
	ways := map[string]string{"locked": "other", "other": "locked"}
	reaches := func(from string) (is bool) {
		w.in(t, from, func() error {
			c, err := net.DialTimeout("tcp6", at[ways[from]], silent)
			if is = err == nil; is {
				c.Close()
			}
			return nil
		})
		return is
	}
	bothReach := func() {
		t.Helper()
		for from, to := range ways {
			until(t, from+" reaches "+to, func() bool { return reaches(from) })
		}
	}
	bothReach()
	w.api.Put(deny("a"))
	w.isolated(t, 1)
	for from, to := range ways {
		if reaches(from) {
			t.Errorf("%s reaches %s", from, to)
		}
	}
	w.remove(t, deny("a"))
	w.isolated(t, 0)
	bothReach()
}
