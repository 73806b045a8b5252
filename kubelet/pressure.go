package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/eviction"
	"github.com/yare-dev/yare/kubelet/pod"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/diskusage"
)

// measuredWithin is how long an eviction waits for what pods have on disk.
const measuredWithin = 5 * time.Second

// newEvictor makes what acts when the node runs out of something.
func (k *Kubelet) newEvictor() *eviction.Evictor {
	observe := k.deps.Observe
	var wake <-chan struct{}
	if observe == nil {
		wake = k.stalls.C
		observe = (&eviction.Machine{Root: k.config.RootDir, Images: k.imageFolders, Log: k.log}).Observe
	}
	return eviction.New(k.config.eviction(), eviction.Deps{
		Observe: observe, Wake: wake, Changed: func() { k.keeper.Poke() }, Pods: func() []*corev1.Pod { return k.pods.Evictable() }, Measure: k.measure,
		RemoveDead:   func(ctx context.Context) error { return k.pods.RemoveDead(ctx) },
		RemoveImages: k.removeUnusedImages, Evict: k.evict,
		Event: func(kind, reason, message string) {
			if n := k.keeper.Node(); n != nil {
				k.deps.Events.EventAt(n, "", kind, reason, message)
			}
		},
		Metrics: k.evictions, Log: k.log,
	})
}

// watchStalls has the evictor look at once when processes wait for memory, where the kernel tells of that.
func (k *Kubelet) watchStalls(ctx context.Context) {
	memory := func(t eviction.Threshold) bool { return t.Signal == eviction.MemoryAvailable }
	if k.deps.Observe != nil || !slices.ContainsFunc(k.config.eviction().Thresholds(), memory) {
		return
	}
	if err := k.stalls.Run(ctx); errors.Is(err, linux.ErrNotSupported) {
		k.log.Debug("memory is looked at in intervals alone", "err", err)
	} else if err != nil {
		k.log.Warn("memory is looked at in intervals alone", "err", err)
	}
}

// evict ends a pod for the node's sake.
func (k *Kubelet) evict(p *corev1.Pod, o eviction.Order) <-chan struct{} {
	k.log.Info("evicting pod", "pod", p.Namespace+"/"+p.Name, "why", o.Message)
	return k.pods.Evict(p.UID, pod.Eviction{Message: o.Message, Annotations: o.Annotations, Grace: o.Grace, Pressure: true})
}

// imageFolders are where the runtime has images, and what containers write.
func (k *Kubelet) imageFolders(ctx context.Context) (images, layers string, err error) {
	info, err := k.deps.CRI.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return "", "", err
	}
	first := func(all []*runtimeapi.FilesystemUsage) string {
		for _, fs := range all {
			return fs.GetFsId().GetMountpoint()
		}
		return ""
	}
	return first(info.ImageFilesystems), first(info.ContainerFilesystems), nil
}

// measure says what each of the pods uses, of disks the parts. A pod without figures of the runtime has no usage.
func (k *Kubelet) measure(ctx context.Context, pods []*corev1.Pod, parts eviction.Parts) ([]eviction.Candidate, error) {
	got, err := k.deps.CRI.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("read pods' figures: %w", err)
	}
	stats := map[string]*runtimeapi.LinuxPodSandboxStats{}
	for _, s := range got.Stats {
		if s.Linux != nil {
			stats[s.GetAttributes().GetLabels()[spec.PodUIDLabel]] = s.Linux
		}
	}
	walk := parts.Logs || parts.Volumes
	if walk {
		k.awaitMeasured(ctx, slices.DeleteFunc(slices.Clone(pods), func(p *corev1.Pod) bool { return stats[string(p.UID)] == nil }))
	}
	var out []eviction.Candidate
	for _, p := range pods {
		c := eviction.Candidate{Pod: p}
		if s := stats[string(p.UID)]; s != nil {
			c.Usage = usageOf(s)
			d := k.meter.of(p.UID)
			if walk && d == nil {
				d = &onDisk{err: errors.New("it is being measured for the first time")}
			}
			if walk {
				addOnDisk(c.Usage, d, parts)
			}
			if walk && d.err != nil {
				k.log.Warn("pod's use of the disk is not known in all parts", "pod", p.Namespace+"/"+p.Name, "err", d.err)
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// usageOf is what the runtime says.
func usageOf(s *runtimeapi.LinuxPodSandboxStats) *eviction.Usage {
	u := &eviction.Usage{
		Memory: int64(s.GetMemory().GetWorkingSetBytes().GetValue()), PIDs: int64(s.GetProcess().GetProcessCount().GetValue()),
		Containers: map[string]eviction.ContainerUsage{},
	}
	var sum int64
	for _, c := range s.Containers {
		layer := c.GetWritableLayer()
		one := eviction.ContainerUsage{Memory: int64(c.GetMemory().GetWorkingSetBytes().GetValue()),
			Layer: diskusage.Usage{Bytes: int64(layer.GetUsedBytes().GetValue()), Inodes: int64(layer.GetInodesUsed().GetValue())}}
		u.Containers[c.GetAttributes().GetMetadata().GetName()] = one
		sum += one.Memory
	}
	if s.Memory == nil { // the pod has no group of its own
		u.Memory = sum
	}
	return u
}

// awaitMeasured has the pods measured, and waits for that as long as an eviction can wait. Of those that take longer the last figures are taken.
func (k *Kubelet) awaitMeasured(ctx context.Context, pods []*corev1.Pod) {
	var under []<-chan struct{}
	for _, p := range pods {
		under = append(under, k.meter.start(ctx, p, nil))
	}
	ctx, cancel := context.WithTimeout(ctx, measuredWithin)
	defer cancel()
	for _, done := range under {
		select {
		case <-done:
		case <-ctx.Done():
			return
		}
	}
}

// addOnDisk adds to u what the runtime knows nothing of: logs and volumes.
func addOnDisk(u *eviction.Usage, d *onDisk, parts eviction.Parts) {
	if parts.Volumes {
		for _, v := range d.volumes {
			u.Volumes.Bytes, u.Volumes.Inodes = u.Volumes.Bytes+v.Bytes, u.Volumes.Inodes+v.Inodes
		}
	}
	if parts.Logs {
		for name, logs := range d.logs {
			one := u.Containers[name]
			one.Logs = logs
			u.Containers[name] = one
		}
	}
}
