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
// compares a key that has the leader's name. Before Take, nothing is compared.
type Fence struct {
	s      *Store
	key    string
	holder atomic.Pointer[string]
}

// NewFence returns the fence of those who lead in something, as "kube-scheduler".
func (s *Store) NewFence(name string) *Fence { return &Fence{s: s, key: "/yare/leaders/" + name} }

// Take writes the leader's name, which is nobody else's, over the one before. It is called after the lease is held, and before anything is
// written as the leader.
func (f *Fence) Take(ctx context.Context, name string) error {
	for {
		kvs, _, _, err := f.s.b.Range(ctx, f.key, f.key+"\x00", 1, 0)
		if err != nil {
			return fmt.Errorf("take over %s: %w", f.key, err)
		}
		var want api.Revision
		if len(kvs) > 0 {
			want = kvs[0].Modified
		}
		_, err = f.s.b.Put(ctx, f.key, []byte(name), want, 0)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("take over %s: %w", f.key, err)
		}
		f.holder.Store(&name)
		return nil
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
