package csi

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/yare-dev/yare/linux/socket"
)

// Limits of calls: upstream's for those that work on volumes.
const (
	operationLimit = 2 * time.Minute
	questionLimit  = 15 * time.Second
)

// reconnect is how a driver is found again that was started anew behind its socket: soon, as a socket costs nothing.
var reconnect = grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
	MinConnectTimeout: time.Second}

// Node is what a driver does on the node, as far as the kubelet asks for it.
type Node interface {
	// Capabilities returns the optional calls that the driver has. They are asked for once and remembered until the driver is away: another
	// release may come back.
	Capabilities(ctx context.Context) (Capabilities, error)
	// Info returns what the driver calls this node, and what it says of its place.
	Info(ctx context.Context) (*spec.NodeGetInfoResponse, error)
	Stage(ctx context.Context, r *spec.NodeStageVolumeRequest) error
	Unstage(ctx context.Context, r *spec.NodeUnstageVolumeRequest) error
	Publish(ctx context.Context, r *spec.NodePublishVolumeRequest) error
	Unpublish(ctx context.Context, r *spec.NodeUnpublishVolumeRequest) error
	Expand(ctx context.Context, r *spec.NodeExpandVolumeRequest) error
	// Stats returns the use of a volume; with Health also what is wrong with it, where the driver tells.
	Stats(ctx context.Context, r *spec.NodeGetVolumeStatsRequest) (*Stats, error)
}

// Capability is an optional call, or trait, of a driver on the node.
type Capability = spec.NodeServiceCapability_RPC_Type

// Capabilities are those of one driver. Those that this release does not know are in it too, and mean nothing.
type Capabilities map[Capability]bool

// Stats is the use of one volume and its health.
type Stats struct {
	Usage []*spec.VolumeUsage
	// Health is nil where the driver does not tell, or has nothing to complain of if it is empty.
	Health *spec.VolumeHealth
}

// Client is a Node behind a socket.
type Client struct {
	driver string
	node   spec.NodeClient
	close  func() error

	mu    sync.Mutex
	known Capabilities // nil before they were asked for
}

// Dial returns a Client of the driver that serves at a socket of that absolute path. It does not wait for the driver: the first call connects.
// The caller closes the Client.
func Dial(driver, path string) (*Client, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("driver %s: its socket %q is not an absolute path", driver, path)
	}
	conn, err := grpc.NewClient("passthrough:///localhost", grpc.WithContextDialer(socket.To(path)),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(reconnect))
	if err != nil {
		return nil, fmt.Errorf("driver %s: dial %s: %w", driver, path, err)
	}
	c := New(driver, spec.NewNodeClient(conn))
	c.close = conn.Close
	return c, nil
}

// New returns a Client over the node service of a driver that is reached in another way.
func New(driver string, node spec.NodeClient) *Client {
	return &Client{driver: driver, node: node, close: func() error { return nil }}
}

// Close ends the connection. Calls that are under way fail.
func (c *Client) Close() error { return c.close() }

// Capabilities implements Node.
func (c *Client) Capabilities(ctx context.Context) (Capabilities, error) {
	c.mu.Lock()
	known := c.known
	c.mu.Unlock()
	if known != nil {
		return known, nil
	}
	r, err := call(ctx, c, "NodeGetCapabilities", questionLimit, &spec.NodeGetCapabilitiesRequest{}, c.node.NodeGetCapabilities)
	if err != nil {
		return nil, err
	}
	known = Capabilities{}
	for _, k := range r.Capabilities {
		known[k.GetRpc().GetType()] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = known
	return known, nil
}

// Info implements Node.
func (c *Client) Info(ctx context.Context) (*spec.NodeGetInfoResponse, error) {
	return call(ctx, c, "NodeGetInfo", questionLimit, &spec.NodeGetInfoRequest{}, c.node.NodeGetInfo)
}

// Stage implements Node.
func (c *Client) Stage(ctx context.Context, r *spec.NodeStageVolumeRequest) error {
	_, err := call(ctx, c, "NodeStageVolume", operationLimit, r, c.node.NodeStageVolume)
	return err
}

// Unstage implements Node.
func (c *Client) Unstage(ctx context.Context, r *spec.NodeUnstageVolumeRequest) error {
	_, err := call(ctx, c, "NodeUnstageVolume", operationLimit, r, c.node.NodeUnstageVolume)
	return err
}

// Publish implements Node.
func (c *Client) Publish(ctx context.Context, r *spec.NodePublishVolumeRequest) error {
	_, err := call(ctx, c, "NodePublishVolume", operationLimit, r, c.node.NodePublishVolume)
	return err
}

// Unpublish implements Node.
func (c *Client) Unpublish(ctx context.Context, r *spec.NodeUnpublishVolumeRequest) error {
	_, err := call(ctx, c, "NodeUnpublishVolume", operationLimit, r, c.node.NodeUnpublishVolume)
	return err
}

// Expand implements Node.
func (c *Client) Expand(ctx context.Context, r *spec.NodeExpandVolumeRequest) error {
	_, err := call(ctx, c, "NodeExpandVolume", operationLimit, r, c.node.NodeExpandVolume)
	return err
}

// Stats implements Node.
func (c *Client) Stats(ctx context.Context, r *spec.NodeGetVolumeStatsRequest) (*Stats, error) {
	can, err := c.Capabilities(ctx)
	if err != nil {
		return nil, err
	}
	out := &Stats{}
	if can[spec.NodeServiceCapability_RPC_GET_VOLUME_STATS] {
		got, err := call(ctx, c, "NodeGetVolumeStats", questionLimit, r, c.node.NodeGetVolumeStats)
		if err != nil {
			return nil, err
		}
		out.Usage = got.Usage
	}
	if can[spec.NodeServiceCapability_RPC_GET_VOLUME_HEALTH] {
		got, err := call(ctx, c, "NodeGetVolumeHealth", questionLimit, &spec.NodeGetVolumeHealthRequest{VolumeId: r.VolumeId,
			VolumePublishPath: r.VolumePath, StagingTargetPath: r.StagingTargetPath}, c.node.NodeGetVolumeHealth)
		if err != nil {
			return nil, err
		}
		out.Health = got.VolumeHealth
	}
	return out, nil
}

// call does one call within its limit and tells of a failure as an *Error.
func call[Q, A any](ctx context.Context, c *Client, name string, limit time.Duration, q Q, f func(context.Context, Q, ...grpc.CallOption) (A, error)) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	a, err := f(ctx, q)
	if err != nil {
		if err = newError(c.driver, name, limit, err, secretsOf(q)); Code(err) == codes.Unavailable {
			c.mu.Lock()
			c.known = nil
			c.mu.Unlock()
		}
	}
	return a, err
}
