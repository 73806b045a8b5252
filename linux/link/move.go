package link

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux/netns"
)

// MoveTo moves devices of the caller's network namespace to that at path: keys are their names here, values those there, in
// which one %d is a number that the kernel chooses.
// They keep their permanent addresses of global scope, of any family, and are up then. Nothing is moved unless all of them can be, as far as that can
// be told beforehand: what a namespace is left with when it ends is the host's again only if there is hardware to it.
func MoveTo(path string, devices map[string]string) error {
	here, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("move network devices: %w", err)
	}
	defer here.Close()
	var there *netlink.Handle // its socket stays in the namespace
	err = netns.Do(path, func() (err error) { there, err = netlink.NewHandle(unix.NETLINK_ROUTE); return err })
	if err != nil {
		return fmt.Errorf("move network devices: %w", err)
	}
	defer there.Close()
	ns, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer unix.Close(ns)
	names := slices.Sorted(maps.Keys(devices))
	links := make([]netlink.Link, len(names))
	addresses := make([][]netlink.Addr, len(names))
	for i, name := range names {
		if links[i], err = here.LinkByName(name); err == nil {
			addresses[i], err = lasting(here, links[i])
		}
		if err != nil {
			return fmt.Errorf("move network device %s: %w", name, err)
		}
		if _, err := there.LinkByName(devices[name]); err == nil {
			return fmt.Errorf("move network device %s: there is a %s already", name, devices[name])
		}
	}
	for i, name := range names {
		if err := moveOne(there, ns, links[i], devices[name], addresses[i]); err != nil {
			return fmt.Errorf("move network device %s: %w", name, err)
		}
	}
	return nil
}

// lasting are a link's addresses that a move takes along: permanent ones of global scope.
func lasting(h *netlink.Handle, l netlink.Link) ([]netlink.Addr, error) {
	all, err := Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	return slices.DeleteFunc(all, func(a netlink.Addr) bool {
		return a.Flags&unix.IFA_F_PERMANENT == 0 || a.Scope != unix.RT_SCOPE_UNIVERSE
	}), err
}

func moveOne(there *netlink.Handle, ns int, l netlink.Link, name string, addresses []netlink.Addr) error {
	before, err := Dump(there.LinkList)
	if err != nil {
		return err
	}
	// In one request, so that the old name, which may be taken there, is nobody's there.
	request := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	message := nl.NewIfInfomsg(unix.AF_UNSPEC)
	message.Index = int32(l.Attrs().Index)
	request.AddData(message)
	request.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns))))
	request.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return err
	}
	after, err := Dump(there.LinkList)
	if err != nil {
		return err
	}
	// Its index, and a name of a template, are the kernel's choice.
	i := slices.IndexFunc(after, func(a netlink.Link) bool {
		return !slices.ContainsFunc(before, func(b netlink.Link) bool { return b.Attrs().Index == a.Attrs().Index })
	})
	if i < 0 {
		return errors.New("it is gone")
	}
	for _, a := range addresses {
		a.Label, a.LinkIndex = "", 0
		if err := there.AddrReplace(after[i], &a); err != nil {
			return fmt.Errorf("add address %s: %w", a.IPNet, err)
		}
	}
	return there.LinkSetUp(after[i])
}
