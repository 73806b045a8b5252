package cluster

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/yare-dev/yare/linux/durable"
	"github.com/yare-dev/yare/linux/link"
)

// ranges returns the pod and Service ranges of the cluster with the given index.
func ranges(index int) (pods, services netip.Prefix) {
	p := func(b int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(b), 0, 0}), 16) }
	return p(42 + 2*index), p(43 + 2*index)
}

// PodCIDRs are the ranges of all pods, the main one first.
func (r *Record) PodCIDRs() []netip.Prefix { return withSecond(r.PodCIDR, r.SecondPodCIDR) }

// ServiceCIDRs are the ranges of Services, the main one first, of the same families.
func (r *Record) ServiceCIDRs() []netip.Prefix { return withSecond(r.ServiceNet, r.SecondServiceNet) }

func withSecond(first, second netip.Prefix) []netip.Prefix {
	if second.IsValid() {
		return []netip.Prefix{first, second}
	}
	return []netip.Prefix{first}
}

// HasIPv6 says whether any of the ranges is of IPv6.
func HasIPv6(ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// NodeRanges are the parts of PodCIDRs that this host's Node has: the first ones, which the node address controller gives to
// the first Node; or, on a server that has joined, those that it was told. One that was never admitted has none to be told: see CheckNodeRanges.
func (r *Record) NodeRanges() (ps []netip.Prefix) {
	if told, err := r.toldRanges(); err == nil && len(told) > 0 {
		return told
	}
	for _, p := range r.PodCIDRs() {
		bits := 24
		if p.Addr().Is6() {
			bits = 64
		}
		ps = append(ps, netip.PrefixFrom(p.Masked().Addr(), max(bits, p.Bits())))
	}
	return ps
}

// NodeRangesFile is where the ranges of a server that has joined are kept, one a line.
func (r *Record) NodeRangesFile() string { return filepath.Join(r.DataDir, "node-ranges") }

// KeepNodeRanges writes them down, durably.
func (r *Record) KeepNodeRanges(ps []netip.Prefix) error {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintln(&b, p)
	}
	return durable.Write(r.NodeRangesFile(), []byte(b.String()), 0o644)
}

// CheckNodeRanges says why a server that has joined does not know its ranges: those of the first one are not its own.
func (r *Record) CheckNodeRanges() error {
	told, err := r.toldRanges()
	if err == nil && r.Joined && len(told) == 0 {
		err = fmt.Errorf("%s has none", r.NodeRangesFile())
	}
	if err != nil {
		return fmt.Errorf("pod addresses of this server's Node (podCIDRs of it in the cluster, one a line): %w", err)
	}
	return nil
}

func (r *Record) toldRanges() (ps []netip.Prefix, err error) {
	if !r.Joined {
		return nil, nil
	}
	b, err := os.ReadFile(r.NodeRangesFile())
	if err != nil {
		return nil, err
	}
	for _, text := range strings.Fields(string(b)) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.NodeRangesFile(), err)
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// DNSAddress is the Service address of the cluster's DNS that pods are told: the tenth of the main range.
func (r *Record) DNSAddress() netip.Addr { return nth(r.ServiceNet, 10) }

// DNSAddresses are all of it: the tenth of each range.
func (r *Record) DNSAddresses() (as []netip.Addr) {
	for _, p := range r.ServiceCIDRs() {
		as = append(as, nth(p, 10))
	}
	return as
}

// APIAddress is the Service address of the API server: the first of the main range.
func (r *Record) APIAddress() netip.Addr { return nth(r.ServiceNet, 1) }

func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// sizes are how many bits a range may have, and why.
type sizes struct {
	what       string
	four, six  [2]int
	why4, why6 string
}

var (
	podSizes     = sizes{"pods", [2]int{8, 24}, [2]int{48, 64}, "a node has a /24 of it", "a node has a /64 of it"}
	serviceSizes = sizes{"Services", [2]int{8, 28}, [2]int{64, 120}, "the cluster's own are among the first 16", "the cluster's own are among the first 16"}
)

// CheckRanges tells what is wrong with the ranges that somebody chose for a cluster's pods and Services: one of each, or two of
// different families in the same order. None of either are right too.
func CheckRanges(pods, services []netip.Prefix, problem func(field, format string, args ...any)) {
	if (len(pods) == 0) != (len(services) == 0) {
		problem("podCIDRs", "are given together with serviceCIDRs or not at all")
		return
	}
	good := true
	both := func(field, format string, args ...any) { good = false; problem(field, format, args...) }
	checkList("podCIDRs", pods, podSizes, both)
	checkList("serviceCIDRs", services, serviceSizes, both)
	if !good {
		return
	}
	if len(pods) != len(services) {
		problem("serviceCIDRs", "are %d, and podCIDRs %d: Services have addresses of the same families as pods", len(services), len(pods))
		return
	}
	for i, p := range pods {
		if p.Addr().Is4() != services[i].Addr().Is4() {
			problem("serviceCIDRs", "%s is not of the family of podCIDRs' %s: both lists have the same families in the same order", services[i], p)
		}
		if p.Overlaps(services[i]) {
			problem("serviceCIDRs", "%s overlaps podCIDRs' %s", services[i], p)
		}
	}
}

// CheckServiceRanges is CheckRanges where nobody knows pods' ranges. At least one is needed.
func CheckServiceRanges(services []netip.Prefix, problem func(field, format string, args ...any)) {
	if len(services) == 0 {
		problem("serviceCIDRs", "are none")
	}
	checkList("serviceCIDRs", services, serviceSizes, problem)
}

// SetServiceCIDRs sets what ServiceCIDRs returns.
func (r *Record) SetServiceCIDRs(ranges []netip.Prefix) {
	both := append(slices.Clone(ranges), netip.Prefix{}, netip.Prefix{})
	r.ServiceNet, r.SecondServiceNet = both[0], both[1]
}

func checkList(field string, list []netip.Prefix, size sizes, problem func(field, format string, args ...any)) {
	if len(list) > 2 {
		problem(field, "are %d: one, or two of different families", len(list))
		return
	}
	for i, p := range list {
		at := fmt.Sprintf("%s[%d]", field, i)
		if !p.IsValid() || p.Addr().Is4In6() || p.Addr().Zone() != "" {
			problem(at, "%s is not a range such as 10.42.0.0/16 or fd42::/56", p)
			continue
		}
		if p != p.Masked() {
			problem(at, "%s is an address within %s: use that", p, p.Masked())
		}
		bits, why := size.four, size.why4
		if p.Addr().Is6() {
			bits, why = size.six, size.why6
		}
		if p.Bits() < bits[0] || p.Bits() > bits[1] {
			problem(at, "%s: a range of this family for %s is from /%d to /%d; %s", p, size.what, bits[0], bits[1], why)
		}
		if a := p.Addr(); a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			problem(at, "%s is for other things than %s", p, size.what)
		}
		if i > 0 && p.Addr().Is4() == list[0].Addr().Is4() {
			problem(at, "%s is the second of its family: two ranges are one of IPv4 and one of IPv6", p)
		}
	}
}

// chooseRanges gives r the ranges that are wished for, or those of the first index that is free.
func (r *Record) chooseRanges(w Wish, others []*Record) error {
	host, err := hostPrefixes()
	if err != nil {
		return err
	}
	used := []use{{"this host's addresses or routes", host}}
	taken := map[int]bool{}
	for _, o := range others {
		used = append(used, use{fmt.Sprintf("cluster %q", o.Name), append(o.PodCIDRs(), o.ServiceCIDRs()...)})
		taken[o.Index] = true
	}
	chosen := append(slices.Clone(w.PodCIDRs), w.ServiceCIDRs...)
	for _, p := range chosen {
		if who, what := user(used, p); who != "" {
			field := "podCIDRs"
			if slices.Contains(w.ServiceCIDRs, p) {
				field = "serviceCIDRs"
			}
			return fmt.Errorf("%s: %s overlaps %s of %s: choose another", field, p, what, who)
		}
	}
	for r.Index = 0; r.Index < maxClusters; r.Index++ {
		if r.PodCIDR, r.ServiceNet = ranges(r.Index); taken[r.Index] {
			continue
		}
		pods, _ := user(used, r.PodCIDR)
		services, _ := user(used, r.ServiceNet)
		if len(chosen) > 0 || pods == "" && services == "" {
			break
		}
	}
	if r.Index == maxClusters {
		return fmt.Errorf("no address range is free: the host's routes or %d other clusters use 10.42.0.0/16 and all that follow", len(others))
	}
	if len(chosen) > 0 {
		both := append(slices.Clone(w.PodCIDRs), netip.Prefix{}, netip.Prefix{})
		r.PodCIDR, r.SecondPodCIDR = both[0], both[1]
		r.SetServiceCIDRs(w.ServiceCIDRs)
	}
	return nil
}

// use is who uses which ranges.
type use struct {
	who string
	ps  []netip.Prefix
}

// user returns who uses any of p, and which of his ranges that is.
func user(used []use, p netip.Prefix) (who string, what netip.Prefix) {
	for _, u := range used {
		for _, q := range u.ps {
			if q.Overlaps(p) {
				return u.who, q
			}
		}
	}
	return "", what
}

// hostPrefixes returns the networks that the host's addresses and routes use now, default routes left out.
func hostPrefixes() ([]netip.Prefix, error) {
	routes, err := link.Dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var ps []netip.Prefix
	for _, rt := range routes {
		if rt.Dst == nil {
			continue
		}
		ones, _ := rt.Dst.Mask.Size()
		if a, ok := netip.AddrFromSlice(rt.Dst.IP); ok && ones > 0 {
			ps = append(ps, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return ps, nil
}
