package kubelet

import (
	"context"
	"net"
	"strconv"
	"time"

	"github.com/yare-dev/yare/kubelet/server"
	"github.com/yare-dev/yare/run/healthz"
)

// deafFor is how long the runtime may tell of nothing that happens until the kubelet is not well, upstream's figure for its loop.
const deafFor = 2 * time.Minute

// checks are those of /healthz, by upstream's names. syncloop is whether what happens to containers reaches the pods' workers: upstream's
// loop stands still while the runtime does not answer, and here workers hear of nothing then.
func (k *Kubelet) checks(string) []healthz.Check {
	since := k.deaf.Load()
	return []healthz.Check{{Name: "ping", OK: true}, {Name: "syncloop", OK: since == nil || time.Since(*since) < deafFor}}
}

// hears notes whether the runtime tells what happens.
func (k *Kubelet) hears(does bool) {
	if does {
		k.deaf.Store(nil)
		return
	}
	now := time.Now()
	k.deaf.CompareAndSwap(nil, &now)
}

// serveHealth answers whoever on this host asks whether the kubelet lives. That the port is taken keeps no pod from running.
func (k *Kubelet) serveHealth(ctx context.Context) {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(int(k.config.HealthzPort)))
	if err := server.Healthz(ctx, address, k.health); err != nil {
		k.log.Warn("/healthz is not served without credentials: end what listens there, or choose another healthzPort", "address", address, "err", err)
	}
}
