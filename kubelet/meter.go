package kubelet

import (
	"context"
	"errors"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/linux/diskusage"
)

// measuredAtOnce bounds the walks through pods' files at a time.
const measuredAtOnce = 8

// onDisk is what a pod takes on the node's disk that the runtime knows nothing of, by the names of volumes and containers.
type onDisk struct {
	volumes, logs map[string]diskusage.Usage
	err           error // what could not be measured
}

// meter measures pods, each for itself: one with millions of files holds up nobody else.
type meter struct {
	measure func(*corev1.Pod) *onDisk
	slots   chan struct{}

	mu      sync.Mutex
	running map[types.UID]chan struct{} // closed when it is done
	last    map[types.UID]*onDisk

	wg sync.WaitGroup
}

func newMeter(measure func(*corev1.Pod) *onDisk) *meter {
	return &meter{measure: measure, slots: make(chan struct{}, measuredAtOnce), running: map[types.UID]chan struct{}{}, last: map[types.UID]*onDisk{}}
}

// start measures the pod beside the caller, then calls then, unless that is nil. A pod that is being measured is not measured again: then is
// not called. done is closed when the figures are there, or ctx ended before it began.
func (m *meter) start(ctx context.Context, p *corev1.Pod, then func(*onDisk)) (done <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if have := m.running[p.UID]; have != nil {
		return have
	}
	ended := make(chan struct{})
	m.running[p.UID] = ended
	m.wg.Go(func() {
		var f *onDisk
		select {
		case m.slots <- struct{}{}:
			f = m.measure(p)
			<-m.slots
		case <-ctx.Done():
		}
		m.note(p.UID, f)
		close(ended)
		if f != nil && then != nil {
			then(f)
		}
	})
	return ended
}

// note ends a measurement; without figures the last ones stay.
func (m *meter) note(uid types.UID, f *onDisk) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.running, uid)
	if f != nil {
		m.last[uid] = f
	}
}

// of returns the last figures of the pod, nil where there are none yet.
func (m *meter) of(uid types.UID) *onDisk {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.last[uid]
}

// forgetBut forgets all other pods.
func (m *meter) forgetBut(pods []*corev1.Pod) {
	there := map[types.UID]bool{}
	for _, p := range pods {
		there[p.UID] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for uid := range m.last {
		if !there[uid] {
			delete(m.last, uid)
		}
	}
}

// close waits for what is under way, when nothing is started any more.
func (m *meter) close() { m.wg.Wait() }

// onDisk measures the pod's volumes and logs.
func (k *Kubelet) onDisk(p *corev1.Pod) *onDisk {
	d := &onDisk{logs: map[string]diskusage.Usage{}}
	d.volumes, d.err = k.volumesOnDisk(p)
	for s := range containerStatuses(p) {
		logs, err := k.logsOnDisk(p, s.Name)
		d.logs[s.Name], d.err = logs, errors.Join(d.err, err)
	}
	return d
}
