// Package usage says what nodes and pods use at the moment: the figures of metrics.k8s.io. It replaces metrics-server.
//
//	request ──> nodes concerned ──> their kubelets, side by side: /stats/summary ──> two samples of each ──> rates (rate.go, pure)
//
// Vocabulary: a sample is what a kubelet's counters showed at a time; the use of the CPU is the difference of two samples, over the
// window between them.
//
// Invariants:
//   - Nothing runs while nobody asks. Whoever asks again within a minute gets the use since then; for whoever comes first, two
//     samples are taken within a second.
//   - A kubelet is asked at most once in five seconds, however many ask, but for that first time.
//   - A node that does not answer in time is left out with its pods, and so is a pod as long as a container that runs has no figures.
//   - Nor is one that does not answer, whose error is the answer to all who ask meanwhile.
//   - Reader.mu is never held while a kubelet is asked.
package usage

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

const (
	answerWithin = 10 * time.Second
	atOnce       = 32 // kubelets
	// fresh is for how long a sample is the newest that anybody gets.
	fresh = 5 * time.Second
	// goodWindow is the least window where there is a choice of samples to compare with, leastWindow where there is none.
	goodWindow  = 10 * time.Second
	leastWindow = time.Second
	// memory is for how long a sample is worth being compared with.
	memory = time.Minute
)

// document is what kubelets are asked for.
const document = "/stats/summary?only_cpu_and_memory=true"

// Deps are what a Reader needs.
type Deps struct {
	Store *store.Store
	// Get asks the kubelet of a node for a document.
	Get func(ctx context.Context, n *corev1.Node, path string) ([]byte, error)
	Log *slog.Logger
}

// Reader answers.
type Reader struct {
	d      Deps
	places chan struct{} // of kubelets that are being asked

	mu    sync.Mutex
	nodes map[string]*node
}

// node is what is known of a node. It is forgotten when it has not been asked for a while.
type node struct {
	asked time.Time // guarded by Reader.mu

	// turn has one place, of who asks the kubelet; it guards what follows.
	turn    chan struct{}
	samples []*sample // oldest first
	failed  time.Time // when the kubelet did not answer last
	err     error     // of that
}

// New returns a Reader.
func New(d Deps) *Reader {
	return &Reader{d: d, places: make(chan struct{}, atOnce), nodes: map[string]*node{}}
}

// Nodes returns what the wanted nodes use.
func (r *Reader) Nodes(ctx context.Context, w rest.Wanted) []*metricsv1beta1.NodeMetrics {
	nodes := wanted[*corev1.Node](r.d.Store.Snapshot(api.NodeKind), w, w.Key.Name != "")
	var all []*metricsv1beta1.NodeMetrics
	for i, p := range r.pairs(ctx, nodes) {
		if m := nodeMetrics(nodes[i], p, time.Now()); m != nil {
			all = append(all, m)
		}
	}
	return all
}

// Pods returns what the wanted pods use.
func (r *Reader) Pods(ctx context.Context, w rest.Wanted) []*metricsv1beta1.PodMetrics {
	at := map[string]int{} // index of a node, by its name
	var nodes []*corev1.Node
	snap := r.d.Store.Snapshot(api.NodeKind)
	var pods []*corev1.Pod
	for _, p := range wanted[*corev1.Pod](r.d.Store.Snapshot(api.PodKind), w, w.Key.Name != "" && w.Key.Namespace != "") {
		if p.Status.Phase != corev1.PodRunning {
			continue
		}
		if _, known := at[p.Spec.NodeName]; !known {
			e := snap.Get(api.Key{Name: p.Spec.NodeName})
			if e == nil || e.Err() != nil {
				continue
			}
			at[p.Spec.NodeName] = len(nodes)
			nodes = append(nodes, e.Object.(*corev1.Node))
		}
		pods = append(pods, p)
	}
	pairs := r.pairs(ctx, nodes)
	var all []*metricsv1beta1.PodMetrics
	for _, p := range pods {
		if m := podMetrics(p, pairs[at[p.Spec.NodeName]], time.Now()); m != nil {
			all = append(all, m)
		}
	}
	return all
}

// wanted returns the selected objects, one by its key where that is whole.
func wanted[T api.Object](s store.Snapshot, w rest.Wanted, one bool) (all []T) {
	if one {
		if e := s.Get(w.Key); e != nil && e.Err() == nil && w.Selects(e.Object) {
			all = append(all, e.Object.(T))
		}
		return all
	}
	for e := range s.All(w.Key.Namespace, api.Key{}) {
		if e.Err() == nil && w.Selects(e.Object) {
			all = append(all, e.Object.(T))
		}
	}
	return all
}

// pair is the newest sample of a node, and one that it is compared with. The zero pair is that of a node that does not answer.
type pair struct{ now, before *sample }

// pairs asks the kubelets of nodes.
func (r *Reader) pairs(ctx context.Context, nodes []*corev1.Node) []pair {
	out := make([]pair, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			var err error
			if out[i], err = r.node(n.Name).pair(ctx, func() (*sample, error) { return r.ask(ctx, n) }); err != nil {
				r.d.Log.Debug("what a node uses is not known", "node", n.Name, "err", err)
			}
		})
	}
	wg.Wait()
	return out
}

// node returns what is known of a node, and forgets those that nobody asks for.
func (r *Reader) node(name string) *node {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for other, n := range r.nodes {
		if now.Sub(n.asked) > memory {
			delete(r.nodes, other)
		}
	}
	n := r.nodes[name]
	if n == nil {
		n = &node{turn: make(chan struct{}, 1)}
		r.nodes[name] = n
	}
	n.asked = now
	return n
}

func (r *Reader) ask(ctx context.Context, n *corev1.Node) (*sample, error) {
	select {
	case r.places <- struct{}{}:
		defer func() { <-r.places }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	text, err := r.d.Get(ctx, n, document)
	if err != nil {
		return nil, fmt.Errorf("ask its kubelet: %w", err)
	}
	var s statsapi.Summary
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("the answer of its kubelet: %w", err)
	}
	return sampleOf(&s, time.Now()), nil
}

// pair returns two samples, for which it asks as far as it has to.
func (n *node) pair(ctx context.Context, ask func() (*sample, error)) (pair, error) {
	select {
	case n.turn <- struct{}{}:
		defer func() { <-n.turn }()
	case <-ctx.Done():
		return pair{}, ctx.Err()
	}
	p := choose(n.samples)
	switch {
	case p.before != nil && time.Since(p.now.taken) < fresh:
		return p, nil
	case n.err != nil && time.Since(n.failed) < fresh:
		return pair{}, n.err
	}
	for range 2 {
		if p.now != nil && p.before == nil {
			if err := run.Pause(ctx, time.Until(p.now.taken.Add(leastWindow))); err != nil {
				return pair{}, err
			}
		}
		s, err := ask()
		if err != nil {
			if ctx.Err() == nil { // else it is who asks that did not wait
				n.failed, n.err = time.Now(), err
			}
			return pair{}, err
		}
		n.err = nil
		n.samples = append(recent(n.samples, s.taken), s)
		if p = choose(n.samples); p.before != nil {
			break
		}
	}
	return p, nil
}
