package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
)

const (
	defaultGrace    = 30 // seconds, for strangers that do not say
	strangersAtOnce = 64 // pods that are removed at a time: each takes as long as its containers have to end

	strangersFirst, strangersLast = time.Second, time.Minute // between attempts to remove them
)

// watchStrangers removes strangers when the pods are known. What cannot be removed yet, as a driver with a volume of theirs is not there,
// is tried again.
func (k *Kubelet) watchStrangers(ctx context.Context) {
	var again <-chan time.Time
	wait := strangersFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.strangers:
			wait = strangersFirst
		case <-again:
		}
		if again = nil; !k.removeStrangers(ctx) {
			again = time.After(wait)
			wait = min(2*wait, strangersLast)
		}
	}
}

// stranger is what a pod has left that is gone.
type stranger struct {
	sandboxes []string
	group     string // its cgroup, empty where none is known
}

// removeStrangers ends and removes what belongs to no pod: pods that were deleted while no kubelet ran. It reports whether nothing stays.
func (k *Kubelet) removeStrangers(ctx context.Context) bool {
	gone, err := k.findStrangers(ctx)
	if err != nil {
		k.log.Warn("sandboxes cannot be listed", "err", err)
		return false
	}
	var stays atomic.Bool
	var wg sync.WaitGroup
	slots := make(chan struct{}, strangersAtOnce)
	for uid, s := range gone {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := k.removeStranger(ctx, uid, s); err != nil {
				stays.Store(true)
				if ctx.Err() == nil {
					k.log.Warn("something stays of a pod that is gone", "uid", uid, "err", err)
				}
			}
		})
	}
	wg.Wait()
	return !stays.Load()
}

// findStrangers returns those of which there is anything. What cannot be looked for is left for another time.
func (k *Kubelet) findStrangers(ctx context.Context) (map[types.UID]*stranger, error) {
	list, err := k.deps.CRI.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	gone := map[types.UID]*stranger{}
	of := func(uid types.UID) *stranger {
		switch {
		case k.pods.Has(uid):
			return &stranger{} // it is none
		case gone[uid] == nil:
			gone[uid] = &stranger{}
		}
		return gone[uid]
	}
	for _, s := range list.Items {
		if uid := types.UID(s.Labels[spec.PodUIDLabel]); uid != "" && !k.pods.Has(uid) {
			k.log.Info("removing a pod that is gone", "pod", s.GetMetadata().GetNamespace()+"/"+s.GetMetadata().GetName(), "uid", uid)
			of(uid).sandboxes = append(of(uid).sandboxes, s.Id)
		}
	}
	dirs, err := k.volumes.Pods()
	if err != nil {
		k.log.Warn("pods' folders stay", "err", err)
	}
	for _, uid := range append(dirs, append(k.devices.Holders(), k.claims.Holders()...)...) {
		of(uid)
	}
	// A kubelet that was killed may have left nothing of a pod but its logs.
	logDirs, err := os.ReadDir(k.config.LogDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.Warn("pods' logs stay", "err", err)
	}
	for _, d := range logDirs {
		if uid, ok := spec.LogDirectoryUID(d.Name()); ok {
			of(uid)
		}
	}
	if g, ok := k.groups.(*resources.Groups); ok {
		for uid, path := range g.Pods() {
			of(types.UID(uid)).group = path
		}
	}
	return gone, nil
}

// removeStranger removes one: first what runs, then what that used.
func (k *Kubelet) removeStranger(ctx context.Context, uid types.UID, s *stranger) error {
	for _, id := range s.sandboxes {
		if err := k.removeSandbox(ctx, id); err != nil {
			return fmt.Errorf("remove sandbox %s: %w", id, err)
		}
	}
	var errs []error
	note := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	note("remove folder", k.volumes.Down(ctx, uid))
	note("release resource claims", k.claims.Release(ctx, uid))
	note("free devices", k.devices.Free(uid))
	logs, err := filepath.Glob(filepath.Join(k.config.LogDir, "*_"+string(uid)))
	for _, dir := range logs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	note("remove logs", err)
	if s.group != "" {
		note("remove cgroup", k.groups.Remove(s.group))
	}
	return errors.Join(errs...)
}

// removeSandbox stops the sandbox's containers with the grace that their pod gave them, then removes all.
func (k *Kubelet) removeSandbox(ctx context.Context, id string) error {
	list, err := k.deps.CRI.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		PodSandboxId: id, State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}}})
	if err != nil {
		return err
	}
	ends := make(chan error, len(list.Containers))
	for _, c := range list.Containers {
		grace, err := strconv.ParseInt(c.Annotations[spec.GraceAnnotation], 10, 64)
		if err != nil {
			grace = defaultGrace
		}
		go func() {
			_, err := k.deps.CRI.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.Id, Timeout: grace})
			ends <- err
		}()
	}
	for range list.Containers {
		err = errors.Join(err, <-ends)
	}
	if err != nil {
		return err
	}
	if _, err := k.deps.CRI.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err = k.deps.CRI.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}
