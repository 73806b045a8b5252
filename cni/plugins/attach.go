package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/link"
)

// attachment is the record of a pod's network.
type attachment struct {
	Pod       string            `json:"pod"`
	Namespace string            `json:"namespace,omitempty"`
	Name      string            `json:"name,omitempty"`
	UID       string            `json:"uid,omitempty"`
	NetNS     string            `json:"netns"`
	Interface string            `json:"interface"`
	HostLink  string            `json:"hostLink"`
	MAC       string            `json:"mac"`
	Addrs     []netip.Addr      `json:"addrs"`
	Ports     []cni.PortMapping `json:"ports,omitempty"`
}

// halfPrefix begins the name of a record that is being written.
const halfPrefix = "."

func (n *Network) recordPath(pod string) (string, error) {
	if pod == "" || strings.ContainsAny(pod, "/\x00") || strings.HasPrefix(pod, halfPrefix) {
		return "", fmt.Errorf("pod id %q cannot be a file name", pod)
	}
	return filepath.Join(n.c.Dir, "pods", pod), nil
}

func (n *Network) save(a *attachment) error {
	path, err := n.recordPath(a.Pod)
	if err != nil {
		return err
	}
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	tmp := filepath.Join(n.c.Dir, "pods", halfPrefix+a.Pod)
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// load returns a pod's record, nil if there is none.
func (n *Network) load(pod string) (*attachment, error) {
	path, err := n.recordPath(pod)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	a := &attachment{}
	if err := json.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("decode %s: %w", path, err)
	}
	return a, nil
}

// records returns all attachments.
func (n *Network) records() ([]*attachment, error) {
	entries, err := os.ReadDir(filepath.Join(n.c.Dir, "pods"))
	if err != nil {
		return nil, err
	}
	var out []*attachment
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), halfPrefix) {
			continue
		}
		a, err := n.load(e.Name())
		if err != nil {
			return nil, err
		}
		if a != nil {
			out = append(out, a)
		}
	}
	return out, nil
}

func (a *attachment) attached() Attached {
	return Attached{Sandbox: a.Pod, Namespace: a.Namespace, Name: a.Name, UID: a.UID, Addrs: a.Addrs}
}

// Attached lists the pods that have addresses now.
func (n *Network) Attached() ([]Attached, error) {
	if _, err := n.host(); err != nil {
		return nil, err
	}
	records, err := n.records()
	if err != nil {
		return nil, err
	}
	list := make([]Attached, len(records))
	for i, a := range records {
		list[i] = a.attached()
	}
	return list, nil
}

// Setup implements cni.Network.
func (n *Network) Setup(ctx context.Context, p cni.Pod) (*cni.Result, error) {
	result, err := n.setup(ctx, p)
	n.askRefill()
	if err != nil {
		err = errors.Join(err, n.Teardown(context.WithoutCancel(ctx), p))
		return nil, fmt.Errorf("set up network of %s/%s: %w", p.Namespace, p.Name, err)
	}
	return result, nil
}

func (n *Network) setup(ctx context.Context, p cni.Pod) (*cni.Result, error) {
	h, err := n.host()
	if err != nil {
		return nil, err
	}
	before, err := n.load(p.ID)
	if err != nil {
		return nil, err
	}
	var had []netip.Addr
	if before != nil {
		had = before.Addrs
	}
	ifname := p.Interface
	if ifname == "" {
		ifname = defaultInterface
	}
	r := n.take(p.NetNS)
	if r == nil || r.ifname != ifname {
		if r != nil {
			r.close()
			if err := link.Delete(h.links, r.link); err != nil {
				return nil, err
			}
		}
		r = n.newReady(p.NetNS, ifname)
		if err := n.fill(h, r); err != nil {
			return nil, err
		}
	}
	// The socket inside would keep the namespace alive.
	defer r.close()
	addrs, err := n.addrs.take(p.ID, had, p.IPs)
	a := &attachment{Pod: p.ID, Namespace: p.Namespace, Name: p.Name, UID: p.UID, NetNS: p.NetNS, Interface: ifname,
		HostLink: r.link, MAC: r.mac.String(), Addrs: addrs, Ports: mapped(p.PortMappings)}
	if err == nil {
		_, err = part(n.c, a) // are the ports possible?
	}
	if err == nil {
		err = n.save(a)
	}
	if err == nil && n.c.Guard != nil {
		err = n.c.Guard.Attach(ctx, a.attached())
	}
	if err != nil {
		return nil, errors.Join(err, link.Delete(h.links, r.link))
	}
	if err := n.connect(h, r, addrs); err != nil {
		return nil, err
	}
	if err := limit(h.links, r, p.Bandwidth); err != nil {
		return nil, err
	}
	if err := n.openPorts(h, a); err != nil {
		return nil, err
	}
	return n.result(h, a), nil
}

// connect gives the pod's link its addresses and leads them to it.
func (n *Network) connect(h *host, r *ready, addrs []netip.Addr) error {
	for _, ip := range addrs {
		addr := &netlink.Addr{IPNet: single(ip)}
		family := unix.AF_INET
		if ip.Is6() {
			family, addr.Flags = unix.AF_INET6, unix.IFA_F_NODAD
		}
		if err := r.pod.AddrReplace(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: r.index, Name: r.ifname}}, addr); err != nil {
			return fmt.Errorf("add address %s: %w", ip, err)
		}
		if err := h.links.NeighSet(&netlink.Neigh{LinkIndex: r.linkIndex, Family: family, State: netlink.NUD_PERMANENT,
			IP: ip.AsSlice(), HardwareAddr: r.mac}); err != nil {
			return fmt.Errorf("set neighbour %s: %w", ip, err)
		}
		if err := h.links.RouteReplace(&netlink.Route{LinkIndex: r.linkIndex, Scope: netlink.SCOPE_LINK, Dst: single(ip)}); err != nil {
			return fmt.Errorf("set route to %s: %w", ip, err)
		}
	}
	return nil
}

func (n *Network) result(h *host, a *attachment) *cni.Result {
	res := &cni.Result{Interfaces: []cni.Interface{
		{Name: a.HostLink, MAC: hostMAC().String(), MTU: h.mtu},
		{Name: a.Interface, MAC: a.MAC, MTU: h.mtu, Sandbox: a.NetNS},
	}}
	for _, ip := range a.Addrs {
		gw := gateway(ip.Is4())
		res.IPs = append(res.IPs, cni.IP{Address: netip.PrefixFrom(ip, ip.BitLen()), Gateway: gw, Interface: 1})
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if ip.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		res.Routes = append(res.Routes, cni.Route{Dst: all, Gateway: gw})
	}
	return res
}

// Check implements cni.Network.
func (n *Network) Check(ctx context.Context, p cni.Pod) error {
	h, err := n.host()
	if err != nil {
		return err
	}
	a, err := n.load(p.ID)
	if err == nil && a == nil {
		err = errors.New("it was not set up")
	}
	if err == nil {
		err = n.check(h, a)
	}
	if err != nil {
		return fmt.Errorf("check network of %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

func (n *Network) check(h *host, a *attachment) error {
	l, err := h.links.LinkByName(a.HostLink)
	if err != nil {
		return fmt.Errorf("find link %s: %w", a.HostLink, err)
	}
	held, err := n.addrs.heldBy(a.Pod)
	if err != nil {
		return err
	}
	if len(held) != len(a.Addrs) {
		return fmt.Errorf("it has %d addresses, want %d", len(held), len(a.Addrs))
	}
	for _, ip := range a.Addrs {
		routes, err := h.links.RouteGet(ip.AsSlice())
		if err != nil {
			return fmt.Errorf("find route to %s: %w", ip, err)
		}
		if len(routes) == 0 || routes[0].LinkIndex != l.Attrs().Index {
			return fmt.Errorf("%s is not routed to %s", ip, a.HostLink)
		}
	}
	return nil
}

// Teardown implements cni.Network.
func (n *Network) Teardown(ctx context.Context, p cni.Pod) error {
	h, err := n.host()
	if err != nil {
		return err
	}
	a, err := n.load(p.ID)
	if err != nil {
		return err
	}
	if a == nil {
		return n.addrs.release(p.ID)
	}
	return n.detach(h, a)
}

// detach undoes an attachment and forgets it. The link of a namespace of ours goes
// with the namespace, any other now.
func (n *Network) detach(h *host, a *attachment) error {
	errs := []error{n.closePorts(h, a)}
	if strings.HasPrefix(a.NetNS, n.c.Dir+"/") {
		if l, err := h.links.LinkByName(a.HostLink); err == nil {
			for _, ip := range a.Addrs {
				err := h.links.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: single(ip)})
				if err != nil && !link.IsGone(err) {
					errs = append(errs, fmt.Errorf("delete route to %s: %w", ip, err))
				}
			}
		}
		n.reap(a.HostLink)
	} else {
		errs = append(errs, link.Delete(h.links, a.HostLink))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if n.c.Guard != nil {
		n.c.Guard.Detach(a.Pod)
	}
	if err := n.addrs.free(a.Addrs); err != nil {
		return err
	}
	path, err := n.recordPath(a.Pod)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// limit shapes the traffic: to the pod at the host's end, from the pod at its own.
func limit(h *netlink.Handle, r *ready, b *cni.Bandwidth) error {
	if b == nil {
		return nil
	}
	shape := func(h *netlink.Handle, index int, rate, burst uint64) error {
		if rate == 0 {
			return nil
		}
		rate = max(rate/8, 1) // bytes
		if burst /= 8; burst == 0 {
			burst = max(rate/10, 16<<10)
		}
		burst = min(burst, 1<<31)
		// The time that burst takes, in the kernel's ticks of 64 ns.
		buffer := uint32(min(burst*1_000_000_000/rate/64, 1<<32-1))
		return h.QdiscReplace(&netlink.Tbf{
			QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
			Rate:       rate, Limit: uint32(min(rate/40+burst, 1<<32-1)), Buffer: buffer,
		})
	}
	if err := errors.Join(shape(h, r.linkIndex, b.IngressRate, b.IngressBurst),
		shape(r.pod, r.index, b.EgressRate, b.EgressBurst)); err != nil {
		return fmt.Errorf("limit bandwidth: %w", err)
	}
	return nil
}
