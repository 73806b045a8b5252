// Package store keeps API objects: durable in etcd, shared in memory. It replaces k8s.io/apiserver's
// storage layers (etcd3, cacher, watch cache) by one.
//
// A Backend is the database (etcd, or memory for tests). A Store is a Backend plus one copy-on-write tree of
// shared objects per kind, fed by a single watch of the whole database in revision order:
//
//	writer ── Create/Update/Delete ──> Backend ── one watch, in revision order ──> feed
//	   ^                                                                            │ publishes: trees, indexes,
//	   └──────── returns when the feed has published the write's revision ──────────┘ recent events, watchers
//
// Vocabulary: an Entry is one state of one object; a Snapshot is one kind at one revision; a Watch is a cursor in a
// kind's recent events.
//
// Invariants:
//   - A published Entry and its Object never change; every reader gets the same pointer.
//   - Revisions that readers see never go back, and a write is acknowledged only after it is durable and published. A write is
//     refused only after what stands against it is published: who was told that an object exists finds it.
//   - The object that a writer hands over is the one that is published (its bytes are not decoded again).
//   - A writer's object belongs to the Store from the call on, whatever its outcome.
//   - Stored bytes are upstream's: protobuf in runtime.Unknown's envelope below /registry/, without resourceVersion.
//   - Only the feed changes tables, and Add and Remove, which have Store.feeding for it. Locks: feeding comes before table.mu and
//     Store.mu, which are never held together, nor while calling out.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/yare-dev/yare/api"
)

// Errors of a Backend and of a Store.
var (
	ErrNotFound = errors.New("no such key")
	// ErrConflict says that the key is not at the expected revision (or exists, where it must not).
	ErrConflict = errors.New("revision conflict")
	// ErrCompacted says that a revision is no longer kept.
	ErrCompacted = errors.New("revision was compacted")
	// ErrFuture says that a revision has not been reached.
	ErrFuture = errors.New("revision lies in the future")
	// ErrUnknown says that a write may or may not have happened. It is never retried here: only the caller can find
	// out, by reading.
	ErrUnknown = errors.New("outcome of the write is unknown")
	// ErrFull says that the database takes no writes for want of space. Reads and deletes still work.
	ErrFull = errors.New("database is out of space")
	// ErrTooLarge says that a value is larger than the database takes.
	ErrTooLarge = errors.New("object is too large for the database")
	// ErrTaken says that another kind is stored where one was to be.
	ErrTaken = errors.New("another kind is stored there")
	// ErrRemoved says that the kind is not stored here, or no longer.
	ErrRemoved = errors.New("not stored here")
	// ErrUnavailable says that the database does not answer, for want of a majority perhaps. Nothing was written.
	ErrUnavailable = errors.New("the database does not answer")
	// ErrSlow says that a watcher fell further behind than it may.
	ErrSlow = errors.New("watcher is too slow")
)

// KV is one key of a Backend.
type KV struct {
	Key      string
	Value    []byte
	Created  api.Revision
	Modified api.Revision
	// Stale says whether the value would be stored in another form now, so that writing it again is of use. Nil: no.
	Stale func() bool
}

// Change is one key's change: a put, or a deletion where KV.Value is nil.
type Change struct {
	KV
}

// Backend is a revisioned key-value database with etcd's semantics. All methods may be called
// concurrently. Memory and etcd pass storetest.Backend.
type Backend interface {
	// Range returns up to limit keys (0: all) in [from, end) at revision at (0: now), whether there are more, and the
	// revision of the snapshot. ErrCompacted or ErrFuture where at is not kept or not reached.
	Range(ctx context.Context, from, end string, limit int, at api.Revision) (kvs []KV, more bool, rev api.Revision, err error)
	// Put sets key if its modification revision is want; want 0 means that it must not exist. It returns the new
	// revision, or ErrConflict with the revision at which that was found. A ttl other than 0 removes the key after that time. Put and Delete
	// also depend on ctx's Condition: ErrFenced or ErrOvertaken where it does not hold, with the revision likewise.
	Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error)
	// Delete removes key if its modification revision is want; ErrConflict or ErrNotFound otherwise, with the revision at which
	// that was found.
	Delete(ctx context.Context, key string, want api.Revision) (api.Revision, error)
	// Watch calls emit with all changes below prefix (empty: every key) of one revision at a time, in order, starting
	// after revision from, until ctx ends or emit fails. ErrCompacted when from+1 is no longer kept.
	Watch(ctx context.Context, prefix string, from api.Revision, emit func(api.Revision, []Change) error) error
	// Revision returns the current revision; linearizable.
	Revision(ctx context.Context) (api.Revision, error)
	// Compact forgets what was overwritten or deleted before rev. ErrCompacted where that was done already.
	Compact(ctx context.Context, rev api.Revision) error
	// Exclusive says that this process is the only writer, so that what the feed published is current.
	Exclusive() bool
}

// root is the prefix of all objects, as upstream's.
const root = "/registry/"

// Options adjusts a Store. The zero Options is good for production but for Log, which is required.
type Options struct {
	Log *slog.Logger
	// Window is the number of recent events kept per kind, for watches that start in the past and for readers that are
	// behind. Zero: 8192.
	Window int
	// Keep is for how long events and revisions are kept at least, and not much longer. Zero: 5 minutes; negative: for ever.
	Keep time.Duration
	// Indexes are further indexes by kind and name. A function returns an object's value, empty for none; it is pure. See
	// Snapshot.Indexed. Owners are always indexed.
	Indexes map[*api.Kind]map[string]func(api.Object) string
	// Metrics is where requests to the database are counted. May be nil.
	Metrics prometheus.Registerer
	// Detect hashes every published object and fails Run when one of them was changed afterwards. For tests.
	Detect bool
}

// Store holds all objects of some kinds. It is a run.Component; other methods may be called when it is ready.
type Store struct {
	b      Backend
	o      Options
	held   atomic.Pointer[kinds]
	detect *detector // nil unless Options.Detect
	asked  *requests
	pasts  pasts

	// rev is the last published revision. It is advanced after the tables are, so that a table read after rev is at least
	// as new.
	rev atomic.Int64

	feeding sync.Mutex   // held while tables, or their set, change
	skipped api.Revision // up to here, the feed jumped over changes by loading everything again

	mu      sync.Mutex
	pending map[string][]*pending // writes under way, by key
	waiters []waiter
}

// New returns a Store of the given kinds over b. Keys of other kinds are left alone.
func New(b Backend, all []*api.Kind, o Options) *Store {
	if o.Window <= 0 {
		o.Window = 8192
	}
	if o.Keep == 0 {
		o.Keep = 5 * time.Minute
	}
	s := &Store{
		b: b, o: o,
		pending: map[string][]*pending{},
		asked:   newRequests(o.Metrics),
	}
	if o.Detect {
		s.detect = &detector{}
	}
	tables := make([]*table, len(all))
	for i, k := range all {
		tables[i] = newTable(k, o.Window, o.Indexes[k])
	}
	s.held.Store(newKinds(tables))
	return s
}

// Name is the component's name.
func (s *Store) Name() string { return "store" }

// Revision returns the last published revision.
func (s *Store) Revision() api.Revision { return api.Revision(s.rev.Load()) }

// table returns k's table, or ErrRemoved.
func (s *Store) table(k *api.Kind) (*table, error) {
	if t := s.held.Load().tables[k]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("kind %v: %w", k, ErrRemoved)
}

// locate returns the table and the object's key for a database key, nil for keys that are not ours.
func (s *Store) locate(key string) (*table, api.Key) {
	rest, ok := strings.CutPrefix(key, root)
	if !ok {
		return nil, api.Key{}
	}
	paths := s.held.Load().paths
	// A prefix has one segment or two: "pods", "services/specs".
	for i, cut := 0, 0; i < 2; i++ {
		n := strings.IndexByte(rest[cut:], '/')
		if n < 0 {
			break
		}
		cut += n
		if t := paths[rest[:cut]]; t != nil {
			return t.key(rest[cut+1:])
		}
		cut++
	}
	return nil, api.Key{}
}

// Format is an encoding that an Entry keeps once made.
type Format uint8

// The formats of Entry.Bytes.
const (
	JSON Format = iota
	Protobuf
	formats
)
