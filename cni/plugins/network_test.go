package plugins

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/netns"
	"github.com/yare-dev/yare/linux/nft"
)

// world is a host of the test's own: a network namespace with an uplink to another
// namespace, which stands for the outside.
type world struct {
	host, outside string
	state         string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	// Paths of mounts below a test's long directory would do as well.
	dir := t.TempDir()
	w := &world{host: filepath.Join(dir, "host"), outside: filepath.Join(dir, "outside"), state: filepath.Join(dir, "state")}
	lo := func() error {
		l, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(l)
	}
	for _, p := range []string{w.host, w.outside} {
		if err := netns.New(p, lo); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netns.Delete(p); err != nil {
				t.Error(err)
			}
		})
	}
	w.in(t, w.host, func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		mac := func(b byte) net.HardwareAddr { return net.HardwareAddr{2, 1, 1, 1, 1, b} }
		if err := link.AddPair(h, link.Pair{Name: "eth0", MAC: mac(1), Peer: "eth0", PeerMAC: mac(2), PeerNS: w.outside, MTU: 1400}); err != nil {
			return err
		}
		return errors.Join(address("192.0.2.2/24", "192.0.2.1"), address("2001:db8::2/64", "2001:db8::1"))
	})
	w.in(t, w.outside, func() error { return errors.Join(address("192.0.2.1/24", ""), address("2001:db8::1/64", "")) })
	return w
}

// address configures eth0 of the thread's namespace.
func address(cidr, gw string) error {
	l, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if a.IP.To4() == nil && link.CheckIPv6() != nil {
		return nil // nor is it asked for
	}
	if a.IP.To4() == nil {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := errors.Join(netlink.LinkSetUp(l), netlink.AddrAdd(l, a)); err != nil || gw == "" {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)})
}

func (w *world) in(t testing.TB, ns string, f func() error) {
	t.Helper()
	if err := netns.Do(ns, f); err != nil {
		t.Fatal(err)
	}
}

// network returns the network of the world's host, ready for use.
func (w *world) network(t testing.TB, change func(*Config)) *Network {
	t.Helper()
	c := Config{Name: "t", Dir: w.state, Ranges: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/24")},
		ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
	if change != nil {
		change(&c)
	}
	n, err := New(c, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	w.in(t, w.host, func() error { _, err := n.host(); return err })
	return n
}

// dual gives pods addresses of both families.
func dual(c *Config) {
	c.Ranges = append(c.Ranges, netip.MustParsePrefix("fd42::/64"))
	c.ClusterCIDRs = append(c.ClusterCIDRs, netip.MustParsePrefix("fd42::/56"))
}

// attach makes a pod of that ID.
func attach(t testing.TB, n *Network, p cni.Pod) (cni.Pod, netip.Addr) {
	t.Helper()
	p, addrs := attachAll(t, n, p)
	return p, addrs[0]
}

// attachAll is attach with all of the pod's addresses.
func attachAll(t testing.TB, n *Network, p cni.Pod) (cni.Pod, []netip.Addr) {
	t.Helper()
	var err error
	if p.NetNS == "" {
		if p.NetNS, err = n.NewNamespace(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	p.Namespace, p.Name = "default", p.ID
	res, err := n.Setup(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return p, res.Addrs()
}

// detach undoes attach.
func detach(t testing.TB, n *Network, p cni.Pod) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if err := errors.Join(n.Teardown(ctx, p), n.DeleteNamespace(ctx, p.NetNS)); err != nil {
		t.Error(err)
	}
}

// empty checks that nothing of the network is left on the host.
func (w *world) empty(t testing.TB, n *Network) {
	t.Helper()
	w.in(t, w.host, func() error {
		if err := n.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
		names, err := net.Interfaces()
		if err != nil {
			return err
		}
		if len(names) != 2 {
			t.Errorf("links left: %v", names)
		}
		routes, err := netlink.RouteList(nil, unix.AF_INET)
		if err != nil {
			return err
		}
		if len(routes) != 2 {
			t.Errorf("routes left: %v", routes)
		}
		if routes, err = netlink.RouteList(nil, unix.AF_INET6); err != nil {
			return err
		}
		for _, r := range routes {
			if r.Dst != nil && r.Dst.IP[0] == 0xfd {
				t.Errorf("route left: %v", r)
			}
		}
		return nil
	})
	if _, err := os.Stat(w.state); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("state left: %v", err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), w.state) {
		t.Errorf("mounts left below %s: %v", w.state, err)
	}
}

// answerUDP answers datagrams in a namespace.
func (w *world) answerUDP(t testing.TB, ns, addr string, answer func(from net.Addr) string) {
	t.Helper()
	w.in(t, ns, func() error {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = c.WriteTo([]byte(answer(from)+"\n"), from)
			}
		}()
		return nil
	})
}

// serve answers connections in a namespace with the client's address.
func (w *world) serve(t testing.TB, ns, proto, addr string) {
	t.Helper()
	if proto == "udp" {
		w.answerUDP(t, ns, addr, func(from net.Addr) string { return from.(*net.UDPAddr).IP.String() })
		return
	}
	w.in(t, ns, func() error {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).IP)
				c.Close()
			}
		}()
		return nil
	})
}

// ask connects from a namespace and returns what the server says, or an error.
func (w *world) ask(t testing.TB, ns, proto, addr string) string {
	t.Helper()
	var answer string
	w.in(t, ns, func() error {
		// The dialler must stay on this thread, which is in the namespace: an
		// address needs no resolver, so no goroutine dials.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		c, err := net.DialTimeout(proto, addr, 2*time.Second)
		if err != nil {
			answer = err.Error()
			return nil
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if proto == "udp" {
			fmt.Fprintln(c, "?")
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		if answer = strings.TrimSpace(line); err != nil && !errors.Is(err, io.EOF) {
			answer = err.Error()
		}
		return nil
	})
	return answer
}

// TestPaths checks who reaches whom, and as whom.
func TestPaths(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, nil)
	a, ipA := attach(t, n, cni.Pod{ID: "a", PortMappings: []cni.PortMapping{
		{HostPort: 8080, ContainerPort: 80},
		{HostPort: 8053, ContainerPort: 53, Protocol: cni.UDP},
		{HostPort: 8081, ContainerPort: 80, HostIP: netip.MustParseAddr("192.0.2.2")},
		{ContainerPort: 90},
	}})
	b, ipB := attach(t, n, cni.Pod{ID: "b"})
	if ipA == ipB {
		t.Fatalf("both pods have %s", ipA)
	}
	w.serve(t, a.NetNS, "tcp", ":80")
	w.serve(t, a.NetNS, "udp", ":53")
	w.serve(t, w.outside, "tcp", ":80")
	w.serve(t, w.host, "tcp", "127.0.0.1:70")
	A, B := ipA.String(), ipB.String()
	tests := []struct{ name, from, proto, to, want string }{
		{"pod to itself", a.NetNS, "tcp", A + ":80", A},
		{"pod to its loopback", a.NetNS, "tcp", "127.0.0.1:80", "127.0.0.1"},
		{"pod to pod", b.NetNS, "tcp", A + ":80", B},
		{"pod to pod, udp", b.NetNS, "udp", A + ":53", B},
		{"host to pod", w.host, "tcp", A + ":80", "192.0.2.2"},
		{"pod to outside", b.NetNS, "tcp", "192.0.2.1:80", "192.0.2.2"},
		{"outside to host port", w.outside, "tcp", "192.0.2.2:8080", "192.0.2.1"},
		{"outside to host port, udp", w.outside, "udp", "192.0.2.2:8053", "192.0.2.1"},
		{"outside to host port of an address", w.outside, "tcp", "192.0.2.2:8081", "192.0.2.1"},
		{"host to host port", w.host, "tcp", "192.0.2.2:8080", "192.0.2.2"},
		{"host's loopback to host port", w.host, "tcp", "127.0.0.1:8080", "192.0.2.2"},
		{"pod to host port", b.NetNS, "tcp", "192.0.2.2:8080", B},
		{"pod to its own host port", a.NetNS, "tcp", "192.0.2.2:8080", "192.0.2.2"},
	}
	for _, test := range tests {
		if got := w.ask(t, test.from, test.proto, test.to); got != test.want {
			// The host may use any of its own addresses towards a pod.
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	// CVE-2025-67499: a port of somebody else's address is not ours, and
	// CVE-2020-8558: the host's loopback is not reached from a pod.
	for _, to := range []string{"192.0.2.1:8080", "127.0.0.1:8081"} {
		if got := w.ask(t, a.NetNS, "tcp", to); !strings.Contains(got, "refused") {
			t.Errorf("connection to %s: %s", to, got)
		}
	}
	w.leave(t, n, "192.0.2.2:8080", a, b)
}

// leave detaches pods that are as they should be. A host port of theirs goes with them, and all else.
func (w *world) leave(t *testing.T, n *Network, port string, pods ...cni.Pod) {
	t.Helper()
	for _, p := range pods {
		if err := n.Check(t.Context(), p); err != nil {
			t.Error(err)
		}
		detach(t, n, p)
	}
	if got := w.ask(t, w.outside, "tcp", port); !strings.Contains(got, "refused") {
		t.Errorf("host port after the pod: %s", got)
	}
	w.empty(t, n)
}

// TestPool runs the component: namespaces come from the pool, nothing of it is left
// afterwards, and a flushed table comes back.
func TestPool(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, func(c *Config) { c.Pool = 2 })
	ctx, cancel := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- netns.Do(w.host, func() error { return n.Run(ctx, func() { close(started) }) })
	}()
	<-started
	p, _ := attach(t, n, cni.Pod{ID: "p", PortMappings: []cni.PortMapping{{HostPort: 80, ContainerPort: 80}}})
	w.serve(t, p.NetNS, "tcp", ":80")
	if err := n.Prune(t.Context(), []cni.Pod{p}); err != nil {
		t.Error(err)
	}
	w.in(t, w.host, func() error { return flush(n.c.Table) })
	until(t, "the host port is back", func() bool { return w.ask(t, w.outside, "tcp", "192.0.2.2:80") == "192.0.2.1" })
	q, _ := attach(t, n, cni.Pod{ID: "q"})
	detach(t, n, q)
	detach(t, n, p)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.in(t, w.host, func() error {
		links, err := net.Interfaces()
		if len(links) != 2 {
			t.Errorf("links left by Run: %v", links)
		}
		return err
	})
	w.empty(t, n)
}

func flush(name string) error {
	c, err := nft.Dial()
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Commit(nft.Diff(nft.NewTable(name), nil))
}

// until waits for the kernel, or a goroutine that the kernel wakes.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 5 s until %s", what)
		}
	}
}

// TestRestart gives the state of one network to another, as after a crash: what
// is live stays, the rest goes.
func TestRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	old := w.network(t, nil)
	live, ip := attach(t, old, cni.Pod{ID: "live", PortMappings: []cni.PortMapping{{HostPort: 80, ContainerPort: 80}}})
	dead, _ := attach(t, old, cni.Pod{ID: "dead", PortMappings: []cni.PortMapping{{HostPort: 81, ContainerPort: 80}}})
	unused, err := old.NewNamespace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(w.state, "netns", "half-made")
	if err := os.WriteFile(half, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	record := filepath.Join(w.state, "pods", ".half-written")
	if err := os.WriteFile(record, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.serve(t, live.NetNS, "tcp", ":80")
	n := w.network(t, nil)
	if err := n.Prune(t.Context(), []cni.Pod{live}); err != nil {
		t.Fatal(err)
	}
	if got := w.ask(t, w.outside, "tcp", "192.0.2.2:80"); got != "192.0.2.1" {
		t.Errorf("live pod: %s", got)
	}
	if err := n.Check(t.Context(), live); err != nil {
		t.Error(err)
	}
	if err := n.Check(t.Context(), dead); err == nil {
		t.Error("the dead pod is still attached")
	}
	for _, path := range []string{dead.NetNS, unused, half, record} {
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	next, ip2 := attach(t, n, cni.Pod{ID: "next"})
	if ip2 == ip {
		t.Errorf("address %s was given twice", ip)
	}
	detach(t, n, next)
	detach(t, n, live)
	w.empty(t, n)
	for _, r := range old.known {
		r.close()
	}
}

// TestPruneBesidePool checks that Prune, which a server that starts calls while the pool is being filled, leaves alone what is made
// ready after it looked, whether it is known or not: a pod that got a namespace without its link waited a second for the next.
func TestPruneBesidePool(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, nil)
	h, err := n.host()
	if err != nil {
		t.Fatal(err)
	}
	before, err := n.prepare(h)
	if err != nil {
		t.Fatal(err)
	}
	n.take(before.path)
	f, err := n.find(h)
	if err != nil {
		t.Fatal(err)
	}
	after, err := n.prepare(h)
	if err != nil {
		t.Fatal(err)
	}
	n.take(after.path)
	if err := n.prune(h, f, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := h.links.LinkByName(after.link); err != nil || !netns.IsHeld(after.path) {
		t.Errorf("made after the look: held %v, link: %v", netns.IsHeld(after.path), err)
	}
	if _, err := h.links.LinkByName(before.link); err == nil || netns.IsHeld(before.path) {
		t.Errorf("made before and nobody's: held %v, link: %v", netns.IsHeld(before.path), err)
	}
	before.close()
	n.discard(h, after)
	w.empty(t, n)
}

// TestLimit finds a pod's limits at both ends of its link, also those that are less than a byte.
func TestLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, nil)
	for _, test := range []struct{ bits, bytes uint64 }{{8_000_000, 1_000_000}, {1, 1}, {1e15, 1e15 / 8}} {
		p, _ := attach(t, n, cni.Pod{ID: "p", Bandwidth: &cni.Bandwidth{IngressRate: test.bits, EgressRate: test.bits}})
		a, err := n.load(p.ID)
		if err != nil {
			t.Fatal(err)
		}
		for ns, name := range map[string]string{w.host: a.HostLink, p.NetNS: a.Interface} {
			w.in(t, ns, func() error {
				l, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				all, err := netlink.QdiscList(l)
				if len(all) != 1 {
					t.Fatalf("%s: %v, %v", name, all, err)
				}
				if q, ok := all[0].(*netlink.Tbf); !ok || q.Rate != test.bytes {
					t.Errorf("%s, %d bits: %v", name, test.bits, all[0])
				}
				return nil
			})
		}
		detach(t, n, p)
	}
	w.empty(t, n)
}

// TestFailedSetup checks that nothing is left of a pod that cannot be attached.
func TestFailedSetup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, nil)
	path, err := n.NewNamespace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]cni.Pod{
		"protocol":  {PortMappings: []cni.PortMapping{{HostPort: 1, ContainerPort: 1, Protocol: "icmp"}}, NetNS: path},
		"family":    {PortMappings: []cni.PortMapping{{HostPort: 1, HostIP: netip.MustParseAddr("fd00::1")}}, NetNS: path},
		"namespace": {NetNS: "/nowhere"},
		"id":        {ID: "../x", NetNS: path},
	} {
		if p.ID == "" {
			p.ID = name
		}
		if res, err := n.Setup(t.Context(), p); err == nil {
			t.Errorf("%s: made %v", name, res)
		}
	}
	if held, err := n.addrs.all(); len(held) != 0 || err != nil {
		t.Errorf("addresses held: %v, %v", held, err)
	}
	if err := n.DeleteNamespace(t.Context(), path); err != nil {
		t.Error(err)
	}
	w.empty(t, n)
}

func BenchmarkSetupTeardown(b *testing.B) {
	for _, pool := range []int{0, 8} {
		b.Run(fmt.Sprintf("pool=%d", pool), func(b *testing.B) { benchmarkSetup(b, pool) })
	}
}

func benchmarkSetup(b *testing.B, pool int) {
	w := newWorld(b)
	n := w.network(b, func(c *Config) { c.Pool = pool })
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	started := make(chan struct{})
	go func() {
		ended <- netns.Do(w.host, func() error { return n.Run(ctx, func() { close(started) }) })
	}()
	<-started
	var setup, teardown time.Duration
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		until(b, "a namespace is ready", func() bool { return len(n.spare) >= min(pool, 1) })
		b.StartTimer()
		start := time.Now()
		p, _ := attach(b, n, cni.Pod{ID: fmt.Sprint(i)})
		setup += time.Since(start)
		start = time.Now()
		detach(b, n, p)
		teardown += time.Since(start)
	}
	b.ReportMetric(float64(setup.Microseconds())/float64(b.N), "us/setup")
	b.ReportMetric(float64(teardown.Microseconds())/float64(b.N), "us/teardown")
	cancel()
	if err := <-ended; err != nil {
		b.Error(err)
	}
	w.empty(b, n)
}
