package dra

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	drapb "k8s.io/kubelet/pkg/apis/dra/v1"
)

// slow is how long a driver may take to answer until pods that wait for it say so.
const slow = 5 * time.Second

// calling is a call of a driver that is under way.
type calling struct {
	what   string
	claims []*drapb.Claim
	since  time.Time
}

// each calls all drivers at once: one that hangs keeps the pod for as long as one call may take, and what the others have is done meanwhile.
func each(calls map[string][]*drapb.Claim, f func(driver string, claims []*drapb.Claim) error) error {
	names := slices.Sorted(maps.Keys(calls))
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = f(name, calls[name]) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// limited notes a call of a driver for claims, and bounds it.
func (s *Set) limited(ctx context.Context, method, driver string, claims []*drapb.Claim) (limited context.Context, done func()) {
	c := &calling{what: method + " of the DRA driver " + driver, claims: claims, since: time.Now()}
	s.mu.Lock()
	s.calls[c] = true
	s.mu.Unlock()
	limited, cancel := context.WithTimeout(ctx, callLimit)
	return limited, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.calls, c)
	}
}

// Waits returns what the pod waits for longer than usual, in words: drivers that do not answer.
func (s *Set) Waits(pod types.UID) (what []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.calls {
		if time.Since(c.since) < slow {
			continue
		}
		if slices.ContainsFunc(c.claims, func(claim *drapb.Claim) bool {
			r := s.records[types.UID(claim.Uid)]
			return r != nil && slices.Contains(r.Pods, pod)
		}) {
			what = append(what, fmt.Sprintf("%s has not answered for %v: it is given up after %v, and called again", c.what, slow, callLimit))
		}
	}
	slices.Sort(what)
	return what
}
