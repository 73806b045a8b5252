package follow

import (
	"context"
	"time"
)

// ended is a context that has ended: whoever is given it must not wait.
type ended struct{}

func (ended) Deadline() (time.Time, bool) { return time.Time{}, false }
func (ended) Err() error                  { return context.Canceled }
func (ended) Value(any) any               { return nil }

func (ended) Done() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}
