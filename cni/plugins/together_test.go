package plugins

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/yare-dev/yare/cni"
)

// hostPorts says how many host ports the kernel's table has.
func (w *world) hostPorts(t testing.TB, n *Network) (count int) {
	t.Helper()
	w.in(t, w.host, func() error {
		h, err := n.host()
		if err != nil {
			return err
		}
		have, err := h.nft.Read(n.c.Table)
		if have != nil {
			count = len(have.Sets["ports-ip"].Elems)
		}
		return err
	})
	return count
}

// TestTogether attaches many pods at once, and detaches them at once, while the table is put right all the time.
func TestTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, nil)
	const count = 40
	var pods [count]cni.Pod
	var addrs [count]netip.Addr
	other := w.network(t, nil) // as another process
	h, err := other.host()
	if err != nil {
		t.Fatal(err)
	}
	var beside sync.WaitGroup
	end := make(chan struct{})
	beside.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
			}
			if err := other.syncTable(h); err != nil {
				t.Error(err)
			}
		}
	})
	var wg sync.WaitGroup
	for i := range count {
		wg.Go(func() {
			ns, err := n.NewNamespace(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			pods[i] = cni.Pod{ID: fmt.Sprint(i), NetNS: ns, PortMappings: []cni.PortMapping{{HostPort: uint16(9000 + i), ContainerPort: 80}}}
			res, err := n.Setup(t.Context(), pods[i])
			if err != nil {
				t.Error(err)
				return
			}
			addrs[i] = res.Addrs()[0]
		})
	}
	wg.Wait()
	seen := map[netip.Addr]bool{}
	for i, a := range addrs {
		if !a.IsValid() || seen[a] {
			t.Errorf("pod %d has %s", i, a)
		}
		seen[a] = true
	}
	if got := w.hostPorts(t, n); got != count {
		t.Errorf("%d host ports are open", got)
	}
	w.serve(t, pods[7].NetNS, "tcp", ":80")
	if got := w.ask(t, w.outside, "tcp", "192.0.2.2:9007"); got != "192.0.2.1" {
		t.Errorf("host port of one: %s", got)
	}
	for _, p := range pods {
		wg.Go(func() { detach(t, n, p) })
	}
	wg.Wait()
	close(end)
	beside.Wait()
	if got := w.hostPorts(t, n); got != 0 {
		t.Errorf("%d host ports are open after the last pod", got)
	}
	w.empty(t, n)
}
