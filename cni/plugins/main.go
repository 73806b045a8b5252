package plugins

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/yare-dev/yare/cni"
)

// conf is the network configuration of the plugin:
//
//	{"cniVersion": "1.1.0", "name": "net", "type": "yare", "subnets": ["10.42.0.0/24"],
//	 "clusterCIDRs": ["10.42.0.0/16"], "mtu": 1400,
//	 "capabilities": {"portMappings": true, "bandwidth": true, "ips": true}}
type conf struct {
	types.PluginConf
	Subnets      []netip.Prefix `json:"subnets"`
	ClusterCIDRs []netip.Prefix `json:"clusterCIDRs"`
	MTU          int            `json:"mtu"`
	StateDir     string         `json:"stateDir"` // empty means /run/yare-cni/<name>

	RuntimeConfig struct {
		PortMappings []struct {
			HostPort      uint16       `json:"hostPort"`
			ContainerPort uint16       `json:"containerPort"`
			Protocol      cni.Protocol `json:"protocol"`
			HostIP        string       `json:"hostIP"`
		} `json:"portMappings"`
		Bandwidth *struct {
			IngressRate  uint64 `json:"ingressRate"`
			IngressBurst uint64 `json:"ingressBurst"`
			EgressRate   uint64 `json:"egressRate"`
			EgressBurst  uint64 `json:"egressBurst"`
		} `json:"bandwidth"`
		IPs []string `json:"ips"`
	} `json:"runtimeConfig"`
}

// Main is the CNI executable: command and arguments in CNI_* variables, the configuration
// on standard input. The error, if any, has been written to out, as the protocol wants it;
// the caller exits with 1.
func Main(ctx context.Context, out io.Writer) error {
	e := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: func(a *skel.CmdArgs) error { return cmdAdd(ctx, a) },
		Del: func(a *skel.CmdArgs) error {
			return with(a, func(n *Network, c *conf, p cni.Pod) error { return n.Teardown(ctx, p) })
		},
		Check: func(a *skel.CmdArgs) error {
			return with(a, func(n *Network, c *conf, p cni.Pod) error { return n.Check(ctx, p) })
		},
		Status: func(a *skel.CmdArgs) error {
			return with(a, func(n *Network, c *conf, p cni.Pod) error { return n.Status(ctx) })
		},
		GC: func(a *skel.CmdArgs) error {
			return with(a, func(n *Network, c *conf, p cni.Pod) error {
				var live []cni.Pod
				for _, v := range c.ValidAttachments {
					live = append(live, cni.Pod{ID: podID(v.ContainerID, v.IfName)})
				}
				return n.Prune(ctx, live)
			})
		},
	}, version.All, "yare: routed pod network")
	if e == nil {
		return nil
	}
	return errors.Join(e, json.NewEncoder(out).Encode(e))
}

// podID names an attachment: a container may have several.
func podID(container, ifname string) string {
	if ifname == "" || ifname == defaultInterface {
		return container
	}
	return container + "." + ifname
}

// with decodes the configuration and calls f with the network and the pod.
func with(a *skel.CmdArgs, f func(*Network, *conf, cni.Pod) error) error {
	c := &conf{}
	if err := json.Unmarshal(a.StdinData, c); err != nil {
		return types.NewError(types.ErrDecodingFailure, "decode network configuration", err.Error())
	}
	if c.StateDir == "" {
		c.StateDir = filepath.Join("/run/yare-cni", c.Name)
	}
	n, err := New(Config{Name: c.Name, Dir: c.StateDir, Ranges: c.Subnets, ClusterCIDRs: c.ClusterCIDRs, MTU: c.MTU},
		slog.New(slog.DiscardHandler))
	if err != nil {
		return types.NewError(types.ErrInvalidNetworkConfig, "check network configuration", err.Error())
	}
	p := cni.Pod{ID: podID(a.ContainerID, a.IfName), NetNS: a.Netns, Interface: a.IfName}
	for _, m := range c.RuntimeConfig.PortMappings {
		pm := cni.PortMapping{Protocol: m.Protocol, HostPort: m.HostPort, ContainerPort: m.ContainerPort}
		if m.HostIP != "" {
			if pm.HostIP, err = netip.ParseAddr(m.HostIP); err != nil {
				return types.NewError(types.ErrInvalidNetworkConfig, "decode host IP", err.Error())
			}
		}
		p.PortMappings = append(p.PortMappings, pm)
	}
	if b := c.RuntimeConfig.Bandwidth; b != nil {
		p.Bandwidth = &cni.Bandwidth{IngressRate: b.IngressRate, IngressBurst: b.IngressBurst, EgressRate: b.EgressRate, EgressBurst: b.EgressBurst}
	}
	for _, s := range c.RuntimeConfig.IPs {
		ip, err := netip.ParseAddr(s)
		if pf, perr := netip.ParsePrefix(s); err != nil && perr == nil {
			ip, err = pf.Addr(), nil
		}
		if err != nil {
			return types.NewError(types.ErrInvalidNetworkConfig, "decode wanted address", err.Error())
		}
		p.IPs = append(p.IPs, ip)
	}
	return f(n, c, p)
}

func cmdAdd(ctx context.Context, a *skel.CmdArgs) error {
	return with(a, func(n *Network, c *conf, p cni.Pod) error {
		res, err := n.Setup(ctx, p)
		if err != nil {
			return err
		}
		return types.PrintResult(toCNI(res), c.CNIVersion)
	})
}

// toCNI translates a result.
func toCNI(r *cni.Result) *types100.Result {
	out := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	for _, i := range r.Interfaces {
		out.Interfaces = append(out.Interfaces, &types100.Interface{Name: i.Name, Mac: i.MAC, Mtu: i.MTU, Sandbox: i.Sandbox})
	}
	for _, ip := range r.IPs {
		out.IPs = append(out.IPs, &types100.IPConfig{Address: ipNet(ip.Address), Gateway: ip.Gateway.AsSlice(), Interface: &ip.Interface})
	}
	for _, route := range r.Routes {
		out.Routes = append(out.Routes, &types.Route{Dst: ipNet(route.Dst), GW: route.Gateway.AsSlice()})
	}
	return out
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
