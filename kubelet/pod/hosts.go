package pod

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/spec"
)

// writeHosts writes the pod's hosts file and returns its mount, nil where the container has its own.
func (w *worker) writeHosts(pod *corev1.Pod, c *corev1.Container, v *View) (*runtimeapi.Mount, error) {
	for _, m := range c.VolumeMounts {
		if filepath.Clean(m.MountPath) == "/etc/hosts" {
			return nil, nil
		}
	}
	host := ""
	if pod.Spec.HostNetwork {
		b, err := os.ReadFile(w.config.HostsFile)
		if err != nil && !os.IsNotExist(err) {
			return nil, fmt.Errorf("read hosts file: %w", err)
		}
		host = string(b)
	}
	path := filepath.Join(w.Volumes.PodDir(pod.UID), "etc-hosts")
	if err := writeShared(path, spec.Hosts(pod, v.IPs(), host, w.config.Node.ClusterDomain)); err != nil {
		return nil, fmt.Errorf("write hosts file: %w", err)
	}
	return &runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: path, SelinuxRelabel: w.config.SELinux}, nil
}

// writeShared makes text the content of a file that containers can write, too: no more of it is read than text is long. It is
// written in place, not by rename, as running containers have it mounted; what is no file is replaced by one.
func writeShared(path, text string) (err error) {
	info, err := os.Lstat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if info, err = f.Stat(); err != nil {
		return err
	}
	if info.Size() == int64(len(text)) {
		have := make([]byte, len(text))
		if _, err := io.ReadFull(f, have); err == nil && string(have) == text {
			return nil
		}
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), 0)
	return err
}
