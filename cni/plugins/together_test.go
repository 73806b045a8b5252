package plugins

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"

	"github.com/yare-dev/yare/cni"
)

// TestTogether attaches many pods at once, and detaches them at once.
func TestTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.network(t, nil)
	const count = 40
	var pods [count]cni.Pod
	var addrs [count]netip.Addr
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
	w.serve(t, pods[7].NetNS, "tcp", ":80")
	if got := w.ask(t, w.outside, "tcp", "192.0.2.2:9007"); got != "192.0.2.1" {
		t.Errorf("host port of one: %s", got)
	}
	for _, p := range pods {
		wg.Go(func() { detach(t, n, p) })
	}
	wg.Wait()
	w.empty(t, n)
}
