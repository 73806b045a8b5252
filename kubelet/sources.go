package kubelet

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/kubelet/spec"
	"github.com/yare-dev/yare/run"
)

// retryEvery is the pause after a stream broke.
const retryEvery = time.Second

// watchPods feeds the API's pods of this node to their workers. It is ready when it has seen all that there are; what
// the runtime has beside these and the static ones is then removed (by collect).
func (k *Kubelet) watchPods(ctx context.Context, statics <-chan struct{}, ready func()) {
	defer ready()
	q := client.Query{Fields: fields.OneTermEqualSelector("spec.nodeName", k.config.NodeName)}
	for ctx.Err() == nil {
		seen := map[types.UID]bool{} // until all are
		for e, err := range k.deps.Client.Watch(ctx, api.PodKind, q, 0) {
			if err != nil {
				k.log.Warn("pods cannot be watched", "err", err)
				break
			}
			switch e.Op {
			case client.Synced:
				k.podsSeen(seen)
				seen = nil
				k.pods.Synced()
				select {
				case <-statics:
					select {
					case k.strangers <- struct{}{}:
					default:
					}
				case <-ctx.Done():
				}
				ready()
			case client.Deleted:
				k.podGone(e.Object.(*corev1.Pod))
			default:
				if seen != nil {
					seen[e.Object.GetUID()] = true
				}
				k.podSeen(e.Object.(*corev1.Pod))
			}
		}
		_ = run.Pause(ctx, retryEvery)
	}
}

func isMirror(p *corev1.Pod) bool { return p.Annotations[spec.ConfigMirrorAnnotation] != "" }

func (k *Kubelet) podSeen(p *corev1.Pod) {
	if !isMirror(p) {
		k.pods.Set(p)
		return
	}
	k.mu.Lock()
	k.mirrors[api.KeyOf(p).String()] = p
	of := k.statics[api.KeyOf(p).String()]
	k.mu.Unlock()
	if of != nil && shows(p, of) {
		k.pods.Mirror(of.UID, p)
	}
	k.pokeMirrors()
}

// podsSeen takes leave of the pods that were deleted while none could be watched: the API has no others than those.
func (k *Kubelet) podsSeen(those map[types.UID]bool) {
	k.pods.GoneBut(those)
	k.mu.Lock()
	var gone []*corev1.Pod
	for _, m := range k.mirrors {
		if !those[m.UID] {
			gone = append(gone, m)
		}
	}
	k.mu.Unlock()
	for _, m := range gone {
		k.podGone(m)
	}
}

func (k *Kubelet) podGone(p *corev1.Pod) {
	if !isMirror(p) {
		if k.pods.Has(p.UID) {
			k.pods.Set(p) // its last state says with how much grace it was deleted
			k.pods.Gone(p.UID)
		}
		return
	}
	k.mu.Lock()
	key := api.KeyOf(p).String()
	if have := k.mirrors[key]; have != nil && have.UID == p.UID {
		delete(k.mirrors, key)
	}
	of := k.statics[key]
	k.mu.Unlock()
	if of != nil {
		k.pods.Mirror(of.UID, nil)
	}
	k.pokeMirrors()
}

// setStatics makes the pods of the folder what runs.
func (k *Kubelet) setStatics(pods []*corev1.Pod) {
	k.pods.SetStatics(pods)
	shown := map[types.UID]*corev1.Pod{}
	k.mu.Lock()
	k.statics = map[string]*corev1.Pod{}
	for _, p := range pods {
		key := api.KeyOf(p).String()
		k.statics[key] = p
		if m := k.mirrors[key]; m != nil && shows(m, p) {
			shown[p.UID] = m
		}
	}
	k.mu.Unlock()
	for uid, m := range shown { // those that were there first
		k.pods.Mirror(uid, m)
	}
	k.pokeMirrors()
}

// shows reports whether the mirror is of this very static pod.
func shows(mirror, static *corev1.Pod) bool {
	return mirror.Annotations[spec.ConfigMirrorAnnotation] == static.Annotations[spec.ConfigHashAnnotation]
}

func (k *Kubelet) pokeMirrors() {
	select {
	case k.poke <- struct{}{}:
	default:
	}
}

// keepMirrors shows each static pod in the API by a pod of its own, and removes those that show none, also where there is no folder (any more).
// It begins when statics is closed: before, it is not known what there is to show.
func (k *Kubelet) keepMirrors(ctx context.Context, statics <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-statics:
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.poke:
		}
		if !k.syncMirrors(ctx) {
			_ = run.Pause(ctx, retryEvery)
			k.pokeMirrors()
		}
	}
}

// syncMirrors does one round and reports whether everything is as it should be.
func (k *Kubelet) syncMirrors(ctx context.Context) bool {
	k.mu.Lock()
	var remove, create []*corev1.Pod
	for key, m := range k.mirrors {
		if s := k.statics[key]; s == nil || !shows(m, s) || m.DeletionTimestamp != nil {
			remove = append(remove, m)
		}
	}
	for key, s := range k.statics {
		if k.mirrors[key] == nil {
			create = append(create, s)
		}
	}
	k.mu.Unlock()
	ok := true
	now := int64(0)
	for _, m := range remove {
		err := k.deps.Client.Delete(ctx, &corev1.Pod{TypeMeta: m.TypeMeta, ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID}},
			client.DeleteOptions{Grace: &now, AnyRevision: true})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			k.log.Warn("mirror pod cannot be deleted", "pod", api.KeyOf(m).String(), "err", err)
			ok = false
		}
	}
	for _, s := range create {
		if _, err := client.Create(ctx, k.deps.Client, k.mirror(s)); err != nil && !apierrors.IsAlreadyExists(err) {
			k.log.Warn("mirror pod cannot be created", "pod", api.KeyOf(s).String(), "err", err)
			ok = false
		}
	}
	return ok
}

func (k *Kubelet) mirror(s *corev1.Pod) *corev1.Pod {
	m := s.DeepCopy()
	m.SetGroupVersionKind(api.PodKind.GVK())
	m.UID = ""
	m.Annotations[spec.ConfigMirrorAnnotation] = s.Annotations[spec.ConfigHashAnnotation]
	if n := k.keeper.Node(); n != nil {
		controller := true
		m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID, Controller: &controller}}
	}
	return m
}

// watchRuntime wakes workers by the runtime's events. After a gap it wakes all.
func (k *Kubelet) watchRuntime(ctx context.Context) {
	for ctx.Err() == nil {
		events, err := k.deps.CRI.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		if err == nil {
			k.hears(true)
			k.pods.WakeAll()
		}
		for err == nil {
			var e *runtimeapi.ContainerEventResponse
			if e, err = events.Recv(); err == nil {
				uid := e.GetPodSandboxStatus().GetMetadata().GetUid()
				if uid == "" {
					k.pods.WakeAll()
					continue
				}
				k.pods.Wake(types.UID(uid))
			}
		}
		if ctx.Err() != nil {
			return
		}
		k.hears(false)
		k.log.Warn("runtime's events broke off", "err", err)
		_ = run.Pause(ctx, retryEvery)
	}
}
