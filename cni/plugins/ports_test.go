package plugins

import (
	"bufio"
	"bytes"
	"context"
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

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux/netns"
)

// serveUDP answers datagrams on port 53 of a namespace with a name.
func (w *world) serveUDP(t *testing.T, ns, name string) {
	t.Helper()
	w.answerUDP(t, ns, ":53", func(net.Addr) string { return name })
}

// speaker returns what asks by one socket of the outside until an answer is the wanted one.
func (w *world) speaker(t *testing.T, to string) func(want string) {
	t.Helper()
	var c *net.UDPConn
	w.in(t, w.outside, func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to)))
		return err
	})
	t.Cleanup(func() { c.Close() })
	in := bufio.NewReader(c)
	return func(want string) {
		t.Helper()
		until(t, to+" answers "+want, func() bool {
			fmt.Fprintln(c, "?") // refused when the last one was not taken
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			line, err := in.ReadString('\n')
			return strings.TrimSpace(line) == want || want == "nothing" && err != nil
		})
	}
}

// TestHostPortUDPFollows keeps one UDP socket while a host port goes from one pod to another: conntrack must not hold it to the old one, nor to
// nothing when it spoke before there was a pod. Other flows are left alone.
func TestHostPortUDPFollows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, nil)
	for name, test := range map[string]struct {
		at netip.Addr
		to string
	}{
		"any address": {netip.Addr{}, "192.0.2.2:8053"},
		"one address": {netip.MustParseAddr("192.0.2.2"), "192.0.2.2:8054"},
	} {
		t.Run(name, func(t *testing.T) {
			is := w.speaker(t, test.to)
			is("nothing")
			ports := []cni.PortMapping{{HostPort: netip.MustParseAddrPort(test.to).Port(), ContainerPort: 53, Protocol: cni.UDP, HostIP: test.at}}
			for _, id := range []string{"a", "b"} {
				p, _ := attach(t, n, cni.Pod{ID: id, PortMappings: ports})
				w.serveUDP(t, p.NetNS, id)
				is(id)
				if err := n.Teardown(t.Context(), p); err != nil {
					t.Fatal(err)
				}
				is("nothing")
				if err := n.DeleteNamespace(t.Context(), p.NetNS); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	w.empty(t, n)
}

// TestHostPortOfTwo has two pods claim one host port: when one goes, the other has it, whichever it is.
func TestHostPortOfTwo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, nil)
	for _, first := range []int{0, 1} {
		var pods [2]cni.Pod
		for i := range pods {
			pods[i], _ = attach(t, n, cni.Pod{ID: fmt.Sprint(i), PortMappings: []cni.PortMapping{{HostPort: 8053, ContainerPort: 53, Protocol: cni.UDP}}})
			w.serveUDP(t, pods[i].NetNS, pods[i].ID)
		}
		is := w.speaker(t, "192.0.2.2:8053")
		detach(t, n, pods[first])
		is(pods[1-first].ID)
		if got := w.hostPorts(t, n); got != 1 {
			t.Errorf("%d host ports are open", got)
		}
		detach(t, n, pods[1-first])
		is("nothing")
	}
	w.empty(t, n)
}

// logged is what a log says.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

// TestTableAgain has the table put right although that failed when it was changed.
func TestTableAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, nil)
	log := &logged{}
	n.log = slog.New(slog.NewTextHandler(log, nil))
	ctx, cancel := context.WithCancel(t.Context())
	started, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- netns.Do(w.host, func() error { return n.Run(ctx, func() { close(started) }) })
	}()
	<-started
	p, _ := attach(t, n, cni.Pod{ID: "p", PortMappings: []cni.PortMapping{{HostPort: 80, ContainerPort: 80}}})
	bad := filepath.Join(w.state, "pods", "bad")
	if err := os.WriteFile(bad, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.in(t, w.host, func() error { return flush(n.c.Table) })
	until(t, "it cannot be put right", func() bool { return log.has("host ports not restored") })
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	until(t, "it is put right", func() bool { return w.hostPorts(t, n) == 1 })
	detach(t, n, p)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	w.empty(t, n)
}
