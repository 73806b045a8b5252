package rest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// deleters is how many objects of a collection are deleted at once: enough to share the database's commits.
const deleters = 256

// Deleted is the outcome of a deletion.
type Deleted struct {
	// Entry is the object's last state, or the state in which it waits for its end.
	Entry *store.Entry
	// Gone says that the object is no more. Otherwise its deletion has begun, and something holds it.
	Gone bool
	// Answer says that the client gets the object rather than a Status.
	Answer bool
}

// Delete deletes the object, or begins to. It takes opts over.
func (p *Pipeline) Delete(ctx context.Context, r *Request, opts *metav1.DeleteOptions) (*Deleted, error) {
	if err := checkDeleteOptions(opts); err != nil {
		return nil, err
	}
	r.warnOrphans(opts)
	return p.deleteChecked(ctx, r, opts)
}

func checkDeleteOptions(opts *metav1.DeleteOptions) error {
	if errs := metavalidation.ValidateDeleteOptions(opts); len(errs) > 0 {
		return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("DeleteOptions").GroupKind(), "", errs)
	}
	return nil
}

// warnOrphans tells who names no policy what happens to the dependents.
func (r *Request) warnOrphans(opts *metav1.DeleteOptions) {
	if text := r.Any.r.orphanWarning; text != "" && opts.PropagationPolicy == nil && opts.OrphanDependents == nil {
		r.warn(text)
	}
}

// deleteChecked is Delete with options that are right.
func (p *Pipeline) deleteChecked(ctx context.Context, r *Request, opts *metav1.DeleteOptions) (*Deleted, error) {
	r = r.inside()
	r.DryRun = r.DryRun || len(opts.DryRun) > 0
	if opts.GracePeriodSeconds != nil && *opts.GracePeriodSeconds < 0 {
		*opts.GracePeriodSeconds = 1
	}
	d, err := p.deleteStored(ctx, r, opts)
	if d != nil {
		d.Entry = r.show(d.Entry)
	}
	return d, err
}

// deleteStored is Delete of the stored form.
func (p *Pipeline) deleteStored(ctx context.Context, r *Request, opts *metav1.DeleteOptions) (*Deleted, error) {
	for n := 0; ; n++ {
		d, err := p.deleteOnce(ctx, r, opts)
		var again retry
		if !errors.As(err, &again) {
			return d, err
		}
		if n == attempts {
			return nil, again.error
		}
		if err := pause(ctx, n); err != nil {
			return nil, storeError(err, r)
		}
	}
}

func (p *Pipeline) deleteOnce(ctx context.Context, r *Request, opts *metav1.DeleteOptions) (*Deleted, error) {
	entry, err := p.current(ctx, r)
	if err != nil {
		return nil, err
	}
	if entry == nil {
		return nil, r.notFound()
	}
	old := entry.Object
	if err := r.deletePreconditions(old, opts.Preconditions); err != nil {
		return nil, err
	}
	if err := p.admitDelete(ctx, r, old, opts); err != nil {
		return nil, err
	}
	now, pending := p.begin(r, old, opts)
	answer := r.Any.r.answerDeleted
	if pending {
		return &Deleted{Entry: entry, Answer: true}, nil
	}
	var e *store.Entry
	gone := now == nil || r.released(now)
	if gone {
		e, err = p.commitDelete(ctx, r, entry, now)
	} else {
		answer = true
		e, err = p.commitUpdate(ctx, r, entry, now)
	}
	if errors.Is(err, store.ErrConflict) {
		return nil, retry{r.conflict()}
	}
	if err != nil {
		return nil, storeError(err, r)
	}
	return &Deleted{Entry: e, Gone: gone, Answer: answer}, nil
}

// admitDelete asks admission whether old may be deleted.
func (p *Pipeline) admitDelete(ctx context.Context, r *Request, old api.Object, opts *metav1.DeleteOptions) error {
	if r.settled {
		return nil
	}
	a := p.admitting(ctx, r, OpDelete, nil, old)
	a.sent = opts
	if err := p.mutate(ctx, a); err != nil {
		return err
	}
	return p.validate(ctx, a)
}

// Remove deletes the object, or begins to, because what it is part of goes: finalizers and grace count, admission is not asked.
func (p *Pipeline) Remove(ctx context.Context, r *Request) error {
	settled := *r
	settled.settled = true
	_, err := p.deleteChecked(ctx, &settled, &metav1.DeleteOptions{})
	return err
}

func (r *Request) deletePreconditions(o api.Object, want *metav1.Preconditions) error {
	if want == nil {
		return nil
	}
	if r.Any.r.ownFinalizers { // upstream has another function for it
		switch {
		case want.UID != nil && *want.UID != o.GetUID():
			return r.precondition("UID", string(*want.UID), string(o.GetUID()))
		case want.ResourceVersion != nil && *want.ResourceVersion != o.GetResourceVersion():
			return r.precondition("ResourceVersion", *want.ResourceVersion, o.GetResourceVersion())
		}
		return nil
	}
	k := r.Any.Kind
	named := schema.GroupResource{Group: k.Group, Resource: k.Kind} // as upstream names it here
	if want.UID != nil && *want.UID != o.GetUID() {
		return apierrors.NewConflict(named, r.Key.Name, fmt.Errorf(
			"the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated",
			*want.UID, o.GetUID()))
	}
	if want.ResourceVersion != nil && *want.ResourceVersion != o.GetResourceVersion() {
		return apierrors.NewConflict(named, r.Key.Name, fmt.Errorf(
			"the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified",
			*want.ResourceVersion, o.GetResourceVersion()))
	}
	return nil
}

// begin returns the state of old at the begin of its deletion, nil where nothing holds it and the kind knows no grace. Pending says that a
// deletion under way is not hastened by this one.
func (p *Pipeline) begin(r *Request, old api.Object, opts *metav1.DeleteOptions) (now api.Object, pending bool) {
	e := r.Any.r
	now = old.DeepCopyObject().(api.Object)
	if !e.ungathered {
		now.SetFinalizers(finalizersFor(now, opts, e))
	}
	waiting := old.GetDeletionGracePeriodSeconds()
	begun := old.GetDeletionTimestamp()
	switch {
	case begun != nil && e.finalizing(old):
		return nil, true
	case begun != nil && waiting != nil && *waiting > 0:
		if opts.GracePeriodSeconds == nil || *opts.GracePeriodSeconds >= *waiting {
			return nil, true
		}
		grace := *opts.GracePeriodSeconds
		at := metav1.NewTime(begun.Add(time.Duration(grace-*waiting) * time.Second))
		if soonest := time.Now().Truncate(time.Second); at.Time.Before(soonest) {
			at, grace = metav1.NewTime(soonest), min(grace, 1) // whoever ends it still has to do so
		}
		now.SetDeletionTimestamp(&at)
		now.SetDeletionGracePeriodSeconds(&grace)
	case begun == nil:
		var grace int64
		if e.grace != nil {
			grace = max(e.grace(old, opts), 0)
		}
		held := grace > 0 || len(now.GetFinalizers()) > 0 || e.finalizing(now)
		if !held && e.grace == nil {
			return nil, false
		}
		at := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second).Truncate(time.Second))
		now.SetDeletionTimestamp(&at)
		if !e.ownFinalizers {
			now.SetDeletionGracePeriodSeconds(&grace)
		}
		if now.GetGeneration() > 0 && !e.ownFinalizers {
			now.SetGeneration(now.GetGeneration() + 1)
		}
		e.deleting(now)
	}
	return now, false
}

// finalizersFor are o's finalizers, with those for the garbage collector as the options ask.
func finalizersFor(o api.Object, opts *metav1.DeleteOptions, e *erased) []string {
	has := o.GetFinalizers()
	orphan, foreground := e.orphan, false
	switch {
	case opts.OrphanDependents != nil: // deprecated, but old clients send it
		orphan = *opts.OrphanDependents
		foreground = !orphan && e.ownFinalizers
	case opts.PropagationPolicy != nil:
		orphan = *opts.PropagationPolicy == metav1.DeletePropagationOrphan
		foreground = *opts.PropagationPolicy == metav1.DeletePropagationForeground
	case slices.Contains(has, metav1.FinalizerOrphanDependents):
		orphan = true
	case slices.Contains(has, metav1.FinalizerDeleteDependents):
		orphan, foreground = false, true
	}
	var next []string
	for _, f := range has {
		if f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents {
			next = append(next, f)
		}
	}
	if orphan {
		next = append(next, metav1.FinalizerOrphanDependents)
	}
	if foreground {
		next = append(next, metav1.FinalizerDeleteDependents)
	}
	return next
}

// commitDelete removes the object. Last is its final state where that differs from entry's, as when an update took
// the last finalizer away.
func (p *Pipeline) commitDelete(ctx context.Context, r *Request, entry *store.Entry, last api.Object) (*store.Entry, error) {
	commit, done, err := hold(ctx, r, nil, entry.Object)
	if err != nil {
		return nil, err
	}
	if r.DryRun {
		done(nil)
		if last != nil {
			return &store.Entry{Object: last, Key: entry.Key, Revision: entry.Revision}, nil
		}
		return entry, nil
	}
	e, err := p.store.Delete(commit, r.Any.Kept(), entry.Key, entry.Revision)
	done(err)
	if last == nil {
		return p.shownOne(ctx, r, e, err)
	}
	if err != nil {
		return nil, err
	}
	last.SetResourceVersion(e.Revision.String())
	return &store.Entry{Object: last, Key: entry.Key, Revision: e.Revision}, nil
}

// DeleteCollection deletes the selected objects, as Delete would one by one, and returns them as they were before. Objects
// that vanish meanwhile are passed over.
func (p *Pipeline) DeleteCollection(ctx context.Context, r *Request, opts *metav1.DeleteOptions, q ListOptions) (*Page, error) {
	if err := checkDeleteOptions(opts); err != nil {
		return nil, err
	}
	r.warnOrphans(opts)
	page, err := p.List(ctx, r, q)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex // of the request's own Warn: webhooks may warn of several objects at once
	warn := func(text string) {
		mu.Lock()
		defer mu.Unlock()
		r.warn(text)
	}
	var all errgroup.Group
	all.SetLimit(deleters)
	for _, e := range page.Entries {
		all.Go(func() error {
			one := *r
			one.Key, one.Warn = e.Key, warn
			_, err := p.deleteChecked(ctx, &one, opts.DeepCopy())
			if apierrors.IsNotFound(err) {
				return nil
			}
			return err
		})
	}
	if err := all.Wait(); err != nil {
		return nil, err
	}
	return page, nil
}
