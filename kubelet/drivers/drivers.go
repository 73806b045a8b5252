// Package drivers keeps the CSI drivers that are registered at this node, and what the API has to know of them: the CSINode object, the
// topology labels of the Node and the annotation with what each driver calls it. It replaces upstream's nodeinfomanager and drivers store.
//
// A driver is usable from when it was asked what it calls this node, and all that was written, until its socket goes. What is written stays
// over restarts of the kubelet, and of a driver that keeps its socket; it goes with the socket. Labels stay: volumes that are there carry them.
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
	keepEvery  = time.Minute // what is written is looked after: a Node that was deleted takes its CSINode with it
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

	writing sync.Mutex // one writes at a time: they write the same objects

	mu      sync.Mutex
	drivers map[string]*driver
}

type driver struct {
	*csi.Client
	socket string
	info   *spec.NodeGetInfoResponse
}

// New returns a Set without drivers. Object returns the Node, nil before it is registered; changed is called when a driver has come or gone.
func New(node string, object func() *corev1.Node, c client.Client, log *slog.Logger, changed func()) *Set {
	return &Set{node: node, object: object, client: c, log: log, changed: changed, drivers: map[string]*driver{}}
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

// Run sees to it that there is a CSINode, until ctx ends.
func (s *Set) Run(ctx context.Context, ready func()) {
	ready()
	for {
		wait := keepEvery
		if err := s.keep(ctx); err != nil {
			wait = retryEvery
			if ctx.Err() == nil && !apierrors.IsConflict(err) && !errors.Is(err, errNoNode) {
				s.log.Warn("CSINode is not written", "err", err)
			}
		}
		if run.Pause(ctx, wait) != nil {
			return
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
	if err := s.collides(r.Name, d.info); err != nil {
		return err
	}
	s.mu.Lock()
	s.drivers[r.Name] = d
	s.mu.Unlock()
	defer s.drop(ctx, r.Name, d)
	if err := s.keep(ctx); err != nil {
		return err
	}
	s.changed()
	ready()
	for {
		period := s.period(ctx, r.Name)
		if run.Pause(ctx, period) != nil {
			return nil
		}
		if period == forever {
			continue
		}
		if err := s.ask(ctx, d); err == nil {
			err = s.keep(ctx)
			if err != nil && ctx.Err() == nil {
				s.log.Warn("number of volumes that a driver can attach is not brought up to date", "driver", r.Name, "err", err)
			}
		}
	}
}

// check refuses a driver that cannot be used, by what it says of itself.
func check(r registrar.Registration) error {
	if e := validation.IsDNS1123Subdomain(strings.ToLower(r.Name)); len(e) > 0 || len(r.Name) > 63 {
		return fmt.Errorf("name %q is not that of a CSI driver: at most 63 letters, digits, '-' and '.'", r.Name)
	}
	for _, text := range r.Versions {
		if v, err := version.ParseGeneric(text); err == nil && v.Major() == 1 {
			return nil
		}
	}
	return fmt.Errorf("driver %s supports versions %s of CSI, and this node 1", r.Name, strings.Join(r.Versions, ", "))
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
	s.mu.Lock()
	defer s.mu.Unlock()
	d.info = info
	return nil
}

// drop forgets the driver when its Serve ends; what was written goes with its socket.
func (s *Set) drop(ctx context.Context, name string, d *driver) {
	s.mu.Lock()
	mine := s.drivers[name] == d
	if mine {
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

// forever is longer than a kubelet lives.
const forever = 100 * 365 * 24 * time.Hour

// period returns how often the driver is asked how many volumes it can attach.
func (s *Set) period(ctx context.Context, name string) time.Duration {
	o, err := client.Get[*storagev1.CSIDriver](ctx, s.client, api.Key{Name: name})
	if err != nil || o.Spec.NodeAllocatableUpdatePeriodSeconds == nil {
		return forever
	}
	return time.Duration(*o.Spec.NodeAllocatableUpdatePeriodSeconds) * time.Second
}
