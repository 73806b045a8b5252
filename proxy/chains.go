package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"github.com/yare-dev/yare/linux/nft"
)

// list is a list of endpoints that a chain picks from.
type list struct {
	vip      []nft.Field // what the endpoints' keys begin with
	slot     uint32      // first slot
	n        int
	nodePort bool
	chain    string // instead of all that: the chain that picks
}

// last returns the rule that picks from the list.
func (w writer) last(l list) nft.Rule {
	switch {
	case l.n == 0:
		return nft.Rule{nft.Drop()}
	case l.chain != "":
		return nft.Rule{nft.Goto(l.chain)}
	}
	return nft.Rule{w.fam.DNATMap("endpoints-"+w.fam.Name, append(l.vip[:len(l.vip):len(l.vip)], nft.Random(uint32(l.n), l.slot))...)}
}

// named gives an entry chain its name: by the number of endpoints when it is shared.
func (w writer) named(kind string, ls ...list) string {
	if ls[0].nodePort {
		kind = "nodeport-" + kind
	}
	name := kind + "-" + w.fam.Name
	for _, l := range ls {
		if l.chain != "" {
			return kind + "-" + w.name()
		}
		name += fmt.Sprintf("-%d", l.n)
	}
	return name
}

// entryCluster is the chain for cluster IPs: what does not come from a pod is
// masqueraded, so that the answer comes back this way.
func (w writer) entryCluster(l list) string {
	name := w.named("cluster", l)
	var rules []nft.Rule
	if outside := w.notFromPods(); outside != nil {
		rules = append(rules, append(outside, nft.SetMark(w.f.Mark)))
	}
	w.t.Chains[name] = &nft.Chain{Rules: append(rules, w.last(l))}
	return name
}

// entryExternal is the chain for traffic from outside that may go to any node.
func (w writer) entryExternal(l list) string {
	name := w.named("external", l)
	w.t.Chains[name] = &nft.Chain{Rules: []nft.Rule{{nft.SetMark(w.f.Mark)}, w.last(l)}}
	return name
}

// entryLocal is the chain for externalTrafficPolicy Local: the client's address
// is kept, so only this node's endpoints will do. Pods and the host itself are not
// outside, and may reach every endpoint.
func (w writer) entryLocal(cluster, local list) string {
	name := w.named("local", cluster, local)
	c := &nft.Chain{}
	if cluster.n > 0 {
		for _, p := range w.podCIDRs() {
			c.Rules = append(c.Rules, nft.Rule{nft.From(p), nft.Goto(w.entryPlain(cluster))})
		}
		c.Rules = append(c.Rules, nft.Rule{nft.FromLocal(), nft.Goto(w.entryExternal(cluster))})
	}
	c.Rules = append(c.Rules, w.last(local))
	w.t.Chains[name] = c
	return name
}

// entryPlain picks without masquerading.
func (w writer) entryPlain(l list) string {
	if l.chain != "" {
		return l.chain
	}
	name := w.named("plain", l)
	w.t.Chains[name] = &nft.Chain{Rules: []nft.Rule{w.last(l)}}
	return name
}

// sources are those of the writer's family that may connect to a load balancer's address; none means all, also where only the other family
// has ranges. Where the node may, the address itself may: the host has it as its own, and what the host sends there comes from there.
func (w writer) sources(vip netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	node := false
	for _, s := range w.svc.Spec.LoadBalancerSourceRanges {
		_, n, err := netutils.ParseCIDRSloppy(strings.TrimSpace(s)) // as validation takes it
		if err != nil {
			continue
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		ones, _ := n.Mask.Size()
		p := netip.PrefixFrom(ip, ones)
		if nft.FamilyOf(ip).Name != w.fam.Name {
			continue
		}
		out = append(out, p)
		node = node || slices.ContainsFunc(w.f.NodeIPs, p.Contains)
	}
	if node {
		out = append(out, netip.PrefixFrom(vip, vip.BitLen()))
	}
	return out
}

// entryRanges lets only the given sources through to entry.
func (w writer) entryRanges(ip netip.Addr, entry string, ranges []netip.Prefix) string {
	name := "ranges-" + w.name() + "-" + fmt.Sprintf("%x", ip.AsSlice())
	c := &nft.Chain{}
	for _, p := range ranges {
		c.Rules = append(c.Rules, nft.Rule{nft.From(p), nft.Goto(entry)})
	}
	c.Rules = append(c.Rules, nft.Rule{nft.Drop()})
	w.t.Chains[name] = c
	return name
}

func (w writer) podCIDRs() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range w.f.PodCIDRs {
		if nft.FamilyOf(p.Addr()).Name == w.fam.Name {
			out = append(out, p)
		}
	}
	return out
}

func (w writer) notFromPods() nft.Rule {
	var r nft.Rule
	for _, p := range w.podCIDRs() {
		r = append(r, nft.NotFrom(p))
	}
	return r
}

// stickyList makes the chain that leads a client to the endpoint that it had, if
// that is still in the list, and otherwise picks one. The key of a client is the cluster IP, protocol
// and port with its address, so that all addresses of a Service share what is remembered.
func (w writer) stickyList(clusterIP netip.Addr, kind string, slot uint32, es []endpoint) list {
	if len(es) == 0 {
		return list{}
	}
	port := uint16(w.port.Port)
	alive := w.set("sticky-" + kind)
	for _, e := range es {
		alive[nft.Pack(clusterIP, w.proto, port, e.to.Addr(), e.to.Port())] = ""
	}
	timeout := time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
	if c := w.svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		timeout = time.Duration(*c.ClientIP.TimeoutSeconds) * time.Second
	}
	vip := []nft.Field{nft.Const(w.fam.Addr, clusterIP), nft.Const(nft.Proto, w.proto), nft.Const(nft.Service, port)}
	affinity, sticky, endpoints := "affinity-"+w.fam.Name, "sticky-"+kind+"-"+w.fam.Name, "endpoints-"+w.fam.Name
	n := uint32(len(es))

	// Registers: vip, then the slot or the client, then the endpoint; the endpoint comes
	// right after vip to see whether it is in the list, and after the client to remember it.
	key, _, afterVIP := nft.Load(nft.FirstReg, vip...)
	client, _, afterClient := nft.Load(afterVIP, w.fam.Saddr())
	random, _, _ := nft.Load(afterVIP, nft.Random(n, slot))
	find := func(set string, dst uint32) expr.Any {
		return &expr.Lookup{SourceRegister: nft.FirstReg, SetName: set, DestRegister: dst, IsDestRegSet: true}
	}
	join := func(parts ...[]expr.Any) []expr.Any {
		var out []expr.Any
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	text := fmt.Sprintf("%s . %s . %d", clusterIP, nft.ProtoName(w.proto), port)
	recall := nft.Stmt{
		Text: fmt.Sprintf("recall %s . %s saddr map @%s in @%s refresh %s dnat", text, w.fam.Name, affinity, sticky, timeout),
		Exprs: join(key, client, []expr.Any{find(affinity, afterVIP), &expr.Lookup{SourceRegister: nft.FirstReg, SetName: sticky}},
			client, []expr.Any{find(affinity, afterClient), nft.Remember(affinity, nft.FirstReg, afterClient, timeout), w.fam.DNAT(afterClient)}),
	}
	pick := join(key, random, []expr.Any{find(endpoints, afterClient)})
	remember := nft.Stmt{
		Text:  fmt.Sprintf("pick %s . numgen random mod %d offset %d map @%s remember @%s %s dnat", text, n, slot, endpoints, affinity, timeout),
		Exprs: join(pick, client, []expr.Any{nft.Forget(affinity, nft.FirstReg, afterClient), nft.Remember(affinity, nft.FirstReg, afterClient, timeout), w.fam.DNAT(afterClient)}),
	}
	chain := "sticky-" + w.name() + "-" + kind
	w.t.Chains[chain] = &nft.Chain{Rules: []nft.Rule{
		{recall}, {remember}, {w.fam.DNATMap(endpoints, append(vip, nft.Random(n, slot))...)},
	}}
	return list{n: len(es), chain: chain}
}
