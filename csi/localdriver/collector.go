package localdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
)

// collector removes the data of this node's volumes that are deleted.
type collector struct {
	node   string
	client client.Client
	data   *data
	log    *slog.Logger

	volumes map[string]*corev1.PersistentVolume // by name; of the loop alone
}

// Delays after failures double from the first to the last.
const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = time.Minute
)

// Name is part of run.Component.
func (*collector) Name() string { return "removal" }

// Run removes until ctx ends. It is ready at once: what is to be removed waits.
func (c *collector) Run(ctx context.Context, ready func()) error {
	ready()
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel(nil)
	changes := make(chan client.Event)
	wg.Go(func() {
		mine := client.Query{Labels: labels.SelectorFromSet(labels.Set{claim.LocalNode: c.node})}
		for e, err := range c.client.Watch(ctx, api.PersistentVolumeKind, mine, 0) {
			if err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("watch volumes of node %s: %w", c.node, err))
			}
			if err != nil {
				return
			}
			select {
			case changes <- e:
			case <-ctx.Done():
				return
			}
		}
	})
	c.loop(ctx, changes)
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func (c *collector) loop(ctx context.Context, changes <-chan client.Event) {
	c.volumes = map[string]*corev1.PersistentVolume{}
	synced, delay := false, time.Duration(0)
	retry := time.NewTimer(0)
	defer retry.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		case e := <-changes:
			switch v, ok := e.Object.(*corev1.PersistentVolume); {
			case e.Op == client.Synced:
				synced = true
				c.strangers()
			case ok && e.Op == client.Deleted:
				delete(c.volumes, v.Name)
			case ok:
				c.volumes[v.Name] = v
			}
		}
		if !synced {
			continue
		}
		retry.Stop()
		if c.collect(ctx) {
			delay = 0
			continue
		}
		delay = min(max(2*delay, firstDelay), lastDelay)
		retry.Reset(delay)
	}
}

// collect removes what is to be removed, and says whether all went well.
func (c *collector) collect(ctx context.Context) bool {
	ok := true
	for _, name := range slices.Sorted(maps.Keys(c.volumes)) {
		v := c.volumes[name]
		if !c.deleted(v) {
			continue
		}
		if err := c.remove(ctx, v); err != nil && ctx.Err() == nil {
			ok = false
			c.log.Warn("data of a deleted volume could not be removed", "volume", name, "err", err)
		}
	}
	return ok
}

// deleted says whether a volume's data is to go: it is deleted with it, and nobody but us holds it back.
func (c *collector) deleted(v *corev1.PersistentVolume) bool {
	return v.DeletionTimestamp != nil && claim.OfLocal(v) == c.node && v.Status.Phase != corev1.VolumeBound &&
		v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete && len(v.Finalizers) == 1 && v.Finalizers[0] == claim.LocalData
}

// remove removes the data, unless another volume has the same, and then the finalizer.
func (c *collector) remove(ctx context.Context, v *corev1.PersistentVolume) error {
	handle := v.Spec.CSI.VolumeHandle
	shared := false
	for _, o := range c.volumes {
		shared = shared || o.Name != v.Name && claim.OfLocal(o) == c.node && o.Spec.CSI.VolumeHandle == handle
	}
	if !shared {
		if err := c.data.remove(handle); err != nil {
			return fmt.Errorf("remove volume %s: %w", handle, err)
		}
	}
	_, err := client.Mutate(ctx, c.client, v, "", func(v *corev1.PersistentVolume) {
		v.Finalizers = slices.DeleteFunc(v.Finalizers, func(f string) bool { return f == claim.LocalData })
	})
	switch {
	case apierrors.IsNotFound(err), apierrors.IsConflict(err): // a change of it is on its way here
		return nil
	case err != nil:
		return fmt.Errorf("release the PersistentVolume: %w", err)
	}
	delete(c.volumes, v.Name)
	c.log.Info("removed the data of a volume", "volume", v.Name)
	return nil
}

// strangers tells of folders that no volume has: somebody deleted the volume and took the finalizer away, or chose to keep the data.
func (c *collector) strangers() {
	handles, err := c.data.handles()
	if err != nil {
		c.log.Warn("list the folders of local volumes", "err", err)
		return
	}
	known := map[string]bool{}
	for _, v := range c.volumes {
		if v.Spec.CSI != nil {
			known[v.Spec.CSI.VolumeHandle] = true
		}
	}
	for _, h := range handles {
		if !known[h] {
			c.log.Info("a local volume's folder belongs to no PersistentVolume; it is kept until somebody removes it", "volume", h)
		}
	}
}
