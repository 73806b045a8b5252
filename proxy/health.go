package proxy

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/yare-dev/yare/api"
)

// health answers load balancers on the health check node ports of Services with
// externalTrafficPolicy Local: 200 where the node has an endpoint, else 503.
type health struct {
	addrs []netip.Prefix
	log   *slog.Logger
	want  map[api.Key]healthPort
	have  map[api.Key]*healthServer
}

type healthPort struct {
	port  int32
	local int32
}

type healthServer struct {
	port    int32
	local   atomic.Int32
	http    []*http.Server
	running sync.WaitGroup
}

func newHealth(addrs []netip.Prefix, log *slog.Logger) *health {
	return &health{addrs: addrs, log: log, want: map[api.Key]healthPort{}, have: map[api.Key]*healthServer{}}
}

// set notes what is wanted for a Service.
func (h *health) set(k api.Key, svc *corev1.Service, f Facts, slices_ []*discoveryv1.EndpointSlice) {
	delete(h.want, k)
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer || svc.Spec.HealthCheckNodePort == 0 ||
		svc.Spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return
	}
	// A pod of two families is one: what there is more of counts.
	most := 0
	for _, fam := range families() {
		local := map[netip.Addr]bool{}
		for i := range svc.Spec.Ports {
			for _, e := range endpointsOf(f, fam, &svc.Spec.Ports[i], slices_) {
				if e.local && e.ready {
					local[e.to.Addr()] = true
				}
			}
		}
		most = max(most, len(local))
	}
	h.want[k] = healthPort{svc.Spec.HealthCheckNodePort, int32(most)}
}

func (h *health) drop(k api.Key) { delete(h.want, k) }

// apply starts and stops servers as wanted.
func (h *health) apply() {
	for k, s := range h.have {
		if h.want[k].port != s.port {
			s.stop()
			delete(h.have, k)
		}
	}
	for k, w := range h.want {
		s := h.have[k]
		if s == nil {
			var err error
			if s, err = h.start(k, w.port); err != nil {
				h.log.Error("health check port not served", "key", k, "err", err)
				continue
			}
			h.have[k] = s
		}
		s.local.Store(w.local)
	}
}

func (h *health) start(k api.Key, port int32) (*healthServer, error) {
	s := &healthServer{port: port}
	hosts, err := h.hosts()
	if err != nil {
		return nil, err
	}
	for _, host := range hosts {
		l, err := net.Listen("tcp", net.JoinHostPort(host, fmt.Sprint(port)))
		if err != nil {
			s.stop()
			return nil, err
		}
		srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			s.answer(w, k)
		})}
		s.http = append(s.http, srv)
		s.running.Go(func() { _ = srv.Serve(l) })
	}
	return s, nil
}

// hosts returns the addresses to listen on: all, or those that take node ports.
func (h *health) hosts() ([]string, error) {
	if len(h.addrs) == 0 {
		return []string{""}, nil
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, a := range own {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		for _, p := range h.addrs {
			if p.Contains(ip.Unmap()) {
				out = append(out, ip.Unmap().String())
				break
			}
		}
	}
	return out, nil
}

// answer writes upstream's JSON.
func (s *healthServer) answer(w http.ResponseWriter, k api.Key) {
	local := s.local.Load()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("X-Load-Balancing-Endpoint-Weight", fmt.Sprint(local))
	if local == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"service":        map[string]string{"namespace": k.Namespace, "name": k.Name},
		"localEndpoints": local, "serviceProxyHealthy": true,
	})
}

// stop closes the listeners and what is open; Serve returns.
func (s *healthServer) stop() {
	for _, srv := range s.http {
		_ = srv.Close()
	}
	s.running.Wait()
}

func (h *health) close() {
	for _, s := range h.have {
		s.stop()
	}
}
