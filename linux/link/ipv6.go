package link

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoIPv6 says that the kernel has IPv6 off.
var ErrNoIPv6 = errors.New("this host's kernel has IPv6 off (there is no /proc/net/if_inet6): use ranges of IPv4 alone, or boot without ipv6.disable=1")

// CheckIPv6 returns ErrNoIPv6 where it is so.
func CheckIPv6() error {
	if _, err := os.Stat("/proc/thread-self/net/if_inet6"); errors.Is(err, os.ErrNotExist) {
		return ErrNoIPv6
	}
	return nil
}

// forwarding6 is whether the namespace passes IPv6 on.
const forwarding6 = "net/ipv6/conf/all/forwarding"

// Forwarding6 reads whether packets of IPv6 are passed on, empty where there is no IPv6.
func Forwarding6() string {
	b, _ := os.ReadFile("/proc/sys/" + forwarding6)
	return strings.TrimSpace(string(b))
}

// Advertised lists the links over which a router has told its default route, which is taken back when the namespace begins to pass packets
// on, unless the link is told that it may be believed then too.
func Advertised() (names []string, err error) {
	routes, err := Dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(unix.AF_INET6, &netlink.Route{Protocol: unix.RTPROT_RA}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		l, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil {
			continue // gone meanwhile
		}
		if b, err := os.ReadFile(acceptRA(l.Attrs().Name)); err == nil && strings.TrimSpace(string(b)) == "1" {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

func acceptRA(name string) string { return "/proc/sys/net/ipv6/conf/" + name + "/accept_ra" }

// Forward6 has the calling thread's network namespace pass packets of IPv6 on, and keep the default routes that routers tell it.
func Forward6() error {
	if err := CheckIPv6(); err != nil {
		return err
	}
	if Forwarding6() != "0" {
		return nil
	}
	names, err := Advertised()
	for _, name := range names {
		err = errors.Join(err, os.WriteFile(acceptRA(name), []byte("2"), 0))
	}
	return errors.Join(err, Sysctl(forwarding6, "1"))
}

// RestoreForward6 is the reverse of Forward6, given what Forwarding6 and Advertised said before.
func RestoreForward6(before string, advertised []string) error {
	if before == "" || Forwarding6() == "" {
		return nil
	}
	err := Sysctl(forwarding6, before)
	for _, name := range advertised {
		if e := os.WriteFile(acceptRA(name), []byte("1"), 0); !errors.Is(e, os.ErrNotExist) { // a link that is gone
			err = errors.Join(err, e)
		}
	}
	return err
}
