package cni

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sync/errgroup"

	"github.com/yare-dev/yare/linux/netns"
)

// ExecConfig says where configuration lists and plugins are.
type ExecConfig struct {
	ConfDir  string   // usually /etc/cni/net.d; the first list by name is used
	BinDirs  []string // usually /opt/cni/bin
	CacheDir string   // results, for Check and Teardown
	// NetNSDir holds the namespaces; nobody else's files may be in it.
	NetNSDir string
}

// Exec runs CNI plugins. The folder is read at every use, so that a list which
// appears, changes or goes is followed at once; a pod is torn down with the list that it was set up with.
type Exec struct {
	c   ExecConfig
	cni libcni.CNI
}

// NewExec returns a Network that runs plugins.
func NewExec(c ExecConfig) *Exec {
	return &Exec{c, libcni.NewCNIConfigWithCacheDir(c.BinDirs, c.CacheDir, &invoker{})}
}

// lacking reports whether there is a configuration list and which of its plugins is not there, in words. A list that
// cannot be read lacks nothing: Status says what is wrong with it.
func (e *Exec) lacking() (what string, configured bool) {
	files, err := e.files()
	if err != nil || len(files) == 0 {
		return "", false
	}
	l, err := load(files[0])
	if err != nil {
		return "", true
	}
	for _, p := range l.Plugins {
		if _, err := invoke.FindInPath(p.Network.Type, e.c.BinDirs); err != nil {
			return fmt.Sprintf("plugin %q of %s, in %s", p.Network.Type, files[0], strings.Join(e.c.BinDirs, ", ")), true
		}
	}
	return "", true
}

func (e *Exec) files() ([]string, error) {
	files, err := libcni.ConfFiles(e.c.ConfDir, []string{".conflist", ".conf", ".json"})
	slices.Sort(files)
	return files, err
}

// list loads the configuration list that counts.
func (e *Exec) list() (*libcni.NetworkConfigList, error) {
	files, err := e.files()
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", e.c.ConfDir, err)
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("%w: no configuration list in %s", ErrNotReady, e.c.ConfDir)
	}
	l, err := load(files[0])
	if err != nil {
		return nil, fmt.Errorf("%w: load %s: %w", ErrNotReady, files[0], err)
	}
	return l, nil
}

// load reads a list, or a single configuration as a list of one.
func load(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		return libcni.NetworkConfFromFile(file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c, err := libcni.NetworkPluginConfFromBytes(b)
	if err != nil {
		return nil, err
	}
	if c.Network.Type == "" {
		return nil, errors.New(`"type" is missing; a list of plugins needs the extension .conflist`)
	}
	return libcni.ConfListFromConf(c)
}

// NewNamespace implements Network.
func (e *Exec) NewNamespace(ctx context.Context) (string, error) {
	if err := os.MkdirAll(e.c.NetNSDir, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(e.c.NetNSDir, rand.Text()[:16])
	return path, netns.New(path, loopbackUp)
}

// DeleteNamespace implements Network.
func (e *Exec) DeleteNamespace(ctx context.Context, path string) error { return netns.Delete(path) }

// owns reports whether NewNamespace made path.
func (e *Exec) owns(path string) bool { return strings.HasPrefix(path, e.c.NetNSDir+"/") }

// Setup implements Network.
func (e *Exec) Setup(ctx context.Context, p Pod) (*Result, error) {
	l, err := e.list()
	if err != nil {
		return nil, fmt.Errorf("set up network of %s/%s: %w", p.Namespace, p.Name, err)
	}
	rt := runtimeConf(p)
	res, err := e.cni.AddNetworkList(ctx, l, rt)
	if err == nil {
		var r *types100.Result
		if r, err = types100.NewResultFromResult(res); err == nil {
			return fromCNI(r)
		}
	}
	// The specification wants a DEL after an ADD that failed.
	err = errors.Join(err, e.cni.DelNetworkList(context.WithoutCancel(ctx), l, rt))
	return nil, fmt.Errorf("set up network %s of %s/%s: %w", l.Name, p.Namespace, p.Name, err)
}

// Check implements Network.
func (e *Exec) Check(ctx context.Context, p Pod) error {
	l, err := e.list()
	if err == nil {
		err = e.cni.CheckNetworkList(ctx, l, runtimeConf(p))
	}
	if err != nil {
		return fmt.Errorf("check network of %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// Teardown implements Network, with the configurations that are cached for the pod.
func (e *Exec) Teardown(ctx context.Context, p Pod) error {
	if _, err := os.Stat(e.c.CacheDir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	attachments, err := e.cni.GetCachedAttachments(p.ID)
	if err != nil {
		return fmt.Errorf("read cached networks of %s/%s: %w", p.Namespace, p.Name, err)
	}
	var errs []error
	for _, a := range attachments {
		l, err := libcni.NetworkConfFromBytes(a.Config)
		if err != nil {
			errs = append(errs, fmt.Errorf("decode cached network %s: %w", a.Network, err))
			continue
		}
		rt := &libcni.RuntimeConf{ContainerID: a.ContainerID, NetNS: a.NetNS, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs}
		if !netns.IsHeld(rt.NetNS) {
			rt.NetNS = "" // gone: plugins then free what is not in it
		}
		if err := e.cni.DelNetworkList(ctx, l, rt); err != nil {
			errs = append(errs, fmt.Errorf("tear down network %s of %s/%s: %w", a.Network, p.Namespace, p.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Status implements Network.
func (e *Exec) Status(ctx context.Context) error {
	l, err := e.list()
	if err != nil {
		return err
	}
	if _, err := e.cni.ValidateNetworkList(ctx, l); err != nil {
		return fmt.Errorf("%w: validate network %s: %w", ErrNotReady, l.Name, err)
	}
	if err := e.cni.GetStatusNetworkList(ctx, l); err != nil {
		return fmt.Errorf("%w: network %s: %w", ErrNotReady, l.Name, err)
	}
	return nil
}

// Teardowns of Prune: as many together, and so long each, so that one plugin that fails or hangs does not keep the others from it.
const (
	pruneTogether = 16
	pruneTimeout  = 10 * time.Second
)

// Prune implements Network.
func (e *Exec) Prune(ctx context.Context, live []Pod) error {
	paths, ids := map[string]bool{}, map[string]bool{}
	for _, p := range live {
		paths[p.NetNS], ids[p.ID] = true, true
	}
	var errs []error
	if _, err := os.Stat(e.c.CacheDir); err == nil {
		attachments, err := e.cni.GetCachedAttachments("")
		errs = append(errs, err)
		var gone []Pod
		for _, a := range attachments {
			if !ids[a.ContainerID] {
				ids[a.ContainerID] = true // once
				gone = append(gone, Pod{ID: a.ContainerID})
			}
		}
		errs = append(errs, e.teardownAll(ctx, gone))
	}
	files, err := netns.List(e.c.NetNSDir)
	errs = append(errs, err)
	for _, path := range files {
		if !paths[path] {
			errs = append(errs, netns.Delete(path))
		}
	}
	return errors.Join(errs...)
}

// teardownAll detaches pods; its error says which are left.
func (e *Exec) teardownAll(ctx context.Context, pods []Pod) error {
	failed := make([]error, len(pods))
	var work errgroup.Group
	work.SetLimit(pruneTogether)
	for i, p := range pods {
		work.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, pruneTimeout)
			defer cancel()
			failed[i] = e.Teardown(ctx, p)
			return nil
		})
	}
	_ = work.Wait() // none of them says anything
	left := &LeftError{Err: errors.Join(failed...)}
	if left.Err == nil {
		return nil
	}
	for i, p := range pods {
		if failed[i] != nil {
			left.Pods = append(left.Pods, p)
		}
	}
	return left
}

// runtimeConf is what plugins are told of a pod; libcni passes on the
// capabilities that they declare.
func runtimeConf(p Pod) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: p.Interface, CapabilityArgs: map[string]any{},
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID}, {"K8S_POD_UID", p.UID},
		}}
	if rt.IfName == "" {
		rt.IfName = "eth0"
	}
	var ports []map[string]any
	for _, m := range p.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		port := map[string]any{"hostPort": m.HostPort, "containerPort": m.ContainerPort, "protocol": string(m.Protocol)}
		if m.Protocol == "" {
			port["protocol"] = string(TCP)
		}
		if m.HostIP.IsValid() {
			port["hostIP"] = m.HostIP.String()
		}
		ports = append(ports, port)
	}
	set := func(key string, there bool, value any) {
		if there {
			rt.CapabilityArgs[key] = value
		}
	}
	set("portMappings", len(ports) > 0, ports)
	if b := p.Bandwidth; b != nil {
		set("bandwidth", true, map[string]uint64{"ingressRate": b.IngressRate, "ingressBurst": burst(b.IngressRate, b.IngressBurst),
			"egressRate": b.EgressRate, "egressBurst": burst(b.EgressRate, b.EgressBurst)})
	}
	set("dns", len(p.DNS.Servers)+len(p.DNS.Searches)+len(p.DNS.Options) > 0,
		map[string][]string{"servers": p.DNS.Servers, "searches": p.DNS.Searches, "options": p.DNS.Options})
	ips := make([]string, len(p.IPs))
	for i, ip := range p.IPs {
		ips[i] = ip.String()
	}
	set("ips", len(ips) > 0, ips)
	set("cgroupPath", p.CgroupParent != "", p.CgroupParent)
	set("io.kubernetes.cri.pod-annotations", len(p.Annotations) > 0, p.Annotations)
	return rt
}

// burst is what plugins are told: they take no rate without one.
func burst(rate, burst uint64) uint64 {
	if rate > 0 && burst == 0 {
		return math.MaxUint32 // what other runtimes say
	}
	return burst
}

// fromCNI translates a result.
func fromCNI(r *types100.Result) (*Result, error) {
	out := &Result{DNS: DNS{Servers: r.DNS.Nameservers, Searches: r.DNS.Search, Options: r.DNS.Options}}
	for _, i := range r.Interfaces {
		out.Interfaces = append(out.Interfaces, Interface{Name: i.Name, MAC: i.Mac, MTU: i.Mtu, Sandbox: i.Sandbox})
	}
	for _, ip := range r.IPs {
		p, err := prefix(ip.Address)
		if err != nil {
			return nil, err
		}
		index := -1
		if ip.Interface != nil {
			index = *ip.Interface
		}
		out.IPs = append(out.IPs, IP{Address: p, Gateway: address(ip.Gateway), Interface: index})
	}
	for _, route := range r.Routes {
		p, err := prefix(route.Dst)
		if err != nil {
			return nil, err
		}
		out.Routes = append(out.Routes, Route{Dst: p, Gateway: address(route.GW)})
	}
	return out, nil
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefix(n net.IPNet) (netip.Prefix, error) {
	a := address(n.IP)
	ones, bits := n.Mask.Size()
	if !a.IsValid() || bits != a.BitLen() {
		return netip.Prefix{}, fmt.Errorf("decode plugin result: %v is no prefix", types.IPNet(n))
	}
	return netip.PrefixFrom(a, ones), nil
}
