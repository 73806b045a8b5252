package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/events"
	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/cri/criserver"
	"github.com/yare-dev/yare/csi/localdriver"
	"github.com/yare-dev/yare/dns"
	"github.com/yare-dev/yare/kubelet"
	"github.com/yare-dev/yare/proxy"
	"github.com/yare-dev/yare/run"
)

// containers is everything below the CRI: network, images, runtime; and what holds the network's pods to the policies.
func (s *server) containers() (containers, policies run.Component, _ *cri.Client, err error) {
	side := &containerSide{
		network: s.record.Network(),
		runtime: criserver.Config{
			Dir: filepath.Join(s.record.DataDir, "containers"), RunDir: filepath.Join(s.record.RunDir, "s"),
			Socket: s.criSocket(), CgroupParent: s.record.Cgroup(), Handlers: s.config.RuntimeHandlers,
			AppArmorProfile: s.record.AppArmorProfile(), SELinux: s.config.SELinux,
		},
		images:     imageConfig(s.record),
		cniConfDir: s.config.CNIConfigDir, cniBinDir: s.config.CNIBinDir, runDir: s.record.RunDir, log: s.log,
	}
	if policies, err = side.policies(s.record.PolicyTable(), s.record.DNSAddresses(), s.client("system:kube-proxy")); err != nil {
		return nil, nil, nil, err
	}
	network, runtime, init, err := side.open()
	if err != nil {
		return nil, nil, nil, err
	}
	s.init = init
	return run.InOrder("containers", s.watch(network), s.watch(runtime)), policies, cri.InProcess(runtime), nil
}

// kubelet runs the pods of this host's Node.
func (s *server) kubelet(runtime *cri.Client) (run.Component, error) {
	data := s.record.DataDir
	c := kubelet.Defaults()
	c.NodeName, c.NodeIPs = s.config.NodeName, nil
	for _, a := range s.addresses {
		c.NodeIPs = append(c.NodeIPs, a.String())
	}
	c.Port, c.HealthzPort = int32(s.record.KubeletPort), int32(s.record.HealthzPort)
	var err error
	if c.RootDir, err = kubeletDir(s.record, s.log); err != nil {
		return nil, err
	}
	c.LogDir = filepath.Join(data, "pods")
	c.CgroupRoot = s.record.Cgroup()
	c.ClusterDNS = []string{s.record.DNSAddress().String()}
	c.MaxPods = int64(s.config.MaxPods)
	s.config.evict(&c)
	if c.StaticPodPath = s.config.StaticPodDir; c.StaticPodPath == "" {
		c.StaticPodPath = filepath.Join(data, "manifests")
	}
	c.ImageCredentialProviderConfig, c.ImageCredentialProviderBinDir = s.config.ImageCredentialProviderConfig, s.config.ImageCredentialProviderBinDir
	access := s.client("system:node:"+s.config.NodeName, authn.Nodes)
	recorder := events.New(access, "kubelet", s.config.NodeName, s.log)
	k, err := kubelet.New(c, kubelet.Deps{
		Client: access, CRI: runtime, Events: recorder, TLS: s.pki.ServerTLS(s.pki.KubeletServing), Log: s.log,
	})
	if err != nil {
		return nil, err
	}
	return run.Together("kubelet", k, recorder, localStorage(c, data, access, s.log)), nil
}

// localStorage is the built-in storage driver, which the kubelet finds as any other. Its volumes are in the cluster's data, and go with it.
func localStorage(c kubelet.Config, data string, access client.Client, log *slog.Logger) run.Component {
	return localdriver.New(localdriver.Config{NodeName: c.NodeName, Dir: filepath.Join(data, "volumes"), KubeletDir: c.RootDir, Client: access, Log: log})
}

// kubeletDir is the folder of the cluster's kubelet. Where that is not the usual one, the log says what follows from it.
func kubeletDir(r *cluster.Record, log *slog.Logger) (string, error) {
	dir, note, err := cluster.Host{}.MakeKubeletDir(r)
	if note != "" {
		log.Warn("the kubelet is not where everybody looks for it", "note", note)
	}
	return dir, err
}

// nodeReady becomes ready when this host's Node is Ready and the cluster's DNS answers at its Service address: what `yare up`
// waits for.
func (s *server) nodeReady() run.Component {
	return run.Func("node", func(ctx context.Context, ready func()) error {
		if err := waitForNode(ctx, s.admin(), s.config.NodeName); err != nil {
			return err
		}
		if err := waitForDNS(ctx, netip.AddrPortFrom(s.record.DNSAddress(), 53)); err != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return nil
	})
}

// readyLimit is how long a start may take before the server gives up and says what is missing.
const readyLimit = 60 * time.Second

func waitForNode(ctx context.Context, c client.Reader, name string) error {
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	why := "it has not registered"
	for e, err := range c.Watch(ctx, api.NodeKind, client.Query{Fields: fields.OneTermEqualSelector("metadata.name", name)}, 0) {
		if err != nil {
			return err
		}
		node, ok := e.Object.(*corev1.Node)
		if !ok {
			continue
		}
		if api.NodeReady(node) {
			return nil
		}
		if c := api.NodeCondition(node, corev1.NodeReady); c != nil {
			why = c.Message
		}
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("node %s is not Ready after %v: %s", name, readyLimit, why)
	}
	return ctx.Err()
}

// waitForDNS asks for the API server's own name until an answer comes: the rules that lead to the DNS server are made at the same
// time. Each question waits a little longer for its answer.
func waitForDNS(ctx context.Context, server netip.AddrPort) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, fmt.Errorf("DNS does not answer at %v after %v", server, readyLimit))
	defer cancel()
	typ := mdns.TypeA
	if server.Addr().Is6() {
		typ = mdns.TypeAAAA // the API server's Service has the main family alone
	}
	q := new(mdns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", typ)
	for wait := 4 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, time.Second) {
		c := mdns.Client{Timeout: wait}
		begin := time.Now()
		a, _, err := c.ExchangeContext(ctx, q, server.String())
		if err == nil && a.Rcode == mdns.RcodeSuccess && len(a.Answer) > 0 {
			return nil
		}
		_ = run.Pause(ctx, wait-time.Since(begin)) // refused at once, for lack of an endpoint
	}
	cause := context.Cause(ctx)
	if _, err := netlink.RouteGet(server.Addr().AsSlice()); errors.Is(err, unix.ENETUNREACH) {
		cause = fmt.Errorf("%w: this host has no route there, give it a default route of that family", cause)
	}
	return cause
}

// services are what makes Services and other nodes' pods reachable: rules, names and routes.
func (s *server) services() (run.Component, error) {
	c := s.client("system:kube-proxy")
	rules, err := proxy.New(proxy.Config{
		Table: s.record.ServiceTable(), NodeName: s.config.NodeName, ClusterCIDRs: s.record.PodCIDRs(),
	}, proxy.Deps{Client: c, Log: s.log})
	if err != nil {
		return nil, err
	}
	var listen []netip.AddrPort
	for _, a := range s.addresses {
		listen = append(listen, netip.AddrPortFrom(a, 0))
	}
	names, err := dns.New(dns.Config{
		Listen: listen, ServiceIPs: s.record.DNSAddresses(), NodeName: s.config.NodeName,
		AllowFrom: s.record.PodCIDRs(), AllowAlso: s.nodeAddresses().has,
	}, dns.Deps{Client: s.admin(), Log: s.log})
	if err != nil {
		return nil, err
	}
	others := newRoutes(s.config.NodeName, s.record.PodCIDRs(), c, s.log)
	return run.Together("services", s.watch(rules), s.watch(names), s.watch(others)), nil
}

// criSocket is where crictl and others reach the runtime.
func (s *server) criSocket() string { return filepath.Join(s.record.RunDir, "cri.sock") }
