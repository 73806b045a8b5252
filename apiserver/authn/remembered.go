package authn

import (
	"sync"
	"time"
)

// mostRemembered bounds a Remembered: a pod has one token.
const mostRemembered = 10000

// Remembered keeps answers that cost more than the rest of a small request (that a signature is good, what a webhook said), each until
// a time. When there are too many all are forgotten, which costs each one question. The zero value is empty, and its methods may be
// called concurrently.
type Remembered[K comparable, V any] struct {
	mu   sync.RWMutex
	kept map[K]remembered[V]
}

type remembered[V any] struct {
	answer V
	until  time.Time
}

// Get returns the answer about k, if there is one whose time has not come.
func (r *Remembered[K, V]) Get(k K) (answer V, ok bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if e, ok := r.kept[k]; ok && time.Now().Before(e.until) {
		return e.answer, true
	}
	return answer, false
}

// Put keeps the answer about k until a time.
func (r *Remembered[K, V]) Put(k K, answer V, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kept == nil || len(r.kept) >= mostRemembered {
		r.kept = map[K]remembered[V]{}
	}
	r.kept[k] = remembered[V]{answer, until}
}
