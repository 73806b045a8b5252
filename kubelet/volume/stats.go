package volume

import (
	"context"
	"time"

	spec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/diskusage"
)

// Stats is the use of one volume.
type Stats struct {
	statsapi.VolumeStats
	// Abnormal says whether the volume's driver complains of it; nil where it does not tell.
	Abnormal *bool
}

// Stats measures the volumes of a pod that are up, but for those that are folders of the host or images. Drivers are asked about theirs. A volume
// that cannot be measured is left out, and the first error is returned beside the others.
func (v *Volumes) Stats(ctx context.Context, pod *corev1.Pod) (all []Stats, first error) {
	for i := range pod.Spec.Volumes {
		vol := &pod.Spec.Volumes[i]
		one, ok, err := v.measure(ctx, pod, vol)
		if err != nil && first == nil {
			first = &Error{vol.Name, err}
		}
		if err != nil || !ok {
			continue
		}
		one.Name, one.Time = vol.Name, metav1.NewTime(time.Now())
		if name := claim.Name(pod, vol); name != "" {
			one.PVCRef = &statsapi.PVCReference{Name: name, Namespace: pod.Namespace}
		}
		all = append(all, one)
	}
	return all, first
}

// measure measures one volume; ok says whether there is something to measure.
func (v *Volumes) measure(ctx context.Context, pod *corev1.Pod, vol *corev1.Volume) (one Stats, ok bool, err error) {
	if vol.HostPath != nil || vol.Image != nil {
		return one, false, nil
	}
	if slow(vol) {
		c := v.claimed(pod, vol)
		switch {
		case c == nil:
			return one, false, nil
		case c.disk != nil:
			return v.askDriver(ctx, pod, c)
		case c.block:
			return one, false, nil
		}
		one.FsStats, err = fileSystem(c.path)
		return one, true, err
	}
	path, err := v.path(pod, vol)
	if err != nil {
		return one, false, err
	}
	own, err := linux.Mounted(path)
	if err != nil {
		return one, false, err
	}
	if one.FsStats, err = fileSystem(path); err != nil || own && !v.plainDirs {
		return one, err == nil, err
	}
	u, err := diskusage.Of(path)
	one.UsedBytes, one.InodesUsed = count(u.Bytes), count(u.Inodes)
	return one, true, err
}

// fileSystem is the use of the file system that path is on.
func fileSystem(path string) (s statsapi.FsStats, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return s, err
	}
	s.CapacityBytes, s.AvailableBytes, s.UsedBytes = count(int64(st.Blocks)*st.Bsize), count(int64(st.Bavail)*st.Bsize), count(int64(st.Blocks-st.Bfree)*st.Bsize)
	s.Inodes, s.InodesFree, s.InodesUsed = count(int64(st.Files)), count(int64(st.Ffree)), count(int64(st.Files-st.Ffree))
	return s, nil
}

func count(n int64) *uint64 {
	u := uint64(max(n, 0))
	return &u
}

// askDriver asks a driver about its volume. One that does not measure leaves it to the kernel.
func (v *Volumes) askDriver(ctx context.Context, pod *corev1.Pod, c *claimed) (one Stats, ok bool, err error) {
	n, err := v.driver(c.disk.Driver)
	if err != nil {
		return one, false, err
	}
	r := &spec.NodeGetVolumeStatsRequest{VolumeId: c.disk.Handle, VolumePath: v.target(pod.UID, c.disk)}
	can, err := n.Capabilities(ctx)
	if err != nil {
		return one, false, err
	}
	if can[spec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME] {
		r.StagingTargetPath, _ = v.staging(c.disk)
	}
	got, err := n.Stats(ctx, r)
	if err != nil {
		return one, false, err
	}
	if got.Health != nil {
		ill := len(got.Health.HealthStatuses) > 0
		one.Abnormal = &ill
	}
	if can[spec.NodeServiceCapability_RPC_GET_VOLUME_STATS] {
		for _, u := range got.Usage {
			switch u.Unit {
			case spec.VolumeUsage_BYTES:
				one.AvailableBytes, one.CapacityBytes, one.UsedBytes = count(u.Available), count(u.Total), count(u.Used)
			case spec.VolumeUsage_INODES:
				one.InodesFree, one.Inodes, one.InodesUsed = count(u.Available), count(u.Total), count(u.Used)
			}
		}
		return one, true, nil
	}
	if c.block {
		return one, one.Abnormal != nil, nil
	}
	one.FsStats, err = fileSystem(c.path)
	return one, true, err
}
