package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/yare-dev/yare/api"
)

// Errors of writes whose Condition does not hold. Nothing was written.
var (
	// ErrFenced says that somebody else leads: see Fence.
	ErrFenced = errors.New("somebody else leads now")
	// ErrOvertaken says that another server has written since the decision that is to be written was made: see Allocated.
	ErrOvertaken = errors.New("another server was faster")
)

// Condition is what a write depends on besides the revision of its own key. Backends check it in the same transaction.
type Condition struct {
	// Key has Value; ErrFenced otherwise. Empty: does not matter.
	Key, Value string
	// No key below Prefix but Own was written after Since; ErrOvertaken otherwise. The write writes Own. Empty: does not matter.
	Prefix, Own string
	Since       api.Revision
}

// ConditionOf returns the condition that ctx's writes have; the zero Condition where there is none.
func ConditionOf(ctx context.Context) (c Condition) {
	if f, ok := ctx.Value(fenced{}).(*Fence); ok {
		if holder := f.holder.Load(); holder != nil {
			c.Key, c.Value = f.key, *holder
		}
	}
	if a, ok := ctx.Value(allocated{}).(Condition); ok {
		c.Prefix, c.Own, c.Since = a.Prefix, a.Own, a.Since
	}
	return c
}

type (
	fenced    struct{}
	allocated struct{}
)

// Fence makes writes of one who leads fail from the moment on in which somebody else does, even if he does not know it yet: each
// compares a key that has the leader's name. Before Take, nothing is compared. It is for one time of leading.
type Fence struct {
	s      *Store
	key    string
	seen   api.Revision // of the key, when Stand looked
	holder atomic.Pointer[string]
	lose   context.CancelCauseFunc // set before holder is
}

// NewFence returns the fence of those who lead in something, as "kube-scheduler".
func (s *Store) NewFence(name string) *Fence { return &Fence{s: s, key: "/yare/leaders/" + name} }

// Stand notes who leads. It is called before the lease is waited for, so that Take fails where somebody else took the lease, and the fence,
// after this process had it and before it got here.
func (f *Fence) Stand(ctx context.Context) error {
	kvs, _, _, err := f.s.b.Range(ctx, f.key, f.key+"\x00", 1, 0)
	if err != nil {
		return fmt.Errorf("read %s: %w", f.key, err)
	}
	f.seen = 0
	if len(kvs) > 0 {
		f.seen = kvs[0].Modified
	}
	return nil
}

// Take writes the leader's name, which is nobody else's, over the one that Stand has seen; ErrConflict where another one is there. It is called
// after the lease is held, and before anything is written as the leader. The context that it returns ends when a write has met somebody
// else's name.
func (f *Fence) Take(ctx context.Context, name string) (context.Context, error) {
	if _, err := f.s.b.Put(ctx, f.key, []byte(name), f.seen, 0); err != nil {
		return nil, fmt.Errorf("take over %s: %w", f.key, err)
	}
	ctx, f.lose = context.WithCancelCause(ctx)
	f.holder.Store(&name)
	return ctx, nil
}

// met ends the leadership that ctx's writes are of, one of which was fenced.
func met(ctx context.Context, err error) {
	if f, ok := ctx.Value(fenced{}).(*Fence); ok && errors.Is(err, ErrFenced) {
		f.lose(err)
	}
}

// Context returns a context whose writes are the leader's.
func (f *Fence) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, fenced{}, f)
}

// Exclusive says that nobody else can write to the database now.
func (s *Store) Exclusive() bool { return s.b.Exclusive() }

// Allocated returns a context whose write takes something of which no server may take the same: it was decided by what was
// published at revision since. Own names this server among all. Where nobody else can write, it is ctx.
func (s *Store) Allocated(ctx context.Context, what, own string, since api.Revision) context.Context {
	if s.b.Exclusive() {
		return ctx
	}
	prefix := "/yare/allocations/" + what + "/"
	return context.WithValue(ctx, allocated{}, Condition{Prefix: prefix, Own: prefix + own, Since: since})
}
