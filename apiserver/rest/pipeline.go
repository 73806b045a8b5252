package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// Pipeline serves the verbs of all kinds, to requests that were authenticated and authorized. All methods may be
// called concurrently. Their contexts carry the user (authn.WithUser).
type Pipeline struct {
	store     *store.Store
	admission []Admission
	// Observe is told what a plug-in of admission took and said in a step, "admit" or "validate", and with an empty name the same
	// of the whole step; nil: nobody is. It is set before the first request.
	Observe  func(plugin, step string, op Operation, took time.Duration, rejected bool)
	managers managers
}

// NewPipeline returns the Pipeline over s. The order of admission is the order of asking.
func NewPipeline(s *store.Store, admission []Admission) *Pipeline {
	return &Pipeline{store: s, admission: admission}
}

// Warm reads the schema that the ownership of fields needs, which the first write would do else: some 50 ms of
// processor time, best spent while something else is waited for.
func (p *Pipeline) Warm() { coreTypes() }

// Store returns the store that the pipeline writes to.
func (p *Pipeline) Store() *store.Store { return p.store }

// Request says what a verb is applied to and how.
type Request struct {
	Any Any
	// Key names the object. The name is empty for collections and for a create of a generated name.
	Key api.Key
	// Sub is the subresource, empty for the object itself.
	Sub string
	// DryRun does everything but commit.
	DryRun bool
	// Manager is who the changed fields belong to.
	Manager string
	// Warn tells the client something that does not hinder the request. It may be nil.
	Warn func(text string)
	// Audit adds an annotation to the request's audit event. It may be nil.
	Audit func(key, value string)
	// Options are the CreateOptions, UpdateOptions, PatchOptions or DeleteOptions that the client sent, for admission. It may be nil.
	Options runtime.Object
	// MayCreate says whether the user may also create, for updates and patches of an object that does not exist. nil
	// allows it.
	MayCreate func(ctx context.Context) error

	form     *api.Kind // what the client speaks of, where that is another form of Any's kind
	patching bool      // the new state is made out of the old one: what it names is no precondition
	owned    bool      // the ownership of fields is settled: an apply
	settled  bool      // admission has no say
}

func (r *Request) warn(text string) {
	if r.Warn != nil {
		r.Warn(text)
	}
}

// group is what errors name: the kind that the client speaks of.
func (r *Request) group() schema.GroupResource { return r.as().GroupResource() }

func (r *Request) notFound() error { return apierrors.NewNotFound(r.group(), r.Key.Name) }

// invalid returns nil where errs is empty.
func (r *Request) invalid(name string, errs fieldErrors) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(r.Any.Kind.GVK().GroupKind(), name, errs)
}

// lockText is the message of a conflict that clients know.
const lockText = "the object has been modified; please apply your changes to the latest version and try again"

func (r *Request) conflict() error {
	return apierrors.NewConflict(r.group(), r.Key.Name, errors.New(lockText))
}

// current returns the object's entry as new as any write acknowledged before, nil where it does not exist.
func (p *Pipeline) current(ctx context.Context, r *Request) (*store.Entry, error) {
	if err := p.store.Sync(ctx); err != nil {
		return nil, storeError(err, r)
	}
	e := p.store.Snapshot(r.Any.Kept()).Get(r.Key)
	if e != nil && e.Err() != nil {
		return nil, apierrors.NewInternalError(e.Err())
	}
	return p.shownOne(ctx, r, e, nil)
}

// precondition says that the object is not the one that the client means.
func (r *Request) precondition(field, want, have string) error {
	err := fmt.Errorf("Precondition failed: %s in precondition: %s, %s in object meta: %s", field, want, field, have)
	return apierrors.NewConflict(r.group(), r.Key.Name, err)
}

// full says that the disk under the database is.
func full() error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInsufficientStorage, Reason: metav1.StatusReasonInternalError,
		Message: "no space left for the database on the server's disk: free some; reads and deletes go on",
	}}
}

// Timeout is the API's error for a request that its context ended. It names no time to try again after: clients would send
// it again by themselves, also a create that may have been done.
func Timeout(err error) *apierrors.StatusError {
	if errors.Is(err, context.DeadlineExceeded) {
		err = context.DeadlineExceeded
	} else {
		err = context.Canceled
	}
	return apierrors.NewTimeoutError(fmt.Sprintf("request did not complete within requested timeout - %s", err), 0)
}

// storeError turns an error of the store into one of the API.
func storeError(err error, r *Request) error {
	var status apierrors.APIStatus
	switch {
	case err == nil || errors.As(err, &status):
		return err
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrRemoved): // of a definition that was deleted meanwhile
		return r.notFound()
	case errors.Is(err, store.ErrConflict):
		return r.conflict()
	case errors.Is(err, store.ErrFull):
		return full()
	case errors.Is(err, store.ErrTooLarge):
		return apierrors.NewRequestEntityTooLargeError("the object is too large for the database")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return Timeout(err)
	case errors.Is(err, store.ErrUnavailable):
		return apierrors.NewServiceUnavailable(err.Error())
	case errors.Is(err, store.ErrFenced), errors.Is(err, store.ErrOvertaken):
		return apierrors.NewConflict(r.group(), r.Key.Name, err)
	}
	return apierrors.NewInternalError(fmt.Errorf("%s %q: %w", r.Any.Kind, r.Key.String(), err))
}

// ofDatabase says that err is one of the database, and no verdict of whoever met it.
func ofDatabase(err error) bool {
	return slices.ContainsFunc([]error{store.ErrFull, store.ErrUnavailable, store.ErrUnknown, store.ErrConflict, store.ErrOvertaken, store.ErrFenced,
		store.ErrCompacted, store.ErrFuture, store.ErrSlow}, func(is error) bool { return errors.Is(err, is) })
}

// settled is after how long a write whose outcome is not known has happened or never will: what was proposed to a database that had no
// majority may still be taken. As long as requests are served.
const settled = time.Minute

// uncertain says that a write that failed by err may have happened, or happen yet.
func uncertain(err error) bool {
	return errors.Is(err, store.ErrUnknown) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled)
}

// hold runs the kind's Hold. The commit has the returned context, and the returned function has to be called with its outcome: the error,
// if any. What is held for a write whose outcome is not known is held until it has settled.
func hold(ctx context.Context, r *Request, now, old api.Object) (commit context.Context, done func(error), err error) {
	if r.Any.r.hold == nil {
		return ctx, func(error) {}, nil
	}
	h, err := r.Any.r.hold(ctx, now, old, r.DryRun)
	if err != nil {
		return nil, nil, storeError(err, r)
	}
	commit = ctx
	if h != nil && h.Context != nil {
		commit = h.Context
	}
	return commit, func(err error) {
		ctx := context.WithoutCancel(ctx)
		failed := err != nil || r.DryRun
		switch {
		case h == nil:
		case !failed && h.Commit != nil:
			h.Commit(ctx)
		case failed && h.Abort != nil && !r.DryRun && uncertain(err):
			time.AfterFunc(settled, func() { h.Abort(ctx) })
		case failed && h.Abort != nil:
			h.Abort(ctx)
		}
	}, nil
}

// matchNamespace sets or checks the namespace of o against the request's.
func (r *Request) matchNamespace(o api.Object) error {
	if !r.Any.Kind.Namespaced {
		o.SetNamespace("")
		return nil
	}
	switch ns := o.GetNamespace(); {
	case ns == "":
		o.SetNamespace(r.Key.Namespace)
	case ns != r.Key.Namespace:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// uniqueOwners drops owner references given twice, with a warning. Admitted says that admission has seen the object.
func (r *Request) uniqueOwners(o api.Object, admitted bool) {
	refs := o.GetOwnerReferences()
	if len(refs) < 2 {
		return
	}
	var kept []metav1.OwnerReference
	var twice []string
	for _, ref := range refs {
		if slices.ContainsFunc(kept, func(k metav1.OwnerReference) bool { return equality.Semantic.DeepEqual(k, ref) }) {
			twice = append(twice, string(ref.UID))
			continue
		}
		kept = append(kept, ref)
	}
	if len(twice) == 0 {
		return
	}
	when := ""
	if admitted {
		when = " after mutating admission happens"
	}
	r.warn(fmt.Sprintf(".metadata.ownerReferences contains duplicate entries%s; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: %s",
		when, strings.Join(twice, ", ")))
	o.SetOwnerReferences(kept)
}

// attempts bounds how often a write that names no revision is tried again after another writer was faster. The pause
// doubles from firstPause, so that the whole takes some seconds at most.
const (
	attempts   = 12
	firstPause = 500 * time.Microsecond
)

// pause waits before attempt n (counted from zero) of a contended write.
func pause(ctx context.Context, n int) error {
	return run.Pause(ctx, firstPause<<min(n, 9))
}
