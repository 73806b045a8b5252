package bootstrap

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	flow "k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// flow ensures upstream's priority levels and flow schemas: the mandatory ones as they are, the suggested ones unless their
// annotation says that somebody else looks after them. Those of former releases go, which bear that annotation still.
func (b *Bootstrap) flow(ctx context.Context) error {
	levels := func(now, want *flowcontrolv1.PriorityLevelConfiguration) { now.Spec = *want.Spec.DeepCopy() }
	schemas := func(now, want *flowcontrolv1.FlowSchema) { now.Spec = *want.Spec.DeepCopy() }
	return errors.Join(
		ensureFlow(ctx, b.client, flow.MandatoryPriorityLevelConfigurations, flow.SuggestedPriorityLevelConfigurations, levels),
		ensureFlow(ctx, b.client, flow.MandatoryFlowSchemas, flow.SuggestedFlowSchemas, schemas))
}

func ensureFlow[T api.Object](ctx context.Context, c client.Client, mandatory, suggested []T, spec func(now, want T)) error {
	kind := api.KindFor[T]()
	names := map[string]bool{}
	errs := make([]error, len(mandatory)+len(suggested))
	var wg sync.WaitGroup
	for i, want := range slices.Concat(mandatory, suggested) {
		names[want.GetName()] = true
		must := i < len(mandatory)
		want = want.DeepCopyObject().(T) // the list is the library's
		want.GetObjectKind().SetGroupVersionKind(kind.GVK())
		wg.Go(func() {
			errs[i] = ensure(ctx, c, want, func(now, want T) { mendFlow(now, want, must, spec) })
		})
	}
	wg.Wait()
	list, err := client.List[T](ctx, c, client.Query{})
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, o := range list {
		if names[o.GetName()] || !tended(o, false) {
			continue
		}
		if err := c.Delete(ctx, o, client.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// mendFlow brings the spec of now to that of want, if it is ours, and notes whether it is.
func mendFlow[T api.Object](now, want T, must bool, spec func(now, want T)) {
	ours := must || tended(now, now.GetGeneration() == 1)
	next := now.DeepCopyObject().(T)
	if spec(next, want); ours && !equality.Semantic.DeepEqual(next, now) {
		spec(now, want)
	}
	if mark := strconv.FormatBool(ours); now.GetAnnotations()[flowcontrolv1.AutoUpdateAnnotationKey] != mark {
		notes := now.GetAnnotations()
		if notes == nil {
			notes = map[string]string{}
		}
		notes[flowcontrolv1.AutoUpdateAnnotationKey] = mark
		now.SetAnnotations(notes)
	}
}

// tended says whether o's annotation has the system look after it; otherwise is the answer where it says nothing.
func tended(o api.Object, otherwise bool) bool {
	if v, err := strconv.ParseBool(o.GetAnnotations()[flowcontrolv1.AutoUpdateAnnotationKey]); err == nil {
		return v
	}
	return otherwise
}
