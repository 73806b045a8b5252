package netpol

import (
	"net/netip"
	"slices"

	"github.com/yare-dev/yare/linux/nft"
)

// ways6 are those of IPv6, if pods have it.
func (c Config) ways6() []way {
	if slices.ContainsFunc(slices.Concat(c.Ranges, c.Cluster), func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		return waysOf(nft.IP6)
	}
	return nil
}

// skeleton returns the table of a node without isolated pods, which the kernel never has.
func skeleton(c Config) *nft.Table {
	t := nft.NewTable(c.Table)
	addSkeleton(t, c, nft.IP4)
	to6 := nft.Accept() // nobody's here
	if len(c.ways6()) > 0 {
		addSkeleton(t, c, nft.IP6)
		t.Chains["forward6"] = &nft.Chain{Rules: judge(nft.IP6)}
		to6 = nft.Goto("forward6")
	}
	t.Chains["forward"] = &nft.Chain{Hook: &nft.Hook{Type: "filter", Point: nft.Forward, Priority: 0},
		Rules: append([]nft.Rule{{nft.IP6.Is(), to6}}, judge(nft.IP4)...)}
	return t
}

// judge is what every packet of a family goes through.
func judge(f nft.Family) []nft.Rule {
	n := six(f)
	return []nft.Rule{
		{nft.Stray(), nft.Jump("stray" + n)},
		{nft.VMap("egress"+n, f.CtClient())},
		{nft.VMap("ingress"+n, f.CtServer())},
	}
}

// addSkeleton adds what there is for a family.
func addSkeleton(t *nft.Table, c Config, f nft.Family) {
	n := six(f)
	set := func(name string, verdicts bool, key ...nft.Type) map[string]string {
		elems := map[string]string{}
		t.Sets[name+n] = &nft.Set{Key: key, Verdicts: verdicts, Elems: elems}
		return elems
	}
	set("egress", true, f.Addr)
	set("ingress", true, f.Addr)
	set("isolated", false, f.Addr)
	set("self", false, f.Addr, f.Addr)
	names := set("names", false, f.Addr, nft.Proto, nft.Service)
	for _, a := range c.DNS {
		if nft.FamilyOf(a).Name == f.Name {
			names[nft.Pack(a, nft.UDP, uint16(53))], names[nft.Pack(a, nft.TCP, uint16(53))] = "", ""
		}
	}
	all := &nft.Set{Key: []nft.Type{f.Addr}, Ranges: true, Elems: map[string]string{}}
	t.Sets["cluster"+n] = all
	var cluster []nft.Range
	for _, p := range c.Cluster {
		if nft.FamilyOf(p.Addr()).Name == f.Name {
			cluster = append(cluster, nft.RangeOf(p))
		}
	}
	for _, r := range nft.Merge(cluster) {
		all.Elems[nft.Pack(r.First, r.Last)] = ""
	}
	stray := func(end nft.Field) []nft.Rule {
		return []nft.Rule{
			{nft.In("self"+n, end, f.CtClient()), nft.Return()},
			{nft.In("self"+n, end, f.CtServer()), nft.Return()},
			{nft.In("isolated"+n, end), nft.Drop()},
		}
	}
	from, refusal := "stray"+n+"-from", refused(waysOf(f)[ingress])
	t.Chains["stray"+n] = &nft.Chain{Rules: append([]nft.Rule{{nft.Jump(from)}}, stray(f.Daddr())...)}
	t.Chains[from] = &nft.Chain{Rules: stray(f.Saddr())}
	t.Chains[refused(waysOf(f)[egress])] = &nft.Chain{Rules: []nft.Rule{
		{nft.In("cluster"+n, f.CtServer()), nft.Goto(refusal)},
		{nft.In("names"+n, f.CtTarget(), nft.CtProto(), nft.CtTargetPort()), nft.Return()},
		{nft.Goto(refusal)},
	}}
	t.Chains[refusal] = &nft.Chain{Rules: []nft.Rule{
		{nft.In("self"+n, f.CtClient(), f.CtServer()), nft.Accept()},
		{nft.Drop()},
	}}
}
