package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/cri/criserver"
	"github.com/yare-dev/yare/kubelet"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/proxy"
	"github.com/yare-dev/yare/run"
)

// agent is the node side of a cluster whose API server is elsewhere: runtime, network, kubelet, Services.
type agent struct {
	peer
	join   *join
	record *cluster.Record
	config Config // of which the settings of a node count

	init *oci.Init
}

func agentCommand() *cobra.Command {
	a := &agent{config: defaultConfig()}
	var file, name, dataDir string
	c := &cobra.Command{
		Use: "agent", GroupID: "cluster", Args: cobra.NoArgs,
		Short: "Run this machine as a node of a cluster elsewhere, in the foreground, for systemd",
		Long: `Run this machine as a node of a cluster elsewhere, in the foreground. SIGTERM ends it and leaves the containers running;
the next start adopts them. 'yare down --name NAME' removes everything that it made here, and leaves the Node object to the cluster.`,
		Example: `  yare node-credentials worker1 --address 192.168.1.11 > worker1.join      # on the server
  yare agent --join worker1.join`,
		RunE: func(c *cobra.Command, _ []string) error {
			var wrong []error
			a.config.checkEviction(func(field, format string, args ...any) { wrong = append(wrong, fmt.Errorf(field+": "+format, args...)) })
			if err := errors.Join(append(wrong, requireRoot(), a.open())...); err != nil {
				return err
			}
			var err error
			if a.join, err = readJoin(file); err != nil {
				return err
			}
			a.record, _, err = cluster.Host{}.Claim(cluster.Wish{Name: name, DataDir: dataDir, Kubeconfig: os.DevNull,
				IPv6: cluster.HasIPv6(a.join.ClusterCIDR)})
			if err != nil {
				return err
			}
			unlock, err := cluster.Host{}.Lock(a.record)
			if err != nil {
				return err
			}
			defer unlock()
			if err := a.balance(); err != nil {
				return err
			}
			defer func() {
				if a.init != nil {
					a.init.Close()
				}
			}()
			return a.serve(c.Context(), run.Func("agent", a.run))
		},
	}
	f := c.Flags()
	f.StringVar(&file, "join", "", "file of 'yare node-credentials'")
	f.StringVar(&name, "name", "agent", "name of this node's share of the host: cgroups, links, tables and folders bear it")
	f.StringVar(&dataDir, "data-dir", "", "where to keep it (default /var/lib/yare/NAME)")
	f.StringVar(&a.config.CNIConfigDir, "cni-conf-dir", a.config.CNIConfigDir, "folder of CNI configurations, which take over from the built-in network")
	f.StringVar(&a.config.CNIBinDir, "cni-bin-dir", a.config.CNIBinDir, "folder of CNI plugins")
	f.StringVar(&a.config.ImageCredentialProviderConfig, "image-credential-provider-config", "", "CredentialProviderConfig of programs that know registries' credentials")
	f.StringVar(&a.config.ImageCredentialProviderBinDir, "image-credential-provider-bin-dir", "", "folder of these programs")
	addHandlers(c, &a.config.RuntimeHandlers)
	addSELinux(c, &a.config.SELinux)
	f.IntVar(&a.config.MaxPods, "max-pods", a.config.MaxPods, "how many pods this node takes")
	addEviction(c, &a.config)
	a.addLog(c)
	return c
}

// balance has the node go on with another API server when its own is gone.
func (a *agent) balance() error {
	u, err := url.Parse(a.join.Server)
	if err != nil || u.Host == "" {
		return fmt.Errorf("credentials: server %q is not https://HOST:PORT", a.join.Server)
	}
	at := u.Host
	if u.Port() == "" {
		at = net.JoinHostPort(u.Hostname(), "443")
	}
	a.join.servers = newBalance(at, filepath.Join(a.record.DataDir, "servers"), a.log)
	return os.MkdirAll(a.record.DataDir, 0o711)
}

// run learns this node's range of pod addresses, which the network is made of, and runs everything else with it.
func (a *agent) run(ctx context.Context, ready func()) error {
	ranges, err := a.podRanges(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	a.log.Info("pod addresses known", "node", a.join.Node, "ranges", ranges)
	all, err := a.compose(ranges)
	if err != nil {
		return err
	}
	return all.Run(ctx, ready)
}

func (a *agent) compose(ranges []netip.Prefix) (run.Component, error) {
	r := a.record
	network := r.Network()
	network.Ranges, network.ClusterCIDRs = ranges, a.join.ClusterCIDR
	side := &containerSide{
		network: network,
		runtime: criserver.Config{Dir: filepath.Join(r.DataDir, "containers"), RunDir: filepath.Join(r.RunDir, "s"),
			Socket: filepath.Join(r.RunDir, "cri.sock"), CgroupParent: r.Cgroup(), Handlers: a.config.RuntimeHandlers,
			AppArmorProfile: r.AppArmorProfile(), SELinux: a.config.SELinux},
		images:     imageConfig(r),
		cniConfDir: a.config.CNIConfigDir, cniBinDir: a.config.CNIBinDir, runDir: r.RunDir, log: a.log,
	}
	services, err := a.join.rest(a.join.Proxy)
	if err != nil {
		return nil, err
	}
	access, err := a.dial(services, "yare-agent")
	if err != nil {
		return nil, err
	}
	policies, err := side.policies(r.PolicyTable(), a.join.DNS, access)
	if err != nil {
		return nil, err
	}
	builtin, runtime, init, err := side.open()
	if err != nil {
		return nil, err
	}
	a.init = init
	kubelet, err := a.nodeKubelet(cri.InProcess(runtime))
	if err != nil {
		return nil, err
	}
	rules, err := a.proxy(services, proxy.Config{Table: r.ServiceTable(), NodeName: a.join.Node, ClusterCIDRs: a.join.ClusterCIDR})
	if err != nil {
		return nil, err
	}
	return run.InOrder("agent", run.InOrder("containers", builtin, runtime),
		run.Together("node", kubelet, rules, policies, access, a.join.servers.follow(access), newRoutes(a.join.Node, a.join.ClusterCIDR, access, a.log))), nil
}

// nodeKubelet is the kubelet as `yare server` has it, with the credentials of the file.
func (a *agent) nodeKubelet(runtime *cri.Client) (run.Component, error) {
	data := a.record.DataDir
	c := kubelet.Defaults()
	a.join.complete(&c)
	c.Port, c.HealthzPort = int32(a.record.KubeletPort), int32(a.record.HealthzPort)
	var err error
	if c.RootDir, err = kubeletDir(a.record, a.log); err != nil {
		return nil, err
	}
	c.LogDir = filepath.Join(data, "pods")
	c.CgroupRoot, c.MaxPods = a.record.Cgroup(), int64(a.config.MaxPods)
	a.config.evict(&c)
	c.StaticPodPath = filepath.Join(data, "manifests")
	c.ImageCredentialProviderConfig, c.ImageCredentialProviderBinDir = a.config.ImageCredentialProviderConfig, a.config.ImageCredentialProviderBinDir
	cfg, err := a.join.rest(a.join.Kubelet)
	if err != nil {
		return nil, err
	}
	serving, err := a.join.serving()
	if err != nil {
		return nil, err
	}
	k, err := a.kubelet(cfg, c, serving, runtime)
	if err != nil {
		return nil, err
	}
	access, err := a.dial(cfg, "yare-local-storage")
	if err != nil {
		return nil, err
	}
	return run.Together("kubelet", k, run.InOrder("storage", access, localStorage(c, data, access, a.log))), nil
}

// podRanges makes the Node where there is none, and waits until the cluster has given it its range of pod addresses. The kubelet
// takes the Node over as it is.
func (a *agent) podRanges(ctx context.Context) ([]netip.Prefix, error) {
	cfg, err := a.join.rest(a.join.Kubelet)
	if err != nil {
		return nil, err
	}
	access, err := a.dial(cfg, "kubelet")
	if err != nil {
		return nil, err
	}
	ranges, err := assignedRanges(ctx, access, a.join.Node, func() { a.log.Info("waiting for pod addresses", "node", a.join.Node) })
	if err != nil {
		return nil, fmt.Errorf("at %s: %w", a.join.Server, err)
	}
	return ranges, nil
}

// waitRanges waits until the cluster has given a Node its ranges of pod addresses.
func waitRanges(ctx context.Context, access client.Client, name string, waits func()) ([]netip.Prefix, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mine := client.Query{Fields: fields.OneTermEqualSelector("metadata.name", name)}
	for e, err := range access.Watch(ctx, api.NodeKind, mine, 0) {
		if err != nil {
			return nil, fmt.Errorf("wait for the pod addresses of node %s: %w", name, err)
		}
		if e.Op == client.Synced {
			waits()
		}
		n, ok := e.Object.(*corev1.Node)
		if !ok || e.Op == client.Deleted {
			continue
		}
		if ranges := podCIDRs(n); len(ranges) > 0 {
			return ranges, nil
		}
	}
	return nil, nil
}

// podCIDRs are the ranges of pod addresses that a Node was given, the main one first as the cluster has it.
func podCIDRs(n *corev1.Node) (ps []netip.Prefix) {
	list := n.Spec.PodCIDRs
	if len(list) == 0 && n.Spec.PodCIDR != "" {
		list = []string{n.Spec.PodCIDR}
	}
	for _, text := range list {
		if p, err := netip.ParsePrefix(text); err == nil {
			ps = append(ps, p.Masked())
		}
	}
	return ps
}
