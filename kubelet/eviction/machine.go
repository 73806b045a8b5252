package eviction

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/kubelet/node"
)

// Machine observes this machine.
type Machine struct {
	// Root is the kubelet's folder, whose file system is nodefs.
	Root string
	// Images returns folders on the file systems of images and of what containers write; empty: not known.
	Images func(context.Context) (images, layers string, err error)
	Log    *slog.Logger

	mu     sync.Mutex
	looked bool
	known  bool // where images and layers are
	images string
	layers bool // are with the images
}

// Observe looks. The first look is at the kubelet's start and does not ask the runtime, which may have much to measure.
func (m *Machine) Observe(ctx context.Context) (Observations, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	o := Observations{At: time.Now(), Of: map[Signal]Observation{}}
	memory, err := node.Memory()
	if err != nil {
		return o, err
	}
	o.Of[MemoryAvailable] = Observation{memory.Available(), memory.Total}
	if err := o.disk(m.Root, NodeFsAvailable, NodeFsInodesFree); err != nil {
		return o, err
	}
	if now, most := node.PIDs(); now > 0 && most > 0 {
		o.Of[PIDAvailable] = Observation{max(0, most-now), most}
	}
	if m.looked && !m.known {
		if err := m.find(ctx); err != nil && ctx.Err() == nil {
			m.Log.Warn("where images are is not known yet", "err", err) // what else is known counts
		}
	}
	m.looked = true
	if m.images == "" {
		return o, nil
	}
	o.OwnImages, o.LayersWithImages = true, m.layers
	return o, o.disk(m.images, ImageFsAvailable, ImageFsInodesFree)
}

// disk notes the file system of path.
func (o *Observations) disk(path string, available, inodes Signal) error {
	d, err := node.Disk(path)
	if err != nil {
		return err
	}
	if d.Bytes > 0 {
		o.Of[available] = Observation{d.Free, d.Bytes}
	}
	if d.Inodes > 0 {
		o.Of[inodes] = Observation{d.InodesFree, d.Inodes}
	}
	return nil
}

// find asks the runtime where images are. They stay there.
func (m *Machine) find(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, Interval)
	defer cancel()
	images, layers, err := m.Images(ctx)
	if err != nil {
		return fmt.Errorf("ask where images are: %w", err)
	}
	if images == "" {
		m.known = true
		return nil
	}
	own, err := apart(images, m.Root)
	if err != nil {
		return err
	}
	away := false
	if layers != "" {
		if away, err = apart(layers, images); err != nil {
			return err
		}
	}
	if m.known = true; own {
		m.images, m.layers = images, !away
	}
	return nil
}

// apart reports whether two folders are on different file systems.
func apart(a, b string) (bool, error) {
	var x, y unix.Stat_t
	if err := errors.Join(unix.Stat(a, &x), unix.Stat(b, &y)); err != nil {
		return false, fmt.Errorf("compare file systems of %s and %s: %w", a, b, err)
	}
	return x.Dev != y.Dev, nil
}
