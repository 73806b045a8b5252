// Package etcdkv is a store.Backend on etcd.
//
// A write is one transaction that compares the key's modification revision. It is sent once: an error that does not say
// that the write was refused is store.ErrUnknown.
package etcdkv

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/store"
)

// Backend is a store.Backend.
type Backend struct {
	e *etcd.Etcd

	mu     sync.Mutex
	shared map[time.Duration]lease // by TTL
}

// lease is shared by keys that are to end at about the same time.
type lease struct {
	id    clientv3.LeaseID
	until time.Time // no more keys after this
	keys  int
}

// New returns a Backend on e, to be used when e is ready.
func New(e *etcd.Etcd) *Backend {
	return &Backend{e: e, shared: map[time.Duration]lease{}}
}

// Exclusive is part of store.Backend.
func (b *Backend) Exclusive() bool { return b.e.Exclusive() }

// Revision is part of store.Backend.
func (b *Backend) Revision(ctx context.Context) (api.Revision, error) {
	rev, err := b.e.Revision(ctx)
	if err != nil {
		return 0, unanswered(ctx, err)
	}
	return api.Revision(rev), nil
}

// Range is part of store.Backend.
func (b *Backend) Range(ctx context.Context, from, end string, limit int, at api.Revision) ([]store.KV, bool, api.Revision, error) {
	opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(int64(limit)), clientv3.WithRev(int64(at))}
	r, err := b.e.Client().Get(ctx, from, opts...)
	if err != nil {
		return nil, false, 0, unanswered(ctx, read(err))
	}
	var kvs []store.KV
	for _, kv := range r.Kvs {
		kvs = append(kvs, convert(kv))
	}
	if at == 0 {
		at = api.Revision(r.Header.Revision)
	}
	return kvs, r.More, at, nil
}

// Put is part of store.Backend.
func (b *Backend) Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error) {
	if b.e.Full() {
		return 0, store.ErrFull
	}
	var id clientv3.LeaseID
	if ttl > 0 {
		var err error
		if id, err = b.lease(ctx, ttl); err != nil {
			return 0, err
		}
	}
	r, err := b.commit(ctx, key, want,
		&pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: value, Lease: int64(id)}}})
	switch {
	case errors.Is(err, rpctypes.ErrLeaseNotFound):
		// The lease ended early, for example by an administrator; the next write takes a new one.
		b.forget(ttl)
		return 0, fmt.Errorf("lease of the key ended: %w", err)
	case err != nil:
		return 0, write(err)
	case !r.Succeeded:
		if why := failed(store.ConditionOf(ctx), r, want); why != nil {
			return api.Revision(r.Header.Revision), why
		}
		return api.Revision(r.Header.Revision), store.ErrConflict
	}
	return api.Revision(r.Header.Revision), nil
}

// Delete is part of store.Backend.
func (b *Backend) Delete(ctx context.Context, key string, want api.Revision) (api.Revision, error) {
	if want == 0 {
		want = -1 // no key has it; zero is that of those which do not exist
	}
	r, err := b.commit(ctx, key, want,
		&pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key)}}}, keyOnly(key))
	switch {
	case err != nil:
		return 0, write(err)
	case r.Succeeded:
		return api.Revision(r.Header.Revision), nil
	}
	if why := failed(store.ConditionOf(ctx), r, want); why != nil {
		return api.Revision(r.Header.Revision), why
	}
	if len(r.Responses[0].GetResponseRange().GetKvs()) == 0 {
		return api.Revision(r.Header.Revision), store.ErrNotFound
	}
	return api.Revision(r.Header.Revision), store.ErrConflict
}

// keyOnly asks for a key's revision.
func keyOnly(key string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key), KeysOnly: true}}}
}

// commit does then if the key's modification revision is want and ctx's condition holds, or otherwise.
func (b *Backend) commit(ctx context.Context, key string, want api.Revision, then *pb.RequestOp, otherwise ...*pb.RequestOp) (*pb.TxnResponse, error) {
	r := &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Key: []byte(key), Result: pb.Compare_EQUAL, Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: int64(want)},
		}},
		Success: []*pb.RequestOp{then},
		Failure: otherwise,
	}
	if c := store.ConditionOf(ctx); c != (store.Condition{}) {
		condition(r, c, key)
	}
	answer, err := b.e.KV().Txn(ctx, r)
	return answer, clientv3.ContextError(ctx, err)
}

// condition adds c to a transaction. Where that fails, the first answers are the revision of the written key and the value of c.Key, so that it
// can be told why.
func condition(r *pb.TxnRequest, c store.Condition, key string) {
	r.Failure = []*pb.RequestOp{keyOnly(key)}
	if c.Key != "" {
		r.Compare = append(r.Compare, &pb.Compare{Key: []byte(c.Key), Result: pb.Compare_EQUAL, Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte(c.Value)}})
		r.Failure = append(r.Failure, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(c.Key)}}})
	}
	if c.Prefix != "" {
		// A range without keys is as one key that was never written.
		older := func(from, end string) *pb.Compare {
			return &pb.Compare{Key: []byte(from), RangeEnd: []byte(end), Result: pb.Compare_LESS, Target: pb.Compare_MOD,
				TargetUnion: &pb.Compare_ModRevision{ModRevision: int64(c.Since) + 1}}
		}
		r.Compare = append(r.Compare, older(c.Prefix, c.Own), older(c.Own+"\x00", clientv3.GetPrefixRangeEnd(c.Prefix)))
		r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(c.Own)}}})
	}
}

// failed says which part of c did not hold in a transaction that failed; nil where that was the revision of the written key.
func failed(c store.Condition, r *pb.TxnResponse, want api.Revision) error {
	if c == (store.Condition{}) {
		return nil
	}
	var is int64
	if kvs := r.Responses[0].GetResponseRange().GetKvs(); len(kvs) > 0 {
		is = kvs[0].ModRevision
	}
	if c.Key != "" {
		if kvs := r.Responses[1].GetResponseRange().GetKvs(); len(kvs) == 0 || string(kvs[0].Value) != c.Value {
			return store.ErrFenced
		}
	}
	if is != int64(want) {
		return nil
	}
	return store.ErrOvertaken
}

// Watch is part of store.Backend.
func (b *Backend) Watch(ctx context.Context, prefix string, from api.Revision, emit func(api.Revision, []store.Change) error) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	var list []store.Change
	for r := range b.e.Client().Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(int64(from)+1)) {
		if err := r.Err(); err != nil {
			if r.CompactRevision != 0 {
				return store.ErrCompacted
			}
			return read(err)
		}
		for i, ev := range r.Events {
			list = append(list, change(ev))
			rev := ev.Kv.ModRevision
			if i+1 < len(r.Events) && r.Events[i+1].Kv.ModRevision == rev {
				continue
			}
			if err := emit(api.Revision(rev), list); err != nil {
				return err
			}
			list = nil
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return errors.New("watch ended")
}

// Compact is part of store.Backend.
func (b *Backend) Compact(ctx context.Context, rev api.Revision) error {
	if !b.e.Leads() {
		return nil // one of several does it for all
	}
	_, err := b.e.Client().Compact(ctx, int64(rev))
	return read(err)
}

func convert(kv *mvccpb.KeyValue) store.KV {
	value := kv.Value
	if value == nil {
		value = []byte{}
	}
	return store.KV{
		Key: string(kv.Key), Value: value,
		Created: api.Revision(kv.CreateRevision), Modified: api.Revision(kv.ModRevision),
	}
}

func change(ev *clientv3.Event) store.Change {
	if ev.Type == clientv3.EventTypeDelete {
		return store.Change{KV: store.KV{Key: string(ev.Kv.Key), Modified: api.Revision(ev.Kv.ModRevision)}}
	}
	return store.Change{KV: convert(ev.Kv)}
}

// read translates an error of a request that changes nothing.
func read(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		return store.ErrCompacted
	case errors.Is(err, rpctypes.ErrFutureRev):
		return store.ErrFuture
	}
	return err
}

// unanswered says of what is wrong with a read, other than with its revision or its caller, that the database does not answer.
func unanswered(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, store.ErrCompacted) || errors.Is(err, store.ErrFuture) {
		return err
	}
	return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
}

// write translates an error of a write, telling those that say that it was refused from all others.
func write(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		return store.ErrFull
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		return store.ErrTooLarge
	case errors.Is(err, rpctypes.ErrTooManyRequests), errors.Is(err, rpctypes.ErrPermissionDenied):
		return err
	}
	return fmt.Errorf("%w: %w", store.ErrUnknown, err)
}

// Leases are shared to be few: a key may live longer than its TTL by a twentieth, at least a tenth of a second and at
// most a minute.
const maxLeaseKeys = 1000

// lease returns a lease that lasts at least ttl from now.
func (b *Backend) lease(ctx context.Context, ttl time.Duration) (clientv3.LeaseID, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	if l, ok := b.shared[ttl]; ok && l.keys < maxLeaseKeys && now.Before(l.until) {
		l.keys++
		b.shared[ttl] = l
		return l.id, nil
	}
	extra := min(max(ttl/20, 100*time.Millisecond), time.Minute)
	seconds := int64((ttl + extra + time.Second - 1) / time.Second)
	r, err := b.e.Client().Grant(ctx, seconds)
	if err != nil {
		if errors.Is(err, rpctypes.ErrNoSpace) {
			return 0, store.ErrFull
		}
		return 0, fmt.Errorf("grant a lease of %d s: %w", seconds, err)
	}
	b.shared[ttl] = lease{r.ID, now.Add(extra), 1}
	return r.ID, nil
}

func (b *Backend) forget(ttl time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.shared, ttl)
}
