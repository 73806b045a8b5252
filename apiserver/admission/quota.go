package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/quota"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// quotaTries bounds how often a reservation is tried again after another writer changed the quota.
const quotaTries = 10

// resourceQuota reserves what a new object uses, or what a changed one uses more, in the status of the quotas of its
// namespace, before the object is stored. The quota controller gives back what was reserved for nothing and what objects
// leave behind.
func resourceQuota(s *store.Store) rest.Admission {
	r := &reserving{store: s, locks: map[string]*turn{}}
	return onValidate("ResourceQuota", r.validate)
}

// reserving takes requests of one namespace in turn, so that those of this process do not contend for a quota.
type reserving struct {
	store *store.Store

	mu    sync.Mutex
	locks map[string]*turn
}

type turn struct {
	sync.Mutex
	waiting int
}

func (r *reserving) lock(namespace string) (unlock func()) {
	r.mu.Lock()
	t := r.locks[namespace]
	if t == nil {
		t = &turn{}
		r.locks[namespace] = t
	}
	t.waiting++
	r.mu.Unlock()
	t.Lock()
	return func() {
		t.Unlock()
		r.mu.Lock()
		defer r.mu.Unlock()
		if t.waiting--; t.waiting == 0 {
			delete(r.locks, namespace)
		}
	}
}

func (r *reserving) validate(ctx context.Context, a *rest.Admitting) error {
	if a.Key.Namespace == "" || a.Kind == api.NamespaceKind || a.Operation != rest.OpCreate && a.Operation != rest.OpUpdate || quota.Ignored(a.Kind) ||
		!quota.Changed(a.Kind, a.Sub, a.Old, a.Object) {
		return nil
	}
	if err := r.store.Sync(ctx); err != nil {
		return err
	}
	if !r.limited(a.Key.Namespace) {
		return nil
	}
	defer r.lock(a.Key.Namespace)()
	// A quota in which the amount is reserved is not asked again when another one has to be read anew.
	reserved := map[string]bool{}
	for range quotaTries {
		conflict, err := r.reserve(ctx, a, reserved)
		if err != nil || !conflict {
			return err
		}
		if err := r.store.Sync(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("quotas of namespace %s change too fast", a.Key.Namespace)
}

// limited says whether the namespace has quotas.
func (r *reserving) limited(namespace string) bool {
	for range r.store.Snapshot(api.ResourceQuotaKind).All(namespace, api.Key{}) {
		return true
	}
	return false
}

// reserve checks all quotas and then writes those that change. It says whether one was changed by somebody else meanwhile.
func (r *reserving) reserve(ctx context.Context, a *rest.Admitting, reserved map[string]bool) (conflict bool, err error) {
	type change struct {
		quota *corev1.ResourceQuota
		rev   api.Revision
	}
	var changes []change
	for e := range r.store.Snapshot(api.ResourceQuotaKind).All(a.Key.Namespace, api.Key{}) {
		q := e.Object.(*corev1.ResourceQuota)
		if reserved[q.Name] {
			continue
		}
		used, err := r.fits(a, q, time.Now())
		if err != nil {
			return false, err
		}
		if used != nil && !a.DryRun {
			next := q.DeepCopy()
			next.Status.Used = used
			changes = append(changes, change{next, e.Revision})
		}
	}
	for _, c := range changes {
		name := c.quota.Name // the object is the store's from here on
		switch _, err := r.store.Update(ctx, api.ResourceQuotaKind, c.quota, c.rev, 0); {
		case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrNotFound):
			conflict = true
		case err != nil:
			return false, err
		default:
			reserved[name] = true
		}
	}
	return conflict, nil
}

// fits returns what is used of q when the request is served, nil where it changes nothing, or why it is more than may be.
func (r *reserving) fits(a *rest.Admitting, q *corev1.ResourceQuota, now time.Time) (corev1.ResourceList, error) {
	var names []corev1.ResourceName
	for _, name := range quota.Names(q.Status.Hard) {
		if quota.Tracks(a.Kind, name) {
			names = append(names, name)
		}
	}
	about, err := quota.Matches(q, a.Object)
	if err != nil || !about || len(names) == 0 {
		return nil, err
	}
	if err := quota.Unspecified(names, a.Object); err != nil {
		return nil, forbidden(a, "failed quota: %s: %v", q.Name, err)
	}
	for _, name := range names {
		if _, known := q.Status.Used[name]; !known {
			return nil, forbidden(a, "status unknown for quota: %s, resources: %s", q.Name, list(names))
		}
	}
	more, err := delta(a, q, r.others(), now)
	if err != nil {
		return nil, err
	}
	used := corev1.ResourceList{}
	for name, amount := range q.Status.Used {
		used[name] = amount.DeepCopy()
	}
	var exceeded []corev1.ResourceName
	changed := false
	for _, name := range names {
		amount, ok := more[name]
		if !ok || amount.IsZero() {
			continue
		}
		sum := used[name]
		sum.Add(amount)
		used[name], changed = sum, true
		if hard := q.Status.Hard[name]; sum.Cmp(hard) > 0 && a.Sub != "status" {
			exceeded = append(exceeded, name)
		}
	}
	if len(exceeded) > 0 {
		return nil, forbidden(a, "exceeded quota: %s, requested: %s, used: %s, limited: %s", q.Name,
			amounts(more, exceeded), amounts(q.Status.Used, exceeded), amounts(q.Status.Hard, exceeded))
	}
	if !changed {
		return nil, nil
	}
	return used, nil
}

// others are the objects as they are stored.
func (r *reserving) others() quota.Others {
	return quota.Others{
		Class: func(name string) *resourcev1.DeviceClass {
			return stored[*resourcev1.DeviceClass](r.store, api.DeviceClassKind, api.Key{Name: name})
		},
		Pod: func(key api.Key) *corev1.Pod { return stored[*corev1.Pod](r.store, api.PodKind, key) },
	}
}

// stored returns an object, nil if there is none that can be read.
func stored[T api.Object](s *store.Store, k *api.Kind, key api.Key) (o T) {
	if e := s.Snapshot(k).Get(key); e != nil && e.Err() == nil {
		o, _ = e.Object.(T)
	}
	return o
}

// delta is what the request uses more than before, never less: giving back is the controller's.
func delta(a *rest.Admitting, q *corev1.ResourceQuota, among quota.Others, now time.Time) (corev1.ResourceList, error) {
	use := quota.Usage(a.Kind, a.Object, among, now)
	var negative []corev1.ResourceName
	for _, name := range quota.Names(use) {
		if amount := use[name]; amount.Sign() < 0 {
			negative = append(negative, name)
		}
	}
	if len(negative) > 0 {
		return nil, forbidden(a, "quota usage is negative for resource(s): %s", list(negative))
	}
	if a.Old == nil {
		return use, nil
	}
	before, err := quota.Matches(q, a.Old)
	if err != nil || !before {
		return use, err // it came into the scope of the quota
	}
	old := quota.Usage(a.Kind, a.Old, among, now)
	for name, amount := range use {
		amount.Sub(old[name])
		if amount.Sign() < 0 {
			amount = resource.Quantity{}
		}
		use[name] = amount
	}
	return use, nil
}

func list(names []corev1.ResourceName) string {
	var out []string
	for _, n := range names {
		out = append(out, string(n))
	}
	return strings.Join(out, ",")
}

func amounts(l corev1.ResourceList, names []corev1.ResourceName) string {
	var out []string
	for _, n := range names {
		q := l[n]
		out = append(out, string(n)+"="+q.String())
	}
	return strings.Join(out, ",")
}
