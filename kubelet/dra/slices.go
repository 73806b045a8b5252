package dra

import (
	"context"
	"errors"
	"sync"
	"time"

	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/yare-dev/yare/client"
)

// wipeAgain is the pause after ResourceSlices could not be deleted; upstream's first.
const wipeAgain = 5 * time.Second

// Run deletes ResourceSlices of drivers that are not there, until ctx ends. Soon after the beginning these are all that have not come yet: one may never
// come, and pods would wait for it here. Drivers make theirs anew when they see that they are gone.
func (s *Set) Run(ctx context.Context) {
	s.mu.Lock()
	s.ctx = ctx
	s.wipeAt("", time.Now().Add(startGrace))
	s.mu.Unlock()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.forgetRestored(ctx) })
	for {
		now := time.Now()
		names, next := s.due(now)
		for _, name := range names {
			if err := s.wipe(ctx, name); err != nil && ctx.Err() == nil {
				s.log.Warn("ResourceSlices of DRA drivers that are gone stay", "driver", name, "err", err)
				s.mu.Lock()
				if name == "" || !s.there(name) {
					s.wipeAt(name, now.Add(wipeAgain))
				}
				s.mu.Unlock()
			}
		}
		if len(names) > 0 {
			continue
		}
		var timer <-chan time.Time
		if !next.IsZero() {
			timer = time.After(next.Sub(now))
		}
		select {
		case <-ctx.Done():
			return
		case <-s.poke:
		case <-timer:
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// wipeAt has the driver's ResourceSlices deleted at a time, unless it comes before. s.mu is held.
func (s *Set) wipeAt(driver string, at time.Time) {
	s.wipes[driver] = at
	select {
	case s.poke <- struct{}{}:
	default:
	}
}

// due returns whose ResourceSlices are to be deleted now, and when the next are.
func (s *Set) due(now time.Time) (names []string, next time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, at := range s.wipes {
		switch {
		case !at.After(now):
			names = append(names, name)
			delete(s.wipes, name)
		case next.IsZero() || at.Before(next):
			next = at
		}
	}
	return names, next
}

// wipe deletes the ResourceSlices of this node whose driver is not there: those of one driver, or with "" of all.
func (s *Set) wipe(ctx context.Context, driver string) error {
	list, err := client.List[*resourcev1.ResourceSlice](client.Live(ctx), s.config.Client, client.Query{Fields: fields.OneTermEqualSelector("spec.nodeName", s.config.Node)})
	if err != nil {
		return err
	}
	var errs []error
	for _, slice := range list {
		s.mu.Lock()
		_, later := s.wipes[slice.Spec.Driver] // it has come and gone, and has its own time
		stays := driver != "" && slice.Spec.Driver != driver || later || s.there(slice.Spec.Driver)
		s.mu.Unlock()
		if stays {
			continue
		}
		s.log.Info("deleting a ResourceSlice whose DRA driver is not there", "slice", slice.Name, "driver", slice.Spec.Driver)
		err := s.config.Client.Delete(ctx, slice.DeepCopy(), client.DeleteOptions{AnyRevision: true})
		if !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // another has its name by now
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
