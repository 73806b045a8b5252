package pod

import (
	"context"
	"errors"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/spec"
)

// RemoveDead removes what is on disk of pods that have ended for good, although they have not been deleted: their containers with what
// they have written, and their logs. Their statuses say all that is left of them. Static pods keep theirs, by which a kubelet that is started
// knows that they ended.
func (p *Pods) RemoveDead(ctx context.Context) error {
	dead := p.dead()
	if len(dead) == 0 {
		return nil
	}
	list, err := p.cri.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	var errs []error
	for _, s := range list.Items {
		if pod := dead[types.UID(s.Labels[spec.PodUIDLabel])]; pod != nil {
			p.log.Info("removing what is left of a pod that has ended", "pod", pod.Namespace+"/"+pod.Name)
			_, err := p.cri.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
			errs = append(errs, err)
		}
	}
	for _, pod := range dead {
		errs = append(errs, os.RemoveAll(spec.LogDirectory(p.config.Node.LogRoot, pod)))
	}
	return errors.Join(errs...)
}

// dead returns the pods of which nothing runs, nor will, and whose statuses say so in the API.
func (p *Pods) dead() map[types.UID]*corev1.Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[types.UID]*corev1.Pod{}
	for uid, w := range p.workers {
		w.mu.Lock()
		over := w.over && !w.static
		w.mu.Unlock()
		if !over {
			continue
		}
		if shown := w.shown(); shown != nil && closed(&shown.Status) {
			out[uid] = shown
		}
	}
	return out
}
