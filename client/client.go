// Package client is access to the Kubernetes API for Yare's own components: one small
// interface that the API server implements in process (apiserver.ClientAs, nothing is copied) and
// client/remote implements over HTTPS. It replaces client-go's clientsets, listers and informers.
//
// Vocabulary: a Query selects objects of a kind; an Event is one change of an object.
//
// Invariants:
//   - Objects that come out of a Reader are shared and read-only. Mutate is the place that clones.
//   - An Object given to a Writer belongs to the Writer from then on: the caller must not touch it again.
//   - What a Writer returned is visible to every later read through the same Client.
//   - Errors are *errors.StatusError of apimachinery: test with apierrors.IsNotFound and its kin.
package client

import (
	"context"
	"fmt"
	"iter"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
)

// Client reads and writes API objects as one user.
type Client interface {
	Reader
	Writer
}

// Reader reads. Implementations serve Get and List from memory where the kind is watched.
type Reader interface {
	// Get returns the object, or NotFound.
	Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error)
	// List returns the selected objects ordered by namespace and name, and the revision of the
	// snapshot that they come from.
	List(ctx context.Context, k *api.Kind, q Query) ([]api.Object, api.Revision, error)
	// GetScale returns the scale of an object: of how many it consists, is to consist, and by what these are selected. NotFound where
	// the kind has none.
	GetScale(ctx context.Context, k *api.Kind, key api.Key) (*autoscalingv1.Scale, error)
	// Watch yields changes of the selected objects in revision order. With from zero it first yields every
	// object that exists as Added, then one Synced event, then changes; otherwise the changes after from.
	// It reconnects by itself; a gap that cannot be closed is bridged by comparing with a new list, so that no
	// net change is lost. It ends with ctx, or yields an error when the server refuses (Forbidden) and ends.
	Watch(ctx context.Context, k *api.Kind, q Query, from api.Revision) iter.Seq2[Event, error]
}

// Writer writes. Objects passed in are owned by the Writer from then on.
type Writer interface {
	// Create stores o and returns what was stored.
	Create(ctx context.Context, o api.Object) (api.Object, error)
	// Update replaces the object of o's name, or its subresource sub ("status", "finalize"). A resourceVersion
	// in o must be the current one, else Conflict.
	Update(ctx context.Context, o api.Object, sub string) (api.Object, error)
	// UpdateScale replaces the scale of the object of its name. A resourceVersion or UID in s must be the current one, else Conflict.
	// For a moment, reads of the object itself may be older.
	UpdateScale(ctx context.Context, k *api.Kind, s *autoscalingv1.Scale) (*autoscalingv1.Scale, error)
	// Patch changes the object.
	Patch(ctx context.Context, k *api.Kind, key api.Key, p Patch) (api.Object, error)
	// Delete deletes the object of o's kind and name, on the precondition that it still has o's UID and, unless
	// opts.AnyRevision, o's resourceVersion, as far as these are set in o.
	Delete(ctx context.Context, o api.Object, opts DeleteOptions) error
	// Post sends body to a creating subresource of an object: "binding", "eviction", "token". It returns the answer.
	Post(ctx context.Context, k *api.Kind, key api.Key, sub string, body api.Object) (api.Object, error)
}

// Query selects objects. The zero Query selects all.
type Query struct {
	Namespace string          // empty: every namespace
	Labels    labels.Selector // nil: any
	Fields    fields.Selector // nil: any; the kind's selectable fields, e.g. spec.nodeName of pods
	Owner     types.UID       // not empty: objects with an owner reference of this UID, served from an index
}

// Op says what happened to an object.
type Op uint8

const (
	Added    Op = iota + 1 // it exists, or entered the selection
	Modified               // it changed
	Deleted                // it is gone, or left the selection; Object is its last state
	Synced                 // every object that existed at the start of the watch has been yielded; Object is nil
)

// Event is one change. Old is the state before a Modified or Deleted where the Reader knows it, else nil.
type Event struct {
	Op       Op
	Object   api.Object
	Old      api.Object
	Revision api.Revision
}

// Patch is a change in one of the API's four forms.
type Patch struct {
	Type  types.PatchType // JSONPatch, MergePatch, StrategicMerge, ApplyYAML
	Data  []byte
	Sub   string // subresource, or empty
	Force bool   // take over fields of other managers (apply only)
	// Manager names who applies; required for apply.
	Manager string
}

// DeleteOptions adjusts Delete.
type DeleteOptions struct {
	Propagation metav1.DeletionPropagation // empty: the kind's default
	Grace       *int64                     // seconds; nil: the object's default
	AnyRevision bool                       // only the UID has to match
}

// For returns the options of the request that deletes o, with the preconditions that Writer.Delete promises.
func (d DeleteOptions) For(o api.Object) *metav1.DeleteOptions {
	out := &metav1.DeleteOptions{GracePeriodSeconds: d.Grace}
	if d.Propagation != "" {
		out.PropagationPolicy = &d.Propagation
	}
	uid, rv := o.GetUID(), o.GetResourceVersion()
	if d.AnyRevision {
		rv = ""
	}
	if uid == "" && rv == "" {
		return out
	}
	out.Preconditions = &metav1.Preconditions{}
	if uid != "" {
		out.Preconditions.UID = &uid
	}
	if rv != "" {
		out.Preconditions.ResourceVersion = &rv
	}
	return out
}

// Get returns the object of type T, for example Get[*corev1.Pod].
func Get[T api.Object](ctx context.Context, r Reader, key api.Key) (T, error) {
	o, err := r.Get(ctx, api.KindFor[T](), key)
	if err != nil {
		var none T
		return none, err
	}
	return o.(T), nil
}

// List returns the selected objects of type T, ordered by namespace and name.
func List[T api.Object](ctx context.Context, r Reader, q Query) ([]T, error) {
	os, _, err := r.List(ctx, api.KindFor[T](), q)
	if err != nil {
		return nil, err
	}
	ts := make([]T, len(os))
	for i, o := range os {
		ts[i] = o.(T)
	}
	return ts, nil
}

// Follow sends what a Watch from the beginning yields to a channel. It returns when ctx ends, or the error with which the watch did.
func Follow(ctx context.Context, r Reader, k *api.Kind, q Query, to chan<- Event) error {
	for e, err := range r.Watch(ctx, k, q, 0) {
		if err != nil {
			return fmt.Errorf("watch %s: %w", k.Plural, err)
		}
		select {
		case to <- e:
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// Create stores o, which it owns from then on, and returns what was stored.
func Create[T api.Object](ctx context.Context, w Writer, o T) (T, error) {
	got, err := w.Create(ctx, o)
	if err != nil {
		var none T
		return none, err
	}
	return got.(T), nil
}

// Mutate clones o, lets fn change the clone and stores it, or returns o when fn changed nothing. Sub is "" or
// the subresource to write. A write that came between is a Conflict.
func Mutate[T api.Object](ctx context.Context, w Writer, o T, sub string, fn func(T)) (T, error) {
	next := o.DeepCopyObject().(T)
	fn(next)
	if equality.Semantic.DeepEqual(o, next) {
		return o, nil
	}
	got, err := w.Update(ctx, next, sub)
	if err != nil {
		return o, err
	}
	return got.(T), nil
}
