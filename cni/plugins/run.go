package plugins

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/yare-dev/yare/linux/link"
	"github.com/yare-dev/yare/linux/netns"
)

// grace is how long the kernel may take to reap a link before it is deleted by name.
const grace = 2 * time.Second

// tableRetry is the pause after the table could not be put right.
const tableRetry = time.Second

// Run implements run.Component: it keeps namespaces ready, deletes links that the
// kernel does not reap, distrusts those of earlier versions, and puts the nftables table right when somebody else changed it.
// Pods stay attached when it returns.
func (n *Network) Run(ctx context.Context, started func()) error {
	if err := n.possible(); err != nil {
		return fmt.Errorf("built-in network: %w", err)
	}
	h, err := n.host()
	if err != nil {
		return err
	}
	m, err := h.nft.Watch(n.c.Table)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := n.distrustAll(h); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var watchErr error
	wg.Go(func() { n.fillPool(ctx, h) })
	wg.Go(func() { n.reapLinks(ctx, h) })
	changed := make(chan struct{}, 1)
	wg.Go(func() { n.keepTable(ctx, h, changed) })
	wg.Go(func() {
		defer cancel()
		if err := m.Signal(ctx, changed); ctx.Err() == nil {
			watchErr = err
		}
	})
	started()
	wg.Wait()
	n.emptyPool(h)
	return watchErr
}

// fillPool makes namespaces ready until ctx ends.
func (n *Network) fillPool(ctx context.Context, h *host) {
	for {
		for len(n.spare) < n.c.Pool && ctx.Err() == nil {
			r, err := n.prepare(h)
			if err != nil {
				// NewNamespace makes its own meanwhile, and reports.
				n.log.Warn("no namespace made ready", "err", err)
				break
			}
			n.spare <- r
		}
		select {
		case <-ctx.Done():
			return
		case <-n.refill:
		}
	}
}

func (n *Network) discard(h *host, r *ready) {
	n.take(r.path)
	r.close()
	if err := errors.Join(netns.Delete(r.path), link.Delete(h.links, r.link)); err != nil {
		n.log.Warn("ready namespace not removed", "err", err)
	}
}

func (n *Network) emptyPool(h *host) {
	for {
		select {
		case r := <-n.spare:
			n.discard(h, r)
		default:
			return
		}
	}
}

// reapLinks deletes the links that outlive their namespace by more than grace. At
// the end it waits for none.
func (n *Network) reapLinks(ctx context.Context, h *host) {
	type death struct {
		link string
		due  time.Time
	}
	var queue []death
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for {
		select {
		case name := <-n.dying:
			if len(queue) == 0 {
				timer.Reset(grace)
			}
			queue = append(queue, death{name, time.Now().Add(grace)})
			continue
		case <-timer.C:
		case <-ctx.Done():
			for len(n.dying) > 0 { // told before the end, not heard yet
				queue = append(queue, death{link: <-n.dying})
			}
		}
		for len(queue) > 0 && (ctx.Err() != nil || !time.Now().Before(queue[0].due)) {
			if err := link.Delete(h.links, queue[0].link); err != nil {
				n.log.Warn("link not removed", "link", queue[0].link, "err", err)
			}
			queue = queue[1:]
		}
		if ctx.Err() != nil {
			return
		}
		if len(queue) > 0 {
			timer.Reset(time.Until(queue[0].due))
		}
	}
}

// keepTable puts the table right whenever somebody else changed it, again after a while when that fails.
func (n *Network) keepTable(ctx context.Context, h *host, changed <-chan struct{}) {
	again := time.NewTimer(tableRetry)
	again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again.C:
		}
		if err := n.syncTable(h); err != nil {
			n.log.Error("host ports not restored, trying again", "err", err)
			again.Reset(tableRetry)
			continue
		}
		again.Stop()
		n.log.Debug("nftables table checked after a change by somebody else", "table", n.c.Table)
	}
}
