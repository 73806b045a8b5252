package resourceclaim

import (
	"maps"
	"slices"
	"sync"

	"github.com/yare-dev/yare/api"
)

// thing is a claim or a template.
type thing struct {
	kind *api.Kind
	key  api.Key
}

// waiting remembers which pods depend on things, so that who is woken by one need not be looked for among all pods. It is only a
// cache: every pod with claims is looked at when the controller begins, and then notes what it depends on.
//
// A pod notes a thing before it looks at it. So whatever changes afterwards wakes the pod, and nothing is missed in between.
type waiting struct {
	mu    sync.Mutex
	pods  map[thing]map[api.Key]bool // keys of the controller
	notes map[api.Key][]thing
}

func newWaiting() *waiting {
	return &waiting{pods: map[thing]map[api.Key]bool{}, notes: map[api.Key][]thing{}}
}

// set replaces what pod depends on.
func (w *waiting) set(pod api.Key, things ...thing) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range w.notes[pod] {
		delete(w.pods[t], pod)
		if len(w.pods[t]) == 0 {
			delete(w.pods, t)
		}
	}
	delete(w.notes, pod)
	if len(things) == 0 {
		return
	}
	w.notes[pod] = things
	for _, t := range things {
		if w.pods[t] == nil {
			w.pods[t] = map[api.Key]bool{}
		}
		w.pods[t][pod] = true
	}
}

// on returns the pods that depend on t.
func (w *waiting) on(t thing) []api.Key {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Collect(maps.Keys(w.pods[t]))
}
