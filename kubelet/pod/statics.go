package pod

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
)

// SetStatics tells which static pods are to run. One that was edited is another pod of the same name: it waits until nothing is left of
// the one before, whose room and ports it needs. So does one that comes back while it ends.
func (p *Pods) SetStatics(pods []*corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.statics = pods
	wanted := func(uid types.UID) bool {
		return slices.ContainsFunc(pods, func(pod *corev1.Pod) bool { return pod.UID == uid })
	}
	for uid, w := range p.workers {
		if w.static && !wanted(uid) {
			w.setGone()
		}
	}
	for uid := range p.mirrors {
		if !wanted(uid) {
			delete(p.mirrors, uid)
		}
	}
	p.startStatics()
}

// Mirror tells which pod shows a static pod in the API, nil when none does.
func (p *Pods) Mirror(uid types.UID, mirror *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mirrors[uid] = mirror; mirror == nil {
		delete(p.mirrors, uid)
	}
	if w := p.workers[uid]; w != nil {
		w.setMirror(mirror)
	}
}

// startStatics starts the static pods whose names are free. p.mu is held.
func (p *Pods) startStatics() {
	for _, pod := range p.statics {
		if p.ctx.Err() != nil || p.ending(pod) {
			continue
		}
		p.set(pod, true)
		if m := p.mirrors[pod.UID]; m != nil {
			p.workers[pod.UID].setMirror(m)
		}
	}
}

// ending reports whether something is left of a static pod of the same name, or of an earlier life of this one. p.mu is held.
func (p *Pods) ending(pod *corev1.Pod) bool {
	for uid, w := range p.workers {
		if w.static && api.KeyOf(w.current()) == api.KeyOf(pod) && (uid != pod.UID || w.isGone()) {
			return true
		}
	}
	return false
}
