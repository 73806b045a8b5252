package kubelet

import (
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/cri"
	"github.com/yare-dev/yare/kubelet/pod"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/linux/diskusage"
	"github.com/yare-dev/yare/run"
)

// measureEvery is the rest between two measurements of what pods have written, upstream's.
const measureEvery = 10 * time.Second

// limitStorage evicts pods that have written more to disk than they may. Only those with a limit are measured: that is a walk through
// their files.
func (k *Kubelet) limitStorage(ctx context.Context) {
	for run.Pause(ctx, measureEvery) == nil {
		pods := k.pods.All()
		k.meter.forgetBut(pods)
		for _, p := range pods {
			if volumes, whole := pod.StorageLimits(p); volumes || whole {
				k.meter.start(ctx, p, func(d *onDisk) { k.limit(ctx, p, d, whole) })
			}
		}
	}
}

// limit evicts the pod if it has written too much.
func (k *Kubelet) limit(ctx context.Context, p *corev1.Pod, d *onDisk, whole bool) {
	written, err := k.written(ctx, p, d, whole)
	if ctx.Err() != nil {
		return
	}
	if err != nil {
		k.log.Warn("pod's use of the disk is not known", "pod", p.Namespace+"/"+p.Name, "err", err)
		return
	}
	if message, limit := pod.Exceeded(p, written); message != "" {
		k.log.Info("evicting pod", "pod", p.Namespace+"/"+p.Name, "why", strings.TrimSpace(message))
		if k.pods.Evict(p.UID, pod.Eviction{Message: message, Grace: pod.EvictedGrace}) != nil {
			k.evictions.Evicted(limit)
		}
	}
}

// written is what of the pod counts: its volumes on disk, and unless they alone are wanted, its containers: the layers of those that run,
// and the logs of all.
func (k *Kubelet) written(ctx context.Context, p *corev1.Pod, d *onDisk, whole bool) (pod.Written, error) {
	w := pod.Written{Volumes: map[string]int64{}, Containers: map[string]int64{}}
	for name, u := range d.volumes {
		w.Volumes[name] = u.Bytes
	}
	if d.err != nil || !whole {
		return w, d.err
	}
	for s := range containerStatuses(p) {
		layer, err := k.layer(ctx, s)
		if err != nil {
			return w, fmt.Errorf("layer of container %q: %w", s.Name, err)
		}
		w.Containers[s.Name] = d.logs[s.Name].Bytes + layer
	}
	return w, nil
}

// containerStatuses are those of all containers of the pod.
func containerStatuses(p *corev1.Pod) iter.Seq[*corev1.ContainerStatus] {
	return func(yield func(*corev1.ContainerStatus) bool) {
		for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
			for i := range list {
				if !yield(&list[i]) {
					return
				}
			}
		}
	}
}

// volumesOnDisk measures the pod's volumes that are on the node's disk, by name.
func (k *Kubelet) volumesOnDisk(p *corev1.Pod) (map[string]diskusage.Usage, error) {
	out := map[string]diskusage.Usage{}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if !pod.OnDisk(v) {
			continue
		}
		used, err := k.volumes.DiskUsage(p, v)
		if err != nil {
			return out, fmt.Errorf("volume %q: %w", v.Name, err)
		}
		out[v.Name] = used
	}
	return out, nil
}

// logsOnDisk measures the logs of a container, of all its runs.
func (k *Kubelet) logsOnDisk(p *corev1.Pod, container string) (diskusage.Usage, error) {
	u, err := diskusage.Of(filepath.Join(spec.LogDirectory(k.config.LogDir, p), container))
	if err != nil {
		return u, fmt.Errorf("logs of container %q: %w", container, err)
	}
	return u, nil
}

// layer is what a running container has written to its root file system, in bytes.
func (k *Kubelet) layer(ctx context.Context, s *corev1.ContainerStatus) (int64, error) {
	if s.State.Running == nil {
		return 0, nil
	}
	_, id, _ := strings.Cut(s.ContainerID, "://")
	got, err := k.deps.CRI.Runtime.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if cri.Code(err) == codes.NotFound {
		return 0, nil // it has ended meanwhile
	}
	if err != nil {
		return 0, err
	}
	return int64(got.GetStats().GetWritableLayer().GetUsedBytes().GetValue()), nil
}
