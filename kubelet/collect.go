package kubelet

import (
	"cmp"
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/node"
	"github.com/yare-dev/yare/kubelet/spec"
)

const (
	rotateEvery = 10 * time.Second
	imagesEvery = 5 * time.Minute
	imageMinAge = 2 * time.Minute // an image that came just now is about to be used
)

// collect removes what nobody needs: old logs, unused images.
func (k *Kubelet) collect(ctx context.Context) {
	rotate, images := time.NewTicker(rotateEvery), time.NewTicker(imagesEvery)
	defer rotate.Stop()
	defer images.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-rotate.C:
			k.rotateLogs(ctx)
		case <-images.C:
			if err := k.collectImages(ctx, time.Now()); err != nil && ctx.Err() == nil {
				k.log.Warn("unused images stay", "err", err)
			}
		}
	}
}

func (k *Kubelet) rotateLogs(ctx context.Context) {
	for _, p := range k.pods.All() {
		for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
			for _, s := range list {
				if s.State.Running == nil {
					continue
				}
				path := filepath.Join(spec.LogDirectory(k.config.LogDir, p), spec.LogPath(s.Name, uint32(s.RestartCount)))
				_, id, _ := strings.Cut(s.ContainerID, "://")
				_, err := k.rotation.Apply(path, func() error {
					_, err := k.deps.CRI.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
					return err
				})
				if err != nil && ctx.Err() == nil {
					k.log.Warn("log is not rotated", "pod", p.Namespace+"/"+p.Name, "container", s.Name, "err", err)
				}
			}
		}
	}
}

// usage is what the collector remembers of one.
type usage struct{ seen, used time.Time }

// collectImages removes images that no container has, those unused the longest first, when their file system is too full.
func (k *Kubelet) collectImages(ctx context.Context, now time.Time) error {
	return k.removeImages(ctx, now, func() (int64, error) { return k.tooManyImages(ctx) })
}

// removeUnusedImages removes all images that no container has, but for those that have just come.
func (k *Kubelet) removeUnusedImages(ctx context.Context) error {
	return k.removeImages(ctx, time.Now(), func() (int64, error) { return math.MaxInt64, nil })
}

// removeImages removes images that no container has, so that as many bytes come free as goal returns.
func (k *Kubelet) removeImages(ctx context.Context, now time.Time, goal func() (int64, error)) error {
	k.imagesLock.Lock()
	defer k.imagesLock.Unlock()
	list, err := k.deps.CRI.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return err
	}
	containers, err := k.deps.CRI.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, c := range containers.Containers {
		used[c.ImageRef], used[c.ImageId], used[c.GetImage().GetImage()] = true, true, true
	}
	k.remember(list.Images, used, now)
	bytes, err := goal()
	if err != nil {
		return err
	}
	var errs []error
	for _, i := range k.choose(list.Images, used, bytes, now) {
		k.log.Info("removing unused image", "image", i.Id)
		if _, err := k.deps.CRI.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: i.Id}}); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// tooManyImages returns how many bytes of images are too many.
func (k *Kubelet) tooManyImages(ctx context.Context) (int64, error) {
	if k.config.ImageGCHighPercent == 100 {
		return 0, nil
	}
	images, _, err := k.imageFolders(ctx)
	if err != nil || images == "" {
		return 0, err
	}
	fs, err := node.Disk(images)
	if err != nil {
		return 0, err
	}
	if fs.Bytes == 0 || (fs.Bytes-fs.Free)*100 < fs.Bytes*int64(k.config.ImageGCHighPercent) {
		return 0, nil
	}
	return (fs.Bytes - fs.Free) - fs.Bytes*int64(k.config.ImageGCLowPercent)/100, nil
}

// imagesListed notes images as the Node's status is made of them.
func (k *Kubelet) imagesListed(images []*runtimeapi.Image) {
	if !k.imagesLock.TryLock() {
		return // they are just being removed
	}
	defer k.imagesLock.Unlock()
	k.remember(images, nil, time.Now())
}

// remember notes which images there are, and are in use, now. Those that the first list has have been there for long.
func (k *Kubelet) remember(images []*runtimeapi.Image, used map[string]bool, now time.Time) {
	seen := now
	if k.images == nil {
		seen = time.Time{}
	}
	next := make(map[string]*usage, len(images))
	for _, i := range images {
		m := k.images[i.Id]
		if m == nil {
			m = &usage{seen: seen}
		}
		if used[i.Id] {
			m.used = now
		}
		next[i.Id] = m
	}
	k.images = next
}

// choose returns images to remove, so that goal bytes come free.
func (k *Kubelet) choose(images []*runtimeapi.Image, used map[string]bool, goal int64, now time.Time) (out []*runtimeapi.Image) {
	idle := slices.DeleteFunc(slices.Clone(images), func(i *runtimeapi.Image) bool {
		named := slices.ContainsFunc(append(slices.Clone(i.RepoTags), i.RepoDigests...), func(n string) bool { return used[n] })
		return i.Pinned || used[i.Id] || named || now.Sub(k.images[i.Id].seen) < imageMinAge
	})
	slices.SortStableFunc(idle, func(a, b *runtimeapi.Image) int {
		x, y := k.images[a.Id], k.images[b.Id]
		return cmp.Or(x.used.Compare(y.used), x.seen.Compare(y.seen))
	})
	for _, i := range idle {
		if goal <= 0 {
			break
		}
		goal -= int64(i.Size)
		out = append(out, i)
	}
	return out
}
