package dns

import (
	"context"
	"flag"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// objects decodes YAML documents of Services and EndpointSlices.
func objects(t testing.TB, text string) []api.Object {
	t.Helper()
	var out []api.Object
	for _, doc := range strings.Split(text, "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			t.Fatal(err)
		}
		var o api.Object = &corev1.Service{}
		if kind.Kind == "EndpointSlice" {
			o = &discoveryv1.EndpointSlice{}
		}
		if err := yaml.UnmarshalStrict([]byte(doc), o); err != nil {
			t.Fatal(err)
		}
		out = append(out, o)
	}
	return out
}

func zoneOf(os []api.Object) *Zone {
	z := NewZone("cluster.local", 5)
	for _, o := range os {
		switch o := o.(type) {
		case *corev1.Service:
			z.PutService(o)
		case *discoveryv1.EndpointSlice:
			z.PutSlice(o)
		}
	}
	return z
}

// ask prints the answer to a question "name TYPE".
func (z *Zone) ask(q string) string {
	name, typ, _ := strings.Cut(q, " ")
	a, known := Answer{}, true
	if z.Contains(name) {
		a = z.Lookup(name, dns.StringToType[typ])
	} else {
		a, known = z.Reverse(name, dns.StringToType[typ])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "> %s\n", q)
	switch {
	case !known:
		b.WriteString("not of the zone\n")
	case !a.Exists:
		b.WriteString("NXDOMAIN\n")
	case len(a.Records) == 0:
		b.WriteString("no data\n")
	}
	for _, rr := range a.Records {
		fmt.Fprintln(&b, strings.ReplaceAll(rr.String(), "\t", " "))
	}
	for _, rr := range a.Extra {
		fmt.Fprintln(&b, "+", strings.ReplaceAll(rr.String(), "\t", " "))
	}
	return b.String()
}

// TestZone compares answers with testdata/zone.txt: objects, "----", questions after
// ">" and their answers.
func TestZone(t *testing.T) {
	b, err := os.ReadFile("testdata/zone.txt")
	if err != nil {
		t.Fatal(err)
	}
	in, want, _ := strings.Cut(string(b), "\n----\n")
	z := zoneOf(objects(t, in))
	var got strings.Builder
	for line := range strings.Lines(want) {
		if q, ok := strings.CutPrefix(line, "> "); ok {
			got.WriteString(z.ask(strings.TrimSpace(q)))
		}
	}
	if *update {
		if err := os.WriteFile("testdata/zone.txt", []byte(in+"\n----\n"+got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
	// What is taken away leaves no trace.
	for _, o := range objects(t, in) {
		switch o := o.(type) {
		case *corev1.Service:
			z.DropService(o.Namespace, o.Name)
		case *discoveryv1.EndpointSlice:
			z.DropSlice(o)
		}
	}
	if diff := cmp.Diff(NewZone("cluster.local", 5), z, cmp.AllowUnexported(Zone{}, endpoints{}, endpoint{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("an emptied zone is not empty:\n%s", diff)
	}
}

// cluster is a client.Client over a few objects.
type cluster struct {
	client.Client // what the server must not call is nil

	mu      sync.Mutex
	objects map[string]api.Object
	watches []chan client.Event
}

func newCluster(os ...api.Object) *cluster {
	c := &cluster{objects: map[string]api.Object{}}
	for _, o := range os {
		c.put(o)
	}
	return c
}

func id(o api.Object) string {
	return fmt.Sprintf("%T/%s/%s", o, o.GetNamespace(), o.GetName())
}

func (c *cluster) put(o api.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := client.Event{Op: client.Added, Object: o, Old: c.objects[id(o)]}
	c.objects[id(o)] = o
	for _, w := range c.watches {
		w <- e
	}
}

// del deletes what another has made.
func (c *cluster) del(o api.Object) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.objects, id(o))
	for _, w := range c.watches {
		w <- client.Event{Op: client.Deleted, Object: o}
	}
}

// all returns what there is, by kind and name.
func (c *cluster) all() map[string]api.Object {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.objects)
}

func (c *cluster) Watch(ctx context.Context, k *api.Kind, _ client.Query, _ api.Revision) iter.Seq2[client.Event, error] {
	return func(yield func(client.Event, error) bool) {
		c.mu.Lock()
		w := make(chan client.Event, 100)
		for _, o := range c.objects {
			w <- client.Event{Op: client.Added, Object: o}
		}
		w <- client.Event{Op: client.Synced}
		c.watches = append(c.watches, w)
		c.mu.Unlock()
		for {
			select {
			case e := <-w:
				_, svc := e.Object.(*corev1.Service)
				if e.Op != client.Synced && svc != (k == api.ServiceKind) {
					continue
				}
				if !yield(e, nil) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

func (c *cluster) Get(_ context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.objects {
		if api.KindOf(o) == k && api.KeyOf(o) == key {
			return o, nil
		}
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: k.Plural}, key.Name)
}

func (c *cluster) Create(_ context.Context, o api.Object) (api.Object, error) {
	c.mu.Lock()
	_, exists := c.objects[id(o)]
	c.mu.Unlock()
	if exists {
		// As for a Service whose address is taken, by itself: not AlreadyExists.
		return nil, apierrors.NewInvalid(schema.GroupKind{}, o.GetName(), nil)
	}
	c.put(o)
	return o, nil
}

func (c *cluster) Update(_ context.Context, o api.Object, _ string) (api.Object, error) {
	c.put(o)
	return o, nil
}

// start runs a server on the loopback until the test ends.
func start(t testing.TB, c Config, cl client.Client) string {
	t.Helper()
	if len(c.Listen) == 0 {
		c.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	}
	s, err := New(c, Deps{Client: cl, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	addrs, err := s.Addrs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return addrs[0].String()
}

// exchangeWith asks a server.
func exchangeWith(t testing.TB, server, proto, name string, typ uint16, edns uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	if edns > 0 {
		m.SetEdns0(edns, false)
	}
	r, _, err := (&dns.Client{Net: proto}).Exchange(m, server)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// upstream is another name server: every name below example.com has the address
// 192.0.2.9, others do not exist. It counts the questions.
func upstream(t testing.TB) (addr string, asked *atomic.Int32) {
	t.Helper()
	asked = &atomic.Int32{}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		m := new(dns.Msg)
		m.SetReply(r)
		if q := r.Question[0]; dns.IsSubDomain("example.com.", q.Name) {
			rr, _ := dns.NewRR(q.Name + " 60 IN A 192.0.2.9")
			m.Answer = []dns.RR{rr}
		} else {
			m.Rcode = dns.RcodeNameError
			rr, _ := dns.NewRR(". 60 IN SOA a. b. 1 1 1 1 10")
			m.Ns = []dns.RR{rr}
		}
		_ = w.WriteMsg(m)
	})}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.ActivateAndServe() }()
	t.Cleanup(func() { c.Close(); <-ended })
	return c.LocalAddr().String(), asked
}

func TestServer(t *testing.T) {
	t.Parallel()
	many := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "many", Labels: map[string]string{discoveryv1.LabelServiceName: "many"}}}
	for i := range 100 {
		many.Endpoints = append(many.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.42.0.%d", i+1)}})
	}
	cl := newCluster(append(objects(t, `kind: Service
metadata: {namespace: d, name: web}
spec: {clusterIP: 10.43.0.10, clusterIPs: [10.43.0.10]}
---
kind: Service
metadata: {namespace: d, name: many}
spec: {clusterIP: None}
---
kind: Service
metadata: {namespace: d, name: out}
spec: {type: ExternalName, externalName: www.example.com}
---
kind: Service
metadata: {namespace: d, name: in}
spec: {type: ExternalName, externalName: web.d.svc.cluster.local}
---
kind: Service
metadata: {namespace: d, name: loop}
spec: {type: ExternalName, externalName: loop.d.svc.cluster.local}`), many)...)
	up, asked := upstream(t)
	server := start(t, Config{Upstreams: []string{up}}, cl)
	tests := []struct {
		name  string
		edns  uint16
		rcode int
		count int
		cut   bool
	}{
		{"web.d.svc.cluster.local.", 0, dns.RcodeSuccess, 1, false},
		{"none.d.svc.cluster.local.", 0, dns.RcodeNameError, 0, false},
		{"d.svc.cluster.local.", 0, dns.RcodeSuccess, 0, false},
		{"out.d.svc.cluster.local.", 0, dns.RcodeSuccess, 2, false},
		{"in.d.svc.cluster.local.", 0, dns.RcodeSuccess, 2, false},
		{"loop.d.svc.cluster.local.", 0, dns.RcodeServerFailure, 9, false},
		{"www.example.com.", 0, dns.RcodeSuccess, 1, false},
		{"www.example.org.", 0, dns.RcodeNameError, 0, false},
		{"many.d.svc.cluster.local.", 0, dns.RcodeSuccess, 0, true},
		{"many.d.svc.cluster.local.", 4096, dns.RcodeSuccess, 100, false},
	}
	for _, test := range tests {
		for _, proto := range []string{"udp", "tcp"} {
			r := exchangeWith(t, server, proto, test.name, dns.TypeA, test.edns)
			cut, count := test.cut && proto == "udp", test.count
			if test.cut {
				count = len(r.Answer) // as many as fit
			}
			if r.Rcode != test.rcode || len(r.Answer) != count || r.Truncated != cut || (r.IsEdns0() != nil) != (test.edns > 0) {
				t.Errorf("%s by %s: got\n%v", test.name, proto, r)
			}
			if len(r.Answer) == 0 && !cut && (len(r.Ns) != 1 || r.Ns[0].Header().Rrtype != dns.TypeSOA) {
				t.Errorf("%s by %s: a negative answer without SOA:\n%v", test.name, proto, r)
			}
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("the upstream was asked %d times for two names", n)
	}
	svc := objects(t, "kind: Service\nmetadata: {namespace: d, name: late}\nspec: {clusterIP: 10.43.0.11, clusterIPs: [10.43.0.11]}")[0]
	cl.put(svc)
	for end := time.Now().Add(5 * time.Second); len(exchangeWith(t, server, "udp", "late.d.svc.cluster.local.", dns.TypeA, 0).Answer) == 0; {
		if time.Now().After(end) {
			t.Fatal("a new Service has no name after 5 s")
		}
	}
}

func TestNoUpstream(t *testing.T) {
	t.Parallel()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	server := start(t, Config{ResolvConf: conf}, newCluster())
	begin := time.Now()
	if r := exchangeWith(t, server, "udp", "www.example.com.", dns.TypeA, 0); r.Rcode != dns.RcodeServerFailure {
		t.Errorf("got %v", r)
	}
	if d := time.Since(begin); d > time.Second {
		t.Errorf("SERVFAIL took %v", d)
	}
}

// TestResolvConf checks that the host's file is followed, without what would be a loop.
func TestResolvConf(t *testing.T) {
	t.Parallel()
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	own := netip.MustParseAddrPort("192.0.2.1:53")
	f := newForwarder(nil, conf, func(a netip.AddrPort) bool { return a == own })
	for i, test := range []struct{ text, want string }{
		{"nameserver 192.0.2.1\nnameserver 192.0.2.2\n", "[192.0.2.2:53]"},
		{"nameserver fd00::1\n", "[[fd00::1]:53]"},
		{"", "[]"},
	} {
		if err := os.WriteFile(conf, []byte(test.text), 0o644); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(int64(1000+i), 0)
		if err := os.Chtimes(conf, at, at); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(f.upstreams()); got != test.want {
			t.Errorf("%q: %s, want %s", test.text, got, test.want)
		}
	}
}

func TestAllowFrom(t *testing.T) {
	t.Parallel()
	s := &Server{c: Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:53")}, AllowFrom: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		AllowAlso: func(a netip.Addr) bool { return a == netip.MustParseAddr("192.0.2.9") }}}
	for from, want := range map[string]bool{"10.42.3.4": true, "192.0.2.9": true, "127.0.0.1": true, "192.0.2.2": true, "192.0.2.3": false} {
		if got := s.allowed(&net.UDPAddr{IP: net.ParseIP(from), Port: 1}); got != want {
			t.Errorf("%s: %v", from, got)
		}
	}
}

// TestCache keeps answers as long as their TTL says, and counts it down.
func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newForwarder(nil, "", nil)
		q := question{name: "a.", typ: dns.TypeA, class: dns.ClassINET}
		m := new(dns.Msg)
		m.SetQuestion("a.", dns.TypeA)
		rr, _ := dns.NewRR("a. 10 IN A 192.0.2.1")
		m.Answer = []dns.RR{rr}
		f.remember(q, m)
		time.Sleep(4 * time.Second)
		if got := f.remembered(q); got == nil || got.Answer[0].Header().Ttl != 6 {
			t.Errorf("after 4 s: %v", got)
		}
		time.Sleep(6 * time.Second)
		if got := f.remembered(q); got != nil {
			t.Errorf("after 10 s: %v", got)
		}
		for i := range 2 * cacheSize {
			f.remember(question{name: fmt.Sprint(i)}, m)
		}
		if len(f.cache) > cacheSize {
			t.Errorf("%d answers are kept", len(f.cache))
		}
	})
}

// TestPublish checks that the server shows up as the Service kube-dns, also a second time.
func TestPublish(t *testing.T) {
	t.Parallel()
	cl := newCluster()
	c := Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:5353")}, ServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.10")}, NodeName: "n1"}
	for range 2 {
		s, err := New(c, Deps{Client: cl, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		if err != nil {
			t.Fatal(err)
		}
		s.addrs = c.Listen
		if err := s.publishOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	z := NewZone("cluster.local", 5)
	for _, o := range cl.objects {
		switch o := o.(type) {
		case *corev1.Service:
			z.PutService(o)
		case *discoveryv1.EndpointSlice:
			if got := o.Endpoints[0].Addresses[0]; got != "192.0.2.2" || *o.Ports[0].Port != 5353 || *o.Endpoints[0].NodeName != "n1" {
				t.Errorf("slice %v", o)
			}
		}
	}
	want := "> kube-dns.kube-system.svc.cluster.local. A\nkube-dns.kube-system.svc.cluster.local. 5 IN A 10.43.0.10\n"
	if got := z.ask("kube-dns.kube-system.svc.cluster.local. A"); got != want || len(cl.objects) != 2 {
		t.Errorf("%d objects, %s", len(cl.objects), got)
	}
}

// TestPublishBoth finds a slice of each family behind the Service of a server with addresses of both, whichever is the main one.
func TestPublishBoth(t *testing.T) {
	t.Parallel()
	four, six := netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd43::a")
	for _, ips := range [][]netip.Addr{{four, six}, {six, four}} {
		cl := newCluster()
		c := Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:5353"), netip.MustParseAddrPort("[2001:db8::2]:5354")}, ServiceIPs: ips, NodeName: "n1"}
		s, err := New(c, Deps{Client: cl, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		if err != nil {
			t.Fatal(err)
		}
		s.addrs = c.Listen
		for range 2 {
			if err := s.publishOnce(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		got := map[string]bool{}
		for _, o := range cl.objects {
			switch o := o.(type) {
			case *corev1.Service:
				got[fmt.Sprint(o.Spec.ClusterIPs, *o.Spec.IPFamilyPolicy)] = true
			case *discoveryv1.EndpointSlice:
				got[fmt.Sprint(o.Name, " ", o.AddressType, " ", o.Endpoints[0].Addresses[0], " ", *o.Ports[0].Port)] = true
			}
		}
		want := map[string]bool{fmt.Sprint(ips, corev1.IPFamilyPolicyRequireDualStack): true,
			"kube-dns-n1 IPv4 192.0.2.2 5353": true, "kube-dns-n1-ipv6 IPv6 2001:db8::2 5354": true}
		if ips[0] == six {
			want = map[string]bool{fmt.Sprint(ips, corev1.IPFamilyPolicyRequireDualStack): true,
				"kube-dns-n1-ipv4 IPv4 192.0.2.2 5353": true, "kube-dns-n1 IPv6 2001:db8::2 5354": true}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestConfig(t *testing.T) {
	t.Parallel()
	_, err := New(Config{Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")}, ServiceIPs: []netip.Addr{netip.MustParseAddr("10.43.0.10"), netip.MustParseAddr("fd43::a")},
		Domain: "a..b", Upstreams: []string{"x"}}, Deps{})
	for _, want := range []string{"127.0.0.1:53 cannot be", `"a..b"`, "upstreams: ", "family of the Service's fd43::a"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
}
