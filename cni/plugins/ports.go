package plugins

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/nft"
)

// Host ports come before the node ports of Services, as upstream has it.
const (
	dstnat = -100 - 5
	srcnat = 100
	raw    = -300
)

// mapped returns the mappings that map something, with their defaults filled in.
func mapped(ms []cni.PortMapping) []cni.PortMapping {
	var out []cni.PortMapping
	for _, m := range ms {
		if m.HostPort == 0 {
			continue
		}
		if m.Protocol == "" {
			m.Protocol = cni.TCP
		}
		if !m.HostIP.IsValid() || m.HostIP.IsUnspecified() {
			m.HostIP = netip.Addr{}
		}
		out = append(out, m)
	}
	return out
}

// table returns what the network wants of the host's nftables:
//
//	ports        host port -> pod, for every local address
//	ports-at     address and host port -> pod
//	hairpins     pods with host ports, which may reach themselves through one
func table(c Config, pods []*attachment) (*nft.Table, error) {
	t := nft.NewTable(c.Table)
	pre := &nft.Chain{Hook: &nft.Hook{Type: "nat", Point: nft.Prerouting, Priority: dstnat}}
	out := &nft.Chain{Hook: &nft.Hook{Type: "nat", Point: nft.Output, Priority: dstnat}}
	post := &nft.Chain{Hook: &nft.Hook{Type: "nat", Point: nft.Postrouting, Priority: srcnat}}
	guard := &nft.Chain{Hook: &nft.Hook{Type: "filter", Point: nft.Prerouting, Priority: raw}}
	for _, r := range c.Ranges {
		f := nft.FamilyOf(r.Addr())
		addMaps(t, f)
		for _, chain := range []*nft.Chain{pre, out} {
			chain.Rules = append(chain.Rules,
				nft.Rule{f.Is(), f.DNATMap("ports-at-"+f.Name, f.Daddr(), nft.L4Proto(), nft.Dport())},
				nft.Rule{f.Is(), nft.ToLocal(), f.DNATMap("ports-"+f.Name, nft.L4Proto(), nft.Dport())})
		}
		outside := nft.Rule{f.Is(), nft.From(r)}
		for _, cidr := range c.ClusterCIDRs {
			if nft.FamilyOf(cidr.Addr()).Name == f.Name {
				outside = append(outside, nft.NotTo(cidr))
			}
		}
		post.Rules = append(post.Rules,
			nft.Rule{f.Is(), nft.In("hairpins-"+f.Name, f.Saddr(), f.Daddr()), nft.Masquerade()},
			append(outside, nft.Masquerade()))
		if r.Addr().Is4() {
			loopback := netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)
			post.Rules = append(post.Rules, nft.Rule{f.Is(), nft.From(loopback), nft.To(r), nft.Masquerade()})
			// Links with host ports route 127.0.0.0/8; a pod must not get there by it.
			guard.Rules = append(guard.Rules, nft.Rule{f.Is(), nft.InLink(c.linkPrefix()), nft.To(loopback), nft.Drop()})
		} else {
			// What rp_filter is for IPv4.
			guard.Rules = append(guard.Rules, nft.Rule{f.Is(), nft.InLink(c.linkPrefix()), nft.NoWayBack(), nft.Drop()})
		}
	}
	t.Chains["prerouting"], t.Chains["output"], t.Chains["postrouting"], t.Chains["guard"] = pre, out, post, guard
	for _, a := range pods {
		if err := addPorts(t, a); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func addMaps(t *nft.Table, f nft.Family) {
	data := []nft.Type{f.Addr, nft.Service}
	t.Sets["ports-"+f.Name] = &nft.Set{Key: []nft.Type{nft.Proto, nft.Service}, Data: data, Elems: map[string]string{}}
	t.Sets["ports-at-"+f.Name] = &nft.Set{Key: []nft.Type{f.Addr, nft.Proto, nft.Service}, Data: data, Elems: map[string]string{}}
	t.Sets["hairpins-"+f.Name] = &nft.Set{Key: []nft.Type{f.Addr, f.Addr}, Elems: map[string]string{}}
}

// addPorts adds the elements of one pod to a table that has the maps.
func addPorts(t *nft.Table, a *attachment) error {
	for _, m := range a.Ports {
		proto, ok := map[cni.Protocol]uint8{cni.TCP: nft.TCP, cni.UDP: nft.UDP, cni.SCTP: nft.SCTP}[m.Protocol]
		if !ok {
			return fmt.Errorf("map host port %d: unknown protocol %q", m.HostPort, m.Protocol)
		}
		done := false
		for _, ip := range a.Addrs {
			f := nft.FamilyOf(ip)
			set, key := t.Sets["ports-"+f.Name], nft.Pack(proto, m.HostPort)
			if m.HostIP.IsValid() {
				if nft.FamilyOf(m.HostIP.Unmap()).Name != f.Name {
					continue
				}
				set, key = t.Sets["ports-at-"+f.Name], nft.Pack(m.HostIP.Unmap(), proto, m.HostPort)
			}
			if set == nil {
				continue
			}
			set.Elems[key] = nft.Pack(ip, m.ContainerPort)
			t.Sets["hairpins-"+f.Name].Elems[nft.Pack(ip, ip)] = ""
			done = true
		}
		if !done {
			return fmt.Errorf("map host port %d: the pod has no address of the family of %s", m.HostPort, m.HostIP)
		}
	}
	return nil
}

// part returns the elements of some pods as a table of its own.
func part(c Config, pods ...*attachment) (*nft.Table, error) {
	t := nft.NewTable(c.Table)
	for _, r := range c.Ranges {
		addMaps(t, nft.FamilyOf(r.Addr()))
	}
	for _, a := range pods {
		if err := addPorts(t, a); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// openPorts maps the pod's host ports.
func (n *Network) openPorts(h *host, a *attachment) error {
	if len(a.Ports) == 0 {
		return nil
	}
	for _, ip := range a.Addrs {
		if ip.Is4() {
			// For connections to 127.0.0.1 and a host port; see table's guard.
			if err := h.do(func() error { return link.Sysctl("net/ipv4/conf/"+a.HostLink+"/route_localnet", "1") }); err != nil {
				return err
			}
		}
	}
	return n.changePorts(h, a, true)
}

// closePorts is the reverse of openPorts. The record has no ports afterwards, so that nobody opens them again before it is gone too.
func (n *Network) closePorts(h *host, a *attachment) error {
	if len(a.Ports) == 0 {
		return nil
	}
	return n.changePorts(h, a, false)
}

// lock keeps others, in this process and in other ones, from changing host ports, or from changing the table to what they knew before.
func (n *Network) lock() (unlock func(), err error) {
	n.portsMu.Lock() // so that no more than one thread waits for the file
	f, err := os.Open(n.c.Dir)
	if err != nil {
		n.portsMu.Unlock()
		return nil, err
	}
	unlock = func() {
		_ = f.Close() // and the lock with it
		n.portsMu.Unlock()
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		unlock()
		return nil, fmt.Errorf("lock %s: %w", n.c.Dir, err)
	}
	return unlock, nil
}

// changePorts has the table lead the pod's host ports to it, or to it no more but to another pod that has one of them too. When
// the kernel's table is not as it should be, all of it is put right instead.
func (n *Network) changePorts(h *host, a *attachment, open bool) error {
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	pods, err := n.records()
	if err != nil {
		return err
	}
	if !open {
		pods = slices.DeleteFunc(pods, func(r *attachment) bool { return r.Pod == a.Pod })
	}
	all, err := part(n.c, pods...)
	if err != nil {
		return err
	}
	own, err := part(n.c, a)
	if err != nil {
		return err
	}
	have, _ := part(n.c)
	want, _ := part(n.c)
	if !open {
		have = own
	}
	for name, set := range own.Sets {
		for k := range set.Elems {
			if v, ok := all.Sets[name].Elems[k]; ok {
				want.Sets[name].Elems[k] = v
			}
		}
	}
	batch := &nft.Batch{}
	batch.Update(have, want)
	if h.nft.Commit(batch) != nil {
		if err := n.applyTable(h, pods); err != nil {
			return err
		}
	}
	if err := n.forgetFlows(h, a, all); err != nil {
		n.log.Warn("flows to host ports go on to where they went", "pod", a.Pod, "err", err)
	}
	if open {
		return nil
	}
	closed := *a
	closed.Ports = nil
	return n.save(&closed)
}

// syncTable makes the table what the records say.
func (n *Network) syncTable(h *host) error {
	unlock, err := n.lock()
	if err != nil {
		return err
	}
	defer unlock()
	records, err := n.records()
	if err != nil {
		return err
	}
	return n.applyTable(h, records)
}

func (n *Network) applyTable(h *host, pods []*attachment) error {
	want, err := table(n.c, pods)
	if err != nil {
		return err
	}
	have, err := h.nft.Read(n.c.Table)
	if err != nil {
		return err
	}
	if err := h.nft.Commit(nft.Diff(have, want)); err != nil {
		return fmt.Errorf("apply table %s: %w", n.c.Table, err)
	}
	return nil
}
