package cluster

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/yare-dev/yare/cni/plugins"
	"github.com/yare-dev/yare/proxy"
	"github.com/yare-dev/yare/proxy/netpol"
)

// forwardingFile says whether the host passes packets on; the pod network needs it.
const forwardingFile = "/proc/sys/net/ipv4/ip_forward"

func forwarding() (string, error) {
	b, err := os.ReadFile(forwardingFile)
	return strings.TrimSpace(string(b)), err
}

// Network is the configuration of the cluster's built-in pod network, for the server that runs it and for Remove.
func (r *Record) Network() plugins.Config {
	return plugins.Config{
		Name: r.Name, Dir: filepath.Join(r.RunDir, "net"), Table: r.Table() + "-pods",
		Ranges: []netip.Prefix{r.NodeRange()}, ClusterCIDRs: []netip.Prefix{r.PodCIDR},
		Pool: 4,
	}
}

// NodeRange is the part of PodCIDR that this host's Node has: the first, which the node address controller gives to
// the first Node.
func (r *Record) NodeRange() netip.Prefix { return netip.PrefixFrom(r.PodCIDR.Masked().Addr(), 24) }

// restoreForwarding puts ip_forward back when the last cluster of the host goes.
func (h Host) restoreForwarding(_ context.Context, r *Record) error {
	rs, err := h.List()
	if err != nil || len(rs) > 1 {
		return err
	}
	if now, err := forwarding(); err != nil || r.Forwarding == "" || now == r.Forwarding {
		return err
	}
	return os.WriteFile(forwardingFile, []byte(r.Forwarding), 0)
}

// removePodNetwork removes links, namespaces, addresses and the table of the built-in network.
func removePodNetwork(ctx context.Context, r *Record) error {
	n, err := plugins.New(r.Network(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	return n.Remove(ctx)
}

// ServiceTable is the name of the proxy's table.
func (r *Record) ServiceTable() string { return r.Table() + "-services" }

func removeServices(_ context.Context, r *Record) error { return proxy.Remove(r.ServiceTable()) }

// PolicyTable is the name of the network policies' table.
func (r *Record) PolicyTable() string { return r.Table() + "-policies" }

func removePolicies(_ context.Context, r *Record) error { return netpol.Remove(r.PolicyTable()) }
