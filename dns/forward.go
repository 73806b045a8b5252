package dns

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Limits of forwarding.
const (
	upstreamTimeout = 2 * time.Second
	cacheSize       = 4096
	cacheMax        = 30 * time.Second // no answer is kept for longer
	inFlight        = 512              // questions to upstreams at one time
	youngFile       = 2 * time.Second  // file systems' clocks are no finer
)

var errNoUpstream = errors.New("no upstream name server")

// forwarder asks other servers and remembers their answers.
type forwarder struct {
	fixed      []string // configured upstreams, or
	resolvConf string   // where to find them
	own        func(netip.AddrPort) bool
	slots      chan struct{}

	mu       sync.Mutex
	found    []string
	modified time.Time // of the file that found are of,
	size     int64     // and its size
	read     time.Time // and when it was read
	cache    map[question]cached
}

type question struct {
	name       string
	typ, class uint16
	dnssec     bool
}

type cached struct {
	msg    *dns.Msg
	at     time.Time
	expire time.Time
}

func newForwarder(upstreams []string, resolvConf string, own func(netip.AddrPort) bool) *forwarder {
	return &forwarder{fixed: upstreams, resolvConf: resolvConf, own: own, slots: make(chan struct{}, inFlight), cache: map[question]cached{}}
}

// upstreams returns the servers to ask, never ourselves. The host's file is read
// again when it has changed.
func (f *forwarder) upstreams() []string {
	if len(f.fixed) > 0 {
		return f.fixed
	}
	st, err := os.Stat(f.resolvConf)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	// A file that was young when it was read may have changed since without another time or size.
	if st.ModTime().Equal(f.modified) && st.Size() == f.size && f.read.Sub(f.modified) >= youngFile {
		return f.found
	}
	now := time.Now()
	conf, err := dns.ClientConfigFromFile(f.resolvConf)
	if err != nil {
		return f.found // and again the next time
	}
	f.found, f.modified, f.size, f.read = nil, st.ModTime(), st.Size(), now
	for _, s := range conf.Servers {
		ip, err := netip.ParseAddr(s)
		if err == nil && !f.own(netip.AddrPortFrom(ip, 53)) {
			f.found = append(f.found, netip.AddrPortFrom(ip, 53).String())
		}
	}
	return f.found
}

// ask answers from the cache or asks the upstreams in turn.
func (f *forwarder) ask(ctx context.Context, req *dns.Msg, tcp bool) (*dns.Msg, error) {
	q := question{req.Question[0].Name, req.Question[0].Qtype, req.Question[0].Qclass, false}
	if o := req.IsEdns0(); o != nil {
		q.dnssec = o.Do()
	}
	if m := f.remembered(q); m != nil {
		return m, nil
	}
	servers := f.upstreams()
	if len(servers) == 0 {
		return nil, errNoUpstream
	}
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		return nil, errors.New("too many questions are waiting for upstreams")
	}
	out := req.Copy()
	out.Id = dns.Id()
	if out.IsEdns0() == nil {
		out.SetEdns0(1232, false)
	}
	var last error
	for _, server := range servers {
		m, err := exchange(ctx, out, server, tcp)
		if err == nil && (m.Rcode == dns.RcodeServerFailure || m.Rcode == dns.RcodeRefused) && len(servers) > 1 {
			err = errors.New(server + " answers " + dns.RcodeToString[m.Rcode])
		}
		if err == nil {
			f.remember(q, m)
			return m, nil
		}
		last = err
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// exchange asks one server, by TCP when the answer does not fit.
func exchange(ctx context.Context, req *dns.Msg, server string, tcp bool) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	if !tcp {
		c := &dns.Client{Net: "udp", Timeout: upstreamTimeout}
		if m, _, err := c.ExchangeContext(ctx, req, server); err != nil || !m.Truncated {
			return m, err
		}
	}
	c := &dns.Client{Net: "tcp", Timeout: upstreamTimeout}
	m, _, err := c.ExchangeContext(ctx, req, server)
	return m, err
}

// remembered returns a copy of a cached answer with what is left of its TTLs.
func (f *forwarder) remembered(q question) *dns.Msg {
	f.mu.Lock()
	c, ok := f.cache[q]
	f.mu.Unlock()
	now := time.Now()
	if !ok || !now.Before(c.expire) {
		return nil
	}
	m := c.msg.Copy()
	age := uint32(now.Sub(c.at) / time.Second)
	for _, rr := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		if h := rr.Header(); h.Rrtype != dns.TypeOPT {
			h.Ttl -= min(h.Ttl, age)
		}
	}
	return m
}

// remember keeps an answer for its shortest TTL; a negative one for its SOA's.
func (f *forwarder) remember(q question, m *dns.Msg) {
	if m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError || m.Truncated {
		return
	}
	ttl, known := uint32(cacheMax/time.Second), false
	for _, rr := range slices.Concat(m.Answer, m.Ns) {
		ttl, known = min(ttl, rr.Header().Ttl), true
		if soa, ok := rr.(*dns.SOA); ok && len(m.Answer) == 0 {
			ttl = min(ttl, soa.Minttl)
		}
	}
	if !known || ttl == 0 {
		return
	}
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.cache) >= cacheSize {
		for k, c := range f.cache { // expired ones, else any
			if delete(f.cache, k); now.Before(c.expire) && len(f.cache) < cacheSize {
				break
			}
		}
	}
	f.cache[q] = cached{m.Copy(), now, now.Add(time.Duration(ttl) * time.Second)}
}
