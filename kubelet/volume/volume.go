package volume

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/kubelet/field"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/diskusage"
)

// Volumes makes the volumes of all pods below one root. Different pods may be handled concurrently.
type Volumes struct {
	root string
	// plainDirs replaces tmpfs by directories, where mounting is not permitted.
	plainDirs bool

	disks Disks

	locks locks // of folders (inodes) that are local volumes, and of drivers' volumes

	mu      sync.Mutex
	claims  map[types.UID]map[string]*claimed // that are up, by the names of the pods' volumes
	written map[held]*disk                    // the disks that are written down; nil before they were read
	unread  map[held]error                    // those that cannot be read
	// reported are those of InUse that the Node has.
	reported map[corev1.UniqueVolumeName]bool
}

// New returns Volumes below root (/var/lib/kubelet/pods).
func New(root string, d Disks) *Volumes {
	if d.Boot == "" { // a boot that is not known is another each time
		d.Boot = rand.Text()
	}
	return &Volumes{root: root, disks: d, claims: map[types.UID]map[string]*claimed{},
		reported: map[corev1.UniqueVolumeName]bool{}}
}

// Error is one volume's failure.
type Error struct {
	Volume string
	Err    error
}

func (e *Error) Error() string { return fmt.Sprintf("volume %q: %v", e.Volume, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// PodDir is the folder of a pod below the root.
func (v *Volumes) PodDir(uid types.UID) string { return filepath.Join(v.root, string(uid)) }

// Up makes the pod's volumes and brings their files up to date, all but those that Mount makes. It returns when it should be called again
// although nothing changed (a token has to be renewed); zero: never. The error joins one *Error for each volume that cannot be.
func (v *Volumes) Up(ctx context.Context, pod *corev1.Pod, src Source, rt field.Runtime) (time.Time, error) {
	var again time.Time
	var errs []error
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		renew, err := v.up(ctx, pod, vol, src, rt)
		if err != nil {
			errs = append(errs, &Error{vol.Name, err})
		}
		if !renew.IsZero() && (again.IsZero() || renew.Before(again)) {
			again = renew
		}
	}
	return again, errors.Join(errs...)
}

func (v *Volumes) up(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume, src Source, rt field.Runtime) (time.Time, error) {
	none := time.Time{}
	switch {
	case vol.EmptyDir != nil:
		return none, v.emptyDir(pod, vol)
	case vol.HostPath != nil:
		return none, hostPath(vol.HostPath)
	case vol.Image != nil:
		return none, nil // mounted by the runtime
	case slow(vol):
		return none, nil // Mount's
	case vol.ConfigMap != nil, vol.Secret != nil, vol.DownwardAPI != nil, vol.Projected != nil:
		c, err := collect(ctx, pod, vol, src, rt)
		if err != nil {
			return none, err
		}
		dir, err := v.path(pod, vol)
		if err != nil {
			return none, err
		}
		gid := fsGroup(pod)
		if err := v.tmpfs(dir, 0o755, "", gid); err != nil {
			return none, err
		}
		_, err = writeFiles(dir, c.files, gid)
		return c.renew, err
	}
	return none, fmt.Errorf("%s volumes are not supported by this node", typeName(vol.VolumeSource))
}

// typeName returns the name of a volume's type as the user wrote it: that of the only field that a VolumeSource, or a
// PersistentVolumeSource, has.
func typeName(source any) string {
	s := reflect.ValueOf(source)
	for i := range s.NumField() {
		if !s.Field(i).IsNil() {
			name, _, _ := strings.Cut(s.Type().Field(i).Tag.Get("json"), ",")
			return name
		}
	}
	return "empty"
}

// path returns the host's path of a volume.
func (v *Volumes) path(pod *corev1.Pod, vol *corev1.Volume) (string, error) {
	switch {
	case vol.HostPath != nil:
		return vol.HostPath.Path, nil
	case slow(vol):
		if c := v.claimed(pod, vol); c != nil {
			return c.path, nil
		}
		return "", errors.New("the volume is not mounted")
	}
	kind := map[string]string{"emptyDir": "empty-dir", "configMap": "configmap", "secret": "secret",
		"downwardAPI": "downward-api", "projected": "projected"}[typeName(vol.VolumeSource)]
	if kind == "" {
		return "", fmt.Errorf("%s volumes are not supported by this node", typeName(vol.VolumeSource))
	}
	return v.folder(pod, vol, kind)
}

// folder returns the path of what the node makes for a volume of that kind.
func (v *Volumes) folder(pod *corev1.Pod, vol *corev1.Volume, kind string) (string, error) {
	if vol.Name == "" || strings.ContainsAny(vol.Name, "/\x00") || vol.Name == "." || vol.Name == ".." {
		return "", fmt.Errorf("volume name %q is not a file name", vol.Name)
	}
	return filepath.Join(v.PodDir(pod.UID), "volumes", "kubernetes.io~"+kind, vol.Name), nil
}

// DiskUsage is what the volume takes on disk now, in bytes; 0 where it is not there.
func (v *Volumes) DiskUsage(pod *corev1.Pod, vol *corev1.Volume) (diskusage.Usage, error) {
	dir, err := v.path(pod, vol)
	if err != nil {
		return diskusage.Usage{}, err
	}
	return diskusage.Of(dir)
}

func (v *Volumes) emptyDir(pod *corev1.Pod, vol *corev1.Volume) error {
	dir, err := v.path(pod, vol)
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o777)
	if m := vol.EmptyDir.Mode; m != nil {
		mode = fs.FileMode(*m)
	}
	switch vol.EmptyDir.Medium {
	case corev1.StorageMediumMemory:
		size := ""
		if l := vol.EmptyDir.SizeLimit; l != nil && l.Sign() > 0 {
			size = strconv.FormatInt(l.Value(), 10)
		}
		return v.tmpfs(dir, mode, size, fsGroup(pod))
	case corev1.StorageMediumDefault:
		if _, err := os.Stat(dir); err == nil {
			return nil // made before; the pod may have changed its mode since
		}
		if err := os.MkdirAll(filepath.Dir(dir), 0o750); err != nil {
			return err
		}
		return prepare(dir, mode, fsGroup(pod))
	}
	return fmt.Errorf("emptyDir medium %q is not supported by this node", vol.EmptyDir.Medium)
}

// prepare makes the directory dir appear with its mode and group in place.
func prepare(dir string, mode fs.FileMode, gid *int64) error {
	fresh, err := os.MkdirTemp(filepath.Dir(dir), ".new-")
	if err != nil {
		return err
	}
	if err := setOwner(fresh, mode, gid); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return os.Rename(fresh, dir)
}

func setOwner(dir string, mode fs.FileMode, gid *int64) error {
	if gid != nil {
		if err := own(dir, nil, gid); err != nil {
			return err
		}
		mode |= fs.ModeSetgid | 0o070
	}
	return os.Chmod(dir, mode)
}

// tmpfs makes dir a tmpfs of at most size bytes ("": half of the memory), unless it is one.
func (v *Volumes) tmpfs(dir string, mode fs.FileMode, size string, gid *int64) error {
	if mounted, err := linux.Mounted(dir); mounted || err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if v.plainDirs {
		return setOwner(dir, mode, gid)
	}
	options := []linux.Option{{Key: "mode", Value: "0" + strconv.FormatUint(uint64(mode.Perm()), 8)}}
	if size != "" {
		options = append(options, linux.Option{Key: "size", Value: size})
	}
	if gid != nil {
		options[0].Value = "0" + strconv.FormatUint(uint64(mode.Perm()|0o2070), 8)
		options = append(options, linux.Option{Key: "gid", Value: strconv.FormatInt(*gid, 10)})
	}
	m, err := linux.NewFS("tmpfs", "tmpfs", options, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	defer unix.Close(m)
	return attach(m, dir)
}

// attach mounts the detached mount m on dir.
func attach(m int, dir string) error {
	target, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(target)
	return linux.Attach(m, target, dir)
}

// hostPath checks the path against the type that the pod expects, and makes it where the type says so.
func hostPath(h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	info, err := os.Stat(h.Path)
	exists := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("hostPath: %w", err)
	}
	want := func(ok bool, what string) error {
		if exists && ok {
			return nil
		}
		return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, what)
	}
	mode := fs.FileMode(0)
	if exists {
		mode = info.Mode()
	}
	switch kind {
	case corev1.HostPathUnset:
		return nil
	case corev1.HostPathDirectoryOrCreate:
		if !exists {
			return os.MkdirAll(h.Path, 0o755)
		}
		return want(mode.IsDir(), "directory")
	case corev1.HostPathDirectory:
		return want(mode.IsDir(), "directory")
	case corev1.HostPathFileOrCreate:
		if !exists {
			f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return fmt.Errorf("hostPath: %w", err)
			}
			return f.Close()
		}
		return want(mode.IsRegular(), "file")
	case corev1.HostPathFile:
		return want(mode.IsRegular(), "file")
	case corev1.HostPathSocket:
		return want(mode&fs.ModeSocket != 0, "socket file")
	case corev1.HostPathCharDev:
		return want(mode&fs.ModeCharDevice != 0, "character device")
	case corev1.HostPathBlockDev:
		return want(mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0, "block device")
	}
	return fmt.Errorf("hostPath type %q is not known", kind)
}
