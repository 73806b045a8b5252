package proxy

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/yare-dev/yare/linux/nft"
)

// Facts are what the ruleset depends on besides Services.
type Facts struct {
	Table    string // nftables table
	NodeName string
	Zone     string // of this node; empty if unknown
	// NodeIPs are this node's addresses.
	NodeIPs []netip.Addr
	// PodCIDRs are all pods' addresses. Connections to cluster IPs from elsewhere are
	// masqueraded. Empty: none are.
	PodCIDRs []netip.Prefix
	// NodePortAddresses restricts node ports to the host's addresses in these
	// prefixes. Empty means all but the loopback's.
	NodePortAddresses []netip.Prefix
	// Mark is the packet mark bit for masquerading.
	Mark uint32
}

// Priorities of the chains: node ports come after host ports, and refusal before both.
const (
	dstnat = -100
	srcnat = 100
	refuse = -110
	unmet  = -90 // after dstnat: what still goes to a cluster IP goes to no port of its Service
)

// localSlots is the first slot of the list of a node's own endpoints.
const localSlots = 1 << 16

// affinitySize bounds the remembered clients of a node. When it is reached,
// new clients are balanced without being remembered.
const affinitySize = 1 << 18

// families returns the families of the table.
func families() []nft.Family { return []nft.Family{nft.IP4, nft.IP6} }

// sets adds the empty sets and maps of the table to t.
func sets(t *nft.Table) {
	for _, fam := range families() {
		vip := []nft.Type{fam.Addr, nft.Proto, nft.Service}
		to := []nft.Type{fam.Addr, nft.Service}
		add := func(name string, s nft.Set) {
			s.Elems = map[string]string{}
			t.Sets[name+"-"+fam.Name] = &s
		}
		add("services", nft.Set{Key: vip, Verdicts: true})
		add("nodeports", nft.Set{Key: vip[1:], Verdicts: true})
		add("cluster-ips", nft.Set{Key: []nft.Type{fam.Addr}})
		add("unreachable", nft.Set{Key: vip, Verdicts: true})
		add("unreachable-nodeports", nft.Set{Key: vip[1:], Verdicts: true})
		add("endpoints", nft.Set{Key: append(slices.Clone(vip), nft.Number), Data: to})
		add("hairpins", nft.Set{Key: []nft.Type{fam.Addr, fam.Addr}})
		add("affinity", nft.Set{Key: append(slices.Clone(vip), fam.Addr), Data: to, Dynamic: true,
			Timeout: time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second, Size: affinitySize})
		for _, kind := range []string{"internal", "cluster", "local"} {
			add("sticky-"+kind, nft.Set{Key: append(slices.Clone(vip), to...)})
		}
	}
}

// skeleton returns the table of a cluster without Services.
func skeleton(f Facts) *nft.Table {
	t := nft.NewTable(f.Table)
	sets(t)
	base := func(name, typ string, at nft.Point, priority int32) *nft.Chain {
		c := &nft.Chain{Hook: &nft.Hook{Type: typ, Point: at, Priority: priority}}
		t.Chains[name] = c
		return c
	}
	dispatch := []*nft.Chain{base("prerouting", "nat", nft.Prerouting, dstnat), base("output", "nat", nft.Output, dstnat)}
	deny := []*nft.Chain{base("refuse-prerouting", "filter", nft.Prerouting, refuse), base("refuse-output", "filter", nft.Output, refuse)}
	stray := []*nft.Chain{base("stray-prerouting", "filter", nft.Prerouting, unmet), base("stray-output", "filter", nft.Output, unmet)}
	post := base("postrouting", "nat", nft.Postrouting, srcnat)
	post.Rules = append(post.Rules, nft.Rule{nft.HasMark(f.Mark), nft.ClearMark(f.Mark), nft.Masquerade()})
	t.Chains["reject"] = &nft.Chain{Rules: []nft.Rule{{nft.Proto4(nft.TCP), nft.RejectTCP()}, {nft.Reject()}}}
	for _, fam := range families() {
		vip := []nft.Field{fam.Daddr(), nft.L4Proto(), nft.Dport()}
		nodeport := nodePortMatches(f, fam)
		for _, c := range deny {
			c.Rules = append(c.Rules, nft.Rule{fam.Is(), nft.New(), nft.VMap("unreachable-"+fam.Name, vip...)})
			for _, m := range nodeport {
				c.Rules = append(c.Rules, append(append(nft.Rule{fam.Is(), nft.New()}, m...), nft.VMap("unreachable-nodeports-"+fam.Name, vip[1:]...)))
			}
		}
		for _, c := range stray {
			c.Rules = append(c.Rules, nft.Rule{fam.Is(), nft.New(), nft.In("cluster-ips-"+fam.Name, fam.Daddr()), nft.Goto("reject")})
		}
		for _, c := range dispatch {
			c.Rules = append(c.Rules, nft.Rule{fam.Is(), nft.VMap("services-"+fam.Name, vip...)})
			for _, m := range nodeport {
				c.Rules = append(c.Rules, append(append(nft.Rule{fam.Is()}, m...), nft.VMap("nodeports-"+fam.Name, vip[1:]...)))
			}
		}
		post.Rules = append(post.Rules, nft.Rule{fam.Is(), nft.In("hairpins-"+fam.Name, fam.Saddr(), fam.Daddr()), nft.Masquerade()})
	}
	return t
}

// nodePortMatches returns alternatives for "the destination takes node ports".
func nodePortMatches(f Facts, fam nft.Family) [][]nft.Stmt {
	if len(f.NodePortAddresses) == 0 {
		loopback := netip.MustParsePrefix("127.0.0.0/8")
		if fam.Name == nft.IP6.Name {
			loopback = netip.MustParsePrefix("::1/128")
		}
		return [][]nft.Stmt{{nft.NotTo(loopback), nft.ToLocal()}}
	}
	var out [][]nft.Stmt
	for _, p := range f.NodePortAddresses {
		if nft.FamilyOf(p.Addr()).Name == fam.Name {
			out = append(out, []nft.Stmt{nft.To(p), nft.ToLocal()})
		}
	}
	return out
}

// takesNodePorts says the same of an address of the host.
func takesNodePorts(f Facts, a netip.Addr) bool {
	if len(f.NodePortAddresses) == 0 {
		return !a.IsLoopback()
	}
	return slices.ContainsFunc(f.NodePortAddresses, func(p netip.Prefix) bool { return p.Contains(a) })
}

// writer writes the part of one Service port in one family.
type writer struct {
	f         Facts
	t         *nft.Table
	fam       nft.Family
	svc       *corev1.Service
	clusterIP netip.Addr
	proto     uint8
	port      *corev1.ServicePort
	choice
}

// writers yields a writer for each port and family of a Service, without table and endpoints yet; none for one that has no cluster IP.
func writers(f Facts, svc *corev1.Service) iter.Seq[writer] {
	return func(yield func(writer) bool) {
		if svc.Spec.Type == corev1.ServiceTypeExternalName || svc.Spec.ClusterIP == corev1.ClusterIPNone || svc.Spec.ClusterIP == "" {
			return
		}
		clusterIPs := svc.Spec.ClusterIPs
		if len(clusterIPs) == 0 {
			clusterIPs = []string{svc.Spec.ClusterIP}
		}
		for _, text := range clusterIPs {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				continue
			}
			for i := range svc.Spec.Ports {
				w := writer{f: f, fam: nft.FamilyOf(ip), svc: svc, clusterIP: ip, port: &svc.Spec.Ports[i]}
				switch protocol(w.port) {
				case corev1.ProtocolUDP:
					w.proto = nft.UDP
				case corev1.ProtocolSCTP:
					w.proto = nft.SCTP
				default:
					w.proto = nft.TCP
				}
				if !yield(w) {
					return
				}
			}
		}
	}
}

// part returns what one Service has in the table: its elements, in sets without
// definitions, and the chains that it refers to.
func part(f Facts, svc *corev1.Service, slices_ []*discoveryv1.EndpointSlice) *nft.Table {
	t := nft.NewTable(f.Table)
	for w := range writers(f, svc) {
		w.t, w.choice = t, choose(f, endpointsOf(f, w.fam, w.port, slices_))
		w.write()
	}
	return t
}

// write writes everything of one Service port.
func (w writer) write() {
	for _, e := range append(slices.Clone(w.cluster), w.local...) {
		if e.local {
			w.set("hairpins")[nft.Pack(e.to.Addr(), e.to.Addr())] = ""
		}
	}
	w.internal(w.clusterIP)
	if n := w.nodePort(); n != 0 {
		w.external(w.clusterIP, netip.Addr{}, n, nil)
	}
	port := uint16(w.port.Port)
	for _, ip := range w.addresses(w.svc.Spec.ExternalIPs) {
		w.external(w.clusterIP, ip, port, nil)
	}
	for _, ip := range w.balancers() {
		w.external(w.clusterIP, ip, port, w.sources(ip))
	}
}

// nodePort is 0 where there is none.
func (w writer) nodePort() uint16 {
	if w.svc.Spec.Type == corev1.ServiceTypeNodePort || w.svc.Spec.Type == corev1.ServiceTypeLoadBalancer {
		return uint16(w.port.NodePort)
	}
	return 0
}

// balancers are the load balancer's addresses of the writer's family that are served here.
func (w writer) balancers() []netip.Addr {
	if w.svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var vips []string
	for _, in := range w.svc.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			vips = append(vips, in.IP)
		}
	}
	return w.addresses(vips)
}

// addresses returns those of the writer's family.
func (w writer) addresses(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		if ip, err := netip.ParseAddr(s); err == nil && nft.FamilyOf(ip).Name == w.fam.Name {
			out = append(out, ip)
		}
	}
	return out
}

func (w writer) set(name string) map[string]string {
	name += "-" + w.fam.Name
	s := w.t.Sets[name]
	if s == nil {
		s = &nft.Set{Elems: map[string]string{}}
		w.t.Sets[name] = s
	}
	return s.Elems
}

// internal writes the cluster IP.
func (w writer) internal(ip netip.Addr) {
	w.set("cluster-ips")[nft.Pack(ip)] = ""
	es := w.cluster
	if p := w.svc.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		if es = w.local; len(es) == 0 && len(w.cluster) > 0 {
			w.set("unreachable")[nft.Pack(ip, w.proto, uint16(w.port.Port))] = "drop"
			return
		}
	}
	key := nft.Pack(ip, w.proto, uint16(w.port.Port))
	if len(es) == 0 {
		w.set("unreachable")[key] = "goto reject"
		return
	}
	l := list{vip: w.vipFields(), n: len(es)}
	if w.sticky() {
		l = w.stickyList(ip, "internal", 0, es)
	}
	w.fill(key, 0, es)
	w.set("services")[key] = "goto " + w.entryCluster(l)
}

// external writes an address of the outside world, or a node port when ip is not
// valid. Only ranges, if any, may connect.
func (w writer) external(clusterIP, ip netip.Addr, port uint16, ranges []netip.Prefix) {
	services, unreachable, key := "services", "unreachable", ""
	vip, owner := w.vipFields(), ip
	if ip.IsValid() {
		key = nft.Pack(ip, w.proto, port)
	} else {
		owner = unspecified(clusterIP)
		services, unreachable, key = "nodeports", "unreachable-nodeports", nft.Pack(w.proto, port)
		vip[0] = nft.Const(w.fam.Addr, owner)
	}
	if len(w.cluster) == 0 && len(w.local) == 0 {
		w.set(unreachable)[key] = "goto reject"
		return
	}
	cluster := list{vip: vip, n: len(w.cluster), nodePort: !ip.IsValid()}
	local := list{vip: vip, slot: localSlots, n: len(w.local), nodePort: !ip.IsValid()}
	onlyLocal := w.svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	slots, clusterSlot := nft.Pack(owner, w.proto, port), 0
	if w.sticky() {
		// All addresses of the Service port share the cluster IP's lists.
		slots, clusterSlot = nft.Pack(clusterIP, w.proto, uint16(w.port.Port)), 2*localSlots
		cluster = w.stickyList(clusterIP, "cluster", 2*localSlots, w.cluster)
	}
	w.fill(slots, clusterSlot, w.cluster)
	if onlyLocal {
		w.fill(slots, localSlots, w.local)
		if w.sticky() {
			local = w.stickyList(clusterIP, "local", localSlots, w.local)
		}
	}
	entry := ""
	if onlyLocal {
		entry = w.entryLocal(cluster, local)
	} else {
		entry = w.entryExternal(cluster)
	}
	if len(ranges) > 0 {
		entry = w.entryRanges(ip, entry, ranges)
	}
	w.set(services)[key] = "goto " + entry
}

// fill writes a list of endpoints from slot on.
func (w writer) fill(vip string, slot int, es []endpoint) {
	m := w.set("endpoints")
	for i, e := range es {
		m[vip+nft.Pack(uint32(slot+i))] = nft.Pack(e.to.Addr(), e.to.Port())
	}
}

func (w writer) sticky() bool { return w.svc.Spec.SessionAffinity == corev1.ServiceAffinityClientIP }

// vipFields is the packet's destination, as the maps' keys have it.
func (w writer) vipFields() []nft.Field {
	return []nft.Field{w.fam.Daddr(), nft.L4Proto(), nft.Dport()}
}

func (w writer) name() string {
	return fmt.Sprintf("%s/%s/%s-%d-%s", w.svc.Namespace, w.svc.Name, nft.ProtoName(w.proto), w.port.Port, w.fam.Name)
}
