package link

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/yare-dev/yare/linux/netns"
)

func TestPair(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	host, pod := filepath.Join(t.TempDir(), "host"), filepath.Join(t.TempDir(), "pod")
	for _, p := range []string{host, pod} {
		if err := netns.New(p, nil); err != nil {
			t.Fatal(err)
		}
		defer netns.Delete(p)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	err := netns.Do(host, func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		if mtu, err := DefaultMTU(h); mtu != 1500 || err != nil {
			t.Errorf("MTU without a route is %d, %v", mtu, err)
		}
		if err := AddPair(h, Pair{Name: "yt0", MAC: mac, Peer: "eth0", PeerMAC: mac, PeerNS: pod, MTU: 1300}); err != nil {
			return err
		}
		if names, err := WithPrefix(h, "yt"); len(names) != 1 || err != nil {
			t.Errorf("links %v, %v", names, err)
		}
		l, err := h.LinkByName("yt0")
		if err != nil {
			return err
		}
		if a := l.Attrs(); a.MTU != 1300 || a.HardwareAddr.String() != mac.String() || a.Flags&net.FlagUp == 0 {
			t.Errorf("made %+v", a)
		}
		if err := h.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}}); err == nil {
			if mtu, err := DefaultMTU(h); mtu != 1300 || err != nil {
				t.Errorf("MTU is %d, %v", mtu, err)
			}
		}
		if err := Sysctl("net/ipv4/conf/yt0/rp_filter", "1"); err != nil {
			t.Error(err)
		}
		if err := Sysctl("net/ipv4/conf/none/rp_filter", "1"); err == nil {
			t.Error("a sysctl of no link was set")
		}
		for range 2 {
			if err := Delete(h, "yt0"); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = netns.Do(pod, func() error {
		if _, err := net.InterfaceByName("eth0"); err == nil {
			t.Error("the peer outlived its link")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
