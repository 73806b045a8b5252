package link

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/yare-dev/yare/linux/netns"
)

func TestMoveTo(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	t.Parallel()
	host, far, pod := filepath.Join(t.TempDir(), "host"), filepath.Join(t.TempDir(), "far"), filepath.Join(t.TempDir(), "pod")
	for _, p := range []string{host, far, pod} {
		if err := netns.New(p, nil); err != nil {
			t.Fatal(err)
		}
		defer netns.Delete(p)
	}
	err := netns.Do(host, func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		for i, name := range []string{"a0", "a1", "a2"} {
			mac := net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}
			if err := AddPair(h, Pair{Name: name, MAC: mac, Peer: name, PeerMAC: net.HardwareAddr{2, 0, 0, 0, 2, byte(i)}, PeerNS: far, MTU: 1300 + i}); err != nil {
				return err
			}
		}
		l, err := h.LinkByName("a0")
		if err != nil {
			return err
		}
		for _, text := range []string{"10.1.2.3/24", "10.1.2.4/24", "fd00::3/64"} {
			a, err := netlink.ParseAddr(text)
			if err == nil {
				a.Label = "" // of IPv4 the kernel makes it the device's name, which is to be another
				err = h.AddrAdd(l, a)
			}
			if err != nil {
				return err
			}
		}
		temporary, err := netlink.ParseAddr("10.9.9.9/24")
		if err != nil {
			return err
		}
		temporary.ValidLft, temporary.PreferedLft = 1000, 1000
		if err := h.AddrAdd(l, temporary); err != nil {
			return err
		}
		// All or nothing.
		if err := MoveTo(pod, map[string]string{"a0": "eth0", "none": "none"}); err == nil || !strings.Contains(err.Error(), "device none") {
			t.Errorf("a device that is not there: %v", err)
		}
		if err := MoveTo(pod, map[string]string{"a0": "eth0", "a1": "lo"}); err == nil || !strings.Contains(err.Error(), "there is a lo already") {
			t.Errorf("a name that is taken: %v", err)
		}
		if _, err := h.LinkByName("a0"); err != nil {
			t.Errorf("moved though not all could be: %v", err)
		}
		return MoveTo(pod, map[string]string{"a0": "eth0", "a1": "net%d", "a2": "a0"})
	})
	if err != nil {
		t.Fatal(err)
	}
	err = netns.Do(pod, func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		for i, name := range []string{"eth0", "net0", "a0"} {
			l, err := h.LinkByName(name)
			if err != nil {
				return err
			}
			if a := l.Attrs(); a.Flags&net.FlagUp == 0 || a.MTU != 1300+i || a.HardwareAddr[5] != byte(i) {
				t.Errorf("%s: %+v", name, a)
			}
		}
		l, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		list, err := h.AddrList(l, netlink.FAMILY_ALL)
		var got []string
		for _, a := range list {
			if !a.IP.IsLinkLocalUnicast() {
				got = append(got, a.IPNet.String())
			}
		}
		if want := []string{"10.1.2.3/24", "10.1.2.4/24", "fd00::3/64"}; err != nil || !slices.Equal(got, want) {
			t.Errorf("addresses %v, %v; want %v", got, err, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
