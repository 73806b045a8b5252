// Package nodeipam gives every Node a range of pod addresses out of the cluster's. It replaces upstream's
// node-ipam controller (its range allocator).
//
// What is taken is read from the Nodes themselves each time: there is no second record that could differ.
package nodeipam

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// Config is where addresses come from.
type Config struct {
	Clusters []netip.Prefix // one, or one of each family
	MaskV4   int            // bits of a Node's range; 24 when zero
	MaskV6   int            // 64 when zero
}

func (c Config) mask(p netip.Prefix) int {
	bits, usual := c.MaskV4, 24
	if p.Addr().Is6() {
		bits, usual = c.MaskV6, 64
	}
	if bits == 0 {
		bits = usual
	}
	return max(bits, p.Bits())
}

type controller struct {
	reconcile.Deps
	config Config
}

// New returns the node-ipam controller.
func New(d reconcile.Deps, config Config) *reconcile.Controller {
	c := controller{d.Named("cidrAllocator"), config}
	return reconcile.New(c.Deps, reconcile.For[*corev1.Node]{
		Controller: "node-ipam-controller",
		Write:      reconcile.Writes{api.NodeKind: {"patch"}},
		Workers:    1, // two at a time could choose the same range
		Reconcile:  c.reconcile,
	})
}

func (c controller) reconcile(ctx context.Context, log *slog.Logger, n *corev1.Node) (reconcile.Result, error) {
	if n.DeletionTimestamp != nil || n.Spec.PodCIDR != "" || len(n.Spec.PodCIDRs) > 0 {
		return reconcile.Result{}, nil
	}
	nodes, err := client.List[*corev1.Node](ctx, c.Client, client.Query{})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list nodes: %w", err)
	}
	taken := map[netip.Prefix]bool{}
	for _, o := range nodes {
		for _, s := range append([]string{o.Spec.PodCIDR}, o.Spec.PodCIDRs...) {
			if p, err := netip.ParsePrefix(s); err == nil {
				taken[p.Masked()] = true
			}
		}
	}
	var ranges []string
	for _, cluster := range c.config.Clusters {
		p, ok := free(cluster, c.config.mask(cluster), taken)
		if !ok {
			c.Events.Event(n, corev1.EventTypeNormal, "CIDRNotAvailable", "Node "+n.Name+" status is now: CIDRNotAvailable")
			return reconcile.Result{}, fmt.Errorf("no range of pod addresses is left in %s", cluster)
		}
		ranges = append(ranges, p.String())
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": n.UID, "resourceVersion": n.ResourceVersion},
		"spec":     map[string]any{"podCIDR": ranges[0], "podCIDRs": ranges}})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("encode patch: %w", err)
	}
	_, err = c.Client.Patch(ctx, api.NodeKind, api.KeyOf(n), client.Patch{Type: types.StrategicMergePatchType, Data: patch})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("set pod addresses: %w", err)
	}
	log.Info("pod addresses assigned", "ranges", ranges)
	return reconcile.Result{}, nil
}

// free returns the first range of that many bits in cluster that overlaps none of taken.
func free(cluster netip.Prefix, bits int, taken map[netip.Prefix]bool) (netip.Prefix, bool) {
	step := new(big.Int).Lsh(big.NewInt(1), uint(cluster.Addr().BitLen()-bits))
	at := new(big.Int).SetBytes(cluster.Masked().Addr().AsSlice())
	var odd []netip.Prefix // ranges of another size, which only an overlap test finds
	for p := range taken {
		if p.Bits() != bits && p.Overlaps(cluster) {
			odd = append(odd, p)
		}
	}
	for ; at.BitLen() <= cluster.Addr().BitLen(); at.Add(at, step) {
		addr, ok := netip.AddrFromSlice(at.FillBytes(make([]byte, cluster.Addr().BitLen()/8)))
		if !ok || !cluster.Contains(addr) {
			break
		}
		p := netip.PrefixFrom(addr, bits)
		if !taken[p] && !slices.ContainsFunc(odd, p.Overlaps) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
