package authn

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// Stored returns a Getter of the objects in s. What it does not find it looks for again after everything that
// others wrote has arrived, so that a token or a namespace that was made a moment ago elsewhere is known.
func Stored(s *store.Store) Getter { return stored{s} }

type stored struct{ s *store.Store }

func (r stored) Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	e := r.s.Snapshot(k).Get(key)
	if e == nil {
		if err := r.s.Sync(ctx); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		e = r.s.Snapshot(k).Get(key)
	}
	if e == nil {
		return nil, apierrors.NewNotFound(k.GroupResource(), key.Name)
	}
	if e.Err() != nil {
		return nil, apierrors.NewInternalError(e.Err())
	}
	return e.Object, nil
}
