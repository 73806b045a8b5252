package cluster

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/yare-dev/yare/cni/plugins"
	"github.com/yare-dev/yare/linux/link"
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
		Ranges: r.NodeRanges(), ClusterCIDRs: r.PodCIDRs(),
		Pool: 4,
	}
}

// noteForwarding6 notes how the host is before its first cluster with IPv6; it must have IPv6.
func (r *Record) noteForwarding6(others []*Record) (err error) {
	if err := link.CheckIPv6(); err != nil {
		return err
	}
	for _, o := range others {
		if o.Forwarding6 != "" {
			r.Forwarding6, r.AdvertisedLinks = o.Forwarding6, o.AdvertisedLinks
			return nil
		}
	}
	r.Forwarding6 = link.Forwarding6()
	r.AdvertisedLinks, err = link.Advertised()
	return err
}

// restoreForwarding puts ip_forward back when the last cluster of the host goes, and its like of IPv6 with the last that has IPv6.
func (h Host) restoreForwarding(_ context.Context, r *Record) error {
	rs, err := h.List()
	if err != nil {
		return err
	}
	if r.Forwarding6 != "" && !slices.ContainsFunc(rs, func(o *Record) bool { return o.Name != r.Name && o.Forwarding6 != "" }) {
		err = link.RestoreForward6(r.Forwarding6, r.AdvertisedLinks)
	}
	if len(rs) > 1 {
		return err
	}
	now, e := forwarding()
	if e != nil || r.Forwarding == "" || now == r.Forwarding {
		return errors.Join(err, e)
	}
	return errors.Join(err, os.WriteFile(forwardingFile, []byte(r.Forwarding), 0))
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
