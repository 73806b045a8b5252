// Package store keeps API objects: durable in etcd, shared in memory. It replaces k8s.io/apiserver's
// storage layers (etcd3, cacher, watch cache) by one.
//
// A Backend is the database (etcd, or memory for tests). A Store is a Backend plus one copy-on-write tree of
// shared objects per kind, fed by a single watch of /registry/ in revision order:
//
//	 writer ── Create/Update/Delete ──> Backend ── one watch, in revision order ──> feed
//	    ^                                                                            │ publishes: trees, indexes,
//	    └──────── returns when the feed has published the write's revision ──────────┘ recent events, watchers
//
// Invariants:
//   - A published Entry and its Object never change; every reader gets the same pointer.
//   - Revisions that readers see never go back, and a write is acknowledged only after it is durable and published.
//   - The object that a writer hands over is the one that is published (its bytes are not decoded again).
//   - Stored bytes are upstream's: protobuf in runtime.Unknown's envelope below /registry/, without resourceVersion.
package store

import (
	"context"
	"errors"
	"time"

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
)

// KV is one key of a Backend.
type KV struct {
	Key      string
	Value    []byte
	Created  api.Revision
	Modified api.Revision
}

// Change is one key's change: a put, or a deletion where KV.Value is nil. Prev is the value before, if there was one.
type Change struct {
	KV
	Prev []byte
}

// Backend is a revisioned key-value database with etcd's semantics. All methods may be called
// concurrently. Memory and etcd pass storetest.Backend.
type Backend interface {
	// Range returns up to limit keys (0: all) in [from, end) at revision at (0: now), whether there are more, and the
	// revision of the snapshot.
	Range(ctx context.Context, from, end string, limit int, at api.Revision) (kvs []KV, more bool, rev api.Revision, err error)
	// Put sets key if its modification revision is want; want 0 means that it must not exist. It returns the new
	// revision, or ErrConflict. A ttl other than 0 removes the key after that time.
	Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error)
	// Delete removes key if its modification revision is want; ErrConflict or ErrNotFound otherwise.
	Delete(ctx context.Context, key string, want api.Revision) (api.Revision, error)
	// Watch calls emit with all changes of one revision at a time, in order, starting after revision from, until ctx
	// ends or emit fails. ErrCompacted when from is no longer kept. Progress without changes is told by an empty list.
	Watch(ctx context.Context, prefix string, from api.Revision, emit func(api.Revision, []Change) error) error
	// Revision returns the current revision; linearizable.
	Revision(ctx context.Context) (api.Revision, error)
	// Compact forgets revisions before rev.
	Compact(ctx context.Context, rev api.Revision) error
	// Exclusive says that this process is the only writer, so that what the feed published is current.
	Exclusive() bool
}

// Format is an encoding that an Entry keeps once made.
type Format uint8

const (
	JSON Format = iota
	Protobuf
	formats
)
