// Package drivers keeps the CSI drivers that are registered at this node, and what the API has to know of them: the CSINode object, the
// topology labels of the Node and the annotation with what each driver calls it. It replaces upstream's nodeinfomanager and drivers store.
//
// A driver is usable from when it was asked what it calls this node, until its socket goes; it is told that it is registered when all is
// written. It is told of its own faults alone: it may end by that, and what others are late with, such as the API, is waited for. What is written
// stays over restarts of the kubelet, and of a driver that keeps its socket; it goes with the socket. Labels stay: volumes that are there carry them.
//
// Lock order: Set.writing before Set.mu.
package drivers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/version"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/csi"
	"github.com/yare-dev/yare/kubelet/registrar"
	"github.com/yare-dev/yare/run"
)

// Times.
const (
	lookEvery  = time.Minute // whether a CSIDriver wants its drivers to be asked again and again
	retryEvery = time.Second
	lastWrite  = 10 * time.Second // for what is written when a socket goes
)

// Set are the drivers of one node.
type Set struct {
	node    string
	object  func() *corev1.Node
	client  client.Client
	log     *slog.Logger
	changed func()
	poke    chan struct{} // the Node has changed

	writing sync.Mutex // one writes at a time: they write the same objects

	mu      sync.Mutex
	names   map[string]*driver // whose a name is: one at a time
	drivers map[string]*driver // those that are usable
}

type driver struct {
	*csi.Client
	socket string
	info   *spec.NodeGetInfoResponse
}

// New returns a Set without drivers. Object returns the Node, nil before it is registered; changed is called when a driver has come or gone.
func New(node string, object func() *corev1.Node, c client.Client, log *slog.Logger, changed func()) *Set {
	return &Set{node: node, object: object, client: c, log: log, changed: changed, poke: make(chan struct{}, 1), names: map[string]*driver{}, drivers: map[string]*driver{}}
}

// Driver returns the driver of that name.
func (s *Set) Driver(name string) (csi.Node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.drivers[name]
	if d == nil {
		return nil, fmt.Errorf("driver name %s not found in the list of registered CSI drivers: it has to run on this node", name)
	}
	return d, nil
}

// NodeChanged is to be called when the Node is another.
func (s *Set) NodeChanged() {
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// Run sees to it that there is a CSINode of each Node, which one that is deleted takes with it, until ctx ends.
func (s *Set) Run(ctx context.Context, ready func()) {
	ready()
	var kept types.UID
	for {
		if n := s.object(); n != nil && n.UID != kept {
			if s.patiently(ctx, "CSINode", s.keep) == nil {
				kept = n.UID
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-s.poke:
		}
	}
}

// fault is a driver's own.
type fault struct{ error }

// patiently calls f until it succeeds, or fails in a way that trying again cannot mend: by a driver's fault, or because the API refuses what
// a driver wants to have written.
func (s *Set) patiently(ctx context.Context, what string, f func(context.Context) error) error {
	for {
		err := f(ctx)
		var own fault
		switch {
		case err == nil, ctx.Err() != nil, errors.As(err, &own), apierrors.IsInvalid(err), apierrors.IsForbidden(err):
			return err
		case !apierrors.IsConflict(err) && !errors.Is(err, errNoNode):
			s.log.Warn("what is known of CSI drivers is not written yet", "of", what, "err", err)
		}
		if err := run.Pause(ctx, retryEvery); err != nil {
			return err
		}
	}
}

// Serve implements registrar.Handler.
func (s *Set) Serve(ctx context.Context, r registrar.Registration, ready func()) error {
	if err := check(r); err != nil {
		return err
	}
	c, err := csi.Dial(r.Name, r.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	d := &driver{Client: c, socket: r.Socket}
	if err := s.ask(ctx, d); err != nil {
		return err
	}
	defer s.drop(ctx, r.Name, d)
	if err := s.enter(ctx, r.Name, d); err != nil {
		return err
	}
	s.changed()
	ready()
	s.follow(ctx, r.Name, d)
	return nil
}

// enter writes what the driver says, and makes it usable: what is written for another must not fail by it.
func (s *Set) enter(ctx context.Context, name string, d *driver) error {
	for told := false; ; told = true {
		before := s.reserve(name, d)
		if before == nil {
			break
		}
		if !told {
			s.log.Warn("a driver waits: another of its name is registered, and has its volumes", "driver", name, "socket", d.socket, "other", before.socket)
		}
		if err := run.Pause(ctx, retryEvery); err != nil {
			return err
		}
	}
	err := s.patiently(ctx, name, func(ctx context.Context) error {
		if err := s.collides(name, d.info); err != nil {
			return err
		}
		return s.write(ctx, map[string]*spec.NodeGetInfoResponse{name: d.info})
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.drivers[name] = d
	s.mu.Unlock()
	return nil
}

// reserve gives d the name, or returns who has it.
func (s *Set) reserve(name string, d *driver) (before *driver) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.names[name]; have != nil {
		return have
	}
	s.names[name] = d
	return nil
}

// follow asks the driver how many volumes it can attach, as often as its CSIDriver says at the time, until ctx ends.
func (s *Set) follow(ctx context.Context, name string, d *driver) {
	for asked := time.Now(); ; {
		wait, period := lookEvery, s.period(ctx, name)
		if period > 0 {
			wait = min(wait, time.Until(asked.Add(period)))
		}
		if run.Pause(ctx, wait) != nil {
			return
		}
		if period == 0 || time.Since(asked) < period {
			continue
		}
		asked = time.Now()
		err := s.ask(ctx, d)
		if err == nil {
			err = s.keep(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.log.Warn("number of volumes that a driver can attach is not brought up to date", "driver", name, "err", err)
		}
	}
}

// mostSegments is how many parts a driver's topology has at most; real ones have a handful.
const mostSegments = 100

// check refuses a driver that cannot be used, by what it says of itself.
func check(r registrar.Registration) error {
	if e := validation.IsDNS1123Subdomain(strings.ToLower(r.Name)); len(e) > 0 || len(r.Name) > 63 {
		return fmt.Errorf("name %.200q is not that of a CSI driver: at most 63 letters, digits, '-' and '.'", r.Name)
	}
	for _, text := range r.Versions {
		if v, err := version.ParseGeneric(text); err == nil && v.Major() == 1 {
			return nil
		}
	}
	return fmt.Errorf("driver %s supports versions %.200s of CSI, and this node 1", r.Name, strings.Join(r.Versions, ", "))
}

// ask asks the driver what it calls this node.
func (s *Set) ask(ctx context.Context, d *driver) error {
	info, err := d.Info(ctx)
	if err != nil {
		return err
	}
	if info.NodeId == "" {
		return errors.New("NodeGetInfo: the driver has no name for this node (node_id)")
	}
	if n := len(info.GetAccessibleTopology().GetSegments()); n > mostSegments {
		return fmt.Errorf("NodeGetInfo: the driver's topology has %d segments, which would all be labels of the Node: %d at most", n, mostSegments)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d.info = info
	return nil
}

// drop forgets the driver when its Serve ends; what was written goes with its socket.
func (s *Set) drop(ctx context.Context, name string, d *driver) {
	s.mu.Lock()
	mine := s.names[name] == d
	if mine {
		delete(s.names, name)
		delete(s.drivers, name)
	}
	s.mu.Unlock()
	if !mine || !errors.Is(context.Cause(ctx), registrar.ErrGone) {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWrite)
	defer cancel()
	if err := s.remove(ctx, name); err != nil {
		s.log.Warn("driver that is gone stays in the CSINode", "driver", name, "err", err)
	}
	s.changed()
}

// period returns how often the driver is asked how many volumes it can attach; 0: not again.
func (s *Set) period(ctx context.Context, name string) time.Duration {
	o, err := client.Get[*storagev1.CSIDriver](ctx, s.client, api.Key{Name: name})
	if err != nil || o.Spec.NodeAllocatableUpdatePeriodSeconds == nil {
		return 0
	}
	return time.Duration(*o.Spec.NodeAllocatableUpdatePeriodSeconds) * time.Second
}
