// Package rest is the one pipeline that every request for an API object goes through,
// whatever its kind: decode, default, admit, validate, commit. It replaces k8s.io/apiserver's
// registry and endpoint handlers and the strategies of 60 kinds.
//
// A Resource says what is special about a kind. A zero field means Kubernetes' usual behaviour: with a status in
// the type, /status exists, a main write cannot change status, a status write cannot change anything else, and
// generation counts changes of the spec.
package rest

import (
	"context"
	"net/http"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
)

// Resource declares one kind's behaviour. All functions are pure unless said otherwise; T is a pointer type such as
// *corev1.Pod. Objects passed as now or o may be changed where the function's purpose is to change them; old is shared and
// read-only.
type Resource[T api.Object] struct {
	// Default sets the fields that the client left out, in every write, before admission. It is idempotent.
	Default func(o T)
	// Prepare clears or sets, on create, what clients may not choose (status and metadata are done generically).
	Prepare func(o T)
	// PrepareFor sets, on create, what follows from who asks, before Prepare.
	PrepareFor func(ctx context.Context, o T)
	// PrepareUpdate does the same on update: carries over fields that only a subresource may change.
	PrepareUpdate func(now, old T)
	// Validate checks the whole object, after defaulting; also on update.
	Validate func(o T) field.ErrorList
	// ValidateCreate checks on create alone, in addition to Validate: rules that became stricter, fields that never change.
	ValidateCreate func(o T) field.ErrorList
	// ValidateUpdate checks what may not change, in addition to Validate.
	ValidateUpdate func(now, old T) field.ErrorList
	// ValidateIn checks like ValidateCreate (old is nil) and ValidateUpdate, within the request's context.
	ValidateIn func(ctx context.Context, now, old T) field.ErrorList
	// Permit asks, of an object that is found good, whether who sends it may have it so; old is nil on create.
	Permit func(ctx context.Context, now, old T) field.ErrorList
	// Deprecated is what every request for the kind is told.
	Deprecated string
	// Warn returns texts for the client that do not hinder the request.
	Warn func(o, old T) []string

	// Name checks the form of names and generateName prefixes: apimachinery's NameIsDNSSubdomain when nil.
	Name func(name string, prefix bool) []string
	// NameOf does the same where what names are right depends on the rest of the object: then updates are asked too.
	NameOf func(o T, name string, prefix bool) []string

	// AnyFinalizer accepts metadata.finalizers without a domain that are none of Kubernetes' own.
	AnyFinalizer bool

	// NoStatus says that the type's status, if it has any, is an ordinary field (no /status).
	NoStatus bool
	// StatusAtCreate keeps the status that the client sends with a create (Node: a kubelet registers with its capacity).
	StatusAtCreate bool
	// StrictStatus says that a write to /status changes nothing of the metadata either.
	StrictStatus bool
	// Reset are the fields ("status.conditions") that a write below a name ("status", "" for the object) cannot own, where that
	// is not as usual: the status in a write of the object, the spec in one of the status.
	Reset map[string][]string
	// ValidateStatus checks a write to /status; nil accepts every status.
	ValidateStatus func(now, old T) field.ErrorList
	// ValidateStatusIn does the same within the request's context.
	ValidateStatusIn func(ctx context.Context, now, old T) field.ErrorList
	// PrepareStatus adjusts a write to /status, after the generic code has restored everything but the status.
	PrepareStatus func(now, old T)
	// NoGeneration says that metadata.generation is not kept although the type has a spec.
	NoGeneration bool

	// Fields returns the selectable fields beside metadata.name and metadata.namespace.
	Fields func(o T) fields.Set
	// Columns are what `kubectl get` shows, after the name.
	Columns []Column[T]
	// Scale gives the kind a /scale subresource.
	Scale *Scale[T]
	// Sub are further subresources by name: "binding", "log", "token".
	Sub map[string]*Subresource

	// Grace returns for how many seconds a deletion waits, given the options and the object; zero deletes at once. It may
	// be nil. A positive value sets deletionTimestamp, and whoever acts on it deletes with grace zero.
	Grace func(o T, opts *metav1.DeleteOptions) int64
	// Deleting adjusts the object when its deletionTimestamp gets set (a Namespace becomes Terminating).
	Deleting func(o T)
	// AnswerDeleted answers a deletion with the last state of the object instead of a Status (pods, services).
	AnswerDeleted bool
	// Ungathered says that the garbage collector does not care for the kind: its deletions wait for no finalizer of its.
	Ungathered bool
	// Orphan says that dependents stay when the client names no propagation policy.
	Orphan bool
	// OrphanWarning tells such a client so.
	OrphanWarning string
	// Finalizing says that the kind has a spec.finalizers of its own that hold the object (Namespace).
	Finalizing func(o T) bool
	// NoCollection says that objects are deleted one by one only (Namespace).
	NoCollection bool
	// TTL removes objects that long after their last write.
	TTL time.Duration

	// Custom is set for what a CustomResourceDefinition defines; T is *unstructured.Unstructured then.
	Custom *Custom

	// CreateOnUpdate lets PUT create.
	CreateOnUpdate bool
	// RequireRevision refuses updates without resourceVersion.
	RequireRevision bool

	// Hold takes what the object needs from elsewhere before commit (a Service's addresses) and returns how to give
	// it back when the commit fails, or what the object no longer needs when it succeeds. Old is nil on create, now is nil
	// on delete. It may read and write through the Store that it was built with. May be nil.
	Hold func(ctx context.Context, now, old T, dryRun bool) (*Held, error)

	// Made makes this a kind that is never stored nor written: get and list ask it for the objects that are wanted, ordered as lists are,
	// which are the caller's own (ComponentStatus). More than what is wanted does no harm.
	Made func(ctx context.Context, w Wanted) []T
	// Answer makes this a kind that is never stored: POST calls it, nothing else is served (SubjectAccessReview).
	Answer func(ctx context.Context, o T) (T, error)
	// Act is Answer for a kind that asks for something to be done to another object and is answered with a Status (Binding).
	Act func(ctx context.Context, o T, dryRun bool) (*metav1.Status, error)
}

// Wanted says which objects a reader of a made kind is after.
type Wanted struct {
	Key    api.Key         // what of it is empty is any
	Labels labels.Selector // nil: any
}

// Selects says whether o is wanted.
func (w Wanted) Selects(o api.Object) bool {
	if w.Key.Namespace != "" && o.GetNamespace() != w.Key.Namespace || w.Key.Name != "" && o.GetName() != w.Key.Name {
		return false
	}
	return w.Labels == nil || w.Labels.Matches(labels.Set(o.GetLabels()))
}

// Held is the outcome of Resource.Hold. Exactly one of the two functions is called, Abort a minute later where the outcome of the write is not
// known; either may be nil.
type Held struct {
	// Context is what the commit has in place of Hold's own; nil: that. Where the commit is overtaken, Hold is called anew.
	Context context.Context
	Commit  func(ctx context.Context)
	Abort   func(ctx context.Context)
}

// Column is one column of the Table form. The generic code adds Name before and puts Age where Age is set.
type Column[T api.Object] struct {
	Name        string
	Type        string // "string" when empty; "integer", "date", ...
	Format      string
	Description string
	Wide        bool          // shown with -o wide only (priority 1)
	Priority    int32         // where it is another
	Cell        func(o T) any // may be nil for a column called Age, which the generic code knows
}

// Scale maps a kind to autoscaling/v1 Scale.
type Scale[T api.Object] struct {
	Replicas func(o T) (spec, status int32)
	Set      func(o T, replicas int32)
	Selector func(o T) string // the label selector in string form
	Check    func(o T) error  // says why o cannot be scaled; may be nil
}

// Subresource serves one name below an object. Exactly one of Update, Create and Connect is set.
type Subresource struct {
	// Update serves GET, PUT and PATCH of the whole parent below this name (namespaces/finalize,
	// pods/ephemeralcontainers, pods/resize): it takes back in now whatever the subresource may not change and returns
	// what is wrong with the rest. It replaces PrepareUpdate, Validate and ValidateUpdate of the kind.
	Update func(ctx context.Context, now, old api.Object) field.ErrorList
	// Body is the kind that is posted and answered, for Create.
	Body *api.Kind
	// Create serves POST: it gets the parent (nil when it does not exist and Orphan is set) and the decoded, defaulted body.
	Create func(ctx context.Context, parent api.Object, body api.Object, opts *metav1.CreateOptions) (runtime.Object, error)
	// Connect serves a stream or a proxied request on its own.
	Connect func(ctx context.Context, parent api.Object, w http.ResponseWriter, r *http.Request) error
	// Methods lists the HTTP methods of Connect, and those of Update where they are fewer than all.
	Methods []string
	// Kind is what discovery calls a Connect ("PodExecOptions"); the parent's kind when empty.
	Kind string
	// Opens makes the empty object of that kind, which admission sees with the values of the query. It is nil where a Connect only reads,
	// which admission is not asked about.
	Opens func() runtime.Object
}
