package netpol

import (
	"fmt"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/linux/nft"
)

// selfish is a policy whose rules have nothing in common: each is two sets.
func selfish(c cluster, rules int) *networkingv1.NetworkPolicy {
	p := c.policies[0].DeepCopy()
	p.Spec.Ingress = nil
	for i := range rules {
		port := intstr.FromInt(1 + i)
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"n": fmt.Sprint(i)}}}}})
	}
	return p
}

const twoServers = `kind: Namespace
metadata: {name: a}
---
kind: Namespace
metadata: {name: b}
---
kind: NetworkPolicy
metadata: {namespace: a, name: p}
spec: {podSelector: {}, policyTypes: [Ingress]}
---
kind: NetworkPolicy
metadata: {namespace: b, name: p}
spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{ports: [{port: 80}]}]}
---
kind: Pod
metadata: {namespace: a, name: server}
status: {podIPs: [{ip: 10.42.1.2}]}
---
kind: Pod
metadata: {namespace: b, name: server}
status: {podIPs: [{ip: 10.42.1.3}]}
`

// A policy of which the kernel would have to look for too many sets cuts its own pods off, and nobody else's, until there is room.
func TestOver(t *testing.T) {
	t.Parallel()
	c := parse(t, twoServers)
	s := stateOf(c)
	check := func(what string, over int, chain bool) {
		t.Helper()
		s.update()
		mine, others := s.rights[attachment(c.pods[0]).Sandbox][in], s.rights[attachment(c.pods[1]).Sandbox][in]
		if len(s.over) != over || mine == nil || (mine.chain != refused(in)) != chain || others.chain == refused(in) || len(s.table.Sets) > mostSets {
			t.Errorf("%s: %d are over, %d sets, chains %v and %v", what, len(s.over), len(s.table.Sets), mine, others)
		}
	}
	key := api.KeyOf(c.policies[0])
	s.setPolicy(key, selfish(c, 100))
	check("some", 0, true)
	s.setPolicy(key, selfish(c, mostSets))
	check("too many", 1, false)
	s.setPolicy(key, selfish(c, mostSets/2-10))
	check("many", 0, true)

	// Another's that would fit alone comes in when the first goes.
	other := selfish(c, mostSets/2-20)
	other.Namespace = "b"
	s.setPolicy(api.Key{Namespace: "b", Name: "selfish"}, other)
	s.update()
	if len(s.over) != 1 || s.rights[attachment(c.pods[1]).Sandbox][in].chain != refused(in) {
		t.Error("both fit:", len(s.table.Sets))
	}
	s.setPolicy(key, nil)
	s.update()
	if len(s.over) != 0 || s.rights[attachment(c.pods[1]).Sandbox][in].chain == refused(in) {
		t.Error("there is room and it is not used:", len(s.table.Sets))
	}
}

// Rules with the same ports take two sets whatever their number, and rules for everybody one.
func TestUnion(t *testing.T) {
	t.Parallel()
	c := parse(t, twoServers)
	p := selfish(c, 50)
	for i := range p.Spec.Ingress {
		p.Spec.Ingress[i].Ports[0].Port = nil
		if i%2 == 0 {
			p.Spec.Ingress[i].From = nil
			port := intstr.FromInt(80 + i)
			p.Spec.Ingress[i].Ports[0].Port = &port
		}
	}
	s := stateOf(c)
	s.setPolicy(api.KeyOf(p), p)
	s.update()
	rights := s.rights[attachment(c.pods[0]).Sandbox][in]
	if len(rights.rules) != 3 || len(rights.peers) != 1 || len(rights.fixed) != 1 {
		t.Errorf("%d rules, %d sets of peers, %d others", len(rights.rules), len(rights.peers), len(rights.fixed))
	}
}

// BenchmarkFull fills a table to its limit, which keeps everybody else of the host from changing rules.
func BenchmarkFull(b *testing.B) {
	w := newWorld(b)
	c := parse(b, twoServers)
	s := stateOf(c)
	s.setPolicy(api.KeyOf(c.policies[0]), selfish(c, mostSets/2-10))
	s.update()
	w.in(b, "host", func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		for b.Loop() {
			if err := conn.Commit(nft.Diff(nil, s.wanted())); err != nil {
				return err
			}
			b.StopTimer()
			if err := conn.Commit(nft.Diff(s.wanted(), nil)); err != nil {
				return err
			}
			b.StartTimer()
		}
		return nil
	})
}
