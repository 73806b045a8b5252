// Package etcd is the seam to etcd v3, the only thing that keeps state: a member that runs inside this process, or a
// connection to endpoints elsewhere. It replaces the etcd program that upstream's API server needs beside it.
//
// Vocabulary: a member is one etcd server; this process runs at most one. Its alarm NOSPACE makes it refuse puts. A new member of a cluster
// learns what there is before it votes. See peer.go.
//
// Invariants:
//   - A member acknowledges a write after it is on disk (Config.Ephemeral excepted).
//   - A data directory is used by one process at a time: <DataDir>/lock is held while the member runs.
//   - Running out of disk is met before etcd meets it, since etcd ends the process then. See space.go.
//   - etcd never ends this process: what it calls fatal is an error of Run.
//
// Layout of the data directory: member/ is etcd's own; lock, reserve and peers, the URL by which others reach the member, are ours.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"github.com/yare-dev/yare/run"
)

// Config says where state is kept. Exactly one of DataDir and Endpoints is given.
type Config struct {
	// DataDir makes this process run a member with its data there. It is made if it does not exist.
	DataDir string
	// Name is the member's name. Empty: "default". It must not change as long as the data lives.
	Name string
	// Listen are URLs at which the member serves clients other than this process: unix:///run/etcd.sock,
	// https://127.0.0.1:2379. Usually none.
	Listen []string
	// CertFile, KeyFile and CAFile are the server certificate for https, and the authority that clients' certificates
	// must be of.
	CertFile, KeyFile, CAFile string
	// Ephemeral gives up durability for speed: nothing is synced to disk. For tests.
	Ephemeral bool
	// QuotaBytes bounds the size of the database. Zero: 2 GiB.
	QuotaBytes int64
	// MinFree is how many bytes the disk must have free for writes to be taken. Zero: 64 MiB.
	MinFree int64

	// Peer is how members of the same cluster reach each other; nil: this one is alone for ever.
	Peer *Peer
	// Waits is called when the start waits for other members, without which there is no majority. May be nil.
	Waits func()

	// Endpoints are members elsewhere: https://10.0.0.1:2379.
	Endpoints []string
	// TLS is for connections to Endpoints; nil for http.
	TLS *tls.Config

	Log *slog.Logger

	tick time.Duration // of a member's clock, for tests. Zero: 500 ms, or 100 ms where there are others
	tidy time.Duration // how often to look for unused space, for tests. Zero: a minute
}

// Etcd is a run.Component.
type Etcd struct {
	c      Config
	access atomic.Pointer[access]
	full   atomic.Bool
	disk   atomic.Pointer[space] // of the member in this process
	stood  atomic.Int64          // how often the member was told to stand for election

	server atomic.Pointer[etcdserver.EtcdServer] // the member in this process, once it is ready
	shared atomic.Bool                           // others may write. It is never taken back: what they wrote last may not have arrived
	peers  *peers                                // of the member; nil where it is alone for ever
}

// New checks the configuration.
func New(c Config) (*Etcd, error) {
	switch {
	case (c.DataDir == "") == (len(c.Endpoints) == 0):
		return nil, errors.New("etcd: exactly one of the data directory and endpoints has to be given")
	case c.Log == nil:
		return nil, errors.New("etcd: no logger given")
	}
	if c.Name == "" {
		c.Name = "default"
	}
	if c.QuotaBytes == 0 {
		c.QuotaBytes = 2 << 30
	}
	if c.MinFree == 0 {
		c.MinFree = 64 << 20
	}
	return &Etcd{c: c}, nil
}

// Name is the component's name.
func (e *Etcd) Name() string { return "etcd" }

// access is how the database is reached.
type access struct {
	client *clientv3.Client
	kv     pb.KVClient
}

// Client returns the client to use; nil before Run calls ready. It calls a member in this process without a socket.
func (e *Etcd) Client() *clientv3.Client {
	if a := e.access.Load(); a != nil {
		return a.client
	}
	return nil
}

// KV is Client's access to keys by etcd's own messages, which clients make several copies of. Its errors are to be read by
// clientv3.ContextError. Preconditions: Run has called ready.
func (e *Etcd) KV() pb.KVClient { return e.access.Load().kv }

// Exclusive says that only this process can write.
func (e *Etcd) Exclusive() bool {
	return e.c.DataDir != "" && len(e.c.Listen) == 0 && !e.shared.Load()
}

// Revision returns the revision of the database, as new as any write that was acknowledged before the call. Many callers at once are
// one question to the other members. Preconditions: Run has called ready.
func (e *Etcd) Revision(ctx context.Context) (int64, error) {
	s := e.server.Load()
	if s == nil {
		// A linearizable read of a key that cannot exist; the answer's header tells the revision.
		r, err := e.Client().Get(ctx, "\x00", clientv3.WithCountOnly())
		if err != nil {
			return 0, err
		}
		return r.Header.Revision, nil
	}
	for {
		err := s.LinearizableReadNotify(ctx)
		if err == nil {
			return s.KV().Rev(), nil
		}
		if !errors.Is(err, etcderrors.ErrLeaderChanged) {
			return 0, err
		}
		if err := run.Pause(ctx, 10*time.Millisecond); err != nil { // the new leader is asked
			return 0, err
		}
	}
}

// Full says that puts must not be tried for want of disk space. It looks at the disk, since a second, the interval of
// the check that raises the alarm, is enough to fill one.
func (e *Etcd) Full() bool {
	if e.full.Load() {
		return true
	}
	sp := e.disk.Load()
	return sp != nil && sp.low()
}

// Run runs the member, or keeps the connection, until ctx ends.
func (e *Etcd) Run(ctx context.Context, ready func()) error {
	if e.c.DataDir != "" {
		return e.member(ctx, ready)
	}
	return e.connect(ctx, ready)
}

func (e *Etcd) connect(ctx context.Context, ready func()) error {
	c, err := clientv3.New(clientv3.Config{
		Context:              ctx,
		Endpoints:            e.c.Endpoints,
		TLS:                  e.c.TLS,
		Logger:               quiet(e.c.Log, nil),
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 5 * time.Second,
		RejectOldCluster:     true,
		MaxCallSendMsgSize:   3 << 20,
	})
	if err != nil {
		return fmt.Errorf("connect to %v: %w", e.c.Endpoints, err)
	}
	defer c.Close()
	// The first answer shows that endpoints, certificates and quorum are right.
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := c.Get(try, "\x00", clientv3.WithCountOnly())
		cancel()
		if err == nil {
			break
		}
		e.c.Log.Warn("etcd does not answer", "endpoints", e.c.Endpoints, "err", err)
		if run.Pause(ctx, wait) != nil {
			return nil
		}
	}
	e.access.Store(&access{c, clientv3.RetryKVClient(c)})
	ready()
	<-ctx.Done()
	return nil
}
