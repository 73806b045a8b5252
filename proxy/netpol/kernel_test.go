package netpol

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/cni/plugins"
	"github.com/yare-dev/yare/kubelet/kubelettest"
	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/netns"
	"github.com/yare-dev/yare/linux/nft"
	"github.com/yare-dev/yare/proxy"
)

// world is a node of the test's own: a network namespace with the built-in network, of a range of IPv4 and maybe one of IPv6, an enforcer that guards it, the Services' rules, and another
// namespace that stands for the outside.
type world struct {
	dir      string
	config   Config
	api      *kubelettest.API
	enforcer *Enforcer
	network  *plugins.Network
	pods     map[string]cni.Pod // by name
	addrs    map[string]netip.Addr
	addrs6   map[string]netip.Addr
}

type guard struct{ w *world }

func (g guard) Attach(ctx context.Context, p plugins.Attached) error {
	return g.w.enforcer.Attach(ctx, Attachment(p))
}
func (g guard) Detach(sandbox string) { g.w.enforcer.Detach(sandbox) }

const table = "yare-test"

// newWorld is a world of IPv4; newDual one of both families.
func newWorld(t testing.TB) *world { return newWorldOf(t, testConfig()) }

func newDual(t testing.TB) *world {
	t.Helper()
	if err := link.CheckIPv6(); err != nil {
		t.Skip(err)
	}
	return newWorldOf(t, dualConfig())
}

func newWorldOf(t testing.TB, config Config) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	w := &world{dir: t.TempDir(), config: config, api: kubelettest.NewAPI(), pods: map[string]cni.Pod{},
		addrs: map[string]netip.Addr{}, addrs6: map[string]netip.Addr{}}
	for _, name := range []string{"host", "outside"} {
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
		mac := func(b byte) net.HardwareAddr { return net.HardwareAddr{2, 1, 1, 1, 1, b} }
		if err := link.AddPair(h, link.Pair{Name: "eth0", MAC: mac(1), Peer: "eth0", PeerMAC: mac(2), PeerNS: w.ns("outside"), MTU: 1400}); err != nil {
			return err
		}
		return errors.Join(address("192.0.2.2/24", "192.0.2.1"), address("2001:db8::2/64", "2001:db8::1"))
	})
	w.in(t, "outside", func() error {
		return errors.Join(address("192.0.2.1/24", "192.0.2.2"), address("2001:db8::1/64", "2001:db8::2"))
	})
	c := plugins.Config{Name: "t", Dir: w.ns("state"), Ranges: config.Ranges, ClusterCIDRs: config.Cluster, Guard: guard{w}}
	var err error
	if w.network, err = plugins.New(c, slog.New(slog.NewTextHandler(t.Output(), nil))); err != nil {
		t.Fatal(err)
	}
	w.in(t, "host", func() error { return w.network.Status(t.Context()) })
	t.Cleanup(func() {
		if err := w.network.Remove(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) ns(name string) string {
	if p, isPod := w.pods[name]; isPod {
		return p.NetNS
	}
	return filepath.Join(w.dir, name)
}

func (w *world) in(t testing.TB, name string, f func() error) {
	t.Helper()
	if err := netns.Do(w.ns(name), f); err != nil {
		t.Fatal(err)
	}
}

func up(name string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
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
	if err := errors.Join(netlink.LinkSetUp(l), netlink.AddrAdd(l, a)); err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gw)})
}

// run runs a component on the host until the test ends or stop is called.
func (w *world) run(t testing.TB, run func(ctx context.Context, ready func()) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- netns.Do(w.ns("host"), func() error { return run(ctx, func() { close(ready) }) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("ended: %v", err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// start runs an enforcer, and makes it the network's guard.
func (w *world) start(t testing.TB) (stop func()) {
	t.Helper()
	var err error
	c := w.config
	c.Table = table
	w.enforcer, err = New(c, Deps{Client: w.api,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Attached: func() ([]Attachment, error) {
			pods, err := w.network.Attached()
			var all []Attachment
			for _, p := range pods {
				all = append(all, Attachment(p))
			}
			return all, err
		}})
	if err != nil {
		t.Fatal(err)
	}
	return w.run(t, w.enforcer.Run)
}

// services runs the Services' rules.
func (w *world) services(t testing.TB) {
	t.Helper()
	p, err := proxy.New(proxy.Config{Table: table + "-services", NodeName: "n1", ClusterCIDRs: w.config.Cluster},
		proxy.Deps{Client: w.api, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	w.run(t, p.Run)
}

// put stores the objects of YAML documents, all at once but one after the other.
func (w *world) put(t testing.TB, text string) {
	t.Helper()
	c := parse(t, text)
	for _, o := range c.namespaces {
		w.api.Put(o)
	}
	for _, o := range c.policies {
		w.api.Put(o)
	}
	for _, o := range c.pods {
		w.api.Put(o)
	}
}

func (w *world) remove(t testing.TB, o api.Object) {
	t.Helper()
	if err := w.api.Delete(t.Context(), o, client.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// pod makes a Pod and connects it as a kubelet would: its status is never written.
func (w *world) pod(t testing.TB, namespace, name string, labels map[string]string, ports ...cni.PortMapping) {
	t.Helper()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels}}
	p.Spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
	w.api.Put(p)
	w.connect(t, namespace, name, ports...)
}

// connect connects a pod and serves in it.
func (w *world) connect(t testing.TB, namespace, name string, ports ...cni.PortMapping) {
	t.Helper()
	w.attach(t, namespace, name, ports...)
	t.Cleanup(func() { w.disconnect(t, name) })
	w.serve(t, name, ":8080")
	w.serve(t, name, ":9090")
}

// attach connects a pod.
func (w *world) attach(t testing.TB, namespace, name string, ports ...cni.PortMapping) {
	t.Helper()
	path, err := w.network.NewNamespace(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := cni.Pod{ID: "id-" + name, Namespace: namespace, Name: name, NetNS: path, PortMappings: ports}
	res, err := w.network.Setup(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	w.pods[name], w.addrs[name] = c, res.Addrs()[0]
	if len(res.Addrs()) > 1 {
		w.addrs6[name] = res.Addrs()[1]
	}
	w.carries(t, "host", res.Interfaces[0].Name)
	w.carries(t, name, "eth0")
}

// carries waits for a link that was made just now: what is sent by it before the kernel has noticed that it is up is lost.
func (w *world) carries(t testing.TB, namespace, name string) {
	t.Helper()
	until(t, "the link is up", func() (up bool) {
		w.in(t, namespace, func() error {
			l, err := netlink.LinkByName(name)
			up = err == nil && l.Attrs().OperState == netlink.OperUp
			return err
		})
		return up
	})
}

func (w *world) disconnect(t testing.TB, name string) {
	t.Helper()
	p, there := w.pods[name]
	if !there {
		return
	}
	delete(w.pods, name)
	ctx := context.WithoutCancel(t.Context())
	if err := errors.Join(w.network.Teardown(ctx, p), w.network.DeleteNamespace(ctx, p.NetNS)); err != nil {
		t.Error(err)
	}
}

// serve answers lines, by TCP and UDP, with the client's address.
func (w *world) serve(t testing.TB, name, at string) {
	t.Helper()
	w.in(t, name, func() error {
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
					defer c.Close()
					for in := bufio.NewReader(c); ; {
						if _, err := in.ReadString('\n'); err != nil {
							return
						}
						fmt.Fprintln(c, c.RemoteAddr().(*net.TCPAddr).IP)
					}
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
				_, _ = u.WriteTo([]byte(from.(*net.UDPAddr).IP.String()+"\n"), from)
			}
		}()
		return nil
	})
}

// dial connects from a namespace, within a time.
func (w *world) dial(t testing.TB, from, proto, to string, patience time.Duration) (c net.Conn, err error) {
	t.Helper()
	return dial(t, w.ns(from), proto, to, patience)
}

func dial(t testing.TB, netNS, proto, to string, patience time.Duration) (c net.Conn, err error) {
	t.Helper()
	if nserr := netns.Do(netNS, func() error {
		c, err = net.DialTimeout(proto, to, patience)
		return nil
	}); nserr != nil {
		t.Error(nserr)
	}
	return c, err
}

// talk says something and returns what the other side answers, or why it does not.
func talk(c net.Conn, patience time.Duration) string {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(c, "?"); err != nil {
		return err.Error()
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "silence"
	} else if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(line)
}

// silent is how long nothing comes where nothing is to come, plenty how long an answer may take.
const (
	silent = 300 * time.Millisecond
	plenty = 10 * time.Second
)

// ask says "yes" when the other side answers.
func (w *world) ask(t testing.TB, from, proto, to string, patience time.Duration) string {
	t.Helper()
	return ask(t, w.ns(from), proto, to, patience)
}

func ask(t testing.TB, netNS, proto, to string, patience time.Duration) string {
	t.Helper()
	c, err := dial(t, netNS, proto, to, patience)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "silence"
	} else if err != nil {
		return err.Error()
	}
	defer c.Close()
	if a := talk(c, patience); net.ParseIP(a) == nil {
		return a
	}
	return "yes"
}

// expect asks by TCP and UDP.
func (w *world) expect(t testing.TB, want, from, to string) {
	t.Helper()
	patience := plenty
	if want == "silence" {
		patience = silent
	}
	for _, proto := range []string{"tcp", "udp"} {
		if got := w.ask(t, from, proto, to, patience); got != want {
			t.Errorf("from %s to %s by %s: %s, want %s", from, to, proto, got, want)
		}
	}
}

// kernel returns the table as the kernel has it.
func (w *world) kernel(t testing.TB) (have *nft.Table) {
	t.Helper()
	w.in(t, "host", func() error {
		c, err := nft.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		have, err = c.Read(table)
		return err
	})
	return have
}

// until waits for what the enforcer is about to do.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(plenty); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited %v until %s", plenty, what)
		}
	}
}

// isolated waits until the kernel isolates as many addresses.
func (w *world) isolated(t testing.TB, n int) {
	t.Helper()
	until(t, fmt.Sprintf("%d pods are isolated", n), func() bool {
		have := w.kernel(t)
		return n == 0 && have == nil || have != nil && have.Sets["isolated"] != nil && len(have.Sets["isolated"].Elems) == n
	})
}

const namespaces = `kind: Namespace
metadata: {name: a, labels: {team: red}}
---
kind: Namespace
metadata: {name: b, labels: {team: blue}}
`

func service(name, ip string, nodePort int32, to netip.Addr) (*corev1.Service, *discoveryv1.EndpointSlice) {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
	svc.Spec = corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Type: corev1.ServiceTypeNodePort}
	slice := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{to.String()}, NodeName: new("n1")}}}
	if to.Is6() {
		slice.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: strings.ToLower(string(proto)), Protocol: proto, Port: 80, NodePort: nodePort})
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: new(strings.ToLower(string(proto))), Protocol: &proto, Port: new(int32(8080))})
	}
	return svc, slice
}

// TestPackets checks who reaches whom, by which address, in a cluster of IPv4 and by both families in one of two.
func TestPackets(t *testing.T) {
	t.Parallel()
	t.Run("IPv4 alone", func(t *testing.T) { t.Parallel(); testPackets(t, newWorld(t), false) })
	t.Run("IPv4", func(t *testing.T) { t.Parallel(); testPackets(t, newDual(t), false) })
	t.Run("IPv6", func(t *testing.T) { t.Parallel(); testPackets(t, newDual(t), true) })
}

func testPackets(t *testing.T, w *world, six bool) {
	addrs, spell := w.addrs, strings.NewReplacer()
	if six {
		addrs, spell = w.addrs6, strings.NewReplacer("192.0.2.1:", "[2001:db8::1]:", "192.0.2.2:", "[2001:db8::2]:",
			"10.43.0.1", "fd43::1", "10.43.0.2", "fd43::2", "10.43.0.3", "fd43::3")
	}
	w.put(t, namespaces+`---
kind: NetworkPolicy
metadata: {namespace: a, name: web}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: db}}}]
    ports: [{port: http}, {port: 8080, protocol: UDP}]
  - from: [{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: friend}}}]
  - from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}, {ipBlock: {cidr: '2001:db8::/64', except: ['2001:db8::8000:0:0:0/65']}}]
---
kind: NetworkPolicy
metadata: {namespace: a, name: locked}
spec:
  podSelector: {matchLabels: {app: locked}}
  policyTypes: [Ingress, Egress]
---
kind: NetworkPolicy
metadata: {namespace: a, name: sender}
spec:
  podSelector: {matchLabels: {app: sender}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {app: open}}}]
    ports: [{port: 8080}, {port: 8080, protocol: UDP}]`)
	w.start(t)
	w.services(t)
	for _, p := range []struct{ namespace, name, app string }{
		{"a", "db", "db"}, {"a", "locked", "locked"}, {"a", "sender", "sender"},
		{"b", "friend", "friend"}, {"b", "stranger", "db"},
	} {
		w.pod(t, p.namespace, p.name, map[string]string{"app": p.app})
	}
	both := func(host uint16) []cni.PortMapping {
		return []cni.PortMapping{{HostPort: host, ContainerPort: 8080}, {HostPort: host, ContainerPort: 8080, Protocol: cni.UDP}}
	}
	w.pod(t, "a", "web", map[string]string{"app": "web"}, both(7080)...)
	w.pod(t, "a", "open", map[string]string{"app": "open"}, both(7081)...)
	w.serve(t, "host", spell.Replace("192.0.2.2:8080"))
	w.serve(t, "outside", ":8080")
	for name, ip := range map[string]string{"web": "10.43.0.1", "locked": "10.43.0.2", "open": "10.43.0.3"} {
		port := int32(30080) + int32(ip[len(ip)-1]-'0')
		svc, slice := service(name, spell.Replace(ip), port, addrs[name])
		w.api.Put(svc)
		w.api.Put(slice)
	}
	w.isolated(t, 3)
	at := func(to string) string {
		host, port, _ := strings.Cut(to, ":")
		if addrs[host].IsValid() {
			return net.JoinHostPort(addrs[host].String(), port)
		}
		if host = spell.Replace(host + ":"); strings.HasPrefix(host, "[") {
			return host + port
		}
		return net.JoinHostPort(strings.TrimSuffix(host, ":"), port)
	}
	until(t, "Services are served", func() bool {
		return w.ask(t, "db", "udp", at("10.43.0.1:80"), silent) == "yes" && w.ask(t, "db", "udp", at("10.43.0.3:80"), silent) == "yes"
	})
	tests := []struct{ name, from, to, want string }{
		{"a named port, from who may", "db", "web:8080", "yes"},
		{"another port", "db", "web:9090", "silence"},
		{"its labels, of another namespace", "stranger", "web:8080", "silence"},
		{"a peer of another namespace", "friend", "web:9090", "yes"},
		{"from nobody's peer", "sender", "web:8080", "silence"},
		{"by the Service", "db", "10.43.0.1:80", "yes"},
		{"by the Service, who may not", "stranger", "10.43.0.1:80", "silence"},
		{"to itself", "web", "web:9090", "yes"},
		{"to itself by the Service", "web", "10.43.0.1:80", "yes"},
		{"isolated both ways, to itself by the Service", "locked", "10.43.0.2:80", "yes"},
		{"a block, by the address", "outside", "web:8080", "yes"},
		{"a block, by the node port", "outside", "192.0.2.2:30081", "yes"},
		{"a block, by the host port", "outside", "192.0.2.2:7080", "yes"},
		{"node port of who takes nothing", "outside", "192.0.2.2:30082", "silence"},
		{"the node's processes", "host", "locked:8080", "yes"},
		{"the node's processes by the Service", "host", "10.43.0.2:80", "yes"},
		{"to the node's processes", "locked", "192.0.2.2:8080", "yes"},
		{"to the outside", "locked", "192.0.2.1:8080", "silence"},
		{"to the outside, only what is listed", "sender", "192.0.2.1:8080", "silence"},
		{"who is not isolated", "open", "192.0.2.1:8080", "yes"},
		{"to who is not isolated", "stranger", "open:9090", "yes"},
		{"to a peer", "sender", "open:8080", "yes"},
		{"to a peer's other port", "sender", "open:9090", "silence"},
		{"to a peer by its Service", "sender", "10.43.0.3:80", "yes"},
		{"to a peer by its node port", "sender", "192.0.2.2:30083", "yes"},
		{"to a peer by its host port", "sender", "192.0.2.2:7081", "yes"},
		{"to who is none, by the Service", "sender", "10.43.0.2:80", "silence"},
		{"both must allow", "open", "locked:8080", "silence"},
	}
	var wg sync.WaitGroup
	for _, test := range tests {
		to := at(test.to)
		// Silence takes its time; all wait together.
		wg.Go(func() {
			patience := plenty
			if test.want == "silence" {
				patience = silent
			}
			for _, proto := range []string{"tcp", "udp"} {
				if got := w.ask(t, test.from, proto, to, patience); got != test.want {
					t.Errorf("%s, %s: %s, want %s", test.name, proto, got, test.want)
				}
			}
		})
	}
	wg.Wait()
}

// deny is a policy that isolates a namespace's pods both ways.
func deny(namespace string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "deny"}, Spec: networkingv1.NetworkPolicySpec{
		PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}}}
}
