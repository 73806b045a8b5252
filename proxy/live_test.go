package proxy

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/nft"
)

// TestBalance checks that every endpoint gets connections, and that session
// affinity gives a client the same one until it is gone.
func TestBalance(t *testing.T) { inBoth(t, testBalance) }

func testBalance(t *testing.T, w *world) {
	w.serve(t, "pod1")
	w.serve(t, "pod2")
	w.apply(t, strings.Join([]string{
		service("any", "10.43.0.1", ports), slice("any", "10.42.1.5", "10.42.2.5"),
		service("same", "10.43.0.2", "type: NodePort, sessionAffinity: ClientIP, "+ports), slice("same", "10.42.1.5", "10.42.2.5"),
	}, "\n---\n"))
	stop := w.start(t, nil)
	defer stop()
	pods := func(to string, n int) map[string]int {
		seen := map[string]int{}
		for range n {
			name, _, _ := strings.Cut(w.ask(t, "outside", "tcp", to), " ")
			seen[name]++
		}
		return seen
	}
	if seen := pods("10.43.0.1:80", 60); seen["pod1"] == 0 || seen["pod2"] == 0 || len(seen) != 2 {
		t.Errorf("60 connections went to %v", seen)
	}
	seen := pods("10.43.0.2:80", 20)
	if len(seen) != 1 {
		t.Fatalf("a client with affinity went to %v", seen)
	}
	first, other, otherIP := "pod1", "pod2", "10.42.2.5"
	if seen["pod1"] == 0 {
		first, other, otherIP = "pod2", "pod1", "10.42.1.5"
	}
	if seen := pods("192.0.2.2:30080", 20); seen[first] != 20 {
		t.Errorf("by the node port the client went to %v, by the cluster IP to %s", seen, first)
	}
	w.apply(t, slice("same", otherIP))
	until(t, "the endpoint is gone", func() bool { return pods("10.43.0.2:80", 1)[other] == 1 })
	w.apply(t, slice("same", "10.42.1.5", "10.42.2.5"))
	until(t, "the endpoint is back", func() bool { return w.twoSlots(t) })
	if seen := pods("10.43.0.2:80", 20); seen[other] != 20 {
		t.Errorf("after the change the client went to %v", seen)
	}
}

// twoSlots reports whether the kernel has two endpoints for the sticky Service.
func (w *world) twoSlots(t *testing.T) (yes bool) {
	set := "sticky-internal-ip"
	if w.six {
		set += "6"
	}
	w.in(t, "host", func() error {
		c, err := nft.Dial()
		if err != nil {
			return err
		}
		defer c.Close()
		have, err := c.Read("yare-test")
		if err != nil {
			return err
		}
		yes = len(have.Sets[set].Elems) == 4 // two endpoints, TCP and UDP
		return nil
	})
	return yes
}

// TestChanges follows Services through their lives.
func TestChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve(t, "pod1")
	w.serve(t, "pod2")
	stop := w.start(t, nil)
	defer stop()
	is := func(proto, want string) {
		t.Helper()
		var got string
		for end := time.Now().Add(5 * time.Second); ; {
			if got, _, _ = strings.Cut(w.ask(t, "outside", proto, "10.43.0.1:80"), " "); got == want {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
	}
	w.apply(t, service("a", "10.43.0.1", ports))
	is("tcp", "refused")
	w.apply(t, slice("a", "10.42.1.5"))
	is("tcp", "pod1")
	w.apply(t, slice("a", "10.42.2.5"))
	is("tcp", "pod2")
	w.feed.put(api.ServiceKind, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "a"}}, true)
	w.feed.put(api.EndpointSliceKind, &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: "a-1",
		Labels: map[string]string{discoveryv1.LabelServiceName: "a"}}}, true)
	w.apply(t, service("b", "10.43.0.1", ports)+"\n---\n"+slice("b", "10.42.1.5"))
	is("tcp", "pod1")
}

// TestRestart checks that a connection outlives the proxy, that a restarted proxy finds
// nothing to change, that a foreign flush is undone, and that Remove leaves nothing.
func TestRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve(t, "pod1")
	w.apply(t, service("a", "10.43.0.1", ports)+"\n---\n"+slice("a", "10.42.1.5"))
	stop := w.start(t, nil)
	c, err := w.dial(t, "outside", "tcp", "10.43.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	alive := func() {
		t.Helper()
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		fmt.Fprintln(c, "still there?")
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				t.Fatalf("the connection is lost: %v", err)
			}
			if line == "still there?\n" {
				return
			}
		}
	}
	alive()
	stop()
	alive()
	services, bySvc := objects(t, service("a", "10.43.0.1", ports)+"\n---\n"+slice("a", "10.42.1.5"))
	f := testFacts()
	f.Table, f.Zone = "yare-test", ""
	w.in(t, "host", func() error {
		k, err := nft.Dial()
		if err != nil {
			return err
		}
		defer k.Close()
		have, err := k.Read("yare-test")
		if b := nft.Diff(have, ruleset(f, services, bySvc)); !b.Empty() {
			t.Errorf("a restart would send %d messages", b.Messages())
		}
		return err
	})
	stop = w.start(t, nil)
	alive()
	w.in(t, "host", func() error { return Remove("yare-test") })
	start := time.Now()
	until(t, "the table is back", func() bool { return strings.HasPrefix(w.ask(t, "outside", "tcp", "10.43.0.1:80"), "pod1") })
	t.Logf("restored after %v", time.Since(start))
	alive()
	stop()
	w.in(t, "host", func() error { return Remove("yare-test") })
	w.in(t, "host", func() error {
		k, err := nft.Dial()
		if err != nil {
			return err
		}
		defer k.Close()
		if have, err := k.Read("yare-test"); have != nil || err != nil {
			t.Errorf("left: %v, %v", have, err)
		}
		return nil
	})
}

// TestHealthCheckPort asks the port that load balancers ask.
func TestHealthCheckPort(t *testing.T) { inBoth(t, testHealthCheckPort) }

func testHealthCheckPort(t *testing.T, w *world) {
	lb := "type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 31000, "
	w.apply(t, service("a", "10.43.0.1", lb+ports)+"\n---\n"+slice("a", "10.42.1.5"))
	stop := w.start(t, nil)
	get := func() (int, string) {
		c, err := w.dial(t, "outside", "tcp", "192.0.2.2:31000")
		if err != nil {
			return 0, err.Error()
		}
		defer c.Close()
		fmt.Fprint(c, "GET / HTTP/1.0\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0, err.Error()
		}
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, strings.TrimSpace(string(b))
	}
	want := `{"localEndpoints":1,"service":{"name":"a","namespace":"d"},"serviceProxyHealthy":true}`
	until(t, "the port is served", func() bool { code, body := get(); return code == 200 && body == want })
	w.apply(t, slice("a", "10.42.2.5"))
	until(t, "no endpoint is local", func() bool { code, _ := get(); return code == 503 })
	stop()
	if code, _ := get(); code != 0 {
		t.Errorf("still served after the end: %d", code)
	}
}

// many puts n Services with three endpoints each.
func many(f *feed, n int) {
	for i := range n {
		putOne(f, i)
	}
}

func putOne(f *feed, i int) {
	name, port, number := fmt.Sprintf("s%d", i), "", int32(8080)
	var eps []discoveryv1.Endpoint
	for e := range 3 {
		eps = append(eps, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.42.%d.%d", e, i%250+1)}})
	}
	f.put(api.EndpointSliceKind, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "d", Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
		AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Name: &port, Port: &number}}, Endpoints: eps}, false)
	ip := fmt.Sprintf("10.43.%d.%d", i/250, i%250+1)
	f.put(api.ServiceKind, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name},
		Spec: corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80}}}}, false)
}

// BenchmarkServices measures a whole start with many Services, until all are in the
// kernel.
func BenchmarkServices(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(b)
			many(w.feed, n)
			for b.Loop() {
				stop := w.start(b, nil)
				b.StopTimer()
				stop()
				w.in(b, "host", func() error { return Remove("yare-test") })
				b.StartTimer()
			}
		})
	}
}

// BenchmarkOneMore measures a Service that comes and goes beside 10,000 others, from
// the object to the kernel, without the proxy's goroutines.
func BenchmarkOneMore(b *testing.B) {
	w := newWorld(b)
	many(w.feed, 10000)
	var k *kernel
	w.in(b, "host", func() (err error) { k, err = newKernel("yare-test", slog.New(slog.DiscardHandler)); return err })
	defer k.close()
	f := testFacts()
	f.Table = "yare-test"
	l := &loop{p: &Proxy{d: Deps{Log: slog.New(slog.DiscardHandler)}}, kernel: k, ready: func() {}, health: newHealth(nil, nil), state: newState(f),
		services: map[api.Key]*corev1.Service{}, slices: map[api.Key]map[string]*discoveryv1.EndpointSlice{}, dirty: map[api.Key]bool{}, flows: newUDPFlows()}
	for _, os := range w.feed.objects {
		for _, o := range os {
			l.take(client.Event{Op: client.Added, Object: o})
		}
	}
	if err := l.sync(); err != nil {
		b.Fatal(err)
	}
	svc := w.feed.objects[api.ServiceKind]["d/s7"]
	for i := 0; b.Loop(); i++ {
		op := client.Deleted
		if i%2 == 1 {
			op = client.Added
		}
		l.take(client.Event{Op: op, Object: svc})
		if err := l.sync(); err != nil {
			b.Fatal(err)
		}
	}
}
