package localdriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/linux"
)

// GetPluginInfo is part of spec.IdentityServer.
func (d *Driver) GetPluginInfo(context.Context, *spec.GetPluginInfoRequest) (*spec.GetPluginInfoResponse, error) {
	return &spec.GetPluginInfoResponse{Name: claim.LocalDriver, VendorVersion: "1"}, nil
}

// GetPluginCapabilities is part of spec.IdentityServer: there is no controller service.
func (d *Driver) GetPluginCapabilities(context.Context, *spec.GetPluginCapabilitiesRequest) (*spec.GetPluginCapabilitiesResponse, error) {
	return &spec.GetPluginCapabilitiesResponse{}, nil
}

// Probe is part of spec.IdentityServer.
func (d *Driver) Probe(context.Context, *spec.ProbeRequest) (*spec.ProbeResponse, error) {
	return &spec.ProbeResponse{Ready: wrapperspb.Bool(true)}, nil
}

// NodeGetCapabilities is part of spec.NodeServer: there is nothing to stage, to count or to enlarge.
func (d *Driver) NodeGetCapabilities(context.Context, *spec.NodeGetCapabilitiesRequest) (*spec.NodeGetCapabilitiesResponse, error) {
	return &spec.NodeGetCapabilitiesResponse{}, nil
}

// NodeGetInfo is part of spec.NodeServer.
func (d *Driver) NodeGetInfo(context.Context, *spec.NodeGetInfoRequest) (*spec.NodeGetInfoResponse, error) {
	return &spec.NodeGetInfoResponse{NodeId: d.c.NodeName}, nil
}

// NodePublishVolume is part of spec.NodeServer. It mounts the volume's folder on the target.
func (d *Driver) NodePublishVolume(ctx context.Context, r *spec.NodePublishVolumeRequest) (*spec.NodePublishVolumeResponse, error) {
	attr, err := d.checkPublish(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	switch err := d.publish(ctx, r.VolumeId, r.TargetPath, attr); {
	case errors.Is(err, errLost):
		return nil, status.Error(codes.FailedPrecondition, err.Error())
	case err != nil:
		return nil, status.Error(codes.Internal, err.Error())
	}
	return &spec.NodePublishVolumeResponse{}, nil
}

// checkPublish returns how the mount is to be, or what is wrong with the request.
func (d *Driver) checkPublish(r *spec.NodePublishVolumeRequest) (attr unix.MountAttr, err error) {
	m := r.GetVolumeCapability().GetMount()
	switch node := r.VolumeContext[claim.LocalNode]; {
	case !filepath.IsAbs(r.TargetPath):
		return attr, errors.New("target_path is not an absolute path")
	case node != "" && node != d.c.NodeName:
		return attr, errors.New("the volume is on node " + node + ", this is " + d.c.NodeName)
	case m == nil:
		return attr, errors.New("local volumes are folders: volumeMode Block is not supported")
	case m.FsType != "":
		return attr, errors.New("local volumes are folders and have no file system of their own: leave fsType " + m.FsType + " out")
	}
	flags := m.MountFlags
	if r.Readonly {
		flags = append(flags[:len(flags):len(flags)], "ro")
	}
	attr, unknown := linux.MountAttributes(flags)
	if unknown != "" {
		return attr, errors.New("mount option " + unknown + " is a file system's: a local volume has none of its own")
	}
	return attr, checkHandle(r.VolumeId)
}

func (d *Driver) publish(ctx context.Context, handle, target string, attr unix.MountAttr) error {
	if err := os.Mkdir(target, 0o750); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if mounted, err := linux.Mounted(target); mounted || err != nil {
		return err
	}
	from, err := d.open(ctx, handle)
	if err != nil {
		return err
	}
	defer from.Close()
	mount, err := linux.CloneTree(int(from.Fd()), "", false)
	if err != nil {
		return err
	}
	defer unix.Close(mount)
	if attr != (unix.MountAttr{}) {
		if err := linux.SetMountAttr(mount, false, attr, target); err != nil {
			return err
		}
	}
	at, err := unix.Open(target, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return linux.Wrap("open", target, err)
	}
	defer unix.Close(at)
	return linux.Attach(mount, at, target)
}

// open returns a volume's folder. That it was made is noted in its PersistentVolume before anything can be written to it, and asked of there: a
// node that was rebuilt, or whose disk is not mounted yet, knows nothing itself. Volumes that others made have no label by which they are
// found, and no note.
func (d *Driver) open(ctx context.Context, handle string) (*os.File, error) {
	for {
		mine := client.Query{Labels: labels.SelectorFromSet(labels.Set{claim.LocalNode: d.c.NodeName})}
		volumes, err := client.List[*corev1.PersistentVolume](ctx, d.c.Client, mine)
		if err != nil {
			return nil, fmt.Errorf("list the PersistentVolumes of node %s: %w", d.c.NodeName, err)
		}
		volumes = slices.DeleteFunc(volumes, func(v *corev1.PersistentVolume) bool {
			return claim.OfLocal(v) != d.c.NodeName || v.Spec.CSI.VolumeHandle != handle
		})
		f, err := d.data.open(handle, slices.ContainsFunc(volumes, func(v *corev1.PersistentVolume) bool { return v.Annotations[claim.LocalMade] != "" }))
		if err != nil {
			return nil, err
		}
		for _, v := range volumes {
			if _, e := client.Mutate(ctx, d.c.Client, v, "", func(v *corev1.PersistentVolume) {
				metav1.SetMetaDataAnnotation(&v.ObjectMeta, claim.LocalMade, "true")
			}); e != nil {
				err = e
			}
		}
		if err == nil {
			return f, nil
		}
		f.Close()
		if !apierrors.IsConflict(err) { // somebody else has written to it too
			return nil, fmt.Errorf("note in the PersistentVolume that its folder is made: %w", err)
		}
	}
}

// NodeUnpublishVolume is part of spec.NodeServer.
func (d *Driver) NodeUnpublishVolume(_ context.Context, r *spec.NodeUnpublishVolumeRequest) (*spec.NodeUnpublishVolumeResponse, error) {
	if r.VolumeId == "" || !filepath.IsAbs(r.TargetPath) {
		return nil, status.Error(codes.InvalidArgument, "volume_id or target_path is missing, or no absolute path")
	}
	for {
		mounted, err := linux.Mounted(r.TargetPath)
		if err == nil && !mounted {
			err = os.Remove(r.TargetPath)
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				return &spec.NodeUnpublishVolumeResponse{}, nil
			}
		} else if err == nil {
			err = linux.Wrap("unmount", r.TargetPath, unix.Unmount(r.TargetPath, unix.UMOUNT_NOFOLLOW))
		}
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
	}
}
