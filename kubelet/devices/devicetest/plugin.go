// Package devicetest has a device plugin for tests, which notes how it is called, checks that, and can be slow, wrong or gone; and sockets in
// memory, so that it can be reached in a bubble. It replaces upstream's sample device plugin.
package devicetest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/yare-dev/yare/linux/socket"
)

// Plugin serves one resource. What is exported is set before it serves, or by Change.
type Plugin struct {
	pluginapi.UnimplementedDevicePluginServer
	Resource string
	Options  pluginapi.DevicePluginOptions
	// Answer is what a container needs for the devices; nil: a variable DEVICES with their names.
	Answer func(ids []string) (*pluginapi.AllocateResponse, error)
	// Prefer chooses; PreStart prepares. Nil succeeds.
	Prefer   func(available, must []string, size int) ([]string, error)
	PreStart func(ids []string) error
	// Hang are the calls that are never answered.
	Hang map[string]bool

	mu        sync.Mutex
	devices   []*pluginapi.Device
	watchers  map[chan struct{}]bool
	calls     []string
	mistakes  []string
	allocated map[string]bool
}

// New returns a plugin with healthy devices.
func New(resource string, ids ...string) *Plugin {
	p := &Plugin{Resource: resource, watchers: map[chan struct{}]bool{}, allocated: map[string]bool{}, Hang: map[string]bool{}}
	for _, id := range ids {
		p.devices = append(p.devices, &pluginapi.Device{ID: id, Health: pluginapi.Healthy})
	}
	return p
}

// Set gives it other devices, and tells all who watch.
func (p *Plugin) Set(devices ...*pluginapi.Device) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices = devices
	for w := range p.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Change has f change what is exported while it serves.
func (p *Plugin) Change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// Health makes the devices healthy or not.
func (p *Plugin) Health(health string, ids ...string) {
	p.mu.Lock()
	var next []*pluginapi.Device
	for _, d := range p.devices {
		h := d.Health
		if slices.Contains(ids, d.ID) {
			h = health
		}
		next = append(next, &pluginapi.Device{ID: d.ID, Health: h, Topology: d.Topology})
	}
	p.mu.Unlock()
	p.Set(next...)
}

// Calls returns what it was asked, in order, and forgets it.
func (p *Plugin) Calls() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	calls := p.calls
	p.calls = nil
	return calls
}

// Mistakes returns which calls were not as the API has it.
func (p *Plugin) Mistakes() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.mistakes)
}

// Serve serves at l until stop is called, which breaks all connections.
func (p *Plugin) Serve(l net.Listener) (stop func()) {
	s := grpc.NewServer()
	pluginapi.RegisterDevicePluginServer(s, p)
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	return func() { s.Stop(); <-done }
}

// Register tells the kubelet that listens at the socket of the plugin, which serves at endpoint beside it.
func (p *Plugin) Register(ctx context.Context, kubelet, endpoint string) error {
	return Register(ctx, kubelet, &pluginapi.RegisterRequest{Version: pluginapi.Version, Endpoint: endpoint, ResourceName: p.Resource, Options: &p.Options})
}

// Register sends any registration.
func Register(ctx context.Context, kubelet string, r *pluginapi.RegisterRequest) error {
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithContextDialer(socket.To(kubelet)), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = pluginapi.NewRegistrationClient(conn).Register(ctx, r)
	return err
}

// note begins a call; it does not return where the call hangs.
func (p *Plugin) note(ctx context.Context, call string, ids ...string) error {
	p.mu.Lock()
	p.calls = append(p.calls, strings.TrimSpace(call+" "+strings.Join(ids, ",")))
	hang := p.Hang[call]
	p.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

// wrong notes a mistake unless ok. p.mu is not held.
func (p *Plugin) wrong(ok bool, format string, args ...any) {
	if ok {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mistakes = append(p.mistakes, fmt.Sprintf(format, args...))
}

// GetDevicePluginOptions answers with Options.
func (p *Plugin) GetDevicePluginOptions(ctx context.Context, _ *pluginapi.Empty) (*pluginapi.DevicePluginOptions, error) {
	return &p.Options, p.note(ctx, "GetDevicePluginOptions")
}

// ListAndWatch sends the devices, and again whenever they are set.
func (p *Plugin) ListAndWatch(_ *pluginapi.Empty, stream pluginapi.DevicePlugin_ListAndWatchServer) error {
	changed := make(chan struct{}, 1)
	p.mu.Lock()
	p.watchers[changed] = true
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.watchers, changed)
	}()
	if err := p.note(stream.Context(), "ListAndWatch"); err != nil {
		return err
	}
	for {
		p.mu.Lock()
		devices := p.devices
		p.mu.Unlock()
		if err := stream.Send(&pluginapi.ListAndWatchResponse{Devices: devices}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		}
	}
}

// GetPreferredAllocation answers with what Prefer says.
func (p *Plugin) GetPreferredAllocation(ctx context.Context, r *pluginapi.PreferredAllocationRequest) (*pluginapi.PreferredAllocationResponse, error) {
	p.wrong(p.Options.GetPreferredAllocationAvailable, "GetPreferredAllocation was not offered")
	q := r.ContainerRequests[0]
	if err := p.note(ctx, "GetPreferredAllocation", q.AvailableDeviceIDs...); err != nil {
		return nil, err
	}
	for _, id := range q.MustIncludeDeviceIDs {
		p.wrong(slices.Contains(q.AvailableDeviceIDs, id), "%s must be included and is not available", id)
	}
	p.mu.Lock()
	prefer := p.Prefer
	p.mu.Unlock()
	if prefer == nil {
		return &pluginapi.PreferredAllocationResponse{}, nil
	}
	ids, err := prefer(q.AvailableDeviceIDs, q.MustIncludeDeviceIDs, int(q.AllocationSize))
	return &pluginapi.PreferredAllocationResponse{ContainerResponses: []*pluginapi.ContainerPreferredAllocationResponse{{DeviceIDs: ids}}}, err
}

// Allocate answers with what Answer says.
func (p *Plugin) Allocate(ctx context.Context, r *pluginapi.AllocateRequest) (*pluginapi.AllocateResponse, error) {
	ids := r.ContainerRequests[0].DevicesIds
	if err := p.note(ctx, "Allocate", ids...); err != nil {
		return nil, err
	}
	p.mu.Lock()
	watched := len(p.watchers) > 0
	known := map[string]bool{}
	for _, d := range p.devices {
		known[d.ID] = d.Health == pluginapi.Healthy
	}
	for _, id := range ids {
		p.allocated[id] = true
	}
	answer := p.Answer
	p.mu.Unlock()
	p.wrong(watched, "Allocate without ListAndWatch")
	for _, id := range ids {
		p.wrong(known[id], "Allocate of %s, which is not healthy", id)
	}
	if answer != nil {
		return answer(ids)
	}
	return &pluginapi.AllocateResponse{ContainerResponses: []*pluginapi.ContainerAllocateResponse{{Envs: map[string]string{"DEVICES": strings.Join(ids, ",")}}}}, nil
}

// PreStartContainer answers with what PreStart says.
func (p *Plugin) PreStartContainer(ctx context.Context, r *pluginapi.PreStartContainerRequest) (*pluginapi.PreStartContainerResponse, error) {
	p.wrong(p.Options.PreStartRequired, "PreStartContainer was not asked for")
	if err := p.note(ctx, "PreStartContainer", r.DevicesIds...); err != nil {
		return nil, err
	}
	for _, id := range r.DevicesIds {
		p.mu.Lock()
		ok := p.allocated[id]
		p.mu.Unlock()
		p.wrong(ok, "PreStartContainer of %s, which was not allocated", id)
	}
	p.mu.Lock()
	prepare := p.PreStart
	p.mu.Unlock()
	if prepare == nil {
		return &pluginapi.PreStartContainerResponse{}, nil
	}
	if err := prepare(r.DevicesIds); err != nil {
		return nil, status.Error(codes.Unknown, err.Error())
	}
	return &pluginapi.PreStartContainerResponse{}, nil
}
