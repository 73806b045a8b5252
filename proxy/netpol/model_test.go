package netpol

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/linux/nft"
)

// connection is what the rules judge.
type connection struct {
	client, server netip.Addr
	proto          uint8
	port           uint16
}

func (c connection) String() string {
	return fmt.Sprintf("%s -> %s:%d/%s", c.client, c.server, c.port, nft.ProtoName(c.proto))
}

// verdict is what the table says of a packet of the connection, by the words of its rules.
func verdict(t testing.TB, table *nft.Table, c connection) bool {
	if table == nil {
		return true
	}
	return run(t, table, "forward", c) != "drop"
}

// run goes through a chain and returns its verdict, or "return".
func run(t testing.TB, table *nft.Table, chain string, c connection) string {
	t.Helper()
	ch := table.Chains[chain]
	if ch == nil {
		t.Fatalf("no chain %s", chain)
	}
	for _, r := range ch.Rules {
		verdict := ""
		for _, s := range r {
			more := false
			if verdict, more = statement(t, table, s.Text, c); !more {
				break
			}
		}
		to, isJump := strings.CutPrefix(verdict, "jump ")
		if isJump {
			verdict = run(t, table, to, c)
		} else if to, isGoto := strings.CutPrefix(verdict, "goto "); isGoto {
			return run(t, table, to, c)
		}
		switch {
		case verdict == "accept", verdict == "drop":
			return verdict
		case verdict == "return" && !isJump:
			return verdict
		}
	}
	return "return"
}

// statement says whether the rule goes on after it, or with which verdict it ends.
func statement(t testing.TB, table *nft.Table, text string, c connection) (verdict string, more bool) {
	t.Helper()
	f := nft.FamilyOf(c.client).Name // a field of the other one is unknown: the rules must not ask for it
	value := map[string]any{"ct original " + f + " saddr": c.client, "ct reply " + f + " saddr": c.server, "ct protocol": c.proto, "ct reply proto-src": c.port,
		"ct original " + f + " daddr": c.server, "ct original proto-dst": c.port}
	if fields, set, ok := strings.Cut(text, " @"); ok {
		fields, isMap := strings.CutSuffix(fields, " vmap")
		var values []any
		for f := range strings.SplitSeq(fields, " . ") {
			if value[f] == nil {
				t.Fatalf("unknown field %q", f)
			}
			values = append(values, value[f])
		}
		s := table.Sets[set]
		if s == nil {
			t.Fatalf("no set %s", set)
		}
		if s.Ranges {
			v := nft.Pack(values...)
			for k := range s.Elems {
				if half := len(k) / 2; v >= k[:half] && v <= k[half:] {
					return "", true
				}
			}
			return "", false
		}
		v, there := s.Elems[nft.Pack(values...)]
		if isMap {
			return v, false
		}
		return "", there
	}
	if proto, ok := strings.CutPrefix(text, "ct protocol "); ok {
		return "", proto == nft.ProtoName(c.proto)
	}
	switch {
	case text == "ct state invalid,related,untracked":
		return "", false // the model's packets belong to connections
	case text == "meta nfproto ipv6":
		return "", c.client.Is6()
	case text == "return", text == "accept", text == "drop", strings.HasPrefix(text, "goto "):
		return text, false
	}
	t.Fatalf("unknown statement %q", text)
	return "", false
}

// allowed is the API's documentation, read naively.
func allowed(c cluster, conn connection) bool {
	if conn.client == conn.server {
		return true
	}
	podAt := func(a netip.Addr) *corev1.Pod {
		for _, p := range c.pods {
			if !p.Spec.HostNetwork && !api.PodTerminal(p) && slices.Contains(p.Status.PodIPs, corev1.PodIP{IP: a.String()}) {
				return p
			}
		}
		return nil
	}
	client, server := podAt(conn.client), podAt(conn.server)
	dns := slices.Contains(c.config.DNS, conn.server) && conn.port == 53 && conn.proto != nft.SCTP
	ok := true
	here := func(a netip.Addr) bool { return nodeRange.Contains(a) || nodeRange6.Contains(a) }
	if client != nil && here(conn.client) && !dns {
		ok = ok && allows(c, networkingv1.PolicyTypeEgress, client, conn.server, server, server, conn)
	}
	if server != nil && here(conn.server) {
		ok = ok && allows(c, networkingv1.PolicyTypeIngress, server, conn.client, client, server, conn)
	}
	return ok
}

// allows says whether the policies let a pod speak with a peer, which is a pod or not. Named is whose ports' names count.
func allows(c cluster, t networkingv1.PolicyType, p *corev1.Pod, peer netip.Addr, peerPod, named *corev1.Pod, conn connection) bool {
	isolated := false
	for _, np := range c.policies {
		if np.Namespace != p.Namespace || !matches(&np.Spec.PodSelector, p.Labels) || !slices.Contains(np.Spec.PolicyTypes, t) {
			continue
		}
		isolated = true
		if t == networkingv1.PolicyTypeIngress {
			for _, r := range np.Spec.Ingress {
				if peerMatches(c, np.Namespace, r.From, peer, peerPod) && portMatches(r.Ports, named, conn) {
					return true
				}
			}
			continue
		}
		for _, r := range np.Spec.Egress {
			if peerMatches(c, np.Namespace, r.To, peer, peerPod) && portMatches(r.Ports, named, conn) {
				return true
			}
		}
	}
	return !isolated
}

func matches(s *metav1.LabelSelector, l map[string]string) bool {
	sel, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && sel.Matches(labels.Set(l))
}

func peerMatches(c cluster, namespace string, peers []networkingv1.NetworkPolicyPeer, a netip.Addr, p *corev1.Pod) bool {
	if len(peers) == 0 {
		return true
	}
	for _, peer := range peers {
		if b := peer.IPBlock; b != nil {
			if netip.MustParsePrefix(b.CIDR).Contains(a) && !slices.ContainsFunc(b.Except, func(e string) bool { return netip.MustParsePrefix(e).Contains(a) }) {
				return true
			}
			continue
		}
		if p == nil || peer.PodSelector != nil && !matches(peer.PodSelector, p.Labels) {
			continue
		}
		if peer.NamespaceSelector == nil {
			if p.Namespace == namespace {
				return true
			}
			continue
		}
		for _, n := range c.namespaces {
			if n.Name == p.Namespace && matches(peer.NamespaceSelector, n.Labels) {
				return true
			}
		}
	}
	return false
}

func portMatches(ports []networkingv1.NetworkPolicyPort, named *corev1.Pod, conn connection) bool {
	if len(ports) == 0 {
		return true
	}
	for _, p := range ports {
		proto := map[corev1.Protocol]uint8{corev1.ProtocolTCP: nft.TCP, corev1.ProtocolUDP: nft.UDP, corev1.ProtocolSCTP: nft.SCTP}
		if proto[*p.Protocol] != conn.proto {
			continue
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.String:
			if named == nil {
				continue
			}
			for _, cp := range named.Spec.Containers[0].Ports {
				if cp.Name == p.Port.StrVal && proto[cp.Protocol] == conn.proto && cp.ContainerPort == int32(conn.port) {
					return true
				}
			}
		case p.EndPort != nil:
			if int32(conn.port) >= p.Port.IntVal && int32(conn.port) <= *p.EndPort {
				return true
			}
		case p.Port.IntVal == int32(conn.port):
			return true
		}
	}
	return false
}

// dice makes small clusters in which much coincides.
type dice struct {
	*rand.Rand
	dual bool // of two families
}

func one[T any](d dice, of ...T) T { return of[d.IntN(len(of))] }

func (d dice) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	for _, k := range []string{"x", "y"} {
		switch d.IntN(6) {
		case 0, 1:
			s.MatchLabels = map[string]string{k: one(d, "1", "2")}
		case 2:
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: k,
				Operator: one(d, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpIn), Values: []string{one(d, "1", "2"), one(d, "1", "3")}})
		case 3:
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: k,
				Operator: one(d, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)})
		}
	}
	return s
}

func (d dice) labels() map[string]string {
	l := map[string]string{}
	for _, k := range []string{"x", "y"} {
		if d.IntN(3) > 0 {
			l[k] = one(d, "1", "2")
		}
	}
	return l
}

func (d dice) namespace(name string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: d.labels()}}
}

func (d dice) protocol() corev1.Protocol {
	return one(d, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
}

// pod has an address of its own: odd ones are on this node.
func (d dice) pod(i int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: one(d, "a", "b", "c"), Name: fmt.Sprintf("p%d", i), Labels: d.labels()}}
	c := corev1.Container{Name: "c"}
	for _, name := range []string{"http", "alt"} {
		if d.IntN(2) == 0 {
			c.Ports = append(c.Ports, corev1.ContainerPort{Name: name, Protocol: d.protocol(), ContainerPort: one(d, int32(80), 81, 90)})
		}
	}
	p.Spec.Containers = []corev1.Container{c}
	on := i%2 + (1-i%2)*2
	p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.42.%d.%d", on, i+2)}}
	if d.dual {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: fmt.Sprintf("fd42:0:0:%d::%x", on, i+2)})
		if i%3 == 0 {
			slices.Reverse(p.Status.PodIPs)
		}
		if i == 2 {
			p.Status.PodIPs = p.Status.PodIPs[:1] // elsewhere, of one family
		}
	}
	if i%2 == 0 {
		switch d.IntN(5) {
		case 0:
			p.Spec.HostNetwork = true
		case 1:
			p.Status.Phase = corev1.PodSucceeded
		}
	}
	return p
}

func (d dice) peers() (ps []networkingv1.NetworkPolicyPeer) {
	for range d.IntN(3) {
		switch d.IntN(4) {
		case 0:
			ps = append(ps, networkingv1.NetworkPolicyPeer{PodSelector: d.selector()})
		case 1:
			ps = append(ps, networkingv1.NetworkPolicyPeer{NamespaceSelector: d.selector()})
		case 2:
			ps = append(ps, networkingv1.NetworkPolicyPeer{NamespaceSelector: d.selector(), PodSelector: d.selector()})
		default:
			b := &networkingv1.IPBlock{CIDR: one(d, "10.42.0.0/16", "10.42.1.0/29", "0.0.0.0/0", "192.0.2.0/24")}
			if d.dual && d.IntN(2) == 0 {
				b.CIDR = one(d, "fd42::/56", "fd42:0:0:1::/125", "::/0", "2001:db8::/64")
			}
			if d.IntN(2) == 0 {
				b.Except = map[string][]string{"10.42.0.0/16": {"10.42.2.0/24", "10.42.1.4/30"}, "10.42.1.0/29": {"10.42.1.3/32"},
					"0.0.0.0/0": {"10.42.0.0/16"}, "192.0.2.0/24": {"192.0.2.128/25"},
					"fd42::/56": {"fd42:0:0:2::/64", "fd42:0:0:1::4/126"}, "fd42:0:0:1::/125": {"fd42:0:0:1::3/128"},
					"::/0": {"fd42::/56"}, "2001:db8::/64": {"2001:db8::8000:0:0:0/65"}}[b.CIDR]
			}
			ps = append(ps, networkingv1.NetworkPolicyPeer{IPBlock: b})
		}
	}
	return ps
}

func (d dice) ports() (ps []networkingv1.NetworkPolicyPort) {
	for range d.IntN(3) {
		proto := d.protocol()
		p := networkingv1.NetworkPolicyPort{Protocol: &proto}
		switch d.IntN(4) {
		case 0:
			p.Port = new(intstr.FromInt32(one(d, int32(80), 81)))
		case 1:
			p.Port, p.EndPort = new(intstr.FromInt32(80)), new(one(d, int32(80), 85))
		case 2:
			p.Port = new(intstr.FromString(one(d, "http", "alt")))
		}
		ps = append(ps, p)
	}
	return ps
}

func (d dice) policy(name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: one(d, "a", "b", "c"), Name: name}}
	p.Spec.PodSelector = *d.selector()
	for _, t := range []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress} {
		if d.IntN(3) > 0 || len(p.Spec.PolicyTypes) == 0 && t == networkingv1.PolicyTypeEgress {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, t)
		}
	}
	for range d.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(), Ports: d.ports()})
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(), Ports: d.ports()})
	}
	return p
}

func (d dice) cluster() (c cluster) {
	if c.config = testConfig(); d.dual {
		c.config = dualConfig()
	}
	for _, n := range []string{"a", "b", "c"} {
		c.namespaces = append(c.namespaces, d.namespace(n))
	}
	for i := range 8 {
		c.pods = append(c.pods, d.pod(i))
	}
	for i := range d.IntN(5) {
		c.policies = append(c.policies, d.policy(fmt.Sprintf("np%d", i)))
	}
	return c
}

// connections are all that are worth a look.
func connections(c cluster, f func(connection)) {
	addrs := append([]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("2001:db8::1"),
		netip.MustParseAddr("2001:db8::8000:0:0:1")}, c.config.DNS...)
	for _, p := range c.pods {
		for _, ip := range p.Status.PodIPs {
			addrs = append(addrs, netip.MustParseAddr(ip.IP))
		}
	}
	for _, client := range addrs {
		for _, server := range addrs {
			if client.Is4() != server.Is4() {
				continue
			}
			for _, proto := range []uint8{nft.TCP, nft.UDP, nft.SCTP} {
				for _, port := range []uint16{53, 80, 81, 90} {
					f(connection{client, server, proto, port})
				}
			}
		}
	}
}

// check compares the table's verdicts with the documentation's.
func check(t *testing.T, what string, c cluster, table *nft.Table) {
	t.Helper()
	connections(c, func(conn connection) {
		if got, want := verdict(t, table, conn), allowed(c, conn); got != want {
			t.Fatalf("%s: %s: allowed: %v, want %v\n%s", what, conn, got, want, describe(c, table))
		}
	})
}

func describe(c cluster, table *nft.Table) string {
	var b strings.Builder
	for _, n := range c.namespaces {
		fmt.Fprintf(&b, "namespace %s %v\n", n.Name, n.Labels)
	}
	for _, p := range c.pods {
		fmt.Fprintf(&b, "pod %s/%s %v %v %v\n", p.Namespace, p.Name, p.Labels, p.Status.PodIPs, p.Spec.Containers[0].Ports)
	}
	for _, p := range c.policies {
		fmt.Fprintf(&b, "policy %s/%s %v\n", p.Namespace, p.Name, p.Spec.String())
	}
	return b.String() + readable(table)
}

// TestAgainstDocumentation compares the tables of generated clusters with the naive reading, connection by connection.
func TestAgainstDocumentation(t *testing.T) {
	t.Parallel()
	n := uint64(200)
	if testing.Short() {
		n = 30
	}
	denied, all := 0, 0
	for seed := range n {
		c := dice{rand.New(rand.NewPCG(seed, 1)), seed%2 == 1}.cluster()
		check(t, fmt.Sprint("seed ", seed), c, stateOf(c).wanted())
		connections(c, func(conn connection) {
			if all++; !allowed(c, conn) {
				denied++
			}
		})
	}
	if denied < all/20 || denied > all*9/10 {
		t.Errorf("of %d connections %d are denied: the clusters are too simple", all, denied)
	}
}

// TestChanges takes clusters through changes: what the transactions make is what would be made from nothing, and they name what was there.
func TestChanges(t *testing.T) {
	t.Parallel()
	n := uint64(60)
	if testing.Short() {
		n = 10
	}
	for seed := range n {
		d := dice{rand.New(rand.NewPCG(seed, 2)), seed%2 == 1}
		c := d.cluster()
		s := stateOf(c)
		for step := range 60 {
			var what string
			for range 1 + d.IntN(3) {
				what += d.change(&c, s, func() { s.update() })
			}
			s.update()
			if diff := cmp.Diff(printed(stateOf(c)), printed(s)); diff != "" {
				t.Fatalf("seed %d, step %d, %s:\n%s", seed, step, what, diff)
			}
			if leaks := leaks(s); leaks != "" {
				t.Fatalf("seed %d, step %d: %s", seed, step, leaks)
			}
		}
		check(t, fmt.Sprint("seed ", seed), c, s.wanted())
	}
}

func printed(s *state) string {
	if t := s.wanted(); t != nil {
		return t.String()
	}
	return ""
}

// leaks are what a state keeps that nobody needs.
func leaks(s *state) string {
	names, shares := map[string]bool{}, map[string]map[string]bool{}
	for _, r := range s.rights {
		for _, c := range r {
			if c == nil || len(c.rules) == 0 {
				continue
			}
			names[c.chain] = true
			for name := range c.sets() {
				names[name] = true
				put(shares, api.Key{Namespace: c.namespace, Name: name}, true)
			}
		}
	}
	base := skeleton(s.c)
	for name := range s.table.Sets {
		if base.Sets[name] == nil && !names[name] {
			return "set " + name
		}
	}
	for name := range s.table.Chains {
		if base.Chains[name] == nil && !names[name] {
			return "chain " + name
		}
	}
	for name := range s.groups {
		if !names[name] {
			return "group " + name
		}
	}
	if len(s.users) != len(names) {
		return fmt.Sprintf("%d names are counted, %d are used", len(s.users), len(names))
	}
	if !maps.EqualFunc(shares, s.share, func(a map[string]bool, b map[string]int) bool { return len(a) == len(b) }) {
		return fmt.Sprintf("shares are counted as %v, not %v", s.share, shares)
	}
	return ""
}

// change makes one change of the cluster and tells the state. In between it may want an update.
func (d dice) change(c *cluster, s *state, update func()) string {
	switch d.IntN(6) {
	case 0:
		i := d.IntN(len(c.namespaces))
		n := d.namespace(c.namespaces[i].Name)
		c.namespaces[i] = n
		s.setNamespace(n.Name, n.Labels)
		return fmt.Sprintf("namespace %s %v; ", n.Name, n.Labels)
	case 1:
		np := d.policy(fmt.Sprintf("np%d", d.IntN(6)))
		c.policies = slices.DeleteFunc(c.policies, func(o *networkingv1.NetworkPolicy) bool { return api.KeyOf(o) == api.KeyOf(np) })
		c.policies = append(c.policies, np)
		s.setPolicy(api.KeyOf(np), np)
		return "policy " + np.Name + "; "
	case 2:
		if len(c.policies) == 0 {
			return ""
		}
		i := d.IntN(len(c.policies))
		s.setPolicy(api.KeyOf(c.policies[i]), nil)
		c.policies = slices.Delete(c.policies, i, i+1)
		return "no policy; "
	case 3: // gone, and another with its address
		i := d.IntN(len(c.pods))
		old := c.pods[i]
		if a := attachment(old); a != nil {
			s.detach(a.Sandbox)
		}
		s.setPod(api.KeyOf(old), nil)
		c.pods[i] = d.pod(i)
		s.setPod(api.KeyOf(c.pods[i]), parsePod(c.pods[i]))
		if a := attachment(c.pods[i]); a != nil {
			s.attach(a)
		}
		return "pod " + old.Name + " anew; "
	case 4: // the other order of events: attached before it is known
		i := d.IntN(len(c.pods))
		old := c.pods[i]
		c.pods[i] = d.pod(i)
		if a := attachment(old); a != nil {
			s.attach(attachment(c.pods[i]))
			if api.KeyOf(old) != api.KeyOf(c.pods[i]) {
				update()
			}
		}
		s.setPod(api.KeyOf(old), nil)
		s.setPod(api.KeyOf(c.pods[i]), parsePod(c.pods[i]))
		return "pod " + old.Name + " overtaken; "
	}
	i := d.IntN(len(c.pods))
	p := c.pods[i].DeepCopy()
	p.Labels = d.labels()
	c.pods[i] = p
	s.setPod(api.KeyOf(p), parsePod(p))
	return "labels of " + p.Name + "; "
}
