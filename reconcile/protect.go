package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"slices"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// Protection keeps objects of a kind from going while they are used: each has the finalizer until it is being deleted and
// nobody uses it any more. Its write is "update" of T.
type Protection[T api.Object] struct {
	Controller string // upstream's name
	Finalizer  string
	// Used says whether o, which is being deleted, is in use. What may change the answer is in Also.
	Used func(ctx context.Context, d Deps, o T) (bool, error)
	Also []Source
}

// Protect returns the controller.
func Protect[T api.Object](d Deps, p Protection[T]) *Controller {
	return New(d, For[T]{
		Controller: p.Controller,
		Also:       p.Also,
		Write:      Writes{api.KindFor[T](): {"update"}},
		Reconcile: func(ctx context.Context, log *slog.Logger, o T) (Result, error) {
			has := slices.Contains(o.GetFinalizers(), p.Finalizer)
			going := o.GetDeletionTimestamp() != nil
			if has != going {
				return Result{}, nil // protected, or gone as far as this finalizer is concerned
			}
			if going {
				// What is remembered may lag behind o: who is not found there may have come since.
				for _, ctx := range []context.Context{ctx, client.Live(ctx)} {
					if used, err := p.Used(ctx, d, o); err != nil || used {
						return Result{}, err
					}
				}
				log.Debug("not used any more")
			}
			_, err := client.Mutate(ctx, d.Client, o, "", func(o T) {
				if going {
					o.SetFinalizers(slices.DeleteFunc(o.GetFinalizers(), func(f string) bool { return f == p.Finalizer }))
				} else {
					o.SetFinalizers(append(o.GetFinalizers(), p.Finalizer))
				}
			})
			if err != nil {
				return Result{}, fmt.Errorf("change finalizer: %w", err)
			}
			return Result{}, nil
		},
	})
}
