package crd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// retryAtMost is how long a deletion that fails again and again waits for another attempt.
const retryAtMost = 30 * time.Second

// deleters is how many objects are deleted at once.
const deleters = 64

// othersKnow is upstream's figure of how long other API servers may take to hear that a definition ends.
const othersKnow = 5 * time.Second

// end deletes, beside all else, what c defines, and then lets c go.
func (s *Server) end(ctx context.Context, c *apiextensionsv1.CustomResourceDefinition) {
	if _, begun := s.ending[c.UID]; begun || !apihelpers.CRDHasFinalizer(c, apiextensionsv1.CustomResourceCleanupFinalizer) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	s.ending[c.UID] = cancel
	d := s.served[c.Name]
	if d != nil && d.crd.UID != c.UID {
		d = nil
	}
	s.work.Go(func() {
		defer cancel()
		first := true
		for wait := retryAfter; ctx.Err() == nil; wait = min(2*wait, retryAtMost) {
			err := s.finish(ctx, c, d, first)
			if err == nil {
				return
			}
			if ctx.Err() == nil {
				s.d.Log.Warn("definition is not finished", "definition", c.Name, "err", err)
			}
			first = false
			_ = run.Pause(ctx, wait)
		}
	})
}

// finish empties c, and lets it go. First says that it was not tried before: later attempts leave in the status why the last one failed.
func (s *Server) finish(ctx context.Context, c *apiextensionsv1.CustomResourceDefinition, d *served, first bool) error {
	ended := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionFalse,
		Reason: "NeverEstablished", Message: "resource was never established"}
	if d != nil && apihelpers.IsCRDConditionTrue(c, apiextensionsv1.Established) {
		if first {
			if err := s.update(ctx, c, func(c *apiextensionsv1.CustomResourceDefinition) {
				apihelpers.SetCRDCondition(c, apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue,
					Reason: "InstanceDeletionInProgress", Message: "CustomResource deletion is in progress"})
			}); err != nil {
				return err
			}
		}
		if !s.d.Store.Exclusive() { // other servers that were about to create have done so, or know by then
			if err := run.Pause(ctx, othersKnow); err != nil {
				return err
			}
		}
		if err := s.empty(ctx, d); err != nil {
			failed := s.update(ctx, c, func(c *apiextensionsv1.CustomResourceDefinition) {
				apihelpers.SetCRDCondition(c, apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue,
					Reason: "InstanceDeletionFailed", Message: fmt.Sprintf("could not issue all deletes: %v", err)})
			})
			return errors.Join(err, failed)
		}
		ended.Reason, ended.Message = "InstanceDeletionCompleted", "removed all instances"
	}
	return s.update(ctx, c, func(c *apiextensionsv1.CustomResourceDefinition) {
		apihelpers.SetCRDCondition(c, ended)
		apihelpers.CRDRemoveFinalizer(c, apiextensionsv1.CustomResourceCleanupFinalizer)
	})
}

// update changes c, whatever it has become since; one that is gone is as it should be.
func (s *Server) update(ctx context.Context, c *apiextensionsv1.CustomResourceDefinition, change func(*apiextensionsv1.CustomResourceDefinition)) error {
	for {
		now, err := client.Get[*apiextensionsv1.CustomResourceDefinition](ctx, s.d.Client, api.KeyOf(c))
		if apierrors.IsNotFound(err) || err == nil && now.UID != c.UID {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = client.Mutate(ctx, s.d.Client, now, "status", change)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if !apierrors.IsConflict(err) {
			return err
		}
	}
}

// empty deletes all objects of the definition and waits until they are gone.
func (s *Server) empty(ctx context.Context, d *served) error {
	asked := map[string]bool{}
	for {
		snap := s.d.Store.Snapshot(d.stored)
		if err := s.d.Store.Wait(ctx, snap.Revision()); err != nil {
			return err
		}
		w, err := s.d.Store.Watch(d.stored, snap.Revision(), 0)
		if err != nil {
			return err
		}
		var all errgroup.Group
		all.SetLimit(deleters)
		left := 0
		for e := range snap.All("", api.Key{}) {
			left++
			uid := string(e.Object.GetUID())
			if asked[uid] || e.Object.GetDeletionTimestamp() != nil {
				continue
			}
			asked[uid] = true
			all.Go(func() error {
				err := s.d.Remove(ctx, d.keep, e.Key)
				if apierrors.IsNotFound(err) || errors.Is(err, store.ErrNotFound) {
					return nil
				}
				return err
			})
		}
		if err := all.Wait(); err != nil || left == 0 {
			return err
		}
		if _, _, err := w.Next(ctx); err != nil && !errors.Is(err, store.ErrSlow) {
			return err
		}
	}
}
