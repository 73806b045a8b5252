package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	autoscalingv1 "k8s.io/api/autoscaling/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/netns"
)

// feed is a client.Reader whose objects the test puts in.
type feed struct {
	mu      sync.Mutex
	objects map[*api.Kind]map[string]api.Object
	watches map[*api.Kind][]chan client.Event
}

func newFeed() *feed {
	return &feed{objects: map[*api.Kind]map[string]api.Object{}, watches: map[*api.Kind][]chan client.Event{}}
}

func (f *feed) Get(context.Context, *api.Kind, api.Key) (api.Object, error) {
	return nil, errors.New("not served")
}

func (f *feed) GetScale(context.Context, *api.Kind, api.Key) (*autoscalingv1.Scale, error) {
	return nil, errors.New("not served")
}

func (f *feed) List(context.Context, *api.Kind, client.Query) ([]api.Object, api.Revision, error) {
	return nil, 0, errors.New("not served")
}

func (f *feed) Watch(ctx context.Context, k *api.Kind, _ client.Query, _ api.Revision) iter.Seq2[client.Event, error] {
	return func(yield func(client.Event, error) bool) {
		f.mu.Lock()
		c := make(chan client.Event, 100000)
		for _, o := range f.objects[k] {
			c <- client.Event{Op: client.Added, Object: o}
		}
		c <- client.Event{Op: client.Synced}
		f.watches[k] = append(f.watches[k], c)
		f.mu.Unlock()
		for {
			select {
			case e := <-c:
				if !yield(e, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// put stores an object, or deletes it.
func (f *feed) put(k *api.Kind, o api.Object, del bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.objects[k] == nil {
		f.objects[k] = map[string]api.Object{}
	}
	id := o.GetNamespace() + "/" + o.GetName()
	e := client.Event{Op: client.Added, Object: o}
	if e.Old = f.objects[k][id]; e.Old != nil {
		e.Op = client.Modified
	}
	if f.objects[k][id] = o; del {
		delete(f.objects[k], id)
		e.Op = client.Deleted
	}
	for _, c := range f.watches[k] {
		c <- e
	}
}

// apply puts the objects of a YAML text.
func (f *feed) apply(t testing.TB, text string) {
	t.Helper()
	services, bySvc := objects(t, text)
	for _, ss := range bySvc {
		for _, s := range ss {
			f.put(api.EndpointSliceKind, s, false)
		}
	}
	for _, s := range services {
		f.put(api.ServiceKind, s, false)
	}
}

// world is a node of the test's own with two pods and an outside, all of them
// network namespaces. Tests speak of IPv4; a world of IPv6 understands its addresses instead.
type world struct {
	dir  string
	feed *feed
	six  bool
}

// inBoth runs a test in a world of each family.
func inBoth(t *testing.T, test func(*testing.T, *world)) {
	t.Parallel()
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := link.CheckIPv6(); six && err != nil {
				t.Skip(err)
			}
			w := newWorld(t)
			w.six = six
			test(t, w)
		})
	}
}

var address4 = regexp.MustCompile(`\b(\d+)\.(\d+)\.(\d+)\.(\d+)(/\d+|:\d+)?`)

// own spells a text's addresses, ranges and addresses with ports in the world's family.
func (w *world) own(text string) string {
	if !w.six {
		return text
	}
	text = strings.ReplaceAll(text, "addressType: IPv4", "addressType: IPv6")
	return address4.ReplaceAllStringFunc(text, func(a string) string {
		m := address4.FindStringSubmatch(a)
		ip := map[string]string{"10.42": "fd42:0:0:" + m[3] + "::", "10.43": "fd43::", "192.0": "2001:db8::", "198.51": "2001:db8:51::"}[m[1]+"."+m[2]] + m[4]
		switch {
		case strings.HasPrefix(m[5], ":"):
			return "[" + ip + "]" + m[5]
		case m[5] == "/32":
			return ip + "/128"
		case m[5] == "/16":
			return ip + "/48"
		}
		return ip
	})
}

// apply has the feed tell of the objects of a YAML text.
func (w *world) apply(t testing.TB, text string) {
	t.Helper()
	w.feed.apply(t, w.own(text))
}

func (w *world) ns(name string) string { return filepath.Join(w.dir, name) }

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{dir: t.TempDir(), feed: newFeed()}
	for _, name := range []string{"host", "pod1", "pod2", "outside"} {
		if err := netns.New(w.ns(name), func() error { return up("lo") }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := netns.Delete(w.ns(name)); err != nil {
				t.Error(err)
			}
		})
	}
	w.in(t, "host", func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for i, name := range []string{"outside", "pod1", "pod2"} {
			mac := net.HardwareAddr{2, 0, 0, 0, 0, byte(i)}
			if err := link.AddPair(h, link.Pair{Name: name, MAC: mac, Peer: "eth0", PeerMAC: net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}, PeerNS: w.ns(name), MTU: 1400}); err != nil {
				return err
			}
			near, far := fmt.Sprintf("10.42.%d.1", i), fmt.Sprintf("10.42.%d.5", i)
			if name == "outside" {
				near, far = "192.0.2.2", "192.0.2.1"
			}
			near6, far6 := (&world{six: true}).own(near), (&world{six: true}).own(far)
			if err := errors.Join(addr(name, near+"/24", ""), addr(name, near6+"/64", "")); err != nil {
				return err
			}
			w.in(t, name, func() error { return errors.Join(addr("eth0", far+"/24", near), addr("eth0", far6+"/64", near6)) })
		}
		return errors.Join(addr("outside", "", "192.0.2.1"), addr("outside", "", "2001:db8::1"), link.Sysctl("net/ipv4/ip_forward", "1"), forward6())
	})
	return w
}

func forward6() error {
	if link.CheckIPv6() != nil {
		return nil
	}
	return link.Forward6()
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func addr(name, cidr, gw string) error {
	if err := up(name); err != nil {
		return err
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if six := strings.Contains(cidr+gw, ":"); six && link.CheckIPv6() != nil {
		return nil // nor is it asked for
	}
	if cidr != "" {
		a, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	if gw == "" {
		return nil
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)})
}

func (w *world) in(t testing.TB, name string, f func() error) {
	t.Helper()
	if err := netns.Do(w.ns(name), f); err != nil {
		t.Fatal(err)
	}
}

// start runs a proxy on the host until the test ends or stop is called, which
// returns Run's error.
func (w *world) start(t testing.TB, change func(*Config)) (stop func()) {
	t.Helper()
	c := Config{Table: "yare-test", NodeName: "n1", ClusterCIDRs: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}}
	if w.six {
		c.ClusterCIDRs = append(c.ClusterCIDRs, netip.MustParsePrefix("fd42::/48"))
	}
	if change != nil {
		change(&c)
	}
	p, err := New(c, Deps{Client: w.feed, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- netns.Do(w.ns("host"), func() error { return p.Run(ctx, func() { close(ready) }) })
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("proxy ended: %v", err)
	}
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// serve answers TCP and UDP on port 8080 of a pod with name and the client's address.
func (w *world) serve(t testing.TB, ns string) {
	t.Helper()
	w.in(t, ns, func() error {
		at := ":8080"
		if ns == "host" {
			at = w.own("192.0.2.2:8080") // a UDP answer must come from the address that was asked
		}
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					fmt.Fprintln(c, ns, c.RemoteAddr().(*net.TCPAddr).IP)
					_, _ = io.Copy(c, c)
					c.Close()
				}()
			}
		}()
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte(ns+" "+from.(*net.UDPAddr).IP.String()+"\n"), from)
			}
		}()
		return nil
	})
}

// patience outlasts a lost packet, which TCP sends again after a second.
const patience = 2500 * time.Millisecond

// dial connects from a namespace.
func (w *world) dial(t testing.TB, ns, proto, to string) (c net.Conn, err error) {
	t.Helper()
	w.in(t, ns, func() error {
		c, err = net.DialTimeout(proto, w.own(to), patience)
		return nil
	})
	if err == nil {
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// ask returns what the server says, or what went wrong in a word.
func (w *world) ask(t testing.TB, ns, proto, to string) string {
	t.Helper()
	c, err := w.dial(t, ns, proto, to)
	if err == nil {
		defer c.Close()
		if proto == "udp" {
			fmt.Fprintln(c, "?")
		}
		var line string
		if line, err = bufio.NewReader(c).ReadString('\n'); err == nil {
			return strings.TrimSpace(line)
		}
	}
	var dial net.Error
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		return "refused"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &dial) && dial.Timeout():
		return "timeout"
	}
	return err.Error()
}

// until waits for what the kernel or the proxy is about to do.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 5 s until %s", what)
		}
	}
}

// service and slice write the YAML of a test's objects.
func service(name, ip, spec string) string {
	return fmt.Sprintf("kind: Service\nmetadata: {namespace: d, name: %s}\nspec: {clusterIP: %s, clusterIPs: [%s], %s}", name, ip, ip, spec)
}

func slice(name string, ips ...string) string {
	s := fmt.Sprintf("kind: EndpointSlice\nmetadata: {namespace: d, name: %s-1, labels: {kubernetes.io/service-name: %s}}\naddressType: IPv4\n"+
		"ports: [{name: '', port: 8080}, {name: u, protocol: UDP, port: 8080}]\nendpoints:\n", name, name)
	for _, ip := range ips {
		node := "n1"
		if strings.HasPrefix(ip, "10.42.2.") {
			node = "n2"
		}
		s += fmt.Sprintf("- {addresses: [%s], nodeName: %s}\n", ip, node)
	}
	return s
}

const ports = "ports: [{port: 80, nodePort: 30080}, {name: u, protocol: UDP, port: 80, nodePort: 30080}]"

// TestConnections checks who reaches what, and whose address the endpoint sees.
func TestConnections(t *testing.T) { inBoth(t, testConnections) }

func testConnections(t *testing.T, w *world) {
	w.serve(t, "pod1")
	w.serve(t, "pod2")
	w.serve(t, "host")
	w.apply(t, strings.Join([]string{
		service("node", "10.43.0.9", strings.ReplaceAll(ports, "nodePort: 30080", "nodePort: 0")), slice("node", "192.0.2.2"),
		service("one", "10.43.0.1", "type: NodePort, externalIPs: [198.51.100.1], "+ports), slice("one", "10.42.1.5"),
		service("none", "10.43.0.2", "type: NodePort, "+strings.ReplaceAll(ports, "30080", "30082")),
		service("local", "10.43.0.3", "type: NodePort, externalTrafficPolicy: Local, "+strings.ReplaceAll(ports, "30080", "30083")), slice("local", "10.42.1.5", "10.42.2.5"),
		service("away", "10.43.0.4", "type: NodePort, externalTrafficPolicy: Local, internalTrafficPolicy: Local, "+strings.ReplaceAll(ports, "30080", "30084")), slice("away", "10.42.2.5"),
		service("limited", "10.43.0.5", "type: LoadBalancer, loadBalancerSourceRanges: [192.0.2.2/32], "+strings.ReplaceAll(ports, "30080", "30085")) +
			"\nstatus: {loadBalancer: {ingress: [{ip: 198.51.100.5}]}}", slice("limited", "10.42.1.5"),
	}, "\n---\n"))
	t.Cleanup(w.start(t, nil))
	tests := []struct{ name, from, to, tcp, udp string }{
		{"pod to cluster IP", "pod2", "10.43.0.1:80", "pod1 10.42.2.5", "same"},
		{"pod to itself", "pod1", "10.43.0.1:80", "pod1 10.42.1.1", "same"},
		{"host to cluster IP", "host", "10.43.0.1:80", "pod1 10.42.1.1", "same"},
		{"outside to cluster IP", "outside", "10.43.0.1:80", "pod1 10.42.1.1", "same"},
		{"outside to node port", "outside", "192.0.2.2:30080", "pod1 10.42.1.1", "same"},
		{"host to node port", "host", "192.0.2.2:30080", "pod1 10.42.1.1", "same"},
		{"pod to node port", "pod2", "192.0.2.2:30080", "pod1 10.42.1.1", "same"},
		{"endpoint on the node, from a pod", "pod1", "10.43.0.9:80", "host 10.42.1.5", "same"},
		{"endpoint on the node, from itself", "host", "10.43.0.9:80", "host 192.0.2.2", "same"},
		{"external IP", "outside", "198.51.100.1:80", "pod1 10.42.1.1", "same"},
		{"port that is none", "pod2", "192.0.2.2:30081", "refused", "same"},
		{"port that the cluster IP has not, pod", "pod2", "10.43.0.2:81", "refused", "same"},
		{"port that the cluster IP has not, host", "host", "10.43.0.2:81", "refused", "same"},
		{"no endpoints, pod", "pod2", "10.43.0.2:80", "refused", "same"},
		{"no endpoints, host", "host", "10.43.0.2:80", "refused", "same"},
		{"no endpoints, node port", "outside", "192.0.2.2:30082", "refused", "same"},
		{"local policy keeps the address", "outside", "192.0.2.2:30083", "pod1 192.0.2.1", "same"},
		{"local policy, nothing here", "outside", "192.0.2.2:30084", "timeout", "same"},
		{"local policy is not for pods", "pod1", "192.0.2.2:30084", "pod2 10.42.1.5", "same"},
		{"internal local policy", "pod1", "10.43.0.4:80", "timeout", "same"},
		{"source range", "host", "198.51.100.5:80", "pod1 10.42.1.1", "same"},
		{"other source", "outside", "198.51.100.5:80", "timeout", "same"},
	}
	var wg sync.WaitGroup
	for _, test := range tests {
		for proto, want := range map[string]string{"tcp": test.tcp, "udp": test.udp} {
			if want == "same" {
				want = test.tcp
			}
			// The ones that time out would take long one after the other.
			wg.Go(func() {
				want = w.own(want)
				if got := w.ask(t, test.from, proto, test.to); got != want {
					t.Errorf("%s, %s: %s, want %s", test.name, proto, got, want)
				}
			})
		}
	}
	wg.Wait()
}
