package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/apparmor"
	"github.com/yare-dev/yare/linux/rmtree"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/pki"
)

// StopGrace is how long a server may take to end before it is killed.
const StopGrace = 10 * time.Second

// A step of Remove; each may be run again after a failure or a crash.
type step struct {
	name string
	do   func(context.Context, *Record) error
}

// Remove ends the cluster and removes exactly what it made. With keepData the data folder, the record and the
// kubeconfig context stay, so that the next start resumes with the same objects. It may be repeated: the record goes last.
// A cluster that was made later under the same name is left alone.
func (h Host) Remove(ctx context.Context, r *Record, keepData bool, told func(step string)) error {
	unlock, err := h.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if now, err := h.Find(r.Name); err == nil && now.ID != r.ID {
		return nil // somebody else removed it, and the name is another cluster's by now
	} else if err != nil && !errors.Is(err, ErrUnknown) {
		return err
	}
	steps := []step{
		{"stop the server", func(ctx context.Context, r *Record) error { return r.Stop(ctx, StopGrace) }},
		{"end the containers", endContainers},
		{"remove the pod network", removePodNetwork},
		{"remove the Services' rules", removeServices},
		{"remove the network policies' rules", removePolicies},
		{"remove mounts", func(_ context.Context, r *Record) error { return unmountBelow(r.RunDir, r.DataDir) }},
		{"remove cgroups", removeCgroups},
		{"remove the AppArmor profile", func(_ context.Context, r *Record) error { return apparmor.Remove(r.AppArmorProfile()) }},
		{"remove " + r.RunDir, func(_ context.Context, r *Record) error { return removeTree(r.RunDir) }},
	}
	if !keepData {
		steps = append(steps,
			step{"remove the kubeconfig context", removeContext},
			step{"remove the link to the kubelet", h.removeKubeletLink},
			step{"remove " + r.DataDir, removeData},
			step{"restore the host's settings", h.restoreForwarding},
			step{"forget the cluster", h.forget})
	}
	for _, s := range steps {
		told(s.name)
		if err := s.do(ctx, r); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func endContainers(ctx context.Context, r *Record) error {
	g, err := cgroup.Open(r.Cgroup())
	if err != nil {
		return err
	}
	return g.Kill(ctx)
}

// removeCgroups removes the cluster's subtree and its parent once no other cluster is in it.
func removeCgroups(_ context.Context, r *Record) error {
	g, err := cgroup.Open(r.Cgroup())
	if err != nil {
		return err
	}
	if err := g.Remove(); err != nil {
		return err
	}
	hs, err := linux.Hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs {
		parent := filepath.Join(h.Root, filepath.Dir(r.Cgroup()))
		if err := unix.Rmdir(parent); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("remove %s: %w", parent, err)
		}
	}
	return nil
}

// unmountBelow detaches every mount below the folders, the deepest first. It follows no link.
func unmountBelow(dirs ...string) error {
	points, err := mountsBelow(dirs...)
	if err != nil {
		return err
	}
	for i := len(points) - 1; i >= 0; i-- {
		if err := unix.Unmount(points[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", points[i], err)
		}
	}
	return nil
}

// mountsBelow returns the mount points below the folders in order of mounting.
func mountsBelow(dirs ...string) ([]string, error) {
	points, err := linux.MountPoints()
	return slices.DeleteFunc(points, func(p string) bool {
		return !slices.ContainsFunc(dirs, func(d string) bool { return p != d && within(p, d) })
	}), err
}

// removeTree removes a folder, but never through a mount: whatever is mounted below it is not ours to delete.
func removeTree(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	if len(points) > 0 {
		return fmt.Errorf("%s is mounted in it: unmount it first, its content is left alone", points[0])
	}
	return rmtree.Remove(dir)
}

// removeData removes the data folder and what was created on the way to it, as long as nobody else uses that.
func removeData(_ context.Context, r *Record) error {
	if r.Made == "" {
		entries, err := os.ReadDir(r.DataDir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if err := removeTree(filepath.Join(r.DataDir, e.Name())); err != nil {
				return err
			}
		}
		return nil
	}
	if err := removeTree(r.DataDir); err != nil {
		return err
	}
	return removeParents(r.DataDir, r.Made)
}

// removeParents removes the folders above path up to the outermost that was made for it, as long as nobody else uses them.
func removeParents(path, made string) error {
	for path != made {
		path = filepath.Dir(path)
		if err := os.Remove(path); errors.Is(err, unix.ENOTEMPTY) {
			return nil
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removeContext takes the cluster out of the kubeconfig, and removes the file if that was made for it and nothing else is in it.
func removeContext(ctx context.Context, r *Record) error {
	if err := pki.RemoveContext(ctx, r.Kubeconfig, r.Context(), r.ContextsBefore...); err != nil || r.KubeconfigMade == "" {
		return err
	}
	left, err := clientcmd.LoadFromFile(r.Kubeconfig)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(left.Clusters)+len(left.AuthInfos)+len(left.Contexts) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Remove(r.Kubeconfig); err != nil {
		return err
	}
	return removeParents(r.Kubeconfig, r.KubeconfigMade)
}

func (h Host) forget(_ context.Context, r *Record) error {
	if err := os.Remove(h.recordFile(r.Name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, d := range []string{h.recordsDir(), h.varDir()} {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return nil
}
