package volume

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/linux"
)

// Request says for which container mounts are wanted.
type Request struct {
	Pod       *corev1.Pod
	Container *corev1.Container
	Env       map[string]string // for subPathExpr
	// ImageRef returns the ID of a pulled image, for image volumes.
	ImageRef func(reference string) (string, bool)
	// Recursive says that the runtime can make mounts read-only recursively.
	Recursive bool
	// Relabel says that the node has SELinux: the runtime gives what the kubelet makes and mounts the containers' contexts.
	Relabel bool
}

// Mounts returns the CRI mounts of the container's volumeMounts, in order. The volumes must be Up. Mistakes of the pod
// are spec.ConfigError.
func (v *Volumes) Mounts(r Request) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	for i := range r.Container.VolumeMounts {
		m, err := v.mount(r, i)
		if err != nil {
			return nil, fmt.Errorf("mount %s of container %s: %w", r.Container.VolumeMounts[i].Name, r.Container.Name, err)
		}
		out = append(out, m)
	}
	return out, nil
}

func (v *Volumes) mount(r Request, index int) (*runtimeapi.Mount, error) {
	vm := &r.Container.VolumeMounts[index]
	i := slices.IndexFunc(r.Pod.Spec.Volumes, func(x corev1.Volume) bool { return x.Name == vm.Name })
	if i < 0 {
		return nil, spec.ConfigError{Err: fmt.Errorf("no such volume")}
	}
	vol := &r.Pod.Spec.Volumes[i]
	m := &runtimeapi.Mount{ContainerPath: vm.MountPath, Readonly: vm.ReadOnly}
	if !filepath.IsAbs(m.ContainerPath) {
		m.ContainerPath = filepath.Join("/", m.ContainerPath)
	}
	if err := setAttributes(m, vm, r.Recursive); err != nil {
		return nil, err
	}
	sub, err := subPath(vm, r.Env)
	if err != nil {
		return nil, err
	}
	if vol.Image != nil {
		ref, ok := r.ImageRef(vol.Image.Reference)
		if !ok {
			return nil, fmt.Errorf("image %s is not present", vol.Image.Reference)
		}
		m.Image, m.ImageSubPath, m.Readonly = &runtimeapi.ImageSpec{Image: ref, UserSpecifiedImage: vol.Image.Reference}, sub, true
		return m, nil
	}
	if m.HostPath, err = v.path(r.Pod, vol); err != nil {
		return nil, err
	}
	if vol.ConfigMap != nil || vol.Secret != nil || vol.DownwardAPI != nil || vol.Projected != nil {
		m.Readonly = true
	}
	if c := v.claimed(r.Pod, vol); c != nil {
		if c.block {
			return nil, fmt.Errorf("volume %s has volumeMode Block, but is specified in volumeMounts", vol.Name)
		}
		m.Readonly = m.Readonly || c.readOnly
	}
	m.SelinuxRelabel = r.Relabel && v.ours(r.Pod, vol)
	if sub == "" {
		return m, nil
	}
	m.HostPath, err = v.bindSubPath(r, vol.Name, m.HostPath, sub, index)
	return m, err
}

// ours says that a volume's files are for its pods alone, so that they may get contexts of theirs. The host's own files, and what may only be read, are left.
func (v *Volumes) ours(pod *corev1.Pod, vol *corev1.Volume) bool {
	if c := v.claimed(pod, vol); c != nil {
		return (c.disk != nil || c.local) && !c.readOnly
	}
	return vol.EmptyDir != nil || vol.ConfigMap != nil || vol.Secret != nil || vol.DownwardAPI != nil || vol.Projected != nil
}

// Devices returns the CRI devices of the container's volumeDevices, in order. The volumes must be Up. Mistakes of the pod are
// spec.ConfigError.
func (v *Volumes) Devices(pod *corev1.Pod, c *corev1.Container) ([]*runtimeapi.Device, error) {
	var out []*runtimeapi.Device
	for _, d := range c.VolumeDevices {
		i := slices.IndexFunc(pod.Spec.Volumes, func(x corev1.Volume) bool { return x.Name == d.Name })
		if i < 0 {
			return nil, spec.ConfigError{Err: fmt.Errorf("device %s of container %s: no such volume", d.Name, c.Name)}
		}
		up := v.claimed(pod, &pod.Spec.Volumes[i])
		switch {
		case up == nil:
			return nil, fmt.Errorf("device %s of container %s: the volume is not mounted", d.Name, c.Name)
		case !up.block:
			return nil, fmt.Errorf("volume %s has volumeMode Filesystem, but is specified in volumeDevices", d.Name)
		}
		access := "rwm"
		if up.readOnly {
			access = "rm"
		}
		out = append(out, &runtimeapi.Device{HostPath: up.path, ContainerPath: d.DevicePath, Permissions: access})
	}
	return out, nil
}

func setAttributes(m *runtimeapi.Mount, vm *corev1.VolumeMount, recursive bool) error {
	if p := vm.MountPropagation; p != nil {
		switch *p {
		case corev1.MountPropagationHostToContainer:
			m.Propagation = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case corev1.MountPropagationBidirectional:
			m.Propagation = runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
	}
	if p := vm.RecursiveReadOnly; p != nil && vm.ReadOnly {
		switch *p {
		case corev1.RecursiveReadOnlyIfPossible:
			m.RecursiveReadOnly = recursive
		case corev1.RecursiveReadOnlyEnabled:
			if !recursive {
				return spec.ConfigError{Err: fmt.Errorf("recursive read-only mounts are not supported by the runtime")}
			}
			m.RecursiveReadOnly = true
		}
	}
	return nil
}

// subPath returns the path within the volume, with variables replaced.
func subPath(vm *corev1.VolumeMount, env map[string]string) (string, error) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		var missing string
		sub = spec.Expand(vm.SubPathExpr, func(name string) (string, bool) {
			value, ok := env[name]
			if !ok {
				missing = name
			}
			return value, ok
		})
		if missing != "" {
			return "", spec.ConfigError{Err: fmt.Errorf("subPathExpr %q: variable %s is not set", vm.SubPathExpr, missing)}
		}
	}
	if filepath.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
		return "", spec.ConfigError{Err: fmt.Errorf("subPath %q must be relative and without \"..\"", sub)}
	}
	return sub, nil
}

// bindSubPath bind-mounts what sub names within the volume at root onto a place that only the kubelet can change, and
// returns that place. What is missing is made as a directory. Links in the volume are followed within it, as if its
// root were "/".
func (v *Volumes) bindSubPath(r Request, volume, root, sub string, index int) (string, error) {
	rootFD, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open volume: %w", err)
	}
	defer unix.Close(rootFD)
	source, err := linux.OpenIn(rootFD, sub, unix.O_PATH)
	if err != nil {
		if source, err = makeSubPath(rootFD, sub); err != nil {
			return "", fmt.Errorf("subPath %s: %w", sub, err)
		}
	}
	defer unix.Close(source)
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return "", fmt.Errorf("stat subPath %s: %w", sub, err)
	}
	place := filepath.Join(v.PodDir(r.Pod.UID), "volume-subpaths", volume, r.Container.Name, strconv.Itoa(index))
	if err := makePlace(place, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return "", err
	}
	tree, err := linux.CloneTree(source, "", true)
	if err != nil {
		return "", err
	}
	defer unix.Close(tree)
	target, err := unix.Open(place, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", place, err)
	}
	defer unix.Close(target)
	return place, linux.Attach(tree, target, place)
}

// makeSubPath makes a directory for a container. It is as open as the volume is, and the group's whose the volume is.
func makeSubPath(root int, sub string) (int, error) {
	fd, err := linux.MakeDirIn(root, sub)
	if err != nil {
		return -1, err
	}
	info, err := os.Stat(linux.FDPath(root))
	if err == nil {
		err = os.Chmod(linux.FDPath(fd), info.Mode()&(fs.ModePerm|fs.ModeSetgid))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// makePlace makes an empty directory or file to mount on, taking down what an earlier attempt mounted there.
func makePlace(place string, directory bool) error {
	for {
		if err := unix.Unmount(place, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			break
		}
	}
	if err := os.MkdirAll(filepath.Dir(place), 0o750); err != nil {
		return err
	}
	if info, err := os.Lstat(place); err == nil && info.IsDir() != directory {
		if err := os.Remove(place); err != nil {
			return err
		}
	}
	if directory {
		return os.MkdirAll(place, 0o750)
	}
	f, err := os.OpenFile(place, os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}
