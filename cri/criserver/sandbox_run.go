package criserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cni"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/selinux"
	"github.com/yare-dev/yare/oci"
	"github.com/yare-dev/yare/oci/shim"
)

// shimTimeout bounds the birth of a shim.
const shimTimeout = 10 * time.Second

// RunPodSandbox makes a sandbox with its network and its shim. When it fails
// nothing is left.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	config := r.GetConfig()
	if err := checkSandbox(config); err != nil {
		return nil, err
	}
	h, err := s.handlerOf(r.GetRuntimeHandler())
	if err == nil {
		err = h.takesPod(r.GetRuntimeHandler(), config)
	}
	if err != nil {
		return nil, err
	}
	sb := s.newSandbox(sandboxRecord{ID: newID(), Config: config, Handler: r.GetRuntimeHandler(), Created: now()})
	name := sandboxName(config.Metadata)
	if err := s.reserve(name, sb.id); err != nil {
		return nil, err
	}
	sb.rec.Level = s.labels.take(config.GetLinux().GetSecurityContext().GetSelinuxOptions())
	if err := s.startSandbox(ctx, sb); err != nil {
		s.release(name)
		s.labels.free(sb.rec.Level)
		return nil, with(err, s.eraseSandbox(context.WithoutCancel(ctx), sb))
	}
	s.addSandbox(sb)
	s.emit(sb, sb.id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	s.emit(sb, sb.id, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: sb.id}, nil
}

func checkSandbox(c *runtimeapi.PodSandboxConfig) error {
	bad := func(format string, args ...any) error {
		return status.Errorf(codes.InvalidArgument, "run sandbox: "+format, args...)
	}
	if c.GetMetadata().GetName() == "" || c.GetMetadata().GetUid() == "" {
		return bad("name and UID are required")
	}
	if err := checkUsers(namespaceOptions(c)); err != nil {
		return bad("%v", err)
	}
	if c.GetWindows() != nil {
		return bad("windows pods are not supported")
	}
	if ipc := namespaceOptions(c).GetIpc(); ipc != runtimeapi.NamespaceMode_POD && ipc != runtimeapi.NamespaceMode_NODE {
		return bad("IPC namespace mode %s is not supported", ipc)
	}
	if _, err := bandwidth(c.GetAnnotations()); err != nil {
		return bad("%v", err)
	}
	for name := range c.GetLinux().GetSysctls() {
		if !ownSysctl(c, name) {
			return bad("sysctl %q is not of a namespace of the pod", name)
		}
	}
	return nil
}

// ownSysctl says whether a sysctl is of a namespace that the pod does not share with the host. Both "net.ipv4.ip_forward" and "net/ipv4/ip_forward" are
// in use, the latter for names with dots.
func ownSysctl(c *runtimeapi.PodSandboxConfig, name string) bool {
	if strings.Contains(name, "/") && slices.Contains(strings.Split(name, "/"), "..") {
		return false
	}
	dotted := strings.ReplaceAll(name, "/", ".")
	switch {
	case strings.HasPrefix(dotted, "net."):
		return !isHostNetwork(c)
	case strings.HasPrefix(dotted, "fs.mqueue."), strings.HasPrefix(dotted, "kernel.msg"), strings.HasPrefix(dotted, "kernel.shm"), dotted == "kernel.sem":
		return namespaceOptions(c).GetIpc() == runtimeapi.NamespaceMode_POD
	case dotted == "kernel.domainname", dotted == "kernel.hostname":
		return !isHostNetwork(c) // whose name a pod with the host's network has
	}
	return false
}

// startSandbox does the work. The record is on disk before there is anything to
// clean up, so that a crash in between leaves nothing unknown.
func (s *Server) startSandbox(ctx context.Context, sb *sandbox) error {
	if err := os.Mkdir(s.sandboxDir(sb.id), 0o711); err != nil {
		return err
	}
	config := sb.rec.Config
	var netNS string
	var err error
	switch o := ownUsers(config); {
	case o != nil:
		dir := s.usersDir(sb.id)
		if err := oci.HoldUsers(dir, idMappings(o.Uids), idMappings(o.Gids)); err != nil {
			return fmt.Errorf("make user namespace: %w", err)
		}
		netNS = oci.HeldNamespace(dir, specs.NetworkNamespace)
	case !isHostNetwork(config):
		if netNS, err = s.network.NewNamespace(ctx); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
	}
	if err := sb.change(func(r *sandboxRecord) { r.NetNS = netNS }); err != nil {
		return errors.Join(err, s.network.DeleteNamespace(context.WithoutCancel(ctx), netNS))
	}
	// Address and shim need each other's work in nothing but the namespace. A
	// shim is not given up half born: it takes milliseconds, and its end is then
	// as any other's.
	var ips []string
	var work errgroup.Group
	work.Go(func() (err error) {
		ips, err = s.setUpNetwork(ctx, sb)
		return err
	})
	work.Go(func() (err error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shimTimeout)
		defer cancel()
		sb.shim, err = shim.Start(ctx, s.shimConfig(sb))
		if err != nil {
			return fmt.Errorf("start shim: %w", err)
		}
		return nil
	})
	err = s.writeFiles(ctx, sb)
	if err := errors.Join(work.Wait(), err); err != nil {
		return err
	}
	return sb.change(func(r *sandboxRecord) { r.IPs, r.Complete = ips, true })
}

// setUpNetwork attaches the sandbox, unless it has the host's network, and
// returns its addresses.
func (s *Server) setUpNetwork(ctx context.Context, sb *sandbox) ([]string, error) {
	if sb.rec.NetNS == "" {
		return nil, nil
	}
	pod, err := networkPod(&sb.rec)
	if err != nil {
		return nil, err
	}
	if pod.Bandwidth, err = bandwidth(pod.Annotations); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	result, err := s.network.Setup(ctx, pod)
	if err != nil {
		return nil, fmt.Errorf("set up network: %w", err)
	}
	var ips []string
	for _, a := range result.Addrs() {
		ips = append(ips, a.String())
	}
	return ips, nil
}

// networkPod says what the network may know.
func networkPod(r *sandboxRecord) (cni.Pod, error) {
	c := r.Config
	p := cni.Pod{
		ID: r.ID, NetNS: r.NetNS,
		Namespace: c.GetMetadata().GetNamespace(), Name: c.GetMetadata().GetName(), UID: c.GetMetadata().GetUid(),
		CgroupParent: c.GetLinux().GetCgroupParent(),
		Labels:       c.GetLabels(), Annotations: c.GetAnnotations(),
		DNS: cni.DNS{
			Servers: c.GetDnsConfig().GetServers(), Searches: c.GetDnsConfig().GetSearches(), Options: c.GetDnsConfig().GetOptions(),
		},
	}
	for _, m := range c.GetPortMappings() {
		if m.HostPort == 0 {
			continue
		}
		mapping, err := portMapping(m)
		if err != nil {
			return p, err
		}
		p.PortMappings = append(p.PortMappings, mapping)
	}
	return p, nil
}

// The annotations that limit a pod's traffic, in bits per second, and what they may be, as upstream has it.
const (
	ingressBandwidth = "kubernetes.io/ingress-bandwidth"
	egressBandwidth  = "kubernetes.io/egress-bandwidth"
	leastBandwidth   = 1e3
	mostBandwidth    = 1e15
)

// bandwidth is nil without a limit.
func bandwidth(annotations map[string]string) (*cni.Bandwidth, error) {
	b := &cni.Bandwidth{}
	for _, limit := range []struct {
		name string
		rate *uint64
	}{{ingressBandwidth, &b.IngressRate}, {egressBandwidth, &b.EgressRate}} {
		name := limit.name
		text, ok := annotations[name]
		if !ok {
			continue
		}
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("annotation %s: %q: %w", name, text, err)
		}
		n := q.Value()
		if n < leastBandwidth || n > mostBandwidth {
			return nil, fmt.Errorf("annotation %s: %q is not between 1k and 1P", name, text)
		}
		*limit.rate = uint64(n)
	}
	if *b == (cni.Bandwidth{}) {
		return nil, nil
	}
	return b, nil
}

func portMapping(m *runtimeapi.PortMapping) (out cni.PortMapping, err error) {
	if m.HostPort < 1 || m.HostPort > 65535 || m.ContainerPort < 1 || m.ContainerPort > 65535 {
		return out, status.Errorf(codes.InvalidArgument, "port mapping %d to %d: not between 1 and 65535", m.HostPort, m.ContainerPort)
	}
	out = cni.PortMapping{Protocol: cni.TCP, HostPort: uint16(m.HostPort), ContainerPort: uint16(m.ContainerPort)}
	switch m.Protocol {
	case runtimeapi.Protocol_UDP:
		out.Protocol = cni.UDP
	case runtimeapi.Protocol_SCTP:
		out.Protocol = cni.SCTP
	}
	if m.HostIp != "" {
		if out.HostIP, err = netip.ParseAddr(m.HostIp); err != nil {
			return out, status.Errorf(codes.InvalidArgument, "port mapping %d: host IP %q", m.HostPort, m.HostIp)
		}
	}
	return out, nil
}

func (s *Server) shimConfig(sb *sandbox) shim.Config {
	config := sb.rec.Config
	ns := namespaceOptions(config)
	host := isHostNetwork(config)
	var users string
	if ownUsers(config) != nil {
		users = s.usersDir(sb.id)
	}
	return shim.Config{
		Dir:    s.shimDir(sb.id),
		Init:   s.init,
		Cgroup: path.Join(s.cgroupParent(config), "shim-"+sb.id[:20]),
		Namespaces: shim.Namespaces{
			Net: sb.rec.NetNS,
			IPC: ns.GetIpc() == runtimeapi.NamespaceMode_POD,
			// A pod with the host's network has the host's name.
			UTS: !host, Hostname: hostname(config),
			PID:   ns.GetPid() == runtimeapi.NamespaceMode_POD,
			Users: users,
		},
		Sysctls: config.GetLinux().GetSysctls(),
		Foreign: !isBuiltIn(sb.rec.Handler),
		Log:     s.log.With("sandbox", sb.id),
	}
}

func hostname(c *runtimeapi.PodSandboxConfig) string {
	if isHostNetwork(c) {
		return ""
	}
	return c.GetHostname()
}

func (s *Server) cgroupParent(c *runtimeapi.PodSandboxConfig) string {
	if p := c.GetLinux().GetCgroupParent(); p != "" {
		return p
	}
	return s.cfg.CgroupParent
}

// writeFiles makes what is mounted into the sandbox's containers.
func (s *Server) writeFiles(ctx context.Context, sb *sandbox) error {
	dir := s.sandboxDir(sb.id)
	config := sb.rec.Config
	labels, err := s.ofSandbox(&sb.rec)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	name := config.GetHostname()
	if name == "" {
		var err error
		if name, err = os.Hostname(); err != nil {
			return err
		}
	}
	resolv, err := resolvConf(config.GetDnsConfig())
	if err != nil {
		return err
	}
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for file, text := range map[string]string{"hostname": name + "\n", "resolv.conf": resolv, "hosts": string(hosts)} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return err
		}
		if labels.File == "" {
			continue
		}
		if err := selinux.Relabel(ctx, filepath.Join(dir, file), labels.FileContext); err != nil {
			return err
		}
	}
	if namespaceOptions(config).GetIpc() == runtimeapi.NamespaceMode_NODE {
		return nil
	}
	shm := filepath.Join(dir, "shm")
	if err := os.Mkdir(shm, 0o711); err != nil {
		return err
	}
	options := "mode=1777,size=" + strconv.Itoa(defaultShmBytes)
	if o := ownUsers(config); o != nil {
		options += fmt.Sprintf(",uid=%d,gid=%d", hostRoot(o.Uids), hostRoot(o.Gids))
	}
	if labels.File != "" {
		options += `,context="` + labels.File + `"`
	}
	err = unix.Mount("shm", shm, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, options)
	return linux.Wrap("mount", shm, err)
}

// resolvConf renders a resolver configuration; without one, the host's holds.
func resolvConf(c *runtimeapi.DNSConfig) (string, error) {
	if c == nil {
		raw, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return string(raw), err
	}
	var b strings.Builder
	if len(c.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Searches, " "))
	}
	for _, server := range c.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(c.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.Options, " "))
	}
	return b.String(), nil
}
