// Package dratest has a DRA driver for tests, which notes how it is called, checks that, and can be slow, wrong or gone. It replaces upstream's
// test driver.
package dratest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	healthv1 "k8s.io/kubelet/pkg/apis/dra-health/v1"
	healthv1alpha1 "k8s.io/kubelet/pkg/apis/dra-health/v1alpha1"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
	drapbv1beta1 "k8s.io/kubelet/pkg/apis/dra/v1beta1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/yare-dev/yare/kubelet/registrar"
	"github.com/yare-dev/yare/linux/socket"
)

// Driver prepares claims: each has one device of the driver's name, d-<claim>, with the CDI device example.com/<driver>=<claim>. What is exported is
// set before it serves, or by Change.
type Driver struct {
	drapb.UnimplementedDRAPluginServer
	healthv1.UnimplementedDRAResourceHealthServer
	Name     string
	Versions []string // of services, all of which are served; nil: v1 of both
	// Prepare is what it says of a claim; Unprepare whether it can be taken back. Nil succeeds.
	Prepare   func(*drapb.Claim) *drapb.NodePrepareResourceResponse
	Unprepare func(*drapb.Claim) *drapb.NodeUnprepareResourceResponse
	// Before is called first in each call; an error is the answer.
	Before func(ctx context.Context, call string) error

	mu       sync.Mutex
	calls    []string
	mistakes []string
	prepared map[string]bool // claims, by UID
	devices  []*healthv1.DeviceHealth
	watchers map[chan struct{}]bool
}

// New returns a driver.
func New(name string) *Driver {
	return &Driver{Name: name, prepared: map[string]bool{}, watchers: map[chan struct{}]bool{}}
}

func (d *Driver) versions() []string {
	if d.Versions != nil {
		return d.Versions
	}
	return []string{drapb.DRAPluginService, healthv1.DRAResourceHealthService}
}

// Registration is what it says of itself where it serves at the path.
func (d *Driver) Registration(path string) registrar.Registration {
	return registrar.Registration{Name: d.Name, Socket: path, Versions: d.versions()}
}

// Change has f change what is exported while it serves.
func (d *Driver) Change(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// Serve serves at l until stop is called, which breaks all connections.
func (d *Driver) Serve(l net.Listener) (stop func()) {
	s := grpc.NewServer()
	drapb.RegisterDRAPluginServer(s, d)
	drapbv1beta1.RegisterDRAPluginServer(s, drapbv1beta1.V1ServerWrapper{DRAPluginServer: d})
	healthv1.RegisterDRAResourceHealthServer(s, d)
	healthv1alpha1.RegisterDRAResourceHealthServer(s, healthv1.V1ServerWrapper{Server: d})
	return serve(s, l)
}

func serve(s *grpc.Server, l net.Listener) (stop func()) {
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	return func() { s.Stop(); <-done }
}

// ServeAt offers the driver to the kubelet whose folder root is, until stop is called.
func (d *Driver) ServeAt(ctx context.Context, root string) (stop func(), err error) {
	path := filepath.Join(root, "plugins", d.Name, "dra.sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	l, err := listen(ctx, path)
	if err != nil {
		return nil, err
	}
	end := d.Serve(l)
	offered := filepath.Join(root, "plugins_registry", d.Name+".sock")
	offer, err := listen(ctx, offered)
	if err != nil {
		end()
		return nil, err
	}
	s := grpc.NewServer()
	registerapi.RegisterRegistrationServer(s, registration{of: d, path: path})
	withdraw := serve(s, offer)
	return func() { _ = os.Remove(offered); withdraw(); end() }, nil
}

// listen takes the place of a socket that was left.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return socket.Listen(ctx, path)
}

type registration struct {
	registerapi.UnimplementedRegistrationServer
	of   *Driver
	path string
}

func (r registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.DRAPlugin, Name: r.of.Name, Endpoint: r.path, SupportedVersions: r.of.versions()}, nil
}

func (r registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	r.of.wrong(s.PluginRegistered, "not registered: %s", s.Error)
	return &registerapi.RegistrationStatusResponse{}, nil
}

// Calls returns what it was asked, in order, and forgets it.
func (d *Driver) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := d.calls
	d.calls = nil
	return calls
}

// Mistakes returns which calls were not as the API has it.
func (d *Driver) Mistakes() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.mistakes)
}

// Prepared returns the UIDs of the claims that are prepared.
func (d *Driver) Prepared() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.prepared))
}

// wrong notes a mistake unless ok. d.mu is not held.
func (d *Driver) wrong(ok bool, format string, args ...any) {
	if ok {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mistakes = append(d.mistakes, fmt.Sprintf(format, args...))
}

// begin notes a call.
func (d *Driver) begin(ctx context.Context, call string, claims []*drapb.Claim) error {
	var names []string
	for _, c := range claims {
		names = append(names, c.Name)
		d.wrong(c.Name != "" && c.Namespace != "" && c.Uid != "", "%s: incomplete claim %v", call, c)
	}
	slices.Sort(names)
	d.wrong(len(slices.Compact(slices.Clone(names))) == len(names) && len(names) > 0, "%s: none, or one of them twice: %v", call, names)
	d.mu.Lock()
	d.calls = append(d.calls, strings.TrimSpace(call+" "+strings.Join(names, ",")))
	before := d.Before
	d.mu.Unlock()
	if before != nil {
		return before(ctx, call)
	}
	return nil
}

// NodePrepareResources implements the driver's service.
func (d *Driver) NodePrepareResources(ctx context.Context, q *drapb.NodePrepareResourcesRequest) (*drapb.NodePrepareResourcesResponse, error) {
	if err := d.begin(ctx, "prepare", q.Claims); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out := &drapb.NodePrepareResourcesResponse{Claims: map[string]*drapb.NodePrepareResourceResponse{}}
	for _, c := range q.Claims {
		r := &drapb.NodePrepareResourceResponse{Devices: []*drapb.Device{{RequestNames: []string{"one"}, PoolName: "pool", DeviceName: "d-" + c.Name,
			CdiDeviceIds: []string{"example.com/" + strings.ReplaceAll(d.Name, ".", "-") + "=" + c.Name}}}}
		if d.Prepare != nil {
			r = d.Prepare(c)
		}
		if r == nil {
			continue
		}
		if out.Claims[c.Uid] = r; r.Error == "" {
			d.prepared[c.Uid] = true
		}
	}
	return out, nil
}

// NodeUnprepareResources implements the driver's service.
func (d *Driver) NodeUnprepareResources(ctx context.Context, q *drapb.NodeUnprepareResourcesRequest) (*drapb.NodeUnprepareResourcesResponse, error) {
	if err := d.begin(ctx, "unprepare", q.Claims); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	out := &drapb.NodeUnprepareResourcesResponse{Claims: map[string]*drapb.NodeUnprepareResourceResponse{}}
	for _, c := range q.Claims {
		r := &drapb.NodeUnprepareResourceResponse{}
		if d.Unprepare != nil {
			r = d.Unprepare(c)
		}
		if r == nil {
			continue
		}
		if out.Claims[c.Uid] = r; r.Error == "" {
			delete(d.prepared, c.Uid)
		}
	}
	return out, nil
}

// Say makes what it tells of its devices' health.
func (d *Driver) Say(devices ...*healthv1.DeviceHealth) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.devices = devices
	for w := range d.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// NodeWatchResources implements the service of devices' health.
func (d *Driver) NodeWatchResources(_ *healthv1.NodeWatchResourcesRequest, stream healthv1.DRAResourceHealth_NodeWatchResourcesServer) error {
	w := make(chan struct{}, 1)
	d.mu.Lock()
	d.watchers[w] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.watchers, w)
	}()
	for {
		d.mu.Lock()
		r := &healthv1.NodeWatchResourcesResponse{Devices: d.devices}
		d.mu.Unlock()
		if err := stream.Send(r); err != nil {
			return err
		}
		select {
		case <-w:
		case <-stream.Context().Done():
			return nil
		}
	}
}
