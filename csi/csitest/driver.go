// Package csitest has a CSI driver for tests, which checks in which order it is called, and the suite for drivers and for the client
// of package csi. It stands where upstream's csi-test stands.
package csitest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/yare-dev/yare/csi"
)

// Driver is a driver's node service over folders: volume v is the folder v in Dir, or the device node v for block access.
// Its methods may be called at once. Set the fields before the first call.
//
//	none ─Stage─> staged ─Publish─> published, once for each target
//	  ^──Unstage────┘ ^────Unpublish──────┘
//
// A call that may not follow fails, and is noted in Broken: the caller did not keep to the specification.
type Driver struct {
	spec.UnimplementedNodeServer

	Name string
	Dir  string // of the volumes' contents
	Can  []csi.Capability
	Node *spec.NodeGetInfoResponse
	// Hook is called for each call about a volume, before it is carried out and after it (done). Its error is the answer.
	Hook func(call, volume string, done bool) error
	// Stats is the answer for each volume.
	Stats *spec.NodeGetVolumeStatsResponse
	// Health is what ails the volumes.
	Health []*spec.VolumeHealth_VolumeHealthEntry

	mu        sync.Mutex
	staged    map[string]*staged
	published map[string]*published // by target
	calls     []string
	broken    []string
	requests  map[string]any // the last of each call
}

type staged struct{ path, capability string }

type published struct{ volume, capability string }

// New returns a Driver that stages, over an empty folder.
func New(name, dir string) *Driver {
	return &Driver{Name: name, Dir: dir, Can: []csi.Capability{spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME},
		Node: &spec.NodeGetInfoResponse{NodeId: "node-of-" + name}, staged: map[string]*staged{}, published: map[string]*published{}, requests: map[string]any{}}
}

// Client returns a client that calls the driver's methods without a socket.
func (d *Driver) Client() *csi.Client {
	return csi.New(d.Name, node{d})
}

// Serve serves the driver on a socket until the returned function is called.
func (d *Driver) Serve(socket string) (stop func(), err error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, err
	}
	s := grpc.NewServer()
	spec.RegisterNodeServer(s, d)
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	return func() { s.Stop(); wg.Wait() }, nil
}

// Calls returns the calls about volumes so far, "Stage v", and forgets them.
func (d *Driver) Calls() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.calls
	d.calls = nil
	return c
}

// Broken returns what was called that may not be, and what is still staged or published.
func (d *Driver) Broken() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := slices.Clone(d.broken)
	for v := range d.staged {
		all = append(all, "still staged: "+v)
	}
	for t := range d.published {
		all = append(all, "still published: "+t)
	}
	return all
}

// Last returns the last request of a call, "Publish", nil when there was none.
func (d *Driver) Last(call string) any {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.requests[call]
}

func (d *Driver) can(c csi.Capability) bool { return slices.Contains(d.Can, c) }

func (d *Driver) stages() bool { return d.can(spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME) }

// wrong notes a call that may not be. Preconditions: d.mu is held.
func (d *Driver) wrong(code codes.Code, format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	d.broken = append(d.broken, text)
	return status.Error(code, text)
}

// do carries a call out, between the hooks.
func (d *Driver) do(call, volume string, request any, f func() error) error {
	d.mu.Lock()
	d.calls = append(d.calls, call+" "+volume)
	d.requests[call] = request
	d.mu.Unlock()
	if d.Hook != nil {
		if err := d.Hook(call, volume, false); err != nil {
			return err
		}
	}
	d.mu.Lock()
	err := f()
	d.mu.Unlock()
	if err == nil && d.Hook != nil {
		err = d.Hook(call, volume, true)
	}
	return err
}

// NodeGetInfo implements the node service.
func (d *Driver) NodeGetInfo(context.Context, *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	if d.Hook != nil {
		if err := d.Hook("Info", "", false); err != nil {
			return nil, err
		}
	}
	return d.Node, nil
}

// NodeGetCapabilities implements the node service.
func (d *Driver) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	r := &spec.NodeGetCapabilitiesResponse{}
	for _, c := range d.Can {
		r.Capabilities = append(r.Capabilities, &spec.NodeServiceCapability{Type: &spec.NodeServiceCapability_Rpc{Rpc: &spec.NodeServiceCapability_RPC{Type: c}}})
	}
	return r, nil
}

// NodeStageVolume implements the node service.
func (d *Driver) NodeStageVolume(_ context.Context, r *spec.NodeStageVolumeRequest) (*spec.NodeStageVolumeResponse, error) {
	return &spec.NodeStageVolumeResponse{}, d.do("Stage", r.VolumeId, r, func() error {
		switch have := d.staged[r.VolumeId]; {
		case !d.stages():
			return d.wrong(codes.Unimplemented, "Stage %s: the driver does not stage", r.VolumeId)
		case r.VolumeId == "" || r.StagingTargetPath == "" || r.VolumeCapability == nil:
			return d.wrong(codes.InvalidArgument, "Stage %s: a field is missing", r.VolumeId)
		case have != nil && (have.path != r.StagingTargetPath || have.capability != r.VolumeCapability.String()):
			return d.wrong(codes.AlreadyExists, "Stage %s: it is staged otherwise", r.VolumeId)
		case have != nil:
			return nil
		}
		if info, err := os.Stat(r.StagingTargetPath); err != nil || !info.IsDir() {
			return d.wrong(codes.InvalidArgument, "Stage %s: %s is no folder", r.VolumeId, r.StagingTargetPath)
		}
		if r.VolumeCapability.GetMount() != nil {
			if err := d.bind(r.VolumeId, r.StagingTargetPath, false, false); err != nil {
				return err
			}
		}
		d.staged[r.VolumeId] = &staged{r.StagingTargetPath, r.VolumeCapability.String()}
		return nil
	})
}

// NodeUnstageVolume implements the node service.
func (d *Driver) NodeUnstageVolume(_ context.Context, r *spec.NodeUnstageVolumeRequest) (*spec.NodeUnstageVolumeResponse, error) {
	return &spec.NodeUnstageVolumeResponse{}, d.do("Unstage", r.VolumeId, r, func() error {
		if !d.stages() {
			return d.wrong(codes.Unimplemented, "Unstage %s: the driver does not stage", r.VolumeId)
		}
		for target, p := range d.published {
			if p.volume == r.VolumeId {
				return d.wrong(codes.FailedPrecondition, "Unstage %s: it is published at %s", r.VolumeId, target)
			}
		}
		delete(d.staged, r.VolumeId)
		return unbind(r.StagingTargetPath, false)
	})
}

// NodePublishVolume implements the node service.
func (d *Driver) NodePublishVolume(_ context.Context, r *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	return &spec.NodePublishVolumeResponse{}, d.do("Publish", r.VolumeId, r, func() error {
		s, p := d.staged[r.VolumeId], d.published[r.TargetPath]
		switch {
		case r.VolumeId == "" || r.TargetPath == "" || r.VolumeCapability == nil:
			return d.wrong(codes.InvalidArgument, "Publish %s: a field is missing", r.VolumeId)
		case r.VolumeContext[Ephemeral] == "true":
		case d.stages() && s == nil:
			return d.wrong(codes.FailedPrecondition, "Publish %s: it is not staged", r.VolumeId)
		case d.stages() && s.path != r.StagingTargetPath, !d.stages() && r.StagingTargetPath != "":
			return d.wrong(codes.InvalidArgument, "Publish %s: it is not staged at %q", r.VolumeId, r.StagingTargetPath)
		}
		if p != nil {
			if p.volume != r.VolumeId || p.capability != r.VolumeCapability.String() {
				return d.wrong(codes.AlreadyExists, "Publish %s: %s has another", r.VolumeId, r.TargetPath)
			}
			return nil
		}
		if _, err := os.Stat(filepath.Dir(r.TargetPath)); err != nil {
			return d.wrong(codes.InvalidArgument, "Publish %s: no folder for %s", r.VolumeId, r.TargetPath)
		}
		if err := d.bind(r.VolumeId, r.TargetPath, r.VolumeCapability.GetBlock() != nil, r.Readonly); err != nil {
			return err
		}
		d.published[r.TargetPath] = &published{r.VolumeId, r.VolumeCapability.String()}
		return nil
	})
}

// Ephemeral is in a volume's context "true" where it is the pod's own.
const Ephemeral = "csi.storage.k8s.io/ephemeral"

// NodeUnpublishVolume implements the node service.
func (d *Driver) NodeUnpublishVolume(_ context.Context, r *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	return &spec.NodeUnpublishVolumeResponse{}, d.do("Unpublish", r.VolumeId, r, func() error {
		delete(d.published, r.TargetPath)
		return unbind(r.TargetPath, true)
	})
}

// NodeExpandVolume implements the node service.
func (d *Driver) NodeExpandVolume(_ context.Context, r *spec.NodeExpandVolumeRequest) (*spec.NodeExpandVolumeResponse, error) {
	return &spec.NodeExpandVolumeResponse{CapacityBytes: r.GetCapacityRange().GetRequiredBytes()}, d.do("Expand", r.VolumeId, r, func() error {
		if !d.can(spec.NodeServiceCapability_RPC_EXPAND_VOLUME) {
			return d.wrong(codes.Unimplemented, "Expand %s: the driver does not expand", r.VolumeId)
		}
		if d.published[r.VolumePath] == nil && (d.staged[r.VolumeId] == nil || d.staged[r.VolumeId].path != r.VolumePath) {
			return d.wrong(codes.NotFound, "Expand %s: it is not at %s", r.VolumeId, r.VolumePath)
		}
		return nil
	})
}

// NodeGetVolumeStats implements the node service.
func (d *Driver) NodeGetVolumeStats(_ context.Context, r *spec.NodeGetVolumeStatsRequest) (*spec.NodeGetVolumeStatsResponse, error) {
	return d.Stats, d.do("Stats", r.VolumeId, r, func() error {
		if !d.can(spec.NodeServiceCapability_RPC_GET_VOLUME_STATS) {
			return d.wrong(codes.Unimplemented, "Stats %s: the driver has none", r.VolumeId)
		}
		return nil
	})
}

// NodeGetVolumeHealth implements the node service.
func (d *Driver) NodeGetVolumeHealth(_ context.Context, r *spec.NodeGetVolumeHealthRequest) (*spec.NodeGetVolumeHealthResponse, error) {
	return &spec.NodeGetVolumeHealthResponse{VolumeHealth: &spec.VolumeHealth{VolumeId: r.VolumeId, HealthStatuses: d.Health}}, nil
}

// bind shows the volume at path: a folder, which must be there for staging, or a device node.
func (d *Driver) bind(volume, path string, block, readOnly bool) error {
	from := filepath.Join(d.Dir, volume)
	if block {
		if err := unix.Mknod(from, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		f.Close()
	} else if err := errors.Join(os.MkdirAll(from, 0o755), os.MkdirAll(path, 0o750)); err != nil {
		return err
	}
	if err := unix.Mount(from, path, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind", Path: path, Err: err}
	}
	if readOnly {
		return unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
	}
	return nil
}

// unbind takes it away; the place too, where the driver has made it.
func unbind(path string, remove bool) error {
	if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unmount", Path: path, Err: err}
	}
	if !remove {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
