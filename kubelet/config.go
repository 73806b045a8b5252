package kubelet

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/yare-dev/yare/kubelet/eviction"
	"github.com/yare-dev/yare/kubelet/users"
)

// Config configures the kubelet. Defaults returns what is usual; Validate reports all mistakes at once.
type Config struct {
	// NodeName is the name of the Node object.
	NodeName string `json:"nodeName"`
	// NodeIPs are the host's addresses that others reach it by, the main one first.
	NodeIPs []string `json:"nodeIPs"`
	// Address and Port are where the server listens. Port 0 serves nothing.
	Address string `json:"address"`
	Port    int32  `json:"port"`
	// HealthzPort is where /healthz is served to everybody on this host, on 127.0.0.1. Port 0 serves it not.
	HealthzPort int32 `json:"healthzPort"`
	// RootDir holds pods' volumes; LogDir their containers' logs.
	RootDir string `json:"rootDir"`
	LogDir  string `json:"logDir"`
	// CgroupRoot is a cgroup path below which /kubepods is made; empty is the top.
	CgroupRoot string `json:"cgroupRoot"`
	// ClusterDNS and ClusterDomain are what pods' resolvers are given. ResolvConf is the host's own file, for pods
	// with dnsPolicy Default.
	ClusterDNS    []string `json:"clusterDNS"`
	ClusterDomain string   `json:"clusterDomain"`
	ResolvConf    string   `json:"resolvConf"`
	// MaxPods is how many pods the node takes; PodPidsLimit how many processes one of them may have (0: no limit).
	MaxPods      int64 `json:"maxPods"`
	PodPidsLimit int64 `json:"podPidsLimit"`
	// Reserved is taken from the node's capacity before pods get the rest: cpu, memory, ephemeral-storage.
	Reserved map[string]string `json:"reserved"`
	// NodeLabels and RegisterWithTaints are given to the Node object.
	NodeLabels         map[string]string `json:"nodeLabels"`
	RegisterWithTaints []corev1.Taint    `json:"registerWithTaints"`
	// StaticPodPath is a folder of pod manifests to run without the API; empty: none.
	StaticPodPath string `json:"staticPodPath"`
	// CSIDrivers takes up the CSI drivers that register by a socket in the folder plugins_registry of RootDir, which becomes a shared mount
	// where it is not on one: what drivers in pods mount in it has to be seen.
	CSIDrivers bool `json:"csiDrivers"`
	// DevicePlugins takes up the device plugins that register at device-plugins/kubelet.sock in RootDir, or by a socket in plugins_registry, and
	// says at pod-resources/kubelet.sock which pods have what. Without it, pods keep the devices that they have, but those whose plugins want to prepare
	// each start of a container are not started again; the Node shows none, and nobody is given any.
	DevicePlugins bool `json:"devicePlugins"`
	// DynamicResources takes up the drivers of ResourceClaims that register by a socket in plugins_registry, and deletes the ResourceSlices of those
	// that are gone. Without it pods with claims wait.
	DynamicResources bool `json:"dynamicResources"`
	// ContainerLogMaxSize is when a container's log file is rotated; ContainerLogMaxFiles how many are kept.
	ContainerLogMaxSize  string `json:"containerLogMaxSize"`
	ContainerLogMaxFiles int    `json:"containerLogMaxFiles"`
	// MaxParallelImagePulls bounds pulls at the same time.
	MaxParallelImagePulls int `json:"maxParallelImagePulls"`
	// ImageCredentialProviderConfig is upstream's CredentialProviderConfig, a file or a folder of files, and
	// ImageCredentialProviderBinDir where its programs are. Beside them, config.json in RootDir, a docker
	// configuration, has credentials for registries.
	ImageCredentialProviderConfig string `json:"imageCredentialProviderConfig"`
	ImageCredentialProviderBinDir string `json:"imageCredentialProviderBinDir"`
	// ImageGCHighPercent is the use of the images' file system at which unused images are removed, until it is at
	// ImageGCLowPercent. High 100 removes none.
	ImageGCHighPercent int `json:"imageGCHighThresholdPercent"`
	ImageGCLowPercent  int `json:"imageGCLowThresholdPercent"`
	// EvictionHard are thresholds of signals, quantities or percentages, below which pods are evicted at once. Left out: memory.available
	// 100Mi, nodefs.available 10%, nodefs.inodesFree 5%, imagefs.available 15%, imagefs.inodesFree 5%. Signals that it does not name have none,
	// unless MergeDefaultEvictionSettings; 0% is none too.
	EvictionHard                 map[string]string `json:"evictionHard,omitzero"`
	MergeDefaultEvictionSettings bool              `json:"mergeDefaultEvictionSettings"`
	// EvictionSoft are thresholds that have to be met for as long as EvictionSoftGracePeriod says for each. Pods get their own grace period then,
	// but at most EvictionMaxPodGracePeriod, in seconds.
	EvictionSoft              map[string]string `json:"evictionSoft,omitempty"`
	EvictionSoftGracePeriod   map[string]string `json:"evictionSoftGracePeriod,omitempty"`
	EvictionMaxPodGracePeriod int32             `json:"evictionMaxPodGracePeriod"`
	// EvictionMinimumReclaim is how much more than its threshold a signal must have before pods stop being evicted.
	EvictionMinimumReclaim map[string]string `json:"evictionMinimumReclaim,omitempty"`
	// EvictionPressureTransitionPeriod is how long the Node's conditions of pressure outlast their reasons. 0 is 5m.
	EvictionPressureTransitionPeriod Duration `json:"evictionPressureTransitionPeriod"`
	// MaxContainerRestartPeriod is the longest wait between restarts of a crashing container.
	MaxContainerRestartPeriod Duration `json:"maxContainerRestartPeriod"`
	// CPUCFSQuota enforces CPU limits.
	CPUCFSQuota bool `json:"cpuCFSQuota"`
	// SingleProcessOOMKill has the kernel kill one process of a container that is out of memory, not all. Hosts with
	// cgroup v1 know nothing else.
	SingleProcessOOMKill bool `json:"singleProcessOOMKill"`
	// MemoryThrottlingFactor is where between its memory request and its limit a container is slowed down (memory.high
	// of cgroup v2): above 0, up to 1. 0 slows nothing down.
	MemoryThrottlingFactor float64 `json:"memoryThrottlingFactor"`
	// UserNamespaces is about pods with a user namespace of their own. Their ids on the host are those that /etc/subuid and
	// /etc/subgid give the user "kubelet", or those from IDsPerPod on.
	UserNamespaces UserNamespaces `json:"userNamespaces"`
	// AllowedUnsafeSysctls may be set by pods beside the safe ones; a closing * is a wildcard.
	AllowedUnsafeSysctls []string `json:"allowedUnsafeSysctls"`
}

// UserNamespaces is about pods with a user namespace of their own.
type UserNamespaces struct {
	// IDsPerPod is how many ids each gets: a multiple of 65536.
	IDsPerPod int64 `json:"idsPerPod"`
}

// Duration is a time.Duration that is written as "5m0s".
type Duration struct{ time.Duration }

// MarshalText writes it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *Duration) UnmarshalText(b []byte) (err error) {
	if d.Duration, err = time.ParseDuration(string(b)); err != nil {
		return fmt.Errorf("%q is not a duration such as 1m30s", b)
	}
	return nil
}

// Defaults returns the usual configuration; the node's name and addresses are missing.
func Defaults() Config {
	return Config{
		Address: "0.0.0.0", Port: 10250, HealthzPort: 10248,
		RootDir: "/var/lib/kubelet", LogDir: "/var/log/pods",
		ClusterDomain: "cluster.local", ResolvConf: "/etc/resolv.conf", CSIDrivers: true, DevicePlugins: true, DynamicResources: true,
		MaxPods: 110, ContainerLogMaxSize: "10Mi", ContainerLogMaxFiles: 5, MaxParallelImagePulls: 5,
		ImageGCHighPercent: 85, ImageGCLowPercent: 80,
		EvictionPressureTransitionPeriod: Duration{eviction.UsualTransition},
		MaxContainerRestartPeriod:        Duration{5 * time.Minute}, CPUCFSQuota: true,
		UserNamespaces: UserNamespaces{IDsPerPod: users.PerPod},
	}
}

// hostIPs are the addresses that pods are told of their node: of each family the first, as a Pod's status has no more.
func (c *Config) hostIPs() (ips []string) {
	had := map[bool]bool{}
	for _, ip := range c.NodeIPs {
		if six := strings.Contains(ip, ":"); !had[six] {
			ips, had[six] = append(ips, ip), true
		}
	}
	return ips
}

// Validate returns all mistakes, each with the field's name; nil when there is none.
func (c *Config) Validate() error {
	var errs []error
	bad := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	for _, text := range validation.IsDNS1123Subdomain(c.NodeName) {
		bad("nodeName", "%s", text)
	}
	if len(c.NodeIPs) == 0 {
		bad("nodeIPs", "must name at least one address")
	}
	for _, ip := range append(slices.Clone(c.NodeIPs), c.ClusterDNS...) {
		if _, err := netip.ParseAddr(ip); err != nil {
			bad("nodeIPs and clusterDNS", "%q is not an IP address", ip)
		}
	}
	if c.MemoryThrottlingFactor < 0 || c.MemoryThrottlingFactor > 1 {
		bad("memoryThrottlingFactor", "%v is not between 0 and 1", c.MemoryThrottlingFactor)
	}
	for name, port := range map[string]int32{"port": c.Port, "healthzPort": c.HealthzPort} {
		if port < 0 || port > 65535 {
			bad(name, "%d is out of range", port)
		}
	}
	for field, path := range map[string]string{"rootDir": c.RootDir, "logDir": c.LogDir, "resolvConf": c.ResolvConf} {
		if !filepath.IsAbs(path) {
			bad(field, "%q is not an absolute path", path)
		}
	}
	if (c.ImageCredentialProviderConfig == "") != (c.ImageCredentialProviderBinDir == "") {
		bad("imageCredentialProviderConfig and imageCredentialProviderBinDir", "both are needed, or none")
	}
	if c.StaticPodPath != "" && !filepath.IsAbs(c.StaticPodPath) {
		bad("staticPodPath", "%q is not an absolute path", c.StaticPodPath)
	}
	if c.CgroupRoot != "" && (filepath.Clean(c.CgroupRoot) != c.CgroupRoot || !strings.HasPrefix(c.CgroupRoot, "/") || c.CgroupRoot == "/") {
		bad("cgroupRoot", "%q must be empty or an absolute clean path", c.CgroupRoot)
	}
	if c.MaxPods < 1 {
		bad("maxPods", "must be at least 1")
	}
	if n := c.UserNamespaces.IDsPerPod; n < users.PerPod || n%users.PerPod != 0 || n > 1<<31 {
		bad("userNamespaces.idsPerPod", "%d is not a multiple of %d, up to 2147483648", n, users.PerPod)
	}
	if _, err := c.reserved(); err != nil {
		bad("reserved", "%v", err)
	}
	if q, err := resource.ParseQuantity(c.ContainerLogMaxSize); err != nil || q.Sign() <= 0 {
		bad("containerLogMaxSize", "%q is not a positive quantity", c.ContainerLogMaxSize)
	}
	if c.ContainerLogMaxFiles < 2 {
		bad("containerLogMaxFiles", "must be at least 2")
	}
	if c.ImageGCLowPercent < 0 || c.ImageGCLowPercent >= c.ImageGCHighPercent || c.ImageGCHighPercent > 100 {
		bad("imageGCLowThresholdPercent", "must be below imageGCHighThresholdPercent, both within 0 and 100")
	}
	c.CheckEviction(bad)
	if p := c.MaxContainerRestartPeriod; p.Duration < time.Second || p.Duration > 5*time.Minute {
		bad("maxContainerRestartPeriod", "must be within 1s and 5m")
	}
	return errors.Join(errs...)
}

// CheckEviction tells problem of every mistake in the fields about eviction.
func (c *Config) CheckEviction(problem func(field, format string, args ...any)) {
	c.eviction().Check(problem)
}

// eviction is what the settings say of eviction under pressure.
func (c *Config) eviction() eviction.Settings {
	return eviction.Settings{
		Hard: c.EvictionHard, MergeDefaults: c.MergeDefaultEvictionSettings, Soft: c.EvictionSoft, SoftGracePeriod: c.EvictionSoftGracePeriod,
		MaxPodGracePeriod: c.EvictionMaxPodGracePeriod, MinimumReclaim: c.EvictionMinimumReclaim,
		TransitionPeriod: c.EvictionPressureTransitionPeriod.Duration,
	}
}

// Effective returns the configuration with what is usual in place of what is not said of eviction.
func (c Config) Effective() Config {
	c.EvictionHard = c.eviction().EffectiveHard()
	if c.EvictionPressureTransitionPeriod.Duration == 0 {
		c.EvictionPressureTransitionPeriod = Duration{eviction.UsualTransition}
	}
	return c
}

func (c *Config) reserved() (corev1.ResourceList, error) {
	l := corev1.ResourceList{}
	for _, name := range slices.Sorted(maps.Keys(c.Reserved)) {
		if !slices.Contains([]string{"cpu", "memory", "ephemeral-storage"}, name) {
			return nil, fmt.Errorf("%s cannot be reserved", name)
		}
		q, err := resource.ParseQuantity(c.Reserved[name])
		if err != nil || q.Sign() < 0 {
			return nil, fmt.Errorf("%s: %q is not a quantity", name, c.Reserved[name])
		}
		l[corev1.ResourceName(name)] = q
	}
	return l, nil
}
