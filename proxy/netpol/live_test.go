package netpol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/nft"
)

// TestOpenConnections holds connections to policies that come later, in both directions of each, and lets them go on when these go.
func TestOpenConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(t, namespaces)
	w.start(t)
	w.pod(t, "a", "client", nil)
	w.pod(t, "b", "server", nil)
	at := net.JoinHostPort(w.addrs["server"].String(), "8080")
	var open []net.Conn
	for _, proto := range []string{"tcp", "udp"} {
		c, err := w.dial(t, "client", proto, at, plenty)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	say := func(want bool) {
		t.Helper()
		for i, c := range open {
			patience := plenty
			if !want {
				patience = silent
			}
			if a := talk(c, patience); (net.ParseIP(a) != nil) != want {
				t.Errorf("connection %d: %q, want an answer: %v", i, a, want)
			}
		}
	}
	say(true)
	for _, namespace := range []string{"a", "b"} {
		w.api.Put(deny(namespace))
		w.isolated(t, 1)
		say(false)
		w.remove(t, deny(namespace))
		w.isolated(t, 0)
		// What TCP says meanwhile, it says again, after a while that doubles: a new one need not wait for it.
		open = open[1:]
		say(true)
		c, err := w.dial(t, "client", "tcp", at, plenty)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append([]net.Conn{c}, open...)
		say(true)
	}
}

// TestFromTheFirstPacket looks at what the kernel has when a pod is connected, with nothing but its object known, and when not even that is.
func TestFromTheFirstPacket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(t, namespaces)
	w.api.Put(deny("a"))
	w.start(t)
	w.pod(t, "b", "other", nil)
	w.pod(t, "a", "known", nil)
	w.expect(t, "silence", "known", net.JoinHostPort(w.addrs["other"].String(), "8080"))
	w.expect(t, "silence", "other", net.JoinHostPort(w.addrs["known"].String(), "8080"))
	w.connect(t, "a", "unknown")
	w.expect(t, "silence", "unknown", net.JoinHostPort(w.addrs["other"].String(), "8080"))
	w.remove(t, deny("a"))
	w.isolated(t, 0)
	w.expect(t, "yes", "unknown", net.JoinHostPort(w.addrs["other"].String(), "8080"))
}

// TestAddressUsedAgain gives the address of a pod that was allowed to one that is not.
func TestAddressUsedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(t, namespaces+`---
kind: NetworkPolicy
metadata: {namespace: b, name: friends}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: friend}}}]}]`)
	w.start(t)
	w.pod(t, "b", "server", nil)
	at := net.JoinHostPort(w.addrs["server"].String(), "8080")
	w.pod(t, "a", "friend", map[string]string{"app": "friend"})
	w.expect(t, "yes", "friend", at)
	// From one port all the time, so that conntrack knows the connection.
	from := &net.UDPAddr{Port: 5000}
	udp := func(name string) (c *net.UDPConn) {
		w.in(t, name, func() (err error) {
			to, err := net.ResolveUDPAddr("udp4", at)
			if err != nil {
				return err
			}
			c, err = net.DialUDP("udp4", from, to)
			return err
		})
		return c
	}
	c := udp("friend")
	if a := talk(c, plenty); net.ParseIP(a) == nil {
		t.Errorf("friend: %s", a)
	}
	c.Close()
	old := w.addrs["friend"]
	w.disconnect(t, "friend") // its object is still there, as one that terminates is
	w.pod(t, "a", "stranger", map[string]string{"app": "stranger"})
	for n := 0; w.addrs["stranger"] != old; n++ { // addresses go round
		if n > 300 {
			t.Fatal("the address does not come again")
		}
		w.disconnect(t, "stranger")
		w.attach(t, "a", "stranger")
	}
	c = udp("stranger")
	defer c.Close()
	if a := talk(c, silent); a != "silence" {
		t.Errorf("stranger with the friend's address and port: %s", a)
	}
	w.expect(t, "silence", "stranger", at)
}

// TestRestart checks that the table holds while no enforcer runs, that one that starts changes nothing, that it knows of pods whose status
// was never written, that a foreign change is undone, and that nothing is left in the end.
func TestRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(t, namespaces)
	w.api.Put(deny("a"))
	stop := w.start(t)
	w.pod(t, "a", "locked", nil)
	w.pod(t, "b", "other", nil)
	at := net.JoinHostPort(w.addrs["locked"].String(), "8080")
	w.expect(t, "silence", "other", at)
	stop()
	w.expect(t, "silence", "other", at)
	if b := nft.Diff(w.kernel(t), w.wanted(t)); !b.Empty() {
		t.Errorf("a restart would send %d messages", b.Messages())
	}
	stop = w.start(t)
	w.in(t, "host", func() error { return Remove(table) })
	w.isolated(t, 1)
	w.expect(t, "silence", "other", at)
	stop()
	w.in(t, "host", func() error { return Remove(table) })
	if have := w.kernel(t); have != nil {
		t.Errorf("left:\n%v", have)
	}
	w.expect(t, "yes", "other", at)
	w.start(t)
}

// wanted is the table that the objects and the network's pods make, from nothing.
func (w *world) wanted(t testing.TB) *nft.Table {
	t.Helper()
	c := testConfig()
	c.Table = table
	l := &loop{state: newState(c)}
	pods, err := w.network.Attached()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		l.state.attach(new(Attachment(p)))
	}
	for _, k := range []*api.Kind{api.NetworkPolicyKind, api.NamespaceKind, api.PodKind} {
		all, _, err := w.api.List(t.Context(), k, client.Query{})
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range all {
			l.note(client.Event{Op: client.Added, Object: o})
		}
	}
	l.state.update()
	return l.state.wanted()
}

// TestKernelFollows takes the kernel through the transactions of many changes, and reads it back.
func TestKernelFollows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.in(t, "host", func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		for seed := range uint64(8) {
			d := dice{rand.New(rand.NewPCG(seed, 3)), seed%2 == 1}
			c := d.cluster()
			s := stateOf(c)
			if _, err := conn.MakeWhole("t", s.wanted()); err != nil {
				return err
			}
			for step := range 40 {
				commit := func() {
					if err := conn.Commit(s.update()); err != nil {
						t.Errorf("seed %d, step %d: %v", seed, step, err)
					}
				}
				what := d.change(&c, s, commit)
				commit()
				have, err := conn.Read("t")
				if err != nil {
					return err
				}
				if b := nft.Diff(have, s.wanted()); !b.Empty() {
					return fmt.Errorf("seed %d, step %d, %s: %d messages left to do", seed, step, what, b.Messages())
				}
			}
		}
		return nil
	})
}

// many is a cluster of 1,000 policies and 5,000 pods in 100 namespaces. Of these, 250 are on this node.
func many() (c cluster) {
	for n := range 100 {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("ns%d", n), Labels: map[string]string{"team": fmt.Sprint(n % 10)}}}
		c.namespaces = append(c.namespaces, ns)
		for i := range 50 {
			at := fmt.Sprintf("10.43.%d.%d", n, i)
			if (i+n)%20 == 7 {
				at = fmt.Sprintf("10.42.1.%d", 1+len(c.pods)/20)
			}
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns.Name, Name: fmt.Sprintf("p%d", i), Labels: map[string]string{"app": fmt.Sprint(i % 10)}}}
			p.Spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}}}
			p.Status.PodIPs = []corev1.PodIP{{IP: at}}
			c.pods = append(c.pods, p)
		}
		for i := range 10 {
			p := deny(ns.Name)
			p.Name = fmt.Sprintf("np%d", i)
			p.Spec.PodSelector.MatchLabels = map[string]string{"app": fmt.Sprint(i)}
			rule := parseYAML(fmt.Sprintf(`{spec: {ingress: [{from: [{podSelector: {matchLabels: {app: "%d"}}}, {namespaceSelector: {matchLabels: {team: "%d"}}}], ports: [{port: http}, {port: 443}]}],
 egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: "%d"}}}], ports: [{port: http}]}, {to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.%d.0.0/16]}}]}]}}`, (i+1)%10, i, (i+2)%10, n))
			p.Spec.Ingress, p.Spec.Egress = rule.Spec.Ingress, rule.Spec.Egress
			c.policies = append(c.policies, p)
		}
	}
	return c
}

func parseYAML(text string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{}
	if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
		panic(err)
	}
	return p
}

// BenchmarkStart measures what a restart has to work out, and the kernel has to take.
func BenchmarkStart(b *testing.B) {
	w := newWorld(b)
	c := many()
	w.in(b, "host", func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		for b.Loop() {
			s := stateOf(c)
			if _, err := conn.MakeWhole("t", s.wanted()); err != nil {
				return err
			}
			b.StopTimer()
			if err := conn.Commit(nft.Diff(s.wanted(), nil)); err != nil {
				return err
			}
			b.StartTimer()
		}
		return nil
	})
}

// benchmarkChange measures one change of many, back and forth, from the object to the kernel.
func benchmarkChange(b *testing.B, there, back func(s *state, c cluster)) {
	w := newWorld(b)
	c := many()
	w.in(b, "host", func() error {
		conn, err := nft.Dial()
		if err != nil {
			return err
		}
		defer conn.Close()
		s := stateOf(c)
		if _, err := conn.MakeWhole("t", s.wanted()); err != nil {
			return err
		}
		for i := 0; b.Loop(); i++ {
			if i%2 == 0 {
				there(s, c)
			} else {
				back(s, c)
			}
			if err := conn.Commit(s.update()); err != nil {
				return err
			}
		}
		return nil
	})
}

// BenchmarkPod is a pod elsewhere that comes and goes, BenchmarkOwnPod one of this node, BenchmarkPolicy a policy.
func BenchmarkPod(b *testing.B) {
	benchmarkChange(b, func(s *state, c cluster) { s.setPod(api.KeyOf(c.pods[0]), nil) },
		func(s *state, c cluster) { s.setPod(api.KeyOf(c.pods[0]), parsePod(c.pods[0])) })
}

// BenchmarkOwnPod is described at BenchmarkPod.
func BenchmarkOwnPod(b *testing.B) {
	benchmarkChange(b, func(s *state, c cluster) { s.detach(attachment(c.pods[7]).Sandbox) },
		func(s *state, c cluster) { s.attach(attachment(c.pods[7])) })
}

// BenchmarkPolicy is described at BenchmarkPod.
func BenchmarkPolicy(b *testing.B) {
	benchmarkChange(b, func(s *state, c cluster) { s.setPolicy(api.KeyOf(c.policies[7]), nil) },
		func(s *state, c cluster) { s.setPolicy(api.KeyOf(c.policies[7]), c.policies[7]) })
}

// briefly connects a pod for as long as f takes.
func (w *world) briefly(t *testing.T, p *corev1.Pod, f func(netNS string)) {
	path, err := w.network.NewNamespace(t.Context())
	if err != nil {
		t.Error(err)
		return
	}
	c := cni.Pod{ID: "id-" + p.Name, Namespace: p.Namespace, Name: p.Name, NetNS: path}
	if _, err := w.network.Setup(t.Context(), c); err != nil {
		t.Error(err)
	} else {
		f(path)
	}
	if err := errors.Join(w.network.Teardown(t.Context(), c), w.network.DeleteNamespace(t.Context(), path)); err != nil {
		t.Error(err)
	}
}

// TestChurn has pods come and go at once while policies change, and each try at once what it may and what it may not.
func TestChurn(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	w := newWorld(t)
	w.put(t, namespaces+`---
kind: NetworkPolicy
metadata: {namespace: b, name: friends}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}, podSelector: {matchLabels: {app: friend}}}]}]`)
	w.start(t)
	w.pod(t, "b", "server", nil)
	at := net.JoinHostPort(w.addrs["server"].String(), "8080")
	stop := make(chan struct{})
	var policies sync.WaitGroup
	policies.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			p := deny("a") // of nobody, or of strangers
			p.Name = fmt.Sprintf("p%d", i%5)
			p.Spec.PodSelector.MatchLabels = map[string]string{"app": []string{"stranger", "nobody"}[i%2]}
			w.api.Put(p)
		}
	})
	var pods sync.WaitGroup
	for worker := range 4 {
		pods.Go(func() {
			for i := range 25 {
				app, want, patience := "friend", "yes", plenty
				if (i+worker)%2 == 0 {
					app, want, patience = "stranger", "silence", 20*time.Millisecond
				}
				p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: fmt.Sprintf("w%d-%d", worker, i), Labels: map[string]string{"app": app}}}
				w.api.Put(p)
				w.briefly(t, p, func(netNS string) {
					// TCP says it again when it is lost on a link that has only just come up; then UDP finds it up.
					for _, proto := range []string{"tcp", "udp"} {
						if got := ask(t, netNS, proto, at, patience); got != want {
							t.Errorf("%s %s by %s: %s", app, p.Name, proto, got)
						}
					}
				})
				w.remove(t, p)
			}
		})
	}
	pods.Wait()
	close(stop)
	policies.Wait()
	until(t, "the kernel has what the objects make", func() bool { return nft.Diff(w.kernel(t), w.wanted(t)).Empty() })
	if n := len(w.kernel(t).Sets["isolated"].Elems); n != 1 {
		t.Errorf("%d addresses are isolated", n)
	}
}

// TestStray sends what is no connection's and what is about connections of others: it does not get past the policies for that.
func TestStray(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.put(t, namespaces)
	w.api.Put(deny("a"))
	// Takes what one sends it, so that it has a connection to tell errors about.
	w.put(t, `kind: NetworkPolicy
metadata: {namespace: b, name: halfway}
spec: {podSelector: {matchLabels: {app: halfway}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: one}}}]}]}`)
	w.start(t)
	for _, p := range []struct{ namespace, name string }{{"a", "locked"}, {"b", "one"}, {"b", "two"}, {"b", "three"}, {"b", "halfway"}} {
		w.pod(t, p.namespace, p.name, map[string]string{"app": p.name})
	}
	w.isolated(t, 2)
	asked := map[string]int{} // from which port one asked
	for _, name := range []string{"two", "halfway"} {
		c, err := w.dial(t, "one", "udp", net.JoinHostPort(w.addrs[name].String(), "8080"), plenty)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if a := talk(c, plenty); net.ParseIP(a) == nil {
			t.Fatalf("%s: %s", name, a)
		}
		asked[name] = c.LocalAddr().(*net.UDPAddr).Port
	}
	unreachable := func(server string) []byte {
		return unreachable(netip.AddrPortFrom(w.addrs["one"], uint16(asked[server])), netip.AddrPortFrom(w.addrs[server], 8080))
	}
	for _, test := range []struct {
		name, from, to string
		proto          int
		packet         []byte
		arrives        bool
	}{
		{"no connection's", "one", "two", unix.IPPROTO_TCP, strayTCP(), true},
		{"no connection's, of an isolated pod", "locked", "two", unix.IPPROTO_TCP, strayTCP(), false},
		{"no connection's, to an isolated pod", "one", "locked", unix.IPPROTO_TCP, strayTCP(), false},
		{"an error", "two", "one", unix.IPPROTO_ICMP, unreachable("two"), true},
		{"an error about others", "three", "one", unix.IPPROTO_ICMP, unreachable("two"), true},
		{"an error about others, of an isolated pod", "locked", "one", unix.IPPROTO_ICMP, unreachable("two"), false},
		{"an error about its own, of an isolated pod", "halfway", "one", unix.IPPROTO_ICMP, unreachable("halfway"), true},
		{"an error about an isolated pod's, of another", "three", "one", unix.IPPROTO_ICMP, unreachable("halfway"), true},
		{"an error to who has no part in it", "three", "locked", unix.IPPROTO_ICMP, unreachable("two"), false},
	} {
		in := w.raw(t, test.to, test.proto)
		if err := unix.Sendto(w.raw(t, test.from, test.proto), test.packet, 0, &unix.SockaddrInet4{Addr: w.addrs[test.to].As4()}); err != nil {
			t.Fatal(err)
		}
		patience := unix.NsecToTimeval(silent.Nanoseconds())
		if test.arrives {
			patience = unix.NsecToTimeval(plenty.Nanoseconds())
		}
		if err := unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
			t.Fatal(err)
		}
		_, _, err := unix.Recvfrom(in, make([]byte, 100), 0)
		if (err == nil) != test.arrives {
			t.Errorf("%s: %v, arrives: %v", test.name, err, test.arrives)
		}
	}
}

// raw is a socket for packets of a protocol in a pod.
func (w *world) raw(t *testing.T, name string, proto int) (fd int) {
	t.Helper()
	w.in(t, name, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		return err
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// strayTCP is a segment that opens and ends a connection at once, which is no connection.
func strayTCP() []byte {
	s := make([]byte, 20)
	copy(s, []byte{0x30, 0x39, 0x1f, 0x90}) // from 12345 to 8080
	s[12], s[13] = 5<<4, 0x03               // no options; SYN and FIN
	return s
}

// unreachable is the ICMP message that a datagram reached no port.
func unreachable(from, to netip.AddrPort) []byte {
	m := make([]byte, 8+20+8)
	m[0], m[1] = 3, 3
	ip := m[8:]
	ip[0], ip[3], ip[8], ip[9] = 0x45, 28, 64, unix.IPPROTO_UDP
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], sum(ip[:20]))
	binary.BigEndian.PutUint16(ip[20:], from.Port())
	binary.BigEndian.PutUint16(ip[22:], to.Port())
	binary.BigEndian.PutUint16(ip[24:], 8)
	binary.BigEndian.PutUint16(m[2:], sum(m))
	return m
}

// sum is the Internet's checksum.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// BenchmarkRoundTrip measures a datagram and its answer between two pods: without policies, where they are others', and where they allow it by
// the last of ten rules.
func BenchmarkRoundTrip(b *testing.B) {
	w := newWorld(b)
	w.put(b, namespaces)
	w.start(b)
	w.pod(b, "a", "client", map[string]string{"app": "client"})
	w.pod(b, "b", "server", nil)
	w.pod(b, "b", "third", map[string]string{"app": "third"})
	c, err := w.dial(b, "client", "udp", net.JoinHostPort(w.addrs["server"].String(), "8080"), plenty)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	trip := func(b *testing.B) {
		buf := make([]byte, 100)
		for b.Loop() {
			if _, err := c.Write(buf[:10]); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("none", trip)
	p := deny("b")
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": "third"}
	w.api.Put(p)
	w.isolated(b, 1)
	b.Run("others", trip)
	var rules []string
	for i := range 10 {
		rules = append(rules, fmt.Sprintf(`{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: In, values: [x%d, client]}]}}], ports: [{port: %d, protocol: UDP}]}`, i, 8071+i))
	}
	p = deny("b")
	p.Spec.PolicyTypes = p.Spec.PolicyTypes[:1]
	p.Spec.Ingress = parseYAML("{spec: {ingress: [" + strings.Join(rules, ",") + "]}}").Spec.Ingress
	w.api.Put(p)
	w.isolated(b, 2)
	b.Run("allowed", trip)
}
