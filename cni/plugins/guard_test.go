package plugins

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/netns"
)

// witness is a Guard that notes what is true when it is told.
type witness struct {
	w      *world
	n      *Network
	refuse error
	notes  []string
}

// state says whether the host leads packets to the address by a link of the network's, and whether the address is taken.
func (g *witness) state(a netip.Addr) string {
	routed := false
	_ = netns.Do(g.w.host, func() error {
		h, err := g.n.host()
		if err != nil {
			return err
		}
		routes, err := h.links.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			return err
		}
		l, err := h.links.LinkByIndex(routes[0].LinkIndex)
		routed = err == nil && l.Attrs().Name != "eth0"
		return err
	})
	held, err := g.n.addrs.all()
	return fmt.Sprintf("routed %v, held %v", routed, err == nil && held[a] != "")
}

func (g *witness) Attach(_ context.Context, p Attached) error {
	g.notes = append(g.notes, fmt.Sprintf("attach %s %s/%s %s: %s", p.Sandbox, p.Namespace, p.Name, p.UID, g.state(p.Addrs[0])))
	return g.refuse
}

func (g *witness) Detach(sandbox string) {
	g.notes = append(g.notes, fmt.Sprintf("detach %s: %s", sandbox, g.state(netip.MustParseAddr("10.42.0.1"))))
}

// TestGuard checks that a guard is told before an address leads anywhere, and after it did but before another may have it, also when the
// guard refuses and when a pod is gone without having been torn down.
func TestGuard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := &witness{w: w}
	g.n = w.network(t, func(c *Config) { c.Guard = g })
	expect := func(want ...string) {
		t.Helper()
		if fmt.Sprint(g.notes) != fmt.Sprint(want) {
			t.Errorf("told %q, want %q", g.notes, want)
		}
		g.notes = nil
	}
	w.in(t, w.host, func() error {
		p, _ := attach(t, g.n, cni.Pod{ID: "p", UID: "u1"})
		expect("attach p default/p u1: routed false, held true")
		if all, err := g.n.Attached(); err != nil || len(all) != 1 || all[0].UID != "u1" || all[0].Sandbox != "p" || len(all[0].Addrs) != 1 {
			t.Errorf("attached: %v, %v", all, err)
		}
		if err := g.n.Teardown(t.Context(), p); err != nil {
			t.Error(err)
		}
		expect("detach p: routed false, held true")
		if err := g.n.DeleteNamespace(t.Context(), p.NetNS); err != nil {
			t.Error(err)
		}

		g.refuse = errors.New("not in force")
		ns, err := g.n.NewNamespace(t.Context())
		if err != nil {
			return err
		}
		if _, err := g.n.Setup(t.Context(), cni.Pod{ID: "q", NetNS: ns}); !errors.Is(err, g.refuse) {
			t.Errorf("set up although the guard refused: %v", err)
		}
		if held, err := g.n.addrs.all(); len(held) > 0 || err != nil {
			t.Errorf("kept: %v, %v", held, err)
		}
		if len(g.notes) != 2 {
			t.Errorf("told %q", g.notes)
		}
		g.refuse, g.notes = nil, nil
		if err := g.n.DeleteNamespace(t.Context(), ns); err != nil {
			t.Error(err)
		}

		attach(t, g.n, cni.Pod{ID: "r"})
		g.notes = nil
		if err := g.n.Prune(t.Context(), nil); err != nil {
			t.Error(err)
		}
		if len(g.notes) != 1 {
			t.Errorf("told %q of a pod that is gone", g.notes)
		}
		return nil
	})
	if left, err := filepath.Glob(filepath.Join(w.state, "pods", "*")); len(left) > 0 || err != nil {
		t.Errorf("records left: %v, %v", left, err)
	}
}

// TestSpoofing sends with another pod's address: on a host that does not care by itself, on one whose setting makes the links' own loose, as that of
// systemd does, and where somebody loosened the links after pods were attached.
func TestSpoofing(t *testing.T) {
	t.Parallel()
	for name, rp := range map[string]struct{ all, link string }{"host off": {"0", ""}, "host loose": {"2", ""}, "link loose": {"0", "2"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testSpoofing(t, rp.all, rp.link)
		})
	}
}

func testSpoofing(t *testing.T, all, own string) {
	w := newWorld(t)
	n := w.network(t, nil)
	w.in(t, w.host, func() error { return link.Sysctl("net/ipv4/conf/all/rp_filter", all) })
	addrs, paths := map[string]netip.Addr{}, map[string]string{}
	for _, name := range []string{"sender", "receiver", "victim"} {
		p, a := attach(t, n, cni.Pod{ID: name})
		addrs[name], paths[name] = a, p.NetNS
		t.Cleanup(func() { detach(t, n, p) })
		record, err := n.load(p.ID)
		if err != nil {
			t.Fatal(err)
		}
		if own != "" {
			w.in(t, w.host, func() error { return link.Sysctl("net/ipv4/conf/"+record.HostLink+"/rp_filter", own) })
		}
	}
	raw := func(pod string, proto int) (fd int) {
		w.in(t, paths[pod], func() (err error) {
			fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
			return err
		})
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	in, out := raw("receiver", unix.IPPROTO_UDP), raw("sender", unix.IPPROTO_RAW)
	to := addrs["receiver"]
	send := func(from netip.Addr, port byte) {
		t.Helper()
		packet := make([]byte, 20+8)
		packet[0], packet[8], packet[9] = 0x45, 64, unix.IPPROTO_UDP
		copy(packet[12:], from.AsSlice())
		copy(packet[16:], to.AsSlice())
		packet[23], packet[25] = port, 8
		if err := unix.Sendto(out, packet, 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 100)
	receive := func() bool { _, _, err := unix.Recvfrom(in, b, unix.MSG_DONTWAIT); return err == nil }
	// A link passes nothing on until the kernel has noticed that both of its ends are up.
	until(t, "the way is open", func() bool { send(addrs["sender"], 1); return receive() })
	for _, from := range []netip.Addr{addrs["victim"], netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"), addrs["sender"]} {
		send(from, 2)
	}
	until(t, "the last has come", func() bool {
		for receive() {
			from := netip.AddrFrom4([4]byte(b[12:16]))
			if from != addrs["sender"] {
				t.Errorf("%s sent as %s", addrs["sender"], from)
			} else if b[23] == 2 {
				return true
			}
		}
		return false
	})
}
