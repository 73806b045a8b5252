// Package reconciletest lets controllers converge in tests: a cluster in memory, a kubelet that starts what it is
// given at once, and the means to run controllers against them inside a testing/synctest bubble, where Wait
// means that the cluster has converged and hours cost nothing.
//
// The cluster is a client.Client with the API's behaviour where controllers rely on it: revisions and
// conflicts, generations, status apart from spec, graceful deletion, finalizers, propagation. It does not
// default or validate. It fails the test when a controller reads or writes what it did not declare, or changes
// an object that is shared.
package reconciletest

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// Cluster is a cluster in memory.
type Cluster struct {
	t testing.TB

	mu       sync.Mutex
	revision int64
	serial   int
	objects  map[*api.Kind]map[api.Key]api.Object
	watchers map[*watcher]struct{}
	sums     map[api.Object]string // published objects as they were
	counts   map[string]int        // "create pods" and so on
	// Refuse, when set, is asked before each write ("create", "update/status") and may refuse it.
	Refuse func(verb string, k *api.Kind, key api.Key) error
}

type watcher struct {
	kind   *api.Kind
	query  client.Query
	events []client.Event
	wake   chan struct{}
}

// New returns an empty cluster. At the end of the test it checks that nobody changed shared objects.
func New(t testing.TB) *Cluster {
	c := &Cluster{t: t, objects: map[*api.Kind]map[api.Key]api.Object{}, watchers: map[*watcher]struct{}{},
		sums: map[api.Object]string{}, counts: map[string]int{}}
	t.Cleanup(func() {
		for o, sum := range c.sums {
			if now := text(o); now != sum {
				t.Errorf("a shared object was changed:\n%s\n%s", sum, now)
			}
		}
	})
	return c
}

func text(o any) string {
	b, err := json.Marshal(o)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Writes returns how often something was written: "create pods", "update/status jobs.batch".
func (c *Cluster) Writes(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[what]
}

func (c *Cluster) canRead(ctx context.Context, k *api.Kind) {
	if d := reconcile.DeclarationOf(ctx); d != nil && !d.CanRead(k) {
		c.t.Errorf("%s reads %s, which it does not declare", d.Controller, k)
	}
}

// begin checks a write. Preconditions: mu is held.
func (c *Cluster) begin(ctx context.Context, verb, sub string, k *api.Kind, key api.Key) error {
	if sub != "" {
		verb += "/" + sub
	}
	if d := reconcile.DeclarationOf(ctx); d != nil && !d.CanWrite(k, verb) {
		c.t.Errorf("%s does %s %s, which it does not declare", d.Controller, verb, k)
	}
	c.counts[verb+" "+k.String()]++
	if c.Refuse != nil {
		return c.Refuse(verb, k, key)
	}
	return nil
}

// Get implements client.Reader.
func (c *Cluster) Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	c.canRead(ctx, k)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.get(k, key)
}

func (c *Cluster) get(k *api.Kind, key api.Key) (api.Object, error) {
	if o, ok := c.objects[k][key]; ok {
		return o, nil
	}
	return nil, apierrors.NewNotFound(k.GroupResource(), key.Name)
}

// List implements client.Reader.
func (c *Cluster) List(ctx context.Context, k *api.Kind, q client.Query) ([]api.Object, api.Revision, error) {
	c.canRead(ctx, k)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list(k, q), api.Revision(c.revision), nil
}

func (c *Cluster) list(k *api.Kind, q client.Query) []api.Object {
	var out []api.Object
	for _, o := range c.objects[k] {
		if selected(o, q) {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b api.Object) int { return strings.Compare(api.KeyOf(a).String(), api.KeyOf(b).String()) })
	return out
}

func selected(o api.Object, q client.Query) bool {
	if q.Namespace != "" && o.GetNamespace() != q.Namespace {
		return false
	}
	if q.Labels != nil && !q.Labels.Matches(labels.Set(o.GetLabels())) {
		return false
	}
	if q.Owner != "" && !slices.ContainsFunc(o.GetOwnerReferences(), func(r metav1.OwnerReference) bool { return r.UID == q.Owner }) {
		return false
	}
	if q.Fields == nil {
		return true
	}
	set := map[string]string{"metadata.name": o.GetName(), "metadata.namespace": o.GetNamespace()}
	if p, ok := o.(*corev1.Pod); ok {
		set["spec.nodeName"] = p.Spec.NodeName
	}
	for _, r := range q.Fields.Requirements() {
		if set[r.Field] != r.Value {
			return false
		}
	}
	return true
}

// Watch implements client.Reader.
func (c *Cluster) Watch(ctx context.Context, k *api.Kind, q client.Query, _ api.Revision) iter.Seq2[client.Event, error] {
	return func(yield func(client.Event, error) bool) {
		w := &watcher{kind: k, query: q, wake: make(chan struct{}, 1)}
		c.mu.Lock()
		for _, o := range c.list(k, q) {
			w.events = append(w.events, client.Event{Op: client.Added, Object: o, Revision: api.RevisionOf(o)})
		}
		w.events = append(w.events, client.Event{Op: client.Synced, Revision: api.Revision(c.revision)})
		c.watchers[w] = struct{}{}
		c.mu.Unlock()
		defer func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			delete(c.watchers, w)
		}()
		for {
			c.mu.Lock()
			events := w.events
			w.events = nil
			c.mu.Unlock()
			for _, e := range events {
				if ctx.Err() != nil || !yield(e, nil) {
					return
				}
			}
			if len(events) > 0 {
				continue
			}
			select {
			case <-w.wake:
			case <-ctx.Done():
				return
			}
		}
	}
}

// publish makes o, or its absence, visible. Preconditions: mu is held.
func (c *Cluster) publish(k *api.Kind, o, old api.Object, op client.Op) api.Object {
	c.revision++
	o.SetResourceVersion(fmt.Sprint(c.revision))
	if c.objects[k] == nil {
		c.objects[k] = map[api.Key]api.Object{}
	}
	if op == client.Deleted {
		delete(c.objects[k], api.KeyOf(o))
	} else {
		c.objects[k][api.KeyOf(o)] = o
	}
	c.sums[o] = text(o)
	for w := range c.watchers {
		if w.kind == k && selected(o, w.query) {
			w.events = append(w.events, client.Event{Op: op, Object: o, Old: old, Revision: api.Revision(c.revision)})
			select {
			case w.wake <- struct{}{}:
			default:
			}
		}
	}
	return o
}

// Create implements client.Writer.
func (c *Cluster) Create(ctx context.Context, o api.Object) (api.Object, error) {
	k := api.KindOf(o)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.begin(ctx, "create", "", k, api.KeyOf(o)); err != nil {
		return nil, err
	}
	c.serial++
	if o.GetName() == "" {
		o.SetName(fmt.Sprintf("%s%d", o.GetGenerateName(), c.serial))
	}
	if _, taken := c.objects[k][api.KeyOf(o)]; taken {
		return nil, apierrors.NewAlreadyExists(k.GroupResource(), o.GetName())
	}
	o.GetObjectKind().SetGroupVersionKind(k.GVK())
	if o.GetUID() == "" {
		o.SetUID(types.UID(fmt.Sprintf("uid-%d", c.serial)))
	}
	o.SetCreationTimestamp(metav1.Now())
	o.SetGeneration(1)
	switch o := o.(type) {
	case *corev1.Pod:
		if o.Status.Phase == "" {
			o.Status.Phase = corev1.PodPending
		}
	case *corev1.Namespace:
		o.Spec.Finalizers = []corev1.FinalizerName{corev1.FinalizerKubernetes}
		o.Status.Phase = corev1.NamespaceActive
	}
	return c.publish(k, o, nil, client.Added), nil
}

// Update implements client.Writer.
func (c *Cluster) Update(ctx context.Context, o api.Object, sub string) (api.Object, error) {
	k := api.KindOf(o)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.begin(ctx, "update", sub, k, api.KeyOf(o)); err != nil {
		return nil, err
	}
	old, err := c.get(k, api.KeyOf(o))
	if err != nil {
		return nil, err
	}
	if v := o.GetResourceVersion(); v != "" && v != old.GetResourceVersion() || o.GetUID() != "" && o.GetUID() != old.GetUID() {
		return nil, apierrors.NewConflict(k.GroupResource(), o.GetName(), fmt.Errorf("the object has been modified"))
	}
	return c.store(k, o, old, sub), nil
}

// store replaces old by the part of o that sub may write. Preconditions: mu is held.
func (c *Cluster) store(k *api.Kind, o, old api.Object, sub string) api.Object {
	field := func(o api.Object, name string) reflect.Value { return reflect.ValueOf(o).Elem().FieldByName(name) }
	next := o
	if sub == "" {
		if f := field(next, "Status"); f.IsValid() {
			f.Set(field(old.DeepCopyObject().(api.Object), "Status"))
		}
	} else {
		next = old.DeepCopyObject().(api.Object)
		part := "Status"
		if sub == "finalize" {
			part = "Spec"
		}
		field(next, part).Set(field(o, part))
		next.SetAnnotations(maps.Clone(o.GetAnnotations()))
	}
	next.SetResourceVersion(old.GetResourceVersion())
	next.SetUID(old.GetUID())
	next.SetCreationTimestamp(old.GetCreationTimestamp())
	next.SetGeneration(old.GetGeneration())
	if f := field(next, "Spec"); f.IsValid() && !equality.Semantic.DeepEqual(f.Interface(), field(old, "Spec").Interface()) {
		next.SetGeneration(old.GetGeneration() + 1)
	}
	if _, handsOn := next.(*appsv1.Deployment); handsOn && sub == "" && !maps.Equal(next.GetAnnotations(), old.GetAnnotations()) {
		next.SetGeneration(old.GetGeneration() + 1) // its annotations are its ReplicaSets' too
	}
	if equality.Semantic.DeepEqual(next, old) {
		return old
	}
	if next.GetDeletionTimestamp() != nil && !held(next) {
		return c.publish(k, next, old, client.Deleted)
	}
	return c.publish(k, next, old, client.Modified)
}

// held says that something keeps an object that is being deleted.
func held(o api.Object) bool {
	if ns, ok := o.(*corev1.Namespace); ok && len(ns.Spec.Finalizers) > 0 {
		return true
	}
	grace := o.GetDeletionGracePeriodSeconds()
	return len(o.GetFinalizers()) > 0 || grace != nil && *grace > 0
}

// GetScale implements client.Reader for kinds with spec.replicas, status.replicas and a spec.selector.
func (c *Cluster) GetScale(ctx context.Context, k *api.Kind, key api.Key) (*autoscalingv1.Scale, error) {
	if d := reconcile.DeclarationOf(ctx); d != nil && !d.CanWrite(k, "get/scale") {
		c.t.Errorf("%s reads the scale of %s, which it does not declare", d.Controller, k)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.get(k, key)
	if err != nil {
		return nil, err
	}
	return scaleOf(o)
}

// UpdateScale implements client.Writer.
func (c *Cluster) UpdateScale(ctx context.Context, k *api.Kind, s *autoscalingv1.Scale) (*autoscalingv1.Scale, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := api.KeyOf(s)
	if err := c.begin(ctx, "update", "scale", k, key); err != nil {
		return nil, err
	}
	old, err := c.get(k, key)
	if err != nil {
		return nil, err
	}
	if v := s.ResourceVersion; v != "" && v != old.GetResourceVersion() || s.UID != "" && s.UID != old.GetUID() {
		return nil, apierrors.NewConflict(k.GroupResource(), key.Name, fmt.Errorf("the object has been modified"))
	}
	next := old.DeepCopyObject().(api.Object)
	replicas := reflect.ValueOf(next).Elem().FieldByName("Spec").FieldByName("Replicas")
	replicas.Set(reflect.ValueOf(&s.Spec.Replicas))
	return scaleOf(c.store(k, next, old, ""))
}

func scaleOf(o api.Object) (*autoscalingv1.Scale, error) {
	s := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion()}}
	spec, status := reflect.ValueOf(o).Elem().FieldByName("Spec"), reflect.ValueOf(o).Elem().FieldByName("Status")
	replicas, ok := spec.FieldByName("Replicas").Interface().(*int32)
	if !ok {
		return nil, apierrors.NewNotFound(api.KindOf(o).GroupResource(), o.GetName())
	}
	if replicas != nil {
		s.Spec.Replicas = *replicas
	}
	s.Status.Replicas = int32(status.FieldByName("Replicas").Int())
	selector, err := metav1.LabelSelectorAsSelector(spec.FieldByName("Selector").Interface().(*metav1.LabelSelector))
	if err != nil {
		return nil, err
	}
	s.Status.Selector = selector.String()
	return s, nil
}

// Patch implements client.Writer for merge and strategic merge patches.
func (c *Cluster) Patch(ctx context.Context, k *api.Kind, key api.Key, p client.Patch) (api.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.begin(ctx, "patch", p.Sub, k, key); err != nil {
		return nil, err
	}
	old, err := c.get(k, key)
	if err != nil {
		return nil, err
	}
	before, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	var after []byte
	switch p.Type {
	case types.StrategicMergePatchType:
		after, err = strategicpatch.StrategicMergePatch(before, p.Data, k.New())
	case types.MergePatchType:
		after, err = merge(before, p.Data)
	default:
		err = apierrors.NewBadRequest("patch type " + string(p.Type))
	}
	if err != nil {
		return nil, err
	}
	next := k.New()
	if err := json.Unmarshal(after, next); err != nil {
		return nil, err
	}
	if next.GetUID() != old.GetUID() {
		return nil, apierrors.NewInvalid(k.GVK().GroupKind(), key.Name, nil)
	}
	if next.GetResourceVersion() != old.GetResourceVersion() {
		return nil, apierrors.NewConflict(k.GroupResource(), key.Name, fmt.Errorf("the object has been modified"))
	}
	return c.store(k, next, old, p.Sub), nil
}

func merge(before, patch []byte) ([]byte, error) {
	var b, p map[string]any
	if err := json.Unmarshal(before, &b); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		return nil, err
	}
	mergeMap(b, p)
	return json.Marshal(b)
}

func mergeMap(into, patch map[string]any) {
	for k, v := range patch {
		sub, isMap := v.(map[string]any)
		old, wasMap := into[k].(map[string]any)
		switch {
		case v == nil:
			delete(into, k)
		case isMap && wasMap:
			mergeMap(old, sub)
		default:
			into[k] = v
		}
	}
}

// Delete implements client.Writer.
func (c *Cluster) Delete(ctx context.Context, o api.Object, opts client.DeleteOptions) error {
	k, key := api.KindOf(o), api.KeyOf(o)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.begin(ctx, "delete", "", k, key); err != nil {
		return err
	}
	old, err := c.get(k, key)
	if err != nil {
		return err
	}
	if o.GetUID() != "" && o.GetUID() != old.GetUID() ||
		!opts.AnyRevision && o.GetResourceVersion() != "" && o.GetResourceVersion() != old.GetResourceVersion() {
		return apierrors.NewConflict(k.GroupResource(), key.Name, fmt.Errorf("precondition failed"))
	}
	next := old.DeepCopyObject().(api.Object)
	grace := int64(0)
	if p, ok := old.(*corev1.Pod); ok && p.Spec.NodeName != "" && !api.PodTerminal(p) {
		grace = 30
		if p.Spec.TerminationGracePeriodSeconds != nil {
			grace = *p.Spec.TerminationGracePeriodSeconds
		}
	}
	if opts.Grace != nil {
		grace = *opts.Grace
	}
	if g := next.GetDeletionGracePeriodSeconds(); g != nil {
		grace = min(grace, *g)
	}
	next.SetDeletionGracePeriodSeconds(&grace)
	if next.GetDeletionTimestamp() == nil {
		at := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second))
		next.SetDeletionTimestamp(&at)
	}
	next.SetFinalizers(propagation(next.GetFinalizers(), opts.Propagation))
	if ns, ok := next.(*corev1.Namespace); ok {
		ns.Status.Phase = corev1.NamespaceTerminating
	}
	op := client.Modified
	if !held(next) {
		op = client.Deleted
	} else if equality.Semantic.DeepEqual(next, old) {
		return nil
	}
	c.publish(k, next, old, op)
	return nil
}

func propagation(finalizers []string, p metav1.DeletionPropagation) []string {
	out := slices.DeleteFunc(slices.Clone(finalizers), func(f string) bool {
		return p != "" && (f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents)
	})
	switch p {
	case metav1.DeletePropagationForeground:
		out = append(out, metav1.FinalizerDeleteDependents)
	case metav1.DeletePropagationOrphan:
		out = append(out, metav1.FinalizerOrphanDependents)
	}
	return out
}

// Post implements client.Writer for bindings.
func (c *Cluster) Post(ctx context.Context, k *api.Kind, key api.Key, sub string, body api.Object) (api.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.begin(ctx, "create", sub, k, key); err != nil {
		return nil, err
	}
	old, err := c.get(k, key)
	if err != nil {
		return nil, err
	}
	b, ok := body.(*corev1.Binding)
	if !ok || sub != "binding" {
		return nil, apierrors.NewBadRequest("subresource " + sub)
	}
	next := old.DeepCopyObject().(*corev1.Pod)
	next.Spec.NodeName = b.Target.Name
	c.publish(k, next, old, client.Modified)
	return b, nil
}
