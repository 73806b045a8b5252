package main

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci"
)

// A machine joins by one file, is Ready, and is removed without a trace.
func TestAgent(t *testing.T) {
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("starts processes, as root")
	}
	if i, err := oci.OpenInit(); errors.Is(err, oci.ErrNoInit) || errors.Is(err, linux.ErrNotSupported) {
		t.Skip(err)
	} else if err == nil {
		i.Close()
	}
	t.Parallel()
	var addresses []netip.Addr
	for _, four := range []bool{true, false} {
		a, err := hostAddress(four)
		if err != nil {
			t.Log(err)
			continue
		}
		addresses = append(addresses, a)
	}
	if len(addresses) == 0 {
		t.Skip("no address")
	}
	// As many families as the host has.
	var ranges []netip.Prefix
	var texts, want []string
	for _, a := range addresses {
		text, node := "10.98.0.0/16", "10.98.0.0/24"
		if a.Is6() {
			text, node = "fd98::/48", "fd98::/64"
		}
		ranges, texts, want = append(ranges, netip.MustParsePrefix(text)), append(texts, text), append(want, node)
	}
	dir, c := apiServerForTest(t)
	begin(t, "controller-manager", "--kubeconfig", filepath.Join(dir, "admin.kubeconfig"), "--cluster-cidr", strings.Join(texts, ","))
	admin := &peer{kubeconfig: filepath.Join(dir, "admin.kubeconfig")}
	cfg, err := admin.rest()
	if err != nil {
		t.Fatal(err)
	}
	j := &join{Node: "worker", Server: cfg.Host, Addresses: addresses, ClusterCIDR: ranges, ClusterDomain: "cluster.local"}
	if err := j.issue(filepath.Join(dir, "pki")); err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(dir, "worker.join"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(j.print(file), file.Close()); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("test-%d", os.Getpid())
	t.Cleanup(func() {
		if r, err := (cluster.Host{}).Find(name); err == nil {
			t.Error("not removed")
			(cluster.Host{}).Remove(t.Context(), r, false, func(string) {})
		}
	})
	p := begin(t, "agent", "--join", file.Name(), "--name", name, "--data-dir", filepath.Join(t.TempDir(), "data"), "--cni-conf-dir", filepath.Join(dir, "none"))
	eventually(t, c, "a Node that is ready", func(n *corev1.Node) bool {
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue {
				var internal []string
				for _, a := range n.Status.Addresses {
					if a.Type == corev1.NodeInternalIP {
						internal = append(internal, a.Address)
					}
				}
				return n.Name == "worker" && n.Spec.PodCIDR == want[0] && slices.Equal(n.Spec.PodCIDRs, want) && strings.Join(internal, ",") == joined(addresses)
			}
		}
		return false
	})
	p.end()
	r, err := cluster.Host{}.Find(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := (cluster.Host{}).Remove(t.Context(), r, false, func(string) {}); err != nil {
		t.Error(err)
	}
	for _, left := range []string{r.RunDir, r.DataDir, "/sys/fs/cgroup/pids" + r.Cgroup(), "/sys/fs/cgroup" + r.Cgroup()} {
		if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", left, err)
		}
	}
}

func TestWantedRoutes(t *testing.T) {
	node := func(name, address string, cidrs ...string) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: cidrs}}
		if address != "" {
			n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: address}}
		}
		return n
	}
	both := func(n *corev1.Node, second string) *corev1.Node {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: second})
		return n
	}
	r := newRoutes("self", []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd42::/56")}, nil, slog.New(slog.DiscardHandler))
	for _, n := range []*corev1.Node{
		node("self", "192.0.2.1", "10.42.0.0/24"),
		node("a", "192.0.2.2", "10.42.1.0/24"),
		node("new", "", "10.42.2.0/24"),
		node("none", "192.0.2.3"),
		node("thief", "192.0.2.4", "192.168.0.0/16", "0.0.0.0/0", "10.42.1.0/24"),
		node("stranger", "192.0.2.5", "10.42.5.0/24", "fd00::/64"),
		node("half", "192.0.2.6", "10.42.6.0/24", "fd42:0:0:6::/64"),
		both(node("both", "192.0.2.7", "10.42.7.0/24", "fd42:0:0:7::/64"), "2001:db8::7"),
	} {
		r.nodes[n.Name] = n
	}
	want := map[netip.Prefix]netip.Addr{
		netip.MustParsePrefix("10.42.1.0/24"):    netip.MustParseAddr("192.0.2.2"),
		netip.MustParsePrefix("10.42.5.0/24"):    netip.MustParseAddr("192.0.2.5"),
		netip.MustParsePrefix("10.42.6.0/24"):    netip.MustParseAddr("192.0.2.6"),
		netip.MustParsePrefix("10.42.7.0/24"):    netip.MustParseAddr("192.0.2.7"),
		netip.MustParsePrefix("fd42:0:0:7::/64"): netip.MustParseAddr("2001:db8::7"),
	}
	if got := r.wanted(); !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
