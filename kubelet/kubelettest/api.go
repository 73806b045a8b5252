package kubelettest

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// API is a client.Client over a map. It does what the kubelet relies on: revisions, graceful deletion of pods, status
// writes that leave the rest alone, watches in order.
type API struct {
	mu      sync.Mutex
	rev     api.Revision
	objects map[string]api.Object
	log     []client.Event
	changed chan struct{} // closed and replaced at each change
	writes  []string
	events  []string
	reads   []string
	away    bool
	breaks  map[*api.Kind]int
}

// Break ends all watches of the kind with an error.
func (a *API) Break(k *api.Kind) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.breaks[k]++
	close(a.changed)
	a.changed = make(chan struct{})
}

// broken returns how often watches of the kind were broken.
func (a *API) broken(k *api.Kind) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.breaks[k]
}

// Away makes the API fail all requests, and watches tell nothing, until it is back. Kinds of which a client keeps a table are still read.
func (a *API) Away(away bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.away = away
	close(a.changed)
	a.changed = make(chan struct{})
}

// answers returns the error of an API that is away. a.mu is held.
func (a *API) answers() error {
	if a.away {
		return apierrors.NewServiceUnavailable("the API is away")
	}
	return nil
}

// readable is answers for those who read.
func (a *API) readable(k *api.Kind) error {
	if slices.Contains([]*api.Kind{api.PodKind, api.NodeKind, api.ServiceKind, api.CSIDriverKind}, k) {
		return nil
	}
	return a.answers()
}

// Reads returns what was got so far, "kind name", and forgets it.
func (a *API) Reads() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.reads
	a.reads = nil
	return r
}

// NewAPI returns an API that has the objects.
func NewAPI(objects ...api.Object) *API {
	a := &API{objects: map[string]api.Object{}, changed: make(chan struct{}), breaks: map[*api.Kind]int{}}
	for _, o := range objects {
		a.Put(o)
	}
	return a
}

func id(k *api.Kind, key api.Key) string { return k.String() + " " + key.String() }

// Put stores a copy of the object, as a user with all rights would.
func (a *API) Put(o api.Object) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o = o.DeepCopyObject().(api.Object)
	if o.GetUID() == "" {
		o.SetUID(types.UID(fmt.Sprintf("uid-%d", a.rev+1)))
	}
	a.store(api.KindOf(o), o)
}

// store publishes the object. Preconditions: a.mu is held and o is the API's own.
func (a *API) store(k *api.Kind, o api.Object) {
	a.rev++
	o.SetResourceVersion(a.rev.String())
	if at := o.GetCreationTimestamp(); at.IsZero() {
		o.SetCreationTimestamp(metav1.Time{Time: time.Now()})
	}
	op := client.Added
	old := a.objects[id(k, api.KeyOf(o))]
	if old != nil {
		op = client.Modified
	}
	a.objects[id(k, api.KeyOf(o))] = o
	a.publish(client.Event{Op: op, Object: o, Old: old, Revision: a.rev})
}

func (a *API) publish(e client.Event) {
	a.log = append(a.log, e)
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *API) remove(k *api.Kind, o api.Object) {
	a.rev++
	delete(a.objects, id(k, api.KeyOf(o)))
	last := o.DeepCopyObject().(api.Object)
	last.SetResourceVersion(a.rev.String())
	a.publish(client.Event{Op: client.Deleted, Object: last, Old: o, Revision: a.rev})
}

// Writes returns the writes so far, "verb kind name sub", and forgets them.
func (a *API) Writes() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	w := a.writes
	a.writes = nil
	return w
}

func (a *API) note(verb string, k *api.Kind, key api.Key, sub string) {
	a.writes = append(a.writes, strings.TrimSpace(fmt.Sprintf("%s %s %s %s", verb, k, key, sub)))
}

// EventAt implements the kubelet's recorder of events.
func (a *API) EventAt(o api.Object, fieldPath, type_, reason, message string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	about := strings.TrimSpace(o.GetName() + " " + fieldPath)
	a.events = append(a.events, fmt.Sprintf("%s %s %s: %s", type_, about, reason, message))
}

// Annotated implements the kubelet's recorder of events: annotations that are not empty follow the message.
func (a *API) Annotated(o api.Object, annotations map[string]string, type_, reason, message string) {
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if annotations[name] != "" {
			message += " " + name + "=" + annotations[name]
		}
	}
	a.EventAt(o, "", type_, reason, message)
}

// Events returns the events so far, "type pod[ fieldPath] reason: message", and forgets them.
func (a *API) Events() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.events
	a.events = nil
	return e
}

// DeletePod is what a user's delete does: with grace, the pod stays until the kubelet deletes it.
func (a *API) DeletePod(key api.Key, grace int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	o := a.objects[id(api.PodKind, key)]
	if o == nil {
		return
	}
	a.deletePod(o.(*corev1.Pod), grace)
}

func (a *API) deletePod(p *corev1.Pod, grace int64) {
	if grace == 0 && len(p.Finalizers) == 0 {
		a.remove(api.PodKind, p)
		return
	}
	next := p.DeepCopy()
	at := metav1.Time{Time: time.Now().Add(time.Duration(grace) * time.Second)}
	next.DeletionTimestamp, next.DeletionGracePeriodSeconds = &at, &grace
	a.store(api.PodKind, next)
}

// Get implements client.Reader.
func (a *API) Get(_ context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.readable(k); err != nil {
		return nil, err
	}
	a.reads = append(a.reads, id(k, key))
	if o := a.objects[id(k, key)]; o != nil {
		return o, nil
	}
	return nil, apierrors.NewNotFound(k.GroupResource(), key.Name)
}

func selected(k *api.Kind, o api.Object, q client.Query) bool {
	if api.KindOf(o) != k || q.Namespace != "" && o.GetNamespace() != q.Namespace {
		return false
	}
	if q.Fields == nil {
		return true
	}
	set := fields.Set{"metadata.name": o.GetName()}
	switch o := o.(type) {
	case *corev1.Pod:
		set["spec.nodeName"] = o.Spec.NodeName
	case *resourcev1.ResourceSlice:
		if o.Spec.NodeName != nil {
			set["spec.nodeName"] = *o.Spec.NodeName
		}
	case *certificatesv1.PodCertificateRequest:
		set["spec.nodeName"], set["spec.podName"] = string(o.Spec.NodeName), o.Spec.PodName
	}
	return q.Fields.Matches(set)
}

// List implements client.Reader.
func (a *API) List(_ context.Context, k *api.Kind, q client.Query) ([]api.Object, api.Revision, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.readable(k); err != nil {
		return nil, 0, err
	}
	var out []api.Object
	for _, o := range a.objects {
		if selected(k, o, q) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(x, y api.Object) int { return strings.Compare(api.KeyOf(x).String(), api.KeyOf(y).String()) })
	return out, a.rev, nil
}

// Watch implements client.Reader.
func (a *API) Watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	return func(yield func(client.Event, error) bool) {
		breaks := a.broken(k)
		if from == 0 {
			os, rev, err := a.List(ctx, k, q)
			for ; err != nil && ctx.Err() == nil; os, rev, err = a.List(ctx, k, q) {
				a.back(ctx)
			}
			for _, o := range os {
				if !yield(client.Event{Op: client.Added, Object: o, Revision: rev}, nil) {
					return
				}
			}
			if !yield(client.Event{Op: client.Synced, Revision: rev}, nil) {
				return
			}
			from = rev
		}
		for ctx.Err() == nil {
			a.mu.Lock()
			var fresh []client.Event
			if !a.away {
				for _, e := range a.log {
					if e.Revision > from && selected(k, e.Object, q) {
						fresh = append(fresh, e)
					}
				}
				from = a.rev
			}
			changed := a.changed
			a.mu.Unlock()
			for _, e := range fresh {
				if !yield(e, nil) {
					return
				}
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
			if a.broken(k) != breaks {
				yield(client.Event{}, apierrors.NewUnauthorized("the watch is broken"))
				return
			}
		}
	}
}

// back waits until the API is not away, or ctx ends.
func (a *API) back(ctx context.Context) {
	a.mu.Lock()
	for a.away && ctx.Err() == nil {
		changed := a.changed
		a.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		a.mu.Lock()
	}
	a.mu.Unlock()
}

// GetScale is part of client.Reader. Nothing here has a scale.
func (a *API) GetScale(_ context.Context, k *api.Kind, key api.Key) (*autoscalingv1.Scale, error) {
	return nil, apierrors.NewNotFound(k.GroupResource(), key.Name)
}

// UpdateScale is part of client.Writer.
func (a *API) UpdateScale(_ context.Context, k *api.Kind, s *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
	return nil, apierrors.NewNotFound(k.GroupResource(), s.Name)
}

// Create implements client.Writer.
func (a *API) Create(_ context.Context, o api.Object) (api.Object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.answers(); err != nil {
		return nil, err
	}
	k := api.KindOf(o)
	if o.GetName() == "" && o.GetGenerateName() != "" {
		o.SetName(fmt.Sprintf("%s%d", o.GetGenerateName(), a.rev+1))
	}
	a.note("create", k, api.KeyOf(o), "")
	if a.objects[id(k, api.KeyOf(o))] != nil {
		return nil, apierrors.NewAlreadyExists(k.GroupResource(), o.GetName())
	}
	if o.GetUID() == "" {
		o.SetUID(types.UID(fmt.Sprintf("uid-%d", a.rev+1)))
	}
	a.store(k, o)
	return o, nil
}

// Update implements client.Writer.
func (a *API) Update(_ context.Context, o api.Object, sub string) (api.Object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.answers(); err != nil {
		return nil, err
	}
	k := api.KindOf(o)
	have := a.objects[id(k, api.KeyOf(o))]
	if have == nil {
		return nil, apierrors.NewNotFound(k.GroupResource(), o.GetName())
	}
	if o.GetResourceVersion() != "" && o.GetResourceVersion() != have.GetResourceVersion() {
		return nil, apierrors.NewConflict(k.GroupResource(), o.GetName(), fmt.Errorf("it was changed"))
	}
	a.note("update", k, api.KeyOf(o), sub)
	if p, ok := o.(*corev1.Pod); ok && sub == "status" {
		next := have.(*corev1.Pod).DeepCopy()
		next.Status = p.Status
		o = next
	}
	a.store(k, o)
	return o, nil
}

// Patch implements client.Writer; the kubelet uses none.
func (a *API) Patch(_ context.Context, k *api.Kind, key api.Key, _ client.Patch) (api.Object, error) {
	return nil, apierrors.NewMethodNotSupported(k.GroupResource(), "patch")
}

// Delete implements client.Writer.
func (a *API) Delete(_ context.Context, o api.Object, opts client.DeleteOptions) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.answers(); err != nil {
		return err
	}
	k := api.KindOf(o)
	have := a.objects[id(k, api.KeyOf(o))]
	if have == nil {
		return apierrors.NewNotFound(k.GroupResource(), o.GetName())
	}
	if o.GetUID() != "" && o.GetUID() != have.GetUID() {
		return apierrors.NewConflict(k.GroupResource(), o.GetName(), fmt.Errorf("it has another UID"))
	}
	a.note("delete", k, api.KeyOf(o), "")
	if p, ok := have.(*corev1.Pod); ok && opts.Grace != nil {
		a.deletePod(p, *opts.Grace)
		return nil
	}
	a.remove(k, have)
	return nil
}

// Post implements client.Writer: it issues tokens.
func (a *API) Post(_ context.Context, k *api.Kind, key api.Key, sub string, body api.Object) (api.Object, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.answers(); err != nil {
		return nil, err
	}
	req, ok := body.(*authenticationv1.TokenRequest)
	if !ok || sub != "token" {
		return nil, apierrors.NewMethodNotSupported(k.GroupResource(), sub)
	}
	a.note("post", k, key, sub)
	out := req.DeepCopy()
	life := time.Duration(*req.Spec.ExpirationSeconds) * time.Second
	out.Status = authenticationv1.TokenRequestStatus{Token: fmt.Sprintf("token-%d", len(a.writes)), ExpirationTimestamp: metav1.Time{Time: time.Now().Add(life)}}
	return out, nil
}
