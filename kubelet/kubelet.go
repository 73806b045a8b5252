package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/client/reviews"
	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/devices"
	"github.com/yare-dev/yare/kubelet/dra"
	"github.com/yare-dev/yare/kubelet/drivers"
	"github.com/yare-dev/yare/kubelet/eviction"
	"github.com/yare-dev/yare/kubelet/keyring"
	"github.com/yare-dev/yare/kubelet/logs"
	"github.com/yare-dev/yare/kubelet/node"
	"github.com/yare-dev/yare/kubelet/pod"
	"github.com/yare-dev/yare/kubelet/probe"
	"github.com/yare-dev/yare/kubelet/registrar"
	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/server"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/kubelet/static"
	"github.com/yare-dev/yare/kubelet/stats"
	"github.com/yare-dev/yare/kubelet/users"
	"github.com/yare-dev/yare/kubelet/volume"
	"github.com/yare-dev/yare/linux/apparmor"
	"github.com/yare-dev/yare/linux/selinux"
	"github.com/yare-dev/yare/run/healthz"
)

// Deps is what a Kubelet stands on.
type Deps struct {
	// Client acts as system:node:<name> in the group system:nodes.
	Client client.Client
	CRI    *cri.Client
	Events pod.Events
	// TLS has the server's certificate and the CA of its clients (ClientCAs). It may be nil when Config.Port is 0.
	TLS *tls.Config
	Log *slog.Logger
	// Groups makes cgroups; nil: the host's.
	Groups pod.Groups
	// Observe says what the machine has left; nil: what it has.
	Observe func(context.Context) (eviction.Observations, error)
}

// Kubelet implements run.Component.
type Kubelet struct {
	config   Config
	deps     Deps
	log      *slog.Logger
	rotation logs.Rotation
	groups   pod.Groups
	volumes  *volume.Volumes
	drivers  *drivers.Set
	devices  *devices.Set
	claims   *dra.Set
	facts    node.Facts
	ids      users.IDs
	keyring  *keyring.Keyring

	meter     *meter
	evictions *eviction.Metrics
	stalls    *eviction.Stalls
	probes    *probe.Metrics
	health    *healthz.Endpoints
	deaf      atomic.Pointer[time.Time] // since when the runtime tells of nothing that happens; nil: it does

	// Made by Run, when the runtime has said its name.
	pods    *pod.Pods
	keeper  *node.Keeper
	evictor *eviction.Evictor

	mu      sync.Mutex
	statics map[string]*corev1.Pod // by namespace/name
	mirrors map[string]*corev1.Pod
	poke    chan struct{} // to look after mirrors

	strangers chan struct{} // to remove what belongs to no pod

	imagesLock sync.Mutex        // also while images are removed
	images     map[string]*usage // by ID; nil before they are known
}

// New checks the configuration and returns a Kubelet. Nothing is started or touched.
func New(c Config, d Deps) (*Kubelet, error) {
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("configure kubelet: %w", err)
	}
	facts, err := node.Read(c.RootDir)
	if err != nil {
		return nil, fmt.Errorf("configure kubelet: %w", err)
	}
	ids, err := users.HostIDs("/etc/subuid", "/etc/subgid", uint32(c.UserNamespaces.IDsPerPod), uint32(c.MaxPods))
	if err != nil {
		return nil, fmt.Errorf("configure kubelet: %w", err)
	}
	size, err := resource.ParseQuantity(c.ContainerLogMaxSize)
	if err != nil {
		return nil, fmt.Errorf("configure kubelet: %w", err)
	}
	if c.Port != 0 && (d.TLS == nil || d.TLS.ClientCAs == nil) {
		return nil, errors.New("configure kubelet: a server needs a certificate and a client CA")
	}
	if d.Groups == nil {
		if d.Groups, err = resources.NewGroups(c.CgroupRoot); err != nil {
			return nil, fmt.Errorf("configure kubelet: %w", err)
		}
	}
	keys, err := keyring.New(filepath.Join(c.RootDir, "config.json"), c.ImageCredentialProviderConfig, c.ImageCredentialProviderBinDir)
	if err != nil {
		return nil, fmt.Errorf("configure kubelet: %w", err)
	}
	k := &Kubelet{
		config: c, deps: d, log: d.Log.With("component", "kubelet"), facts: facts, groups: d.Groups, ids: ids, keyring: keys,
		rotation: logs.Rotation{MaxSize: size.Value(), MaxFiles: c.ContainerLogMaxFiles},
		statics:  map[string]*corev1.Pod{}, mirrors: map[string]*corev1.Pod{}, poke: make(chan struct{}, 1),
		strangers: make(chan struct{}, 1),
		evictions: eviction.NewMetrics(), stalls: eviction.NewStalls(), probes: probe.NewMetrics(),
	}
	k.meter = newMeter(k.onDisk)
	k.health = healthz.New(k.checks, "healthz")
	k.drivers = drivers.New(c.NodeName, func() *corev1.Node { return k.keeper.Node() }, d.Client, k.log, func() { k.pods.RefreshAll() })
	k.volumes = volume.New(k.podsDir(), volume.Disks{Dir: filepath.Join(c.RootDir, "plugins", "kubernetes.io", "csi"), Node: c.NodeName,
		Boot: facts.BootID, Drivers: k.drivers, Changed: func() { k.keeper.Poke() }})
	k.claims = dra.New(dra.Config{Root: c.RootDir, Boot: facts.BootID, Node: c.NodeName, Client: d.Client, Log: k.log,
		Came: func() { k.pods.RefreshAll() }, Wake: func(uid types.UID) { k.pods.Wake(uid) }})
	k.devices = devices.New(devices.Config{Root: c.RootDir, Boot: facts.BootID, Closed: !c.DevicePlugins, Log: k.log,
		Changed: func() { k.keeper.Poke() }, Came: func() { k.pods.RefreshAll() }, Wake: func(uid types.UID) { k.pods.Wake(uid) },
		Pods: func() []*corev1.Pod { return k.pods.All() }, Claims: k.claims.Resources})
	return k, nil
}

// podsDir holds pods' folders.
func (k *Kubelet) podsDir() string { return filepath.Join(k.config.RootDir, "pods") }

// Name is the component's.
func (k *Kubelet) Name() string { return "kubelet" }

// Run runs the node's pods until ctx ends; containers go on after it. It is ready when the node is registered, the API has
// told which pods there are, and the server listens.
func (k *Kubelet) Run(ctx context.Context, ready func()) error {
	version, err := k.runtime(ctx)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(k.config.RootDir, 0o750); err != nil {
		return fmt.Errorf("make root folder: %w", err)
	}
	if k.config.CSIDrivers {
		if err := k.expectDrivers(); err != nil {
			return err
		}
	}
	if err := k.makeGroups(); err != nil {
		return err
	}
	// Every goroutine of this run ends with ctx; the first that fails ends the others.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	k.assemble(ctx, version)
	if err := k.open(ctx); err != nil {
		return err
	}
	var wg, up sync.WaitGroup
	defer k.pods.Close()
	defer k.meter.close()
	defer wg.Wait()
	part := func(f func(ready func()) error) {
		up.Add(1)
		wg.Go(func() {
			if err := f(sync.OnceFunc(up.Done)); err != nil && ctx.Err() == nil {
				cancel(err)
			}
		})
	}
	statics := make(chan struct{})
	part(func(ready func()) error { return k.keeper.Run(ctx, ready) })
	part(func(ready func()) error {
		return k.watchStatics(ctx, sync.OnceFunc(func() { close(statics); ready() }))
	})
	part(func(ready func()) error { k.watchPods(ctx, statics, ready); return nil })
	part(func(ready func()) error { ready(); k.watchRuntime(ctx); return nil })
	part(func(ready func()) error { ready(); k.keepMirrors(ctx, statics); return nil })
	if k.config.CSIDrivers {
		part(func(ready func()) error { k.drivers.Run(ctx, ready); return nil })
	}
	if k.config.DevicePlugins {
		part(func(ready func()) error { return k.devices.Run(ctx, ready) })
	}
	if k.config.DynamicResources {
		part(func(ready func()) error { ready(); k.claims.Run(ctx); return nil })
	}
	if k.config.CSIDrivers || k.config.DevicePlugins || k.config.DynamicResources {
		part(func(ready func()) error { return k.register(ctx, ready) })
	}
	part(func(ready func()) error { ready(); k.watchStrangers(ctx); return nil })
	part(func(ready func()) error { ready(); k.collect(ctx); return nil })
	part(func(ready func()) error { ready(); k.limitStorage(ctx); return nil })
	part(func(ready func()) error { ready(); k.evictor.Run(ctx); return nil })
	part(func(ready func()) error { ready(); k.watchStalls(ctx); return nil })
	if k.config.Port != 0 {
		part(func(ready func()) error { return k.serve(ctx, ready) })
	}
	if k.config.HealthzPort != 0 {
		part(func(ready func()) error { ready(); k.serveHealth(ctx); return nil })
	}
	allUp := make(chan struct{})
	go func() { up.Wait(); close(allUp) }()
	select {
	case <-allUp:
		ready()
		<-ctx.Done()
	case <-ctx.Done():
	}
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// runtime waits for nothing: the runtime is up before the kubelet, or the kubelet is started again.
func (k *Kubelet) runtime(ctx context.Context) (*runtimeapi.VersionResponse, error) {
	v, err := k.deps.CRI.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("ask runtime for its version: %w", err)
	}
	return v, nil
}

// makeGroups makes the groups above those of pods. Best-effort pods get what others leave.
func (k *Kubelet) makeGroups() error {
	root := k.config.CgroupRoot + "/kubepods"
	reserved, err := k.config.reserved()
	if err != nil {
		return err
	}
	milli := int64(k.facts.CPUs)*1000 - reserved.Cpu().MilliValue()
	for path, l := range map[string]resources.Limits{
		root:                 {Shares: resources.Shares(milli)},
		root + "/burstable":  {Shares: resources.Shares(milli / 2)},
		root + "/besteffort": {Shares: resources.Shares(0)},
	} {
		if err := k.groups.Ensure(path, l); err != nil {
			return err
		}
	}
	return nil
}

// open has all known that there was before, and how the machine is, before any pod is looked at.
func (k *Kubelet) open(ctx context.Context) error {
	if _, err := k.evictor.Look(ctx); err != nil {
		k.log.Warn("the machine's state is not known", "err", err)
	}
	if err := k.devices.Open(ctx); err != nil { // what pods have they keep, whatever the settings are by now
		return err
	}
	if k.config.DynamicResources {
		if err := k.claims.Open(); err != nil {
			return err
		}
	}
	k.pods.Open(ctx)
	return nil
}

// assemble makes the parts that a run has.
func (k *Kubelet) assemble(ctx context.Context, version *runtimeapi.VersionResponse) {
	c := &k.config
	reserved, _ := c.reserved() // checked by Validate
	thresholds := c.eviction().Thresholds()
	kept := func(capacity corev1.ResourceList) corev1.ResourceList { return eviction.Kept(thresholds, capacity) }
	free := kept(corev1.ResourceList{corev1.ResourceMemory: *resource.NewQuantity(k.facts.Memory, resource.BinarySI)})
	k.evictor = k.newEvictor()
	handlers := map[string]*runtimeapi.RuntimeHandlerFeatures{}
	var ranges *users.Ranges
	if s, err := k.deps.CRI.Runtime.Status(ctx, &runtimeapi.StatusRequest{}); err == nil {
		for _, h := range s.RuntimeHandlers {
			handlers[h.Name] = h.GetFeatures()
			if ranges == nil && h.GetFeatures().GetUserNamespaces() {
				ranges = users.New(k.ids, k.podsDir())
			}
		}
	}
	k.keeper = node.New(node.Config{
		Name: c.NodeName, Addresses: c.NodeIPs, Port: c.Port, MaxPods: c.MaxPods, Reserved: reserved,
		Labels: c.NodeLabels, Taints: c.RegisterWithTaints, Root: c.RootDir, Kept: kept, Under: k.evictor.Under, Listed: k.imagesListed,
		Devices: k.devices.Counts, InUse: k.volumes.InUse, Reported: k.volumes.Reported,
	}, k.deps.Client, k.deps.CRI, k.log, func() { k.pods.WakeAll(); k.drivers.NodeChanged() })
	k.pods = pod.New(pod.Config{
		Node: spec.Node{
			Name: c.NodeName, CgroupRoot: c.CgroupRoot, LogRoot: c.LogDir, ClusterDomain: c.ClusterDomain,
			SeccompRoot: filepath.Join(c.RootDir, "seccomp"),
			Host: resources.Host{Memory: k.facts.Memory, PidLimit: c.PodPidsLimit, NoQuota: !c.CPUCFSQuota,
				Unified: k.facts.UnifiedCgroups, SingleKill: c.SingleProcessOOMKill, Throttle: c.MemoryThrottlingFactor,
				Allocatable: k.facts.Memory - reserved.Memory().Value() - free.Memory().Value()},
		},
		RuntimeName: version.RuntimeName, MaxRestartDelay: c.MaxContainerRestartPeriod.Duration, MaxParallelPulls: c.MaxParallelImagePulls,
		UnsafeSysctls: c.AllowedUnsafeSysctls, Handlers: handlers, Users: ranges, HostsFile: "/etc/hosts", AppArmor: apparmor.Enabled(), SELinux: selinux.Enabled(),
	}, pod.Deps{
		Client: k.deps.Client, CRI: k.deps.CRI, Events: k.deps.Events, Volumes: k.volumes, Groups: k.groups, Devices: k.devices, Claims: k.claims,
		ProbeMetrics: k.probes, Log: k.log,
		Node: k.keeper.Node, HostIPs: c.hostIPs, DNS: k.dns, Keyring: k.keyring,
		Pressure: k.evictor.Conditions,
	})
}

// expectDrivers makes what drivers in pods mount of the kubelet's folder. It comes before anything is mounted there.
func (k *Kubelet) expectDrivers() error {
	if err := volume.Share(k.config.RootDir); err != nil {
		k.log.Warn("what drivers in pods mount is not seen", "err", err)
	}
	for _, dir := range []string{k.podsDir(), filepath.Join(k.config.RootDir, "plugins")} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return fmt.Errorf("make folder for drivers: %w", err)
		}
	}
	return nil
}

// register takes up the programs that offer themselves by their sockets.
func (k *Kubelet) register(ctx context.Context, ready func()) error {
	handlers := map[string]registrar.Handler{}
	if k.config.CSIDrivers {
		handlers[registerapi.CSIPlugin] = k.drivers
	}
	if k.config.DevicePlugins {
		handlers[registerapi.DevicePlugin] = k.devices
	}
	if k.config.DynamicResources {
		handlers[registerapi.DRAPlugin] = k.claims
	}
	return registrar.New(filepath.Join(k.config.RootDir, "plugins_registry"), handlers, k.log).Run(ctx, ready)
}

// dns returns what pods are told about names. The host's file is read each time: DHCP clients change it.
func (k *Kubelet) dns() spec.DNS {
	d := spec.DNS{Servers: k.config.ClusterDNS, Domain: k.config.ClusterDomain}
	if b, err := os.ReadFile(k.config.ResolvConf); err == nil {
		d.Host = spec.ParseResolvConf(string(b))
	}
	return d
}

// serve runs the server.
func (k *Kubelet) serve(ctx context.Context, ready func()) error {
	volumes := &stats.Volumes{Context: ctx, Measure: k.volumes.Stats, Pods: k.pods.All, Failed: func(p *corev1.Pod, err error) {
		k.log.Warn("volume is not measured", "pod", p.Namespace+"/"+p.Name, "err", err)
	}}
	reader := &stats.Reader{CRI: k.deps.CRI, Node: k.config.NodeName, Root: k.config.RootDir, CgroupRoot: k.config.CgroupRoot,
		Pods: k.pods.All, Volumes: volumes}
	registry := prometheus.NewRegistry()
	for _, c := range append(k.evictions.Collectors(), stats.NewRunning(k.pods.All), stats.NewClaims(volumes)) {
		if err := registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	s, err := server.New(net.JoinHostPort(k.config.Address, strconv.Itoa(int(k.config.Port))), server.Deps{
		Pods: k.pods, CRI: k.deps.CRI, TLS: k.deps.TLS, Reviews: reviews.New(k.deps.Client), Node: k.config.NodeName, Health: k.health,
		Stats: reader.Summary, Metrics: registry, Probes: healthz.Gatherer(k.probes.Collectors()...), Resource: reader.Resource, Cadvisor: reader.Cadvisor, Configz: k.config.Effective(), Log: k.log,
	})
	if err != nil {
		return err
	}
	return s.Run(ctx, ready)
}

// watchStatics feeds the pods of the folder to their workers. It is ready when the folder was read once.
func (k *Kubelet) watchStatics(ctx context.Context, ready func()) error {
	if k.config.StaticPodPath == "" {
		ready()
		return nil
	}
	return static.New(k.config.StaticPodPath, k.config.NodeName, k.log).Run(ctx, func(pods []*corev1.Pod) {
		k.setStatics(pods)
		ready()
	})
}
