package proxy

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/nft"
)

// answer serves UDP on a port of a pod with a text.
func (w *world) answer(t *testing.T, ns string, port int, text string) {
	t.Helper()
	w.in(t, ns, func() error {
		u, err := net.ListenPacket("udp", fmt.Sprint(":", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { u.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = u.WriteTo([]byte(text+"\n"), from)
			}
		}()
		return nil
	})
}

// speaker speaks from the outside by one UDP socket: it returns who answers, empty for nobody.
func (w *world) speaker(t *testing.T, to string) (speak func() string) {
	t.Helper()
	c, err := w.dial(t, "outside", "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	in := bufio.NewReader(c)
	return func() string {
		_ = c.SetDeadline(time.Now().Add(20 * time.Millisecond))
		fmt.Fprintln(c, "?") // refused when the last one was not taken
		line, _ := in.ReadString('\n')
		who, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		return who
	}
}

// follow waits until the speaker is answered by somebody.
func follow(t *testing.T, speak func() string, want string) {
	t.Helper()
	until(t, "the flow is at "+want, func() bool { return speak() == want })
}

// TestUDPFollows keeps one UDP socket while its endpoint moves: conntrack must not
// hold it to the old one, nor to nothing when it spoke before there was any.
func TestUDPFollows(t *testing.T) { inBoth(t, testUDPFollows) }

func testUDPFollows(t *testing.T, w *world) {
	w.serve(t, "pod1")
	w.serve(t, "pod2")
	w.answer(t, "pod2", 9090, "other-port")
	stop := w.start(t, nil)
	for i, test := range []struct{ name, spec, to string }{
		{"cluster IP", ports, "10.43.0.%d:80"},
		{"node port", "type: NodePort, " + ports, "192.0.2.2:30080"},
		{"external IP", "externalIPs: [198.51.100.1], " + ports, "198.51.100.1:80"},
		{"affinity, cluster IP", "sessionAffinity: ClientIP, " + ports, "10.43.0.%d:80"},
		{"affinity, node port", "sessionAffinity: ClientIP, type: NodePort, " + ports, "192.0.2.2:30080"},
		{"affinity, external IP", "sessionAffinity: ClientIP, externalIPs: [198.51.100.1], " + ports, "198.51.100.1:80"},
	} {
		ip := fmt.Sprintf("10.43.0.%d", i+1)
		if strings.Contains(test.to, "%") {
			test.to = fmt.Sprintf(test.to, i+1)
		}
		speak := w.speaker(t, test.to)
		speak() // too early
		w.apply(t, service("a", ip, test.spec)+"\n---\n"+slice("a"))
		speak()
		w.apply(t, slice("a", "10.42.1.5"))
		t.Log(test.name)
		follow(t, speak, "pod1")
		w.apply(t, slice("a", "10.42.2.5"))
		follow(t, speak, "pod2")
		w.apply(t, strings.ReplaceAll(slice("a", "10.42.2.5"), "8080", "9090"))
		follow(t, speak, "other-port")

		// What changes while there is no proxy.
		stop()
		w.apply(t, slice("a", "10.42.1.5"))
		stop = w.start(t, nil)
		follow(t, speak, "pod1")
		w.feed.put(api.ServiceKind, w.feed.objects[api.ServiceKind]["d/a"], true)
		follow(t, speak, "")
	}
	stop()
}

// TestUDPStays keeps one UDP socket while its endpoint is not chosen any more but still serves: because it is about to end, or by hints.
func TestUDPStays(t *testing.T) { inBoth(t, testUDPStays) }

func testUDPStays(t *testing.T, w *world) {
	w.serve(t, "pod1")
	w.serve(t, "pod2")
	w.apply(t, service("a", "10.43.0.1", ports)+"\n---\n"+slice("a", "10.42.1.5"))
	t.Cleanup(w.start(t, nil))
	speak := w.speaker(t, "10.43.0.1:80")
	follow(t, speak, "pod1")
	both := slice("a", "10.42.1.5", "10.42.2.5")
	for name, how := range map[string]string{
		"terminating": strings.Replace(both, "nodeName: n1", "nodeName: n1, conditions: {ready: false, serving: true, terminating: true}", 1),
		"hints": strings.NewReplacer("nodeName: n1", "nodeName: n1, hints: {forNodes: [{name: n2}]}",
			"nodeName: n2", "nodeName: n2, hints: {forNodes: [{name: n1}]}").Replace(both),
	} {
		w.apply(t, how)
		until(t, "new flows go to the other", func() bool {
			for range 8 {
				if got, _, _ := strings.Cut(w.ask(t, "outside", "udp", "10.43.0.1:80"), " "); got != "pod2" {
					return false
				}
			}
			return true
		})
		if got := speak(); got != "pod1" {
			t.Errorf("%s: the flow went to %s", name, got)
		}
		w.apply(t, slice("a", "10.42.1.5"))
		until(t, "new flows are back", func() bool { return strings.HasPrefix(w.ask(t, "outside", "udp", "10.43.0.1:80"), "pod1") })
	}
	w.apply(t, slice("a", "10.42.2.5"))
	follow(t, speak, "pod2")
}

// TestUDPAfterFailure has flows forgotten although the table could not be changed at first.
func TestUDPAfterFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.serve(t, "pod1")
	w.serve(t, "pod2")
	var k *kernel
	w.in(t, "host", func() (err error) { k, err = newKernel("yare-test", slog.New(slog.DiscardHandler)); return err })
	defer k.close()
	f := testFacts()
	f.Table = "yare-test"
	l := &loop{p: &Proxy{d: Deps{Log: slog.New(slog.DiscardHandler)}}, kernel: k, ready: func() {}, health: newHealth(nil, nil), state: newState(f),
		flows: newUDPFlows(), services: map[api.Key]*corev1.Service{}, slices: map[api.Key]map[string]*discoveryv1.EndpointSlice{}, dirty: map[api.Key]bool{}}
	to := func(ip string) {
		services, bySvc := objects(t, service("a", "10.43.0.1", ports)+"\n---\n"+slice("a", ip))
		l.take(client.Event{Op: client.Modified, Object: services[0]})
		l.take(client.Event{Op: client.Modified, Object: bySvc[api.KeyOf(services[0])][0]})
	}
	sync := func(works bool) {
		t.Helper()
		if err := l.sync(); (err == nil) != works {
			t.Fatalf("sync: %v", err)
		}
	}
	to("10.42.1.5")
	sync(true)
	speak := w.speaker(t, "10.43.0.1:80")
	follow(t, speak, "pod1")

	conn := k.conn
	w.in(t, "host", func() (err error) { k.conn, err = nft.Dial(); return err })
	if err := k.conn.Close(); err != nil {
		t.Fatal(err)
	}
	to("10.42.2.5")
	sync(false)
	if got := speak(); got != "pod1" {
		t.Fatalf("the flow went to %s", got)
	}
	k.conn = conn
	sync(true)
	follow(t, speak, "pod2")
}
