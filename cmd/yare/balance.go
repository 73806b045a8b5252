package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/durable"
	"github.com/yare-dev/yare/run"
)

// balance leads a node's connections to one of the cluster's API servers: the one that it was told of first, and when that does not answer, or has no
// majority behind it, the next. Who they are is the EndpointSlice of the Service `kubernetes`, and a file for the next start.
type balance struct {
	first string // HOST:PORT of the join file, which is tried last where the slice does not have it
	file  string
	log   *slog.Logger

	mu    sync.Mutex
	all   []string // HOST:PORT, the one in use first
	moved time.Time
	conns map[net.Conn]string // open ones, and where they lead
}

const (
	dialLimit = 3 * time.Second
	// settled is for how long a server is kept that was just chosen, whatever is said of it: all may be without a majority.
	settled = 5 * time.Second
)

func newBalance(first, file string, log *slog.Logger) *balance {
	b := &balance{first: first, file: file, log: log, all: []string{first}, conns: map[net.Conn]string{}}
	if text, err := os.ReadFile(file); err == nil {
		b.set(strings.Fields(string(text)))
	}
	return b
}

// set makes these the servers; the one in use stays so if it is among them.
func (b *balance) set(all []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(all) == 0 {
		return
	}
	next := slices.Clone(all)
	if i := slices.Index(next, b.all[0]); i > 0 {
		next = append(next[i:], next[:i]...)
	}
	if !slices.Contains(next, b.first) {
		next = append(next, b.first)
	}
	b.all = next
}

// through has c's connections led.
func (b *balance) through(c *rest.Config) {
	c.Dial = b.dial
	c.ServerName = serverName // whichever answers
	c.Wrap(func(rt http.RoundTripper) http.RoundTripper { return balanced{b, rt} })
}

// dial connects to the first server that answers, which is the one in use from then on.
func (b *balance) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	b.mu.Lock()
	all := slices.Clone(b.all)
	b.mu.Unlock()
	var errs []error
	for _, at := range all {
		// A server that is cut off is noticed within seconds, not when TCP gives up.
		d := net.Dialer{Timeout: dialLimit, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 3 * time.Second, Count: 3}}
		c, err := d.DialContext(ctx, network, at)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		b.use(at)
		t := &tracked{Conn: c, b: b}
		b.mu.Lock()
		b.conns[t] = at
		b.mu.Unlock()
		return t, nil
	}
	return nil, errors.Join(errs...)
}

// use makes a server the one that is asked first.
func (b *balance) use(at string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if i := slices.Index(b.all, at); i > 0 {
		b.log.Info("going on with another API server", "server", at, "before", b.all[0])
		b.all = append(slices.Clone(b.all[i:]), b.all[:i]...)
		b.moved = time.Now()
	}
}

// leave goes on with the next server, and ends what is open to the one before: watches there would wait for ever.
func (b *balance) leave(why string) {
	b.mu.Lock()
	if len(b.all) < 2 || time.Since(b.moved) < settled {
		b.mu.Unlock()
		return
	}
	left := b.all[0]
	b.all, b.moved = append(slices.Clone(b.all[1:]), left), time.Now()
	b.log.Warn("going on with another API server", "server", b.all[0], "before", left, "why", why)
	var open []net.Conn
	for c, at := range b.conns {
		if at == left {
			open = append(open, c)
		}
	}
	b.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
}

// tracked is a connection that the balance knows of until it is closed.
type tracked struct {
	net.Conn
	b *balance
}

func (t *tracked) Close() error {
	t.b.mu.Lock()
	delete(t.b.conns, t)
	t.b.mu.Unlock()
	return t.Conn.Close()
}

// balanced hears what servers say of themselves.
type balanced struct {
	b  *balance
	rt http.RoundTripper
}

// RoundTrip is part of http.RoundTripper.
func (r balanced) RoundTrip(q *http.Request) (*http.Response, error) {
	answer, err := r.rt.RoundTrip(q)
	if err == nil && answer.Header.Get(apiserver.NoMajority) != "" {
		r.b.leave("it has no majority of the servers behind it")
	}
	return answer, err
}

// CloseIdleConnections is what http.Client calls.
func (r balanced) CloseIdleConnections() {
	if c, ok := r.rt.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// follow learns who the servers are, until ctx ends.
func (b *balance) follow(access client.Reader) run.Component {
	return run.Func("servers", func(ctx context.Context, ready func()) error {
		ready()
		own := client.Query{Namespace: metav1.NamespaceDefault, Labels: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: "kubernetes"})}
		for e, err := range access.Watch(ctx, api.EndpointSliceKind, own, 0) {
			if err != nil {
				return err
			}
			slice, ok := e.Object.(*discoveryv1.EndpointSlice)
			if !ok || e.Op == client.Deleted {
				continue
			}
			if all := serversOf(slice); len(all) > 0 {
				b.set(all)
				if err := durable.Write(b.file, []byte(strings.Join(all, "\n")+"\n"), 0o644); err != nil {
					b.log.Warn("API servers are not remembered", "err", err)
				}
			}
		}
		return nil
	})
}

// serversOf are those that an EndpointSlice names.
func serversOf(s *discoveryv1.EndpointSlice) (all []string) {
	if len(s.Ports) == 0 || s.Ports[0].Port == nil {
		return nil
	}
	port := strconv.Itoa(int(*s.Ports[0].Port))
	for _, e := range s.Endpoints {
		for _, text := range e.Addresses {
			if a, err := netip.ParseAddr(text); err == nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				all = append(all, net.JoinHostPort(a.String(), port))
			}
		}
	}
	return all
}
