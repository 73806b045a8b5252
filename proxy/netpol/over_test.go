package netpol

import (
	"fmt"
	"strings"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/linux/nft"
)

// selfish is a policy whose rules have nothing in common, with each other or with those of another first port: each is two sets.
func selfish(namespace string, first, rules int) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p"}}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	for i := range rules {
		port := intstr.FromInt(first + i)
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
			From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"n": fmt.Sprint(i)}}}}})
	}
	return p
}

// most is the number of a selfish policy's rules with which as many namespaces fill a table as have a share, beside its own sets.
const most = mostShare/2 - 2

// crowd is a state of that many namespaces, named by their number, of one pod each, with such policies.
func crowd(t testing.TB, namespaces int) *state {
	var docs []string
	for i := range namespaces {
		docs = append(docs, fmt.Sprintf("kind: Namespace\nmetadata: {name: %q}", fmt.Sprint(i)),
			fmt.Sprintf("kind: Pod\nmetadata: {namespace: %q, name: server}\nstatus: {podIPs: [{ip: 10.42.1.%d}]}", fmt.Sprint(i), 2+i))
	}
	c := parse(t, strings.Join(docs, "\n---\n"))
	for i := range namespaces {
		c.policies = append(c.policies, selfish(fmt.Sprint(i), 1+i*most, most))
	}
	return stateOf(c)
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

// A namespace whose policies have the kernel look for more sets than its share cuts its own pods off, and nobody else's, until there is room.
func TestShare(t *testing.T) {
	t.Parallel()
	c := parse(t, twoServers)
	s := stateOf(c)
	check := func(what string, over int) {
		t.Helper()
		s.update()
		mine, others := s.rights[attachment(c.pods[0]).Sandbox][in], s.rights[attachment(c.pods[1]).Sandbox][in]
		if cut := s.cutOff(); len(cut) != over || cut["a"] != over || (mine.chain == refused(in)) != (over > 0) || others.chain == refused(in) {
			t.Errorf("%s: cut off: %v, %d sets, chains %v and %v", what, cut, len(s.table.Sets), mine.chain, others.chain)
		}
	}
	set := func(first, rules int) { s.setPolicy(api.KeyOf(c.policies[0]), selfish("a", first, rules)) }
	set(1, 100)
	check("some", 0)
	set(1, mostShare/2+1)
	check("too many", 1)
	set(1, mostShare/2)
	check("as many as fit", 0)
	set(10_000, mostShare/2)
	check("as many others", 0)
	set(1, 20_000)
	check("more than for all", 1)
	s.detach(attachment(c.pods[0]).Sandbox)
	if s.update(); len(s.cutOff()) > 0 || len(s.share["a"]) > 0 {
		t.Errorf("kept of who is gone: %v, %d sets", s.cutOff(), len(s.share["a"]))
	}
}

// Where many namespaces take their shares, there is no room for the last, until another goes.
func TestOver(t *testing.T) {
	t.Parallel()
	s := crowd(t, mostSets/mostShare+1)
	if len(s.over) == 0 || len(s.table.Sets) > mostSets || len(s.rights) != mostSets/mostShare+1 {
		t.Errorf("cut off: %v, %d sets", s.cutOff(), len(s.table.Sets))
	}
	for n := range 2 {
		s.setPolicy(api.Key{Namespace: fmt.Sprint(n), Name: "p"}, nil)
		s.update()
	}
	if len(s.over) != 0 {
		t.Errorf("there is room and it is not used: %v, %d sets", s.cutOff(), len(s.table.Sets))
	}
}

// Rules with the same ports take two sets whatever their number, and rules for everybody one.
func TestUnion(t *testing.T) {
	t.Parallel()
	c := parse(t, twoServers)
	p := selfish("a", 1, 50)
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

// BenchmarkFull fills a table to its limit, empties it policy by policy and removes it whole, each of which keeps everybody else of the host from changing rules.
func BenchmarkFull(b *testing.B) {
	w := newWorld(b)
	s := crowd(b, mostSets/mostShare)
	w.in(b, "host", func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		var made, emptied, removed time.Duration
		timed := func(total *time.Duration, batch *nft.Batch) {
			start := time.Now()
			if err := conn.Commit(batch); err != nil {
				b.Fatal(err)
			}
			*total += time.Since(start)
		}
		sets := len(s.table.Sets)
		change := func(rules int) *nft.Batch {
			for i := range mostSets / mostShare {
				p := selfish(fmt.Sprint(i), 1+i*most, rules)
				s.setPolicy(api.KeyOf(p), p)
			}
			return s.update()
		}
		for b.Loop() {
			timed(&made, nft.Diff(nil, s.wanted()))
			timed(&emptied, change(0))
			timed(&made, change(most))
			timed(&removed, nft.Diff(s.wanted(), nil))
		}
		b.ReportMetric(float64(made.Milliseconds())/float64(b.N)/2, "ms/made")
		b.ReportMetric(float64(emptied.Milliseconds())/float64(b.N), "ms/emptied")
		b.ReportMetric(float64(removed.Milliseconds())/float64(b.N), "ms/removed")
		b.ReportMetric(float64(sets), "sets")
		return nil
	})
}
