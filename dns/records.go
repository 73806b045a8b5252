package dns

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/yare-dev/yare/api"
)

// specification is the version of the DNS specification that is followed.
const specification = "1.1.0"

// Zone answers from Services and EndpointSlices. It is not safe for concurrent
// change.
type Zone struct {
	domain string // with the trailing dot
	ttl    uint32

	services   map[api.Key]*corev1.Service
	slices     map[api.Key]map[string]*discoveryv1.EndpointSlice // by Service, then by name
	namespaces map[string]int                                    // number of Services in each
	byIP       map[netip.Addr]api.Key                            // cluster IPs
	endpoints  map[netip.Addr]map[api.Key]string                 // headless endpoints: Service -> host name
	headless   map[api.Key]endpoints                             // of headless Services that have any
}

// NewZone returns an empty zone; ttl is in seconds.
func NewZone(domain string, ttl uint32) *Zone {
	return &Zone{domain: dns.Fqdn(strings.ToLower(domain)), ttl: ttl, services: map[api.Key]*corev1.Service{},
		slices: map[api.Key]map[string]*discoveryv1.EndpointSlice{}, namespaces: map[string]int{}, byIP: map[netip.Addr]api.Key{},
		endpoints: map[netip.Addr]map[api.Key]string{}, headless: map[api.Key]endpoints{}}
}

// PutService adds or replaces a Service.
func (z *Zone) PutService(s *corev1.Service) {
	z.DropService(s.Namespace, s.Name)
	k := api.KeyOf(s)
	z.services[k] = s
	z.namespaces[s.Namespace]++
	for _, ip := range addrs(s.Spec.ClusterIPs) {
		z.byIP[ip] = k
	}
	z.index(k)
}

// DropService removes a Service.
func (z *Zone) DropService(namespace, name string) {
	k := api.Key{Namespace: namespace, Name: name}
	s := z.services[k]
	if s == nil {
		return
	}
	delete(z.services, k)
	z.index(k)
	if z.namespaces[namespace]--; z.namespaces[namespace] == 0 {
		delete(z.namespaces, namespace)
	}
	for _, ip := range addrs(s.Spec.ClusterIPs) {
		if z.byIP[ip] == k {
			delete(z.byIP, ip)
		}
	}
}

// PutSlice adds or replaces an EndpointSlice.
func (z *Zone) PutSlice(s *discoveryv1.EndpointSlice) {
	k := serviceOf(s)
	if z.slices[k] == nil {
		z.slices[k] = map[string]*discoveryv1.EndpointSlice{}
	}
	z.slices[k][s.Name] = s
	z.index(k)
}

// DropSlice removes an EndpointSlice.
func (z *Zone) DropSlice(s *discoveryv1.EndpointSlice) {
	k := serviceOf(s)
	if delete(z.slices[k], s.Name); len(z.slices[k]) == 0 {
		delete(z.slices, k)
	}
	z.index(k)
}

// serviceOf is the Service that a slice is of.
func serviceOf(s *discoveryv1.EndpointSlice) api.Key {
	return api.Key{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}
}

// index sets the endpoints of a headless Service anew, which has none without being one.
func (z *Zone) index(k api.Key) {
	for _, e := range z.headless[k].all {
		if delete(z.endpoints[e.ip], k); len(z.endpoints[e.ip]) == 0 {
			delete(z.endpoints, e.ip)
		}
	}
	delete(z.headless, k)
	if s := z.services[k]; s == nil || !headless(s) || len(z.slices[k]) == 0 {
		return
	}
	es := endpoints{all: z.endpointsOf(k), byHost: map[string][]endpoint{}}
	for _, e := range es.all {
		if z.endpoints[e.ip] == nil {
			z.endpoints[e.ip] = map[api.Key]string{}
		}
		z.endpoints[e.ip][k] = e.host
		host := strings.ToLower(e.host)
		es.byHost[host] = append(es.byHost[host], e)
	}
	if len(es.all) > 0 {
		z.headless[k] = es
	}
}

func addrs(texts []string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		if ip, err := netip.ParseAddr(t); err == nil {
			out = append(out, ip)
		}
	}
	return out
}

func headless(s *corev1.Service) bool {
	return s.Spec.Type != corev1.ServiceTypeExternalName && s.Spec.ClusterIP == corev1.ClusterIPNone
}

// endpoint is one ready address of a headless Service.
type endpoint struct {
	ip    netip.Addr
	host  string // the pod's host name, or the address with dashes
	ports []discoveryv1.EndpointPort
}

// endpoints are those of one Service, in order, and by host name in lower case.
type endpoints struct {
	all    []endpoint
	byHost map[string][]endpoint
}

func (z *Zone) endpointsOf(k api.Key) []endpoint {
	var out []endpoint
	for _, s := range z.slices[k] {
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				continue
			}
			for _, ip := range addrs(e.Addresses) {
				host := ptr.Deref(e.Hostname, "")
				if host == "" {
					host = dashed(ip)
				}
				out = append(out, endpoint{ip, host, s.Ports})
			}
		}
	}
	slices.SortFunc(out, func(a, b endpoint) int { return cmp.Or(a.ip.Compare(b.ip), cmp.Compare(a.host, b.host)) })
	return out
}

var dashes = strings.NewReplacer(".", "-", ":", "-")

func dashed(ip netip.Addr) string { return dashes.Replace(ip.String()) }

// Answer is the outcome of a question.
type Answer struct {
	Records []dns.RR // of the answer section
	Extra   []dns.RR // addresses of SRV targets
	Exists  bool     // false: the name does not exist (NXDOMAIN)
}

// Contains reports whether the zone answers for a name.
func (z *Zone) Contains(name string) bool { return dns.IsSubDomain(z.domain, strings.ToLower(name)) }

// SOA is the authority of negative answers.
func (z *Zone) SOA() dns.RR {
	return &dns.SOA{Hdr: z.header(z.domain, dns.TypeSOA), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: z.ttl}
}

func (z *Zone) header(name string, typ uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: z.ttl}
}

// Lookup answers a question for a name of the zone. The names in the answer are as
// the question has them, in its case.
func (z *Zone) Lookup(name string, typ uint16) Answer {
	lower := strings.ToLower(name)
	rest := strings.TrimSuffix(strings.TrimSuffix(lower, z.domain), ".")
	var labels []string // from the right: svc, namespace, name, ...
	if rest != "" {
		labels = strings.Split(rest, ".")
		slices.Reverse(labels)
	}
	switch {
	case len(labels) == 0:
		return z.apex(name, typ)
	case labels[0] == "dns-version" && len(labels) == 1:
		return z.only(typ, &dns.TXT{Hdr: z.header(name, dns.TypeTXT), Txt: []string{specification}})
	case labels[0] == "dns":
		return Answer{Exists: len(labels) == 1 || labels[1] == "ns" && len(labels) == 2}
	case len(labels) == 1:
		return Answer{Exists: labels[0] == "svc" || labels[0] == "pod"}
	case labels[0] == "svc" && len(labels) == 2:
		return Answer{Exists: z.namespaces[labels[1]] > 0}
	case labels[0] == "svc":
		return z.service(name, typ, api.Key{Namespace: labels[1], Name: labels[2]}, labels[3:])
	case labels[0] == "pod":
		return z.pod(name, typ, labels[1:])
	}
	return Answer{}
}

// only answers with rr if the question is for its type.
func (z *Zone) only(typ uint16, rrs ...dns.RR) Answer {
	a := Answer{Exists: true}
	for _, rr := range rrs {
		if typ == rr.Header().Rrtype || typ == dns.TypeANY {
			a.Records = append(a.Records, rr)
		}
	}
	return a
}

func (z *Zone) apex(name string, typ uint16) Answer {
	return z.only(typ, z.SOA(), &dns.NS{Hdr: z.header(name, dns.TypeNS), Ns: "ns.dns." + z.domain})
}

// service answers for a Service and what is below it.
func (z *Zone) service(name string, typ uint16, k api.Key, below []string) Answer {
	s := z.services[k]
	switch {
	case s == nil:
		return Answer{}
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		if len(below) > 0 {
			return Answer{}
		}
		return Answer{Exists: true, Records: []dns.RR{&dns.CNAME{Hdr: z.header(name, dns.TypeCNAME), Target: dns.Fqdn(s.Spec.ExternalName)}}}
	case len(below) == 0:
		if !headless(s) {
			return z.addresses(name, typ, addrs(s.Spec.ClusterIPs))
		}
		es := z.headless[k].all
		if len(es) == 0 {
			return Answer{}
		}
		return z.addresses(name, typ, ips(es))
	case strings.HasPrefix(below[0], "_"):
		return z.port(name, typ, k, s, below)
	case headless(s) && len(below) == 1:
		es := z.headless[k].byHost[below[0]]
		if len(es) == 0 {
			return Answer{}
		}
		return z.addresses(name, typ, ips(es))
	}
	return Answer{}
}

func ips(es []endpoint) []netip.Addr {
	out := make([]netip.Addr, len(es))
	for i, e := range es {
		out[i] = e.ip
	}
	return slices.Compact(out)
}

func (z *Zone) addresses(name string, typ uint16, ips []netip.Addr) Answer {
	rrs := make([]dns.RR, len(ips))
	for i, ip := range ips {
		rrs[i] = z.address(name, ip)
	}
	return z.only(typ, rrs...)
}

func (z *Zone) address(name string, ip netip.Addr) dns.RR {
	if ip.Is4() {
		return &dns.A{Hdr: z.header(name, dns.TypeA), A: ip.AsSlice()}
	}
	return &dns.AAAA{Hdr: z.header(name, dns.TypeAAAA), AAAA: ip.AsSlice()}
}

// port answers for _port._protocol.service; the labels below are from the right.
func (z *Zone) port(name string, typ uint16, k api.Key, s *corev1.Service, below []string) Answer {
	if len(below) > 2 || len(below) == 2 && !strings.HasPrefix(below[1], "_") {
		return Answer{}
	}
	proto, port := below[0][1:], ""
	if len(below) == 2 {
		port = below[1][1:]
	}
	a := Answer{}
	add := func(target string, number int32, ips ...netip.Addr) {
		a.Exists = true
		if len(below) < 2 || typ != dns.TypeSRV && typ != dns.TypeANY {
			return
		}
		srv := &dns.SRV{Hdr: z.header(name, dns.TypeSRV), Weight: 100, Port: uint16(number), Target: target}
		// A pod with a host name has one for all of its addresses.
		if !slices.ContainsFunc(a.Records, func(have dns.RR) bool { return *have.(*dns.SRV) == *srv }) {
			a.Records = append(a.Records, srv)
		}
		for _, ip := range ips {
			a.Extra = append(a.Extra, z.address(target, ip))
		}
	}
	own := k.Name + "." + k.Namespace + ".svc." + z.domain
	if !headless(s) {
		for _, p := range s.Spec.Ports {
			if match(port, proto, len(below), p.Name, p.Protocol) {
				add(own, p.Port, addrs(s.Spec.ClusterIPs)...)
			}
		}
		return a
	}
	for _, e := range z.headless[k].all {
		for _, p := range e.ports {
			if p.Port == nil {
				continue
			}
			if match(port, proto, len(below), ptr.Deref(p.Name, ""), ptr.Deref(p.Protocol, "")) {
				add(e.host+"."+own, *p.Port, e.ip)
			}
		}
	}
	return a
}

func match(port, proto string, labels int, name string, p corev1.Protocol) bool {
	return strings.EqualFold(proto, string(cmp.Or(p, corev1.ProtocolTCP))) && (labels == 1 || name != "" && strings.EqualFold(port, name))
}

// pod answers for 10-42-0-5.namespace.pod: the address is taken from the name,
// whether or not there is such a pod, as upstream's default has it.
func (z *Zone) pod(name string, typ uint16, labels []string) Answer {
	if len(labels) == 1 {
		return Answer{Exists: z.namespaces[labels[0]] > 0}
	}
	if len(labels) != 2 {
		return Answer{}
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(labels[1], "-", "."))
	if err != nil {
		ip, err = netip.ParseAddr(strings.ReplaceAll(labels[1], "-", ":"))
	}
	if err != nil || ip.Zone() != "" {
		return Answer{}
	}
	return z.addresses(name, typ, []netip.Addr{ip})
}

// Reverse answers for an address; ok is false when the zone does not know it.
func (z *Zone) Reverse(name string, typ uint16) (a Answer, ok bool) {
	ip, ok := reverseAddr(name)
	if !ok {
		return Answer{}, false
	}
	var targets []string
	if k, ok := z.byIP[ip]; ok {
		targets = append(targets, k.Name+"."+k.Namespace+".svc."+z.domain)
	}
	for k, host := range z.endpoints[ip] {
		targets = append(targets, host+"."+k.Name+"."+k.Namespace+".svc."+z.domain)
	}
	if len(targets) == 0 {
		return Answer{}, false
	}
	slices.Sort(targets)
	rrs := make([]dns.RR, len(targets))
	for i, t := range targets {
		rrs[i] = &dns.PTR{Hdr: z.header(name, dns.TypePTR), Ptr: t}
	}
	return z.only(typ, rrs...), true
}

// reverseAddr is the address that a name below in-addr.arpa or ip6.arpa stands for.
func reverseAddr(name string) (netip.Addr, bool) {
	name = strings.ToLower(dns.Fqdn(name))
	if v4, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		labels := strings.Split(v4, ".")
		slices.Reverse(labels)
		ip, err := netip.ParseAddr(strings.Join(labels, "."))
		return ip, err == nil
	}
	v6, ok := strings.CutSuffix(name, ".ip6.arpa.")
	labels := strings.Split(v6, ".")
	if !ok || len(labels) != 32 {
		return netip.Addr{}, false
	}
	slices.Reverse(labels)
	var b strings.Builder
	for i, l := range labels {
		if i > 0 && i%4 == 0 {
			b.WriteByte(':')
		}
		b.WriteString(l)
	}
	ip, err := netip.ParseAddr(b.String())
	return ip, err == nil
}
