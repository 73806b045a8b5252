// Package dns serves the cluster's names: Services, their endpoints and pods by the
// Kubernetes DNS specification 1.1.0, and everything else through the host's resolvers. It replaces
// CoreDNS in a cluster, and needs no pod.
//
// How pods reach it: the server listens on an address of the node, on any port, and publishes itself as
// an ordinary Service (kube-system/kube-dns, with the cluster DNS addresses as its cluster IPs) with an
// EndpointSlice that names the listener for each family. So the proxy's table leads the cluster DNS address to it, on
// every node and with any proxy, several clusters on one host differ by port, and no link or
// address is left behind.
//
// Vocabulary: the zone is the cluster domain and all below it; a question outside it is forwarded.
//
// Zone is pure: objects in, records out. Invariants: a name of the zone is never forwarded, so what
// is private stays private; a question that cannot be forwarded is refused at once with
// SERVFAIL, not by silence; mu is held only while the zone is read or changed.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// Config says what is served, and where.
type Config struct {
	// Listen are addresses of the host; port 0 takes any.
	Listen []netip.AddrPort
	// Domain is the cluster domain; empty means cluster.local.
	Domain string
	// Upstreams are the servers for all other names, host:port. Empty means those of ResolvConf.
	Upstreams []string
	// ResolvConf is the host's file; empty means /etc/resolv.conf.
	ResolvConf string
	// TTL of the zone's records; 0 means 5 s.
	TTL time.Duration
	// AllowFrom are the clients that are served, beside the host itself; empty means all. A
	// server on an address that others reach should not resolve the world for them.
	AllowFrom []netip.Prefix
	// AllowAlso says of a client that is not among these whether it is served all the same; nil: none is.
	AllowAlso func(netip.Addr) bool
	// ServiceIPs, if any, are the cluster IPs under which the server publishes itself: one, or one of each family, the main one first. There
	// must be an address to listen on of each family.
	ServiceIPs []netip.Addr
	// NodeName names this node in the published endpoint.
	NodeName string
}

func (c Config) withDefaults() Config {
	if c.Domain == "" {
		c.Domain = "cluster.local"
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.TTL == 0 {
		c.TTL = 5 * time.Second
	}
	return c
}

// Validate returns all problems at once.
func (c Config) Validate() error {
	var errs []error
	if len(c.Listen) == 0 {
		errs = append(errs, errors.New("listen: no address is given"))
	}
	for _, a := range c.Listen {
		if !a.IsValid() {
			errs = append(errs, errors.New("listen: an address is not valid"))
		}
		if len(c.ServiceIPs) > 0 && (a.Addr().IsLoopback() || a.Addr().IsUnspecified() || a.Addr().IsLinkLocalUnicast()) {
			errs = append(errs, fmt.Errorf("listen: %s cannot be the endpoint of a Service", a))
		}
	}
	for _, ip := range c.ServiceIPs {
		if !slices.ContainsFunc(c.Listen, func(a netip.AddrPort) bool { return a.Addr().Is4() == ip.Is4() }) {
			errs = append(errs, fmt.Errorf("listen: no address is of the family of the Service's %s", ip))
		}
	}
	if _, ok := dns.IsDomainName(c.Domain); !ok {
		errs = append(errs, fmt.Errorf("domain: %q is not a domain name", c.Domain))
	}
	for _, u := range c.Upstreams {
		if _, err := netip.ParseAddrPort(u); err != nil {
			errs = append(errs, fmt.Errorf("upstreams: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Deps are what a Server needs. The Client writes only when Config has ServiceIPs.
type Deps struct {
	Client client.Client
	Log    *slog.Logger
}

// Server is the name server. It implements run.Component.
type Server struct {
	c     Config
	d     Deps
	fwd   *forwarder
	bound chan struct{}    // closed when listening
	addrs []netip.AddrPort // then what is listened on
	// unpublished has something when an object of ours may be gone.
	unpublished chan struct{}

	mu   sync.RWMutex
	zone *Zone
}

// New returns a server.
func New(c Config, d Deps) (*Server, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("dns: %w", err)
	}
	s := &Server{c: c, d: d, bound: make(chan struct{}), unpublished: make(chan struct{}, 1), zone: NewZone(c.Domain, uint32(c.TTL/time.Second))}
	s.fwd = newForwarder(c.Upstreams, c.ResolvConf, func(a netip.AddrPort) bool {
		return slices.Contains(s.addrs, a) || slices.Contains(c.ServiceIPs, a.Addr())
	})
	return s, nil
}

// Name implements run.Component.
func (s *Server) Name() string { return "dns" }

// Addrs returns what the server listens on; it waits until it does.
func (s *Server) Addrs(ctx context.Context) ([]netip.AddrPort, error) {
	select {
	case <-s.bound:
		return s.addrs, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Run implements run.Component. It is ready when it listens and knows every Service.
func (s *Server) Run(ctx context.Context, ready func()) error {
	servers, err := s.listen()
	if err != nil {
		return err
	}
	close(s.bound)
	ctx, cancel := context.WithCancel(ctx)
	errs := make(chan error, len(servers)+3)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer func() {
		for _, srv := range servers {
			_ = srv.Shutdown() // its error says that it had not started
		}
	}()
	defer cancel()
	for _, srv := range servers {
		srv.Handler = dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) { s.serve(ctx, w, r) })
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		wg.Go(func() { errs <- srv.ActivateAndServe() })
		select {
		case <-started:
		case err := <-errs:
			return fmt.Errorf("serve dns: %w", err)
		}
	}
	kinds := []*api.Kind{api.ServiceKind, api.EndpointSliceKind}
	synced := make(chan struct{}, len(kinds))
	for _, k := range kinds {
		wg.Go(func() { errs <- s.watch(ctx, k, func() { synced <- struct{}{} }) })
	}
	wg.Go(func() {
		for range kinds {
			select {
			case <-synced:
			case <-ctx.Done():
				return
			}
		}
		ready()
		s.publish(ctx)
	})
	select {
	case <-ctx.Done():
		return nil
	case err := <-errs:
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = errors.New("a listener or a watch ended")
		}
		return fmt.Errorf("serve dns: %w", err)
	}
}

// listen binds UDP and TCP of every address, both to the same port.
func (s *Server) listen() (servers []*dns.Server, err error) {
	var closers []func() error
	defer func() {
		if err != nil {
			for _, c := range closers {
				_ = c()
			}
		}
	}()
	for _, a := range s.c.Listen {
		var u net.PacketConn
		var l net.Listener
		// A free port of one protocol may be taken in the other: another one then.
		for range 20 {
			if u, err = net.ListenPacket("udp", a.String()); err != nil {
				return nil, fmt.Errorf("listen on %s: %w", a, err)
			}
			bound := netip.AddrPortFrom(a.Addr(), u.LocalAddr().(*net.UDPAddr).AddrPort().Port())
			if l, err = net.Listen("tcp", bound.String()); err == nil {
				s.addrs = append(s.addrs, bound)
				break
			}
			u.Close()
			if a.Port() != 0 {
				break
			}
		}
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", a, err)
		}
		closers = append(closers, u.Close, l.Close)
		servers = append(servers, &dns.Server{PacketConn: u, Net: "udp"}, &dns.Server{Listener: l, Net: "tcp"})
	}
	return servers, nil
}

// watch keeps the zone up to date with one kind.
func (s *Server) watch(ctx context.Context, k *api.Kind, synced func()) error {
	for e, err := range s.d.Client.Watch(ctx, k, client.Query{}, 0) {
		if err != nil {
			return fmt.Errorf("watch %s: %w", k.Kind, err)
		}
		if e.Op == client.Synced {
			synced()
			s.republish() // what was deleted before was not seen
			continue
		}
		s.mu.Lock()
		s.apply(e)
		s.mu.Unlock()
		if e.Op == client.Deleted && s.published(e.Object) {
			s.d.Log.Info("dns service was deleted by somebody, publishing it again")
			s.republish()
		}
	}
	return nil
}

func (s *Server) apply(e client.Event) {
	switch o := e.Object.(type) {
	case *corev1.Service:
		if e.Op == client.Deleted {
			s.zone.DropService(o.Namespace, o.Name)
		} else {
			s.zone.PutService(o)
		}
	case *discoveryv1.EndpointSlice:
		if old, ok := e.Old.(*discoveryv1.EndpointSlice); ok && serviceOf(old) != serviceOf(o) {
			s.zone.DropSlice(old)
		}
		if e.Op == client.Deleted {
			s.zone.DropSlice(o)
		} else {
			s.zone.PutSlice(o)
		}
	}
}

// serve answers one message.
func (s *Server) serve(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) {
	m := new(dns.Msg)
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	switch {
	case len(r.Question) != 1 || r.Opcode != dns.OpcodeQuery:
		m.SetRcode(r, dns.RcodeNotImplemented)
	case !s.allowed(w.RemoteAddr()):
		m.SetRcode(r, dns.RcodeRefused)
	default:
		m = s.answer(ctx, r, tcp)
	}
	size := dns.MinMsgSize
	if o := r.IsEdns0(); o != nil {
		size = max(int(o.UDPSize()), size)
		if m.IsEdns0() == nil {
			m.SetEdns0(1232, o.Do())
		}
		size = min(size, 4096)
	} else {
		m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	}
	if tcp {
		size = dns.MaxMsgSize
	}
	m.Compress = true
	m.Truncate(size)
	if err := w.WriteMsg(m); err != nil {
		s.d.Log.Debug("answer not sent", "client", w.RemoteAddr().String(), "err", err)
	}
}

// allowed reports whether a client is served.
func (s *Server) allowed(from net.Addr) bool {
	if len(s.c.AllowFrom) == 0 {
		return true
	}
	ap, err := netip.ParseAddrPort(from.String())
	if err != nil {
		return false
	}
	ip := ap.Addr().Unmap()
	return ip.IsLoopback() || slices.ContainsFunc(s.c.Listen, func(a netip.AddrPort) bool { return a.Addr() == ip }) ||
		slices.ContainsFunc(s.c.AllowFrom, func(p netip.Prefix) bool { return p.Contains(ip) }) || s.c.AllowAlso != nil && s.c.AllowAlso(ip)
}

// maxCNAMEs bounds a chain of ExternalName Services.
const maxCNAMEs = 8

// answer makes the answer to a message with one question.
func (s *Server) answer(ctx context.Context, r *dns.Msg, tcp bool) *dns.Msg {
	q := r.Question[0]
	a, own := s.lookup(q)
	if !own {
		return s.forward(ctx, r, tcp)
	}
	m := new(dns.Msg)
	m.SetReply(r)
	m.Authoritative, m.RecursionAvailable = true, true
	rand.Shuffle(len(a.Records), func(i, j int) { a.Records[i], a.Records[j] = a.Records[j], a.Records[i] })
	m.Answer, m.Extra = a.Records, a.Extra
	if !a.Exists {
		m.Rcode = dns.RcodeNameError
	}
	s.chase(ctx, m, q, tcp)
	if len(m.Answer) == 0 {
		m.Ns = []dns.RR{s.zone.SOA()}
	}
	return m
}

func (s *Server) lookup(q dns.Question) (a Answer, own bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.zone.Contains(q.Name) {
		return s.zone.Lookup(q.Name, q.Qtype), true
	}
	if strings.HasSuffix(strings.ToLower(q.Name), ".arpa.") {
		return s.zone.Reverse(q.Name, q.Qtype)
	}
	return Answer{}, false
}

// chase follows a CNAME to the addresses that were asked for.
func (s *Server) chase(ctx context.Context, m *dns.Msg, q dns.Question, tcp bool) {
	for range maxCNAMEs {
		if len(m.Answer) == 0 || q.Qtype == dns.TypeCNAME || q.Qtype == dns.TypeANY {
			return
		}
		c, ok := m.Answer[len(m.Answer)-1].(*dns.CNAME)
		if !ok {
			return
		}
		next := dns.Question{Name: c.Target, Qtype: q.Qtype, Qclass: q.Qclass}
		if a, own := s.lookup(next); own {
			m.Answer = append(m.Answer, a.Records...)
			if len(a.Records) == 0 {
				return
			}
			continue
		}
		ask := new(dns.Msg)
		ask.SetQuestion(c.Target, q.Qtype)
		up := s.forward(ctx, ask, tcp)
		m.Answer = append(m.Answer, up.Answer...)
		if len(up.Answer) == 0 {
			m.Rcode = up.Rcode
		}
		return
	}
	m.Rcode = dns.RcodeServerFailure
}

// forward asks the upstreams; SERVFAIL says that none answers.
func (s *Server) forward(ctx context.Context, r *dns.Msg, tcp bool) *dns.Msg {
	up, err := s.fwd.ask(ctx, r, tcp)
	m := new(dns.Msg)
	if err != nil {
		s.d.Log.Debug("question not forwarded", "name", r.Question[0].Name, "err", err)
		m.SetRcode(r, dns.RcodeServerFailure)
		m.RecursionAvailable = true
		return m
	}
	m.SetRcode(r, up.Rcode)
	m.RecursionAvailable, m.AuthenticatedData = true, up.AuthenticatedData
	m.Answer, m.Ns = up.Answer, up.Ns
	m.Extra = slices.DeleteFunc(up.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	return m
}
