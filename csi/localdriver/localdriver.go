// Package localdriver is the built-in storage: a CSI driver whose volumes are folders on the disk of the node of their first pod. It is
// what a cluster has with nothing installed, and stands where others install local-path-provisioner.
//
//	controllers/localvolume            this package, on every node                  kubelet
//	  makes the PersistentVolume         data/<handle>  <── NodePublishVolume ──  as of any driver, over a socket that it
//	  deletes it after its claim         removes the data, then the finalizer     found in plugins_registry
//
// The folder below Dir:
//
//	data/<handle>      a volume's content
//	making/<handle>    one that is being made: moved to data when it is complete
//	removed/<handle>   one that is being removed
//
// Invariants:
//   - A volume's folder is made when it is first published, which its PersistentVolume is told before anybody writes to it: one that is missing
//     later is not made anew, but refused. It is removed only when its PersistentVolume is being deleted, has the policy
//     Delete, and nobody but us holds it back any more. What no PersistentVolume asks to remove is left alone, and told in the log.
//   - The finalizer goes after the data. So a volume whose node is away waits for it, and no kill leaves data behind or takes it early.
//   - Nothing outside Dir is reached through a handle: handles are names, and resolved below an open folder. Nothing is removed through a mount.
//
// A volume's size is not enforced: a folder can grow until its disk is full.
package localdriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux/socket"
	"github.com/yare-dev/yare/run"
)

// Config is what a driver is made of. Paths are absolute.
type Config struct {
	// NodeName is the Node's name.
	NodeName string
	// Dir is where the volumes are. It is made where it is missing, for root alone.
	Dir string
	// KubeletDir is the kubelet's root, below which the driver has its sockets.
	KubeletDir string
	// Client sees this node's PersistentVolumes, notes in them that their folders are made, and takes their finalizer away, as the kubelet's
	// user may.
	Client client.Client
	Log    *slog.Logger
}

// Driver is the component.
type Driver struct {
	spec.UnimplementedNodeServer
	spec.UnimplementedIdentityServer

	c    Config
	data *data // while it runs
}

// New returns the driver of a node.
func New(c Config) *Driver { return &Driver{c: c} }

// Name is "local storage".
func (*Driver) Name() string { return "local storage" }

// Run serves until ctx ends, and removes the data of volumes that are deleted. It is ready when the kubelet can find it.
func (d *Driver) Run(ctx context.Context, ready func()) error {
	var err error
	if d.data, err = openData(d.c.Dir); err != nil {
		return fmt.Errorf("folder of local volumes: %w", err)
	}
	defer d.data.close()
	if err := d.data.sweep(); err != nil {
		d.c.Log.Warn("what a process before has left of local volumes could not be removed", "err", err)
	}
	socket := filepath.Join(d.c.KubeletDir, "plugins", claim.LocalDriver, "csi.sock")
	return run.InOrder(d.Name(),
		serve("csi", socket, func(s *grpc.Server) {
			spec.RegisterIdentityServer(s, d)
			spec.RegisterNodeServer(s, d)
		}),
		serve("registration", filepath.Join(d.c.KubeletDir, "plugins_registry", claim.LocalDriver+"-reg.sock"), func(s *grpc.Server) {
			registerapi.RegisterRegistrationServer(s, registration{socket: socket, log: d.c.Log})
		}),
		&collector{node: d.c.NodeName, client: d.c.Client, data: d.data, log: d.c.Log},
	).Run(ctx, ready)
}

// serve is gRPC on a unix socket, in place of one that was left.
func serve(name, path string, register func(*grpc.Server)) run.Component {
	return run.Func(name, func(ctx context.Context, ready func()) error {
		if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
			return fmt.Errorf("folder of the socket: %w", err)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("old socket: %w", err)
		}
		l, err := socket.Listen(ctx, path)
		if err != nil {
			return err
		}
		defer os.Remove(path)
		s := grpc.NewServer()
		register(s)
		stop := context.AfterFunc(ctx, s.Stop) // the kubelet repeats what is cut off
		defer stop()
		ready()
		if err := s.Serve(l); err != nil && ctx.Err() == nil {
			return fmt.Errorf("serve %s: %w", path, err)
		}
		return nil
	})
}

// registration tells the kubelet what is behind the socket.
type registration struct {
	registerapi.UnimplementedRegistrationServer
	socket string
	log    *slog.Logger
}

// GetInfo is part of registerapi.RegistrationServer.
func (r registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return &registerapi.PluginInfo{Type: registerapi.CSIPlugin, Name: claim.LocalDriver, Endpoint: r.socket, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus is part of registerapi.RegistrationServer.
func (r registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	if !s.PluginRegistered {
		r.log.Debug("the kubelet does not take local storage yet", "err", s.Error) // it warns itself, and tries again
	}
	return &registerapi.RegistrationStatusResponse{}, nil
}
