package oci_test

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"

	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/netns"
	"github.com/yare-dev/yare/oci"
)

// A network device goes from the launcher's network namespace to the container's.
func TestNetDevices(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	host, far := filepath.Join(t.TempDir(), "host"), filepath.Join(t.TempDir(), "far")
	for _, p := range []string{host, far} {
		if err := netns.New(p, nil); err != nil {
			t.Fatal(err)
		}
		defer netns.Delete(p)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	bundle := h.bundle(func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"a0": {Name: "inside"}} },
		"busybox", "ip", "-o", "addr", "show", "up", "dev", "inside")
	err = netns.Do(host, func() error {
		n, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer n.Close()
		mac := net.HardwareAddr{2, 0, 0, 0, 1, 1}
		if err := link.AddPair(n, link.Pair{Name: "a0", MAC: mac, Peer: "a0", PeerMAC: mac, PeerNS: far, MTU: 1300}); err != nil {
			return err
		}
		l, err := n.LinkByName("a0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr("10.1.2.3/24")
		if err != nil {
			return err
		}
		if err := n.AddrAdd(l, a); err != nil {
			return err
		}
		null := devNull(t)
		pid, err := h.Create(t.Context(), "c", oci.CreateOptions{Bundle: bundle, Files: []*os.File{null, w, w}})
		if err != nil {
			return err
		}
		if err := h.Start(t.Context(), "c"); err != nil {
			return err
		}
		if code := wait(t, pid); code != 0 {
			t.Errorf("exit code %d", code)
		}
		return h.Delete(t.Context(), "c", false)
	})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 4096)
	n, _ := r.Read(out)
	if !strings.Contains(string(out[:n]), "inet 10.1.2.3/24") {
		t.Errorf("got %q", out[:n])
	}
}
