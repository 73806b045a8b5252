package devices

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/yare-dev/yare/kubelet/registrar"
)

// plugin is one connection to a plugin.
type plugin struct {
	resource string
	number   uint64
	options  *pluginapi.DevicePluginOptions
	conn     *grpc.ClientConn
	client   pluginapi.DevicePluginClient
	cancel   context.CancelCauseFunc
	log      *slog.Logger
}

// errReplaced ends the connection to a plugin whose resource another has registered for since.
var errReplaced = errors.New("another plugin has registered for the same resource")

// follow connects to the plugin and takes up its lists until it goes or is replaced, or ctx ends; ready is called after the first. ask says
// that its options are still to be asked for.
func (s *Set) follow(ctx context.Context, resource, path string, options *pluginapi.DevicePluginOptions, ask bool, ready func()) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer func() {
		if errors.Is(context.Cause(ctx), errReplaced) {
			err = errReplaced
		}
		cancel(nil)
	}()
	conn, err := grpc.NewClient("passthrough:///localhost",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.config.Dial(ctx, path) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: callLimit,
			Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 2, MaxDelay: time.Second}}))
	if err != nil {
		return err
	}
	var reader sync.WaitGroup
	defer reader.Wait()
	defer conn.Close()
	p := &plugin{resource: resource, options: options, conn: conn, client: pluginapi.NewDevicePluginClient(conn), cancel: cancel,
		log: s.log.With("resource", resource, "socket", path)}
	s.expect(p)
	defer s.lost(p)
	if err := p.connect(ctx); err != nil {
		return err
	}
	if ask {
		limited, done := context.WithTimeout(ctx, callLimit)
		p.options, err = p.client.GetDevicePluginOptions(limited, &pluginapi.Empty{})
		if done(); err != nil {
			return fmt.Errorf("GetDevicePluginOptions: %w", err)
		}
	}
	stream, err := p.client.ListAndWatch(ctx, &pluginapi.Empty{})
	if err != nil {
		return fmt.Errorf("ListAndWatch: %w", err)
	}
	lists, failed := newest(stream, &reader)
	for first := true; ; first = false {
		select {
		case err := <-failed:
			return err
		case list := <-lists:
			if !s.listed(p, list) {
				return errReplaced
			}
		}
		if first {
			ready()
		}
		select {
		case err := <-failed:
			return err
		case <-time.After(listPause):
		}
	}
}

// newest reads lists until the stream ends, and keeps the newest that was not taken up.
func newest(stream pluginapi.DevicePlugin_ListAndWatchClient, wg *sync.WaitGroup) (lists <-chan []*pluginapi.Device, failed <-chan error) {
	list, end := make(chan []*pluginapi.Device, 1), make(chan error, 1)
	wg.Go(func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				end <- fmt.Errorf("ListAndWatch: %w", err)
				return
			}
			select {
			case <-list:
			default:
			}
			list <- r.Devices
		}
	})
	return list, end
}

// expect numbers the plugin. One of the same resource that has listed nothing yet is let go.
func (s *Set) expect(p *plugin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	p.number = s.count
	if before := s.pending[p.resource]; before != nil {
		before.cancel(errReplaced)
	}
	s.pending[p.resource] = p
}

// connect waits until the plugin answers: it may listen only when it is told that it is registered.
func (p *plugin) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	p.conn.Connect()
	for {
		state := p.conn.GetState()
		if state == connectivity.Ready {
			return nil
		}
		if state == connectivity.Idle {
			p.conn.Connect()
		}
		if !p.conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("connect to the device plugin: %w", ctx.Err())
		}
	}
}

// allocate asks what a container needs for the devices.
func (p *plugin) allocate(ctx context.Context, ids []string) (*pluginapi.ContainerAllocateResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := p.client.Allocate(ctx, &pluginapi.AllocateRequest{ContainerRequests: []*pluginapi.ContainerAllocateRequest{{DevicesIds: ids}}})
	if err != nil {
		return nil, registrar.Short(err)
	}
	if len(r.ContainerResponses) == 0 || r.ContainerResponses[0] == nil {
		return nil, fmt.Errorf("no containers return in allocation response %v", r)
	}
	if err := check(r.ContainerResponses[0]); err != nil {
		return nil, fmt.Errorf("allocation response of the device plugin of %s: %w", p.resource, err)
	}
	return r.ContainerResponses[0], nil
}

// preferred asks which of the available devices the plugin would choose. What it names beside them is left out by choose.
func (p *plugin) preferred(ctx context.Context, available, must []string, size int) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	r, err := p.client.GetPreferredAllocation(ctx, &pluginapi.PreferredAllocationRequest{ContainerRequests: []*pluginapi.ContainerPreferredAllocationRequest{
		{AvailableDeviceIDs: available, MustIncludeDeviceIDs: must, AllocationSize: int32(size)}}})
	if err != nil {
		return nil, registrar.Short(err)
	}
	if len(r.ContainerResponses) == 0 {
		return nil, nil
	}
	return r.ContainerResponses[0].GetDeviceIDs(), nil
}

// prepare has the devices made ready for another start of their container.
func (p *plugin) prepare(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, prepareLimit)
	defer cancel()
	if _, err := p.client.PreStartContainer(ctx, &pluginapi.PreStartContainerRequest{DevicesIds: ids}); err != nil {
		return fmt.Errorf("PreStartContainer of the device plugin of %s: %w", p.resource, registrar.Short(err))
	}
	return nil
}
