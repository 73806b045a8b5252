package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	clientrest "k8s.io/client-go/rest"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/aggregator"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/bootstrap"
	"github.com/yare-dev/yare/apiserver/callout"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/pki"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/etcdkv"
)

// server is one running cluster: what its components are made of.
type server struct {
	config Config
	record *cluster.Record
	log    *slog.Logger
	health *run.Health
	notify *notifier

	pki       *pki.PKI
	addresses []netip.Addr // of this host, one of each family of the cluster's, the main one first
	etcd      *etcd.Etcd
	store     *store.Store
	api       *apiserver.Server
	// callout reaches webhooks.
	callout *callout.Callout
	// aggregator passes on what other API servers serve.
	aggregator *aggregator.Aggregator
	init       *oci.Init
	metrics    *prometheus.Registry // of all components of this process
	files      []run.Component      // settings' files that may change while it runs
	proxies    []byte               // authorities of front proxies

	// Of several servers of one cluster. shared is closed once there may be others, where that was not so at the start.
	sharing sync.Once
	shared  chan struct{}
	leaders []*leading
	started atomic.Bool // everything is up
	leaving atomic.Bool // it is being removed, by itself
}

func newServer(c Config, r *cluster.Record, log *slog.Logger, n *notifier) *server {
	return &server{config: c, record: r, log: log, health: run.NewHealth(), notify: n, shared: make(chan struct{})}
}

// compose wires the components. This function is the picture of doc/ARCHITECTURE.md in Go: what starts before what, and who is given
// what. The control plane and the container side need each other only from the kubelet on, so they start at once.
func (s *server) compose(ctx context.Context) (run.Component, error) {
	if err := s.prepare(ctx, s.record.PodCIDRs()); err != nil {
		return nil, err
	}
	join, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.record.CheckNodeRanges(); err != nil {
		return nil, err
	}
	s.metrics = prometheus.NewRegistry()
	state, err := s.state(join)
	if err != nil {
		return nil, err
	}
	if err := s.apiServer(); err != nil {
		return nil, err
	}
	containers, policies, runtime, err := s.containers()
	if err != nil {
		return nil, err
	}
	kubelet, err := s.kubelet(runtime)
	if err != nil {
		return nil, err
	}
	services, err := s.services()
	if err != nil {
		return nil, err
	}
	return run.InOrder("yare",
		run.Together("base",
			run.InOrder("control plane", append(state, s.watch(s.customResources()), s.watch(s.api), s.watch(s.bootstrap()))...),
			containers, s.warm(), run.GiveBack(), run.Together("settings", s.files...)),
		run.Together("loops", s.pki.Renewer(s.log), s.aggregator, s.presence(), s.nodeRanges(), s.controllers(), s.scheduler(), services, s.watch(policies), s.watch(kubelet)),
		s.watch(s.nodeReady()),
	), nil
}

// warm has the API server parse its schemas, which its first write would wait for, while etcd starts.
func (s *server) warm() run.Component {
	return run.Func("schemas", func(ctx context.Context, ready func()) error {
		s.api.Warm()
		ready()
		<-ctx.Done()
		return nil
	})
}

// watch makes c's readiness part of /readyz, and tells `yare up` of it.
func (s *server) watch(c run.Component) run.Component {
	return s.health.Watch(run.Func(c.Name(), func(ctx context.Context, ready func()) error {
		return c.Run(ctx, func() {
			s.notify.say(c.Name())
			ready()
		})
	}))
}

// client returns access to the API in this process as one of the system's users.
func (s *server) client(user string, groups ...string) client.Client {
	return s.api.ClientAs(&authn.User{Name: user, Groups: append(groups, authn.Authenticated)})
}

// admin may do everything; only what sets up the cluster itself uses it.
func (s *server) admin() client.Client { return s.client("system:apiserver", authn.Masters) }

// prepare finds this host's addresses, of the families of the ranges, and makes keys, certificates and kubeconfigs.
func (s *server) prepare(ctx context.Context, ranges []netip.Prefix) (err error) {
	if s.addresses, err = s.config.nodeAddresses(ranges); err != nil {
		return err
	}
	c := pki.Config{
		ServiceAddress: s.record.APIAddress(), Addresses: slices.Clone(s.addresses),
		NodeName: s.config.NodeName, NodeAddresses: s.addresses,
	}
	for _, n := range s.config.APINames {
		if a, err := netip.ParseAddr(n); err == nil {
			c.Addresses = append(c.Addresses, a)
		} else {
			c.Names = append(c.Names, n)
		}
	}
	if s.pki, err = pki.Ensure(filepath.Join(s.record.DataDir, "pki"), c); err != nil {
		return err
	}
	admin := s.pki.Kubeconfig(s.record.Context(), apiURL(s.record), s.pki.Admin)
	if err := pki.WriteKubeconfig(adminKubeconfig(s.record), admin); err != nil {
		return err
	}
	return pki.MergeKubeconfig(ctx, s.record.Kubeconfig, admin)
}

// state is etcd and the store over it, in the order of starting. Join are the members of which this server's becomes one.
func (s *server) state(join []etcd.Member) ([]run.Component, error) {
	c := etcd.Config{Log: s.log, Ephemeral: s.record.Ephemeral, Endpoints: s.config.EtcdEndpoints}
	if len(c.Endpoints) > 0 {
		var err error
		if c.TLS, err = s.config.etcdTLS(); err != nil {
			return nil, err
		}
	} else {
		c.DataDir, c.Name = etcdDir(s.record), s.record.Name
		if s.record.Joined {
			c.Name = s.record.ID // the first one's is the cluster's name on its host, which may be the same here
		}
		if s.record.PodCIDR.IsValid() { // `yare apiserver` has no record, and is alone
			c.Peer = s.peer()
			c.Peer.Join = join
			c.Waits = func() { s.notify.say("waits for a majority: start the cluster's other servers") }
		}
	}
	e, err := etcd.New(c)
	if err != nil {
		return nil, err
	}
	s.etcd = e
	s.health.Probe("quorum", e.Led)
	backend, err := s.sealed(etcdkv.New(e))
	if err != nil {
		return nil, err
	}
	s.store = store.New(backend, api.Stored(), store.Options{Log: s.log, Indexes: rest.Indexes(), Metrics: s.metrics})
	return []run.Component{s.watch(e), s.watch(s.store)}, nil
}

// etcdDir is where the server's own member of the database keeps it.
func etcdDir(r *cluster.Record) string { return filepath.Join(r.DataDir, "etcd") }

// etcdTLS is how etcd elsewhere is reached; nil without files, which is as the host's authorities have it.
func (c Config) etcdTLS() (*tls.Config, error) {
	if c.EtcdCAFile == "" && c.EtcdCertFile == "" {
		return nil, nil
	}
	t, err := clientrest.TLSConfigFor(&clientrest.Config{TLSClientConfig: clientrest.TLSClientConfig{
		CAFile: c.EtcdCAFile, CertFile: c.EtcdCertFile, KeyFile: c.EtcdKeyFile}})
	if err != nil {
		return nil, fmt.Errorf("certificates for etcd: %w", err)
	}
	return t, nil
}

func (s *server) bootstrap() run.Component {
	return bootstrap.New(bootstrap.Config{
		APIServer: netip.AddrPortFrom(s.addresses[0], uint16(s.record.APIPort)),
		Shared:    func() bool { return !s.store.Exclusive() },
		Decide: func(ctx context.Context, what string) context.Context {
			return s.store.Allocated(ctx, what, s.serverName(), s.store.Revision())
		},
		APIService: s.record.APIAddress(), Services: s.record.ServiceCIDRs(),
		ClientCA: s.pki.CA.PEM(), FrontProxy: s.config.APIServer.RequestHeader, FrontProxyAuthorities: s.proxies,
		ProxyClientCA: s.pki.FrontProxy.PEM(), ProxyClientName: pki.ProxyClientName,
	}, s.admin(), s.log)
}

// serverName tells this server from others over the same database.
func (s *server) serverName() string {
	return netip.AddrPortFrom(s.addresses[0], uint16(s.record.APIPort)).String()
}

// listen opens the API's port before anything else is started, so that a port in use is told at once.
func (s *server) listen() (net.Listener, error) {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(s.record.APIPort))
	if err != nil {
		return nil, fmt.Errorf("the API's port %d: end what listens there, or 'yare down%s' and choose another with --api-port: %w",
			s.record.APIPort, nameFlag(s.record.Name), err)
	}
	return l, nil
}

// close frees what is not a component's.
func (s *server) close() {
	if s.init != nil {
		s.init.Close()
	}
}
