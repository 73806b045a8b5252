package main

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/controllers/servicelb"
	"github.com/yare-dev/yare/cri/criserver"
	"github.com/yare-dev/yare/kubelet"
)

// Config is the file of `yare up` and `yare server`: every setting, with its default. Unknown fields are errors. settings.yaml is made
// of these comments (go test ./cmd/yare -update), for `yare config --help`.
type Config struct {
	// Name of the cluster on this host.
	Name string `json:"name"`
	// DataDir keeps everything that must survive: etcd, keys, images, volumes, logs. Default: /var/lib/yare/NAME.
	DataDir string `json:"dataDir,omitempty"`
	// Kubeconfig is the file to merge an administrator's context into. Default: $KUBECONFIG, else ~/.kube/config.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	// Ephemeral clusters never wait for the disk; a power cut may lose them.
	Ephemeral bool `json:"ephemeral"`
	// APIPort of a new cluster. Default: 6443, or the next free one.
	APIPort int `json:"apiPort,omitempty"`
	// AdvertiseAddress is the address by which pods and other hosts reach this one. Default: that of the default route's link.
	AdvertiseAddress netip.Addr `json:"advertiseAddress,omitzero"`
	// PodCIDRs and ServiceCIDRs are the ranges of a new cluster's pods and Services: one of each, or two, of IPv4 and of IPv6, in the same
	// order in both. The first counts where nobody says which. Default: 10.42.0.0/16 and 10.43.0.0/16, or the next free ones.
	//
	//	podCIDRs: [10.42.0.0/16, "fd42::/56"]
	//	serviceCIDRs: [10.43.0.0/16, "fd43::/112"]
	PodCIDRs     []netip.Prefix `json:"podCIDRs,omitempty"`
	ServiceCIDRs []netip.Prefix `json:"serviceCIDRs,omitempty"`
	// NodeIPs are the addresses of this host's Node, one of the family of each of PodCIDRs, in their order. Default: AdvertiseAddress, and
	// for what it leaves those of the default routes' links.
	NodeIPs []netip.Addr `json:"nodeIPs,omitempty"`
	// ServiceLoadBalancer says which Services of type LoadBalancer get addresses. These are the nodes', where the Service's ports are taken from
	// whatever else listens at them. Nodes with the label node.kubernetes.io/exclude-from-external-load-balancers are left out, and for each Service those
	// where a pod's hostPort, a node port or another Service has one of its ports.
	ServiceLoadBalancer LoadBalancerConfig `json:"serviceLoadBalancer,omitzero"`
	// APINames are further DNS names and addresses for the API server's certificate.
	APINames []string `json:"apiNames,omitempty"`
	// NodeName is the name of this host's Node. Default: the host's name in lower case.
	NodeName string `json:"nodeName,omitempty"`
	// EtcdEndpoints replace the embedded member: https://10.0.0.1:2379.
	EtcdEndpoints []string `json:"etcdEndpoints,omitempty"`
	// EtcdCAFile verifies those endpoints; EtcdCertFile and EtcdKeyFile are what we show them.
	EtcdCAFile   string `json:"etcdCAFile,omitempty"`
	EtcdCertFile string `json:"etcdCertFile,omitempty"`
	EtcdKeyFile  string `json:"etcdKeyFile,omitempty"`
	// APIServer adjusts the API server.
	APIServer APIServerConfig `json:"apiServer,omitzero"`
	// RuntimeEndpoint is the unix socket of another CRI runtime (containerd, CRI-O) to use in place of ours.
	RuntimeEndpoint string `json:"runtimeEndpoint,omitempty"`
	// RuntimeHandlers are further OCI runtimes, each by the name that RuntimeClasses have in their field handler: its program's path,
	// and options that it is always given. The names are DNS labels. Their programs run in the pod's cgroup, for which a
	// RuntimeClass has overhead.podFixed. runsc needs --network=host where pods have more than one container or restart them: its own
	// network takes the pod's address for the first container alone. crun 1.8, Debian 12's, refuses hosts with hybrid cgroups; with v1 or
	// v2 alone it works.
	//
	//	runtimeHandlers:
	//	  crun: {path: /usr/bin/crun}
	//	  gvisor: {path: /usr/bin/runsc, options: ["--platform=systrap", "--network=host"]}
	RuntimeHandlers map[string]criserver.Handler `json:"runtimeHandlers,omitempty"`
	// SELinux gives pods the contexts that the host's SELinux policy has for containers, and those of their seLinuxOptions, which mean nothing
	// otherwise. The host needs SELinux and a policy for containers, as the package container-selinux has it; and what of the host's files pods are
	// to use by hostPath needs a context that the policy lets containers use.
	SELinux bool `json:"seLinux,omitempty"`
	// CNIConfigDir and CNIBinDir are where a CNI configuration is looked for that takes over from the built-in network.
	CNIConfigDir string `json:"cniConfigDir"`
	CNIBinDir    string `json:"cniBinDir"`
	// StaticPodDir holds manifests of pods that this node runs without being told by the API server. Default: DATADIR/manifests.
	StaticPodDir string `json:"staticPodDir,omitempty"`
	// ImageCredentialProviderConfig is upstream's CredentialProviderConfig, a file or a folder of files: which programs in
	// ImageCredentialProviderBinDir know credentials of which registries.
	ImageCredentialProviderConfig string `json:"imageCredentialProviderConfig,omitempty"`
	ImageCredentialProviderBinDir string `json:"imageCredentialProviderBinDir,omitempty"`
	// MaxPods of this node.
	MaxPods int `json:"maxPods"`
	// EvictionHard are thresholds below which this node evicts pods at once, as in upstream's KubeletConfiguration: quantities or percentages of
	// memory.available, nodefs.available, nodefs.inodesFree, imagefs.available, imagefs.inodesFree (where images are on a file system of their
	// own) and pid.available. Default:
	//
	//	evictionHard: {memory.available: 100Mi, nodefs.available: 10%, nodefs.inodesFree: 5%, imagefs.available: 15%, imagefs.inodesFree: 5%}
	//
	// Signals that are not named have no threshold then. 0% is none too.
	EvictionHard map[string]string `json:"evictionHard,omitzero"`
	// MergeDefaultEvictionSettings has signals that EvictionHard does not name keep their defaults.
	MergeDefaultEvictionSettings bool `json:"mergeDefaultEvictionSettings,omitempty"`
	// EvictionSoft are thresholds that have to be met for as long as EvictionSoftGracePeriod says for each before pods are evicted. These get
	// their own grace period, but at most EvictionMaxPodGracePeriod, in seconds.
	//
	//	evictionSoft: {memory.available: 500Mi}
	//	evictionSoftGracePeriod: {memory.available: 1m30s}
	EvictionSoft              map[string]string `json:"evictionSoft,omitempty"`
	EvictionSoftGracePeriod   map[string]string `json:"evictionSoftGracePeriod,omitempty"`
	EvictionMaxPodGracePeriod int32             `json:"evictionMaxPodGracePeriod,omitempty"`
	// EvictionMinimumReclaim is how much more than its threshold each signal must have before pods stop being evicted.
	EvictionMinimumReclaim map[string]string `json:"evictionMinimumReclaim,omitempty"`
	// EvictionPressureTransitionPeriod is how long the Node's conditions of pressure outlast their reasons. Default: 5m.
	EvictionPressureTransitionPeriod kubelet.Duration `json:"evictionPressureTransitionPeriod,omitzero"`
	// Debug serves profiles of the server below /debug/pprof, and the host's /var/log below /logs, to administrators.
	Debug bool `json:"debug,omitempty"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `json:"logLevel"`
}

// LoadBalancerConfig is what the settings say of Services of type LoadBalancer.
type LoadBalancerConfig struct {
	// OnlyClass leaves Services without a loadBalancerClass to somebody else (MetalLB, a cloud's controller): those of yare.dev/nodes alone
	// get addresses.
	OnlyClass bool `json:"onlyClass,omitempty"`
	// ReservedPorts are given to no Service, and neither is the API server's. Default: [22]
	ReservedPorts []int32 `json:"reservedPorts,omitzero"`
}

// config is what the controller goes by.
func (c LoadBalancerConfig) config(apiPort int) *servicelb.Config {
	if c.ReservedPorts == nil {
		c.ReservedPorts = []int32{22} // who works on the node by SSH is not to lose it to a Service
	}
	return &servicelb.Config{OnlyClass: c.OnlyClass, Reserved: append([]int32{int32(apiPort)}, c.ReservedPorts...)}
}

func defaultConfig() Config {
	return Config{
		Name: cluster.DefaultName, CNIConfigDir: "/etc/cni/net.d", CNIBinDir: "/opt/cni/bin", MaxPods: 110, LogLevel: "info",
	}
}

// validate returns all problems at once, each with its field.
func (c Config) validate() error {
	var errs []error
	problem := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf(field+": "+format, args...))
	}
	if err := cluster.CheckName(c.Name); err != nil {
		problem("name", "%w", err)
	}
	if c.APIPort < 0 || c.APIPort > 65535 {
		problem("apiPort", "%d is not a port", c.APIPort)
	}
	if c.MaxPods < 1 || c.MaxPods > 250 {
		problem("maxPods", "%d: from 1 to 250, a node has a range of 256 addresses", c.MaxPods)
	}
	cluster.CheckRanges(c.PodCIDRs, c.ServiceCIDRs, problem)
	c.checkNodeIPs(problem)
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, strings.ToLower(c.LogLevel)) {
		problem("logLevel", "%q: use debug, info, warn or error", c.LogLevel)
	}
	for i, e := range c.EtcdEndpoints {
		if !strings.HasPrefix(e, "http://") && !strings.HasPrefix(e, "https://") {
			problem(fmt.Sprintf("etcdEndpoints[%d]", i), "%q: use https://HOST:PORT", e)
		}
	}
	if (c.EtcdCertFile == "") != (c.EtcdKeyFile == "") {
		problem("etcdCertFile", "is given together with etcdKeyFile or not at all")
	}
	if (c.ImageCredentialProviderConfig == "") != (c.ImageCredentialProviderBinDir == "") {
		problem("imageCredentialProviderConfig", "is given together with imageCredentialProviderBinDir or not at all")
	}
	for i, p := range c.ServiceLoadBalancer.ReservedPorts {
		if p < 1 || p > 65535 {
			problem(fmt.Sprintf("serviceLoadBalancer.reservedPorts[%d]", i), "%d is not a port", p)
		}
	}
	c.APIServer.validate(problem)
	c.checkEviction(problem)
	if c.RuntimeEndpoint != "" && !strings.HasPrefix(strings.TrimPrefix(c.RuntimeEndpoint, "unix://"), "/") {
		problem("runtimeEndpoint", "%q: use the path of a unix socket", c.RuntimeEndpoint)
	}
	if c.RuntimeEndpoint != "" && len(c.RuntimeHandlers) > 0 {
		problem("runtimeHandlers", "are of the built-in runtime: the one at runtimeEndpoint has its own")
	}
	if c.RuntimeEndpoint != "" && c.SELinux {
		problem("seLinux", "is of the built-in runtime: the one at runtimeEndpoint has its own")
	}
	criserver.CheckHandlers(c.RuntimeHandlers, func(field, format string, args ...any) {
		problem("runtimeHandlers."+field, format, args...)
	})
	return errors.Join(errs...)
}

func (c Config) checkNodeIPs(problem func(field, format string, args ...any)) {
	for i, a := range c.NodeIPs {
		at := fmt.Sprintf("nodeIPs[%d]", i)
		if !a.IsGlobalUnicast() || a.Is4In6() || a.Zone() != "" {
			problem(at, "%q is not an address by which others reach this host", a)
		}
		if i > 0 && a.Is4() == c.NodeIPs[0].Is4() {
			problem(at, "%s is the second of its family", a)
		}
	}
	if len(c.NodeIPs) > 2 {
		problem("nodeIPs", "are %d: one, or two of different families", len(c.NodeIPs))
	}
	if len(c.NodeIPs) > 0 && c.AdvertiseAddress.IsValid() && c.NodeIPs[0] != c.AdvertiseAddress {
		problem("nodeIPs", "the first, %s, is not advertiseAddress, %s: leave one of them out", c.NodeIPs[0], c.AdvertiseAddress)
	}
}

// settingsHelp is every setting with what it is and its default.
//
//go:embed settings.yaml
var settingsHelp string

func configCommand() *cobra.Command {
	var file, name string
	c := &cobra.Command{
		Use: "config", GroupID: "cluster", Args: cobra.NoArgs,
		Short: "Print the settings in effect; --help says what each is",
		Long: `Print a cluster's settings as they are in effect: those of the file, or without one those that the cluster was last started
with, and the defaults of what is left out. They are a YAML file for 'yare up --config FILE' and 'yare server --config FILE'. Paths
are absolute. Every setting:

` + settingsHelp,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := clusterSettings(cluster.Host{}, file, name)
			if err != nil {
				return err
			}
			if r, err := (cluster.Host{}).Find(s.Name); err == nil {
				if err := s.share(r); err != nil {
					return err
				}
			}
			return s.print(c.OutOrStdout())
		},
	}
	c.Flags().StringVar(&file, "config", "", "YAML file with the settings")
	c.Flags().StringVar(&name, "name", "", "name of the cluster (in place of the file's)")
	return c
}

func (c Config) print(w io.Writer) error {
	if r, err := (cluster.Host{}).Find(c.Name); err == nil {
		c.DataDir, c.Kubeconfig, c.APIPort, c.Ephemeral = r.DataDir, r.Kubeconfig, r.APIPort, r.Ephemeral
		c.PodCIDRs, c.ServiceCIDRs = r.PodCIDRs(), r.ServiceCIDRs()
	}
	c.effectEviction()
	b, err := yaml.Marshal(c)
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	return err
}
