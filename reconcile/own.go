package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

func groupOf(apiVersion string) string {
	group, _, ok := strings.Cut(apiVersion, "/")
	if !ok {
		return ""
	}
	return group
}

// ControllerRef returns a reference to o as controlling owner.
func ControllerRef(o api.Object) *metav1.OwnerReference {
	return metav1.NewControllerRef(o, api.KindOf(o).GVK())
}

// Claim returns the objects of kind C that owner controls and selector matches. It adopts those that match and have
// no controller and releases those that owner controls and that match no more, as long as owner is
// not being deleted. Only what all of adoptable accept is adopted. Its writes are "patch" of C.
func Claim[C api.Object](ctx context.Context, c client.Client, owner api.Object, selector labels.Selector,
	adoptable ...func(C) bool) ([]C, error) {
	matching, err := client.List[C](ctx, c, client.Query{Namespace: owner.GetNamespace(), Labels: selector})
	if err != nil {
		return nil, fmt.Errorf("list %s: %w", api.KindFor[C](), err)
	}
	var mine []C
	var errs []error
	for _, o := range matching {
		switch ref := metav1.GetControllerOfNoCopy(o); {
		case ref != nil && ref.UID == owner.GetUID():
			mine = append(mine, o)
		case ref != nil || owner.GetDeletionTimestamp() != nil || o.GetDeletionTimestamp() != nil:
		case slices.ContainsFunc(adoptable, func(f func(C) bool) bool { return !f(o) }):
		default:
			adopted, err := adopt(ctx, c, owner, o)
			switch {
			case err == nil:
				mine = append(mine, adopted)
			case !apierrors.IsNotFound(err):
				errs = append(errs, err)
			}
		}
	}
	if owner.GetDeletionTimestamp() != nil {
		return mine, errors.Join(errs...)
	}
	owned, err := client.List[C](ctx, c, client.Query{Namespace: owner.GetNamespace(), Owner: owner.GetUID()})
	if err != nil {
		return nil, fmt.Errorf("list owned %s: %w", api.KindFor[C](), err)
	}
	for _, o := range owned {
		ref := metav1.GetControllerOfNoCopy(o)
		if ref == nil || ref.UID != owner.GetUID() || selector.Matches(labels.Set(o.GetLabels())) {
			continue
		}
		// Gone, or another object of that name by now (Invalid): either way it is not owner's any more.
		if err := release(ctx, c, owner, o); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsInvalid(err) {
			errs = append(errs, err)
		}
	}
	return mine, errors.Join(errs...)
}

func adopt[C api.Object](ctx context.Context, c client.Client, owner api.Object, o C) (C, error) {
	// Whether owner still lives is asked again: what it was read from may be older than o.
	live, err := c.Get(ctx, api.KindOf(owner), api.KeyOf(owner))
	if err != nil {
		return o, fmt.Errorf("get owner: %w", err)
	}
	if live.GetUID() != owner.GetUID() || live.GetDeletionTimestamp() != nil {
		return o, apierrors.NewNotFound(api.KindOf(owner).GroupResource(), owner.GetName())
	}
	got, err := patchOwners(ctx, c, o, []any{ControllerRef(owner)})
	if err != nil {
		return o, fmt.Errorf("adopt %s: %w", o.GetName(), err)
	}
	return got.(C), nil
}

func release(ctx context.Context, c client.Client, owner, o api.Object) error {
	_, err := patchOwners(ctx, c, o, []any{map[string]any{"$patch": "delete", "uid": owner.GetUID()}})
	if err != nil {
		return fmt.Errorf("release %s: %w", o.GetName(), err)
	}
	return nil
}

// patchOwners merges refs into o's owners, provided that it is still the same object.
func patchOwners(ctx context.Context, c client.Client, o api.Object, refs []any) (api.Object, error) {
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": o.GetUID(), "ownerReferences": refs}})
	if err != nil {
		return nil, fmt.Errorf("encode owner patch: %w", err)
	}
	return c.Patch(ctx, api.KindOf(o), api.KeyOf(o), client.Patch{Type: types.StrategicMergePatchType, Data: data})
}

// SlowStart calls f with 0 to n-1 in batches that run in parallel and double in size, and stops after the
// first batch with an error: what is refused once is mostly refused again, and this asks log n times instead of n.
// It returns how many calls went well and their errors.
func SlowStart(n int, f func(i int) error) (int, error) {
	well := 0
	for start, size := 0, 1; start < n; size *= 2 {
		size = min(size, n-start)
		err := Parallel(size, func(i int) error { return f(start + i) })
		failed := 0
		var many interface{ Unwrap() []error }
		if errors.As(err, &many) {
			failed = len(many.Unwrap())
		}
		well += size - failed
		if err != nil {
			return well, err
		}
		start += size
	}
	return well, nil
}

// parallel is how many calls Parallel has under way.
const parallel = 64

// Parallel calls f with 0 to n-1 at the same time and returns all errors, joined.
func Parallel(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer func() { // the engine's guard does not see other goroutines
				if p := recover(); p != nil {
					errs[i] = fmt.Errorf("panic: %v", p)
				}
			}()
			errs[i] = f(i)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
