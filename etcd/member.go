package etcd

import (
	"cmp"
	"context"
	"errors"
	"expvar"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy/adapter"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/sys/unix"
)

// member runs etcd in this process.
func (e *Etcd) member(ctx context.Context, ready func()) error {
	if err := os.MkdirAll(e.c.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	unlock, err := lock(filepath.Join(e.c.DataDir, "lock"))
	if err != nil {
		return err
	}
	defer unlock()
	sp := e.space()
	if err := sp.prepare(); err != nil {
		return err
	}
	fatal := make(chan error, 1)
	c, err := e.config(fatal)
	if err != nil {
		return err
	}
	m, err := start(c, fatal)
	if err != nil {
		return err
	}
	if e.c.Peer != nil {
		e.peers = newPeers(e, m.Server)
		defer e.peers.close() // after the member, which may give its lead away at its end
		if e.marked() {
			if err := e.peers.open(); err != nil {
				return err
			}
		}
	}
	client, err := e.lead(ctx, m, fatal)
	if err != nil {
		return err // what is left of the member cannot be waited for
	}
	if client != nil {
		err = e.vote(ctx, m, fatal)
	}
	if ctx.Err() != nil {
		m.Close()
		return nil
	}
	if err != nil {
		return err // as above
	}
	e.shared.Store(len(m.Server.Cluster().Members()) > 1)
	e.server.Store(m.Server)
	e.access.Store(&access{client, adapter.KvServerToKvClient(v3rpc.NewQuotaKVServer(m.Server))})
	e.disk.Store(sp)
	if err := sp.check(ctx, m.Server); err != nil && ctx.Err() == nil {
		e.c.Log.Warn("checking disk space failed", "err", err)
	}
	ready()
	return e.serve(ctx, m, client, sp, fatal)
}

// start starts the member. Some errors reach us as what etcd calls fatal.
func start(c *embed.Config, fatal <-chan error) (*embed.Etcd, error) {
	type result struct {
		m   *embed.Etcd
		err error
	}
	started := make(chan result, 1)
	// In a goroutine of its own because a fatal error ends the goroutine.
	go func() {
		m, err := embed.StartEtcd(c)
		started <- result{m, err}
	}()
	select {
	case r := <-started:
		if r.err != nil {
			return nil, fmt.Errorf("start the member: %w", r.err)
		}
		return r.m, nil
	case err := <-fatal:
		return nil, fmt.Errorf("start the member: %w", err)
	}
}

// waitsAfter is how long members that are up take to find a leader, as a rule.
const waitsAfter = 8 * time.Second

// lead waits until the member is ready, which it is when it or another one leads, and returns a client that calls it directly; nil
// when ctx ended.
func (e *Etcd) lead(ctx context.Context, m *embed.Etcd, fatal <-chan error) (*clientv3.Client, error) {
	// A member that is alone need not wait for an election timeout: it is told to stand for election at once, by the message
	// that ends a leadership transfer. It is repeated, since it is dropped until raft has applied the first membership; and
	// it is held back until raft has been told that the log is replayed, since it looks for membership changes in what it has
	// not applied, and etcd may have dropped that from memory by then, which is fatal. How many members there are is looked at
	// each time too: without a snapshot there are none before the log is replayed.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.NewTimer(waitsAfter)
	defer late.Stop()
	for {
		select {
		case <-m.Server.ReadyNotify():
			return v3client.New(m.Server), nil
		case <-ctx.Done():
			return nil, nil
		case err := <-fatal:
			return nil, err
		case err := <-m.Err():
			return nil, fmt.Errorf("start the member: %w", err)
		case <-m.Server.StopNotify():
			return nil, ErrRemoved // whatever else stops it is an error of the two above
		case <-late.C:
			if e.marked() && !alone(m.Server) && m.Server.Leader() == 0 {
				e.c.Log.Warn("waiting for a majority: start the other servers")
				if e.c.Waits != nil {
					e.c.Waits()
				}
			}
		case <-tick.C:
		}
		// A new member has said its name by the message that ReadyNotify waits for, which is lost when others connect to it meanwhile, and then
		// repeated seconds later. It has learned what there is when it knows itself to be a learner: see vote.
		if self := m.Server.Cluster().Member(m.Server.MemberID()); self != nil && self.IsLearner && m.Server.Leader() != 0 && replayed() {
			return v3client.New(m.Server), nil
		}
		if alone(m.Server) && replayed() && m.Server.Leader() == 0 {
			e.stood.Add(1)
			if err := stand(ctx, m.Server); err != nil {
				return nil, err
			}
		}
	}
}

// replayed says whether raft itself has applied everything that is committed. The server's own applied index runs ahead of
// raft's by the time that a sync to disk takes. Raft's is published as the variable raft.status of this process, which runs
// one member.
func replayed() bool {
	f, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return false
	}
	s, ok := f.Value().(raft.Status)
	return ok && s.Applied >= s.GetCommit()
}

// stand makes s stand for election.
func stand(ctx context.Context, s *etcdserver.EtcdServer) error {
	id := uint64(s.MemberID())
	err := s.Process(ctx, &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: new(id), To: new(id)})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("stand for election: %w", err)
	}
	return nil
}

// serve waits for the end and watches over space and waste meanwhile.
func (e *Etcd) serve(ctx context.Context, m *embed.Etcd, client *clientv3.Client, sp *space, fatal <-chan error) error {
	inner, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { sp.watch(inner, m.Server) })
	wg.Go(func() { e.defragment(inner, m.Server, client) })
	if e.peers != nil {
		wg.Go(func() { e.peers.tellAddress(inner) })
	}
	defer wg.Wait()
	defer cancel()
	select {
	case <-ctx.Done():
		cancel()
		wg.Wait()
		m.Close()
		// After the server, since otherwise its watches would be taken up again.
		_ = client.Close() // reports the end of its own context only
		return nil
	case err := <-fatal:
		// etcd's loop is gone and cannot be waited for; the process ends.
		return err
	case err := <-m.Err():
		m.Close()
		return fmt.Errorf("member stopped: %w", err)
	case <-m.Server.StopNotify():
		removed := m.Server.Cluster().Member(m.Server.MemberID()) == nil
		m.Close()
		if removed {
			return ErrRemoved
		}
		return errors.New("member stopped by itself")
	}
}

// config translates Config.
func (e *Etcd) config(fatal chan<- error) (*embed.Config, error) {
	c := embed.NewConfig()
	c.Name, c.Dir = e.c.Name, e.c.DataDir
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(quiet(e.c.Log, fatal))
	// Nothing listens for peers, until there are some; then we do, see peers. A first member's address is only its name in its own list.
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	c.ListenPeerUrls, c.AdvertisePeerUrls = nil, []url.URL{peer}
	c.InitialCluster = c.Name + "=" + peer.String()
	if p := e.c.Peer; p != nil {
		c.PeerTLSInfo.CertFile, c.PeerTLSInfo.KeyFile, c.PeerTLSInfo.TrustedCAFile = p.File, p.File, p.CAFile
		if err := e.joining(c); err != nil {
			return nil, err
		}
	}
	c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil
	for _, s := range e.c.Listen {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("listen address of etcd: %w", err)
		}
		c.ListenClientUrls = append(c.ListenClientUrls, *u)
		c.AdvertiseClientUrls = append(c.AdvertiseClientUrls, *u)
	}
	c.ClientTLSInfo.CertFile, c.ClientTLSInfo.KeyFile = e.c.CertFile, e.c.KeyFile
	c.ClientTLSInfo.TrustedCAFile, c.ClientTLSInfo.ClientCertAuth = e.c.CAFile, e.c.CAFile != ""
	c.EnableGRPCGateway = false
	// Few wake-ups: a single member's clock serves nobody but leases.
	c.TickMs, c.ElectionMs = 500, 2500
	if e.marked() { // others wait for its heartbeats
		// Long enough for the first member, which has the slow clock above until its next start, to lead them: it takes it two ticks to be
		// heard of.
		c.TickMs, c.ElectionMs = 100, 2000
	}
	if t := uint(e.c.tick.Milliseconds()); t > 0 {
		c.TickMs, c.ElectionMs = t, 5*t
	}
	// The log is what makes writes durable; the database file may follow later.
	c.BackendBatchInterval = 500 * time.Millisecond
	// Followers that are far behind get a snapshot, so memory need not hold many entries; but more than are replayed after
	// a start, so that none is dropped which raft may still look at. See lead.
	c.SnapshotCount, c.SnapshotCatchUpEntries = 2500, 4000
	c.QuotaBackendBytes = e.c.QuotaBytes
	c.BackendFreelistType = "map"
	c.UnsafeNoFsync = e.c.Ephemeral
	c.MaxRequestBytes = 3 << 20
	// The store compacts; see store.Options.Keep.
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, "0"
	c.WarningApplyDuration = time.Second
	c.WarningUnaryRequestDuration = 2 * time.Second
	return c, nil
}

// wasteBytes is how much of the database file must be unused for defragmentation to be worth the pause, where the quota is no smaller
// than usual.
const wasteBytes = 64 << 20

// wasteful says that so much of the file is unused that it is to be given back: more than half of it, or anything worth the pause where
// the file has grown to its quota, since puts are refused by its size, and taken again only when it is smaller. See space.check.
func (c *Config) wasteful(size, used int64) bool {
	return size-used >= min(wasteBytes, c.QuotaBytes/32) && (used <= size/2 || !c.fits(size))
}

// compacted is the revision up to which what is old was deleted from the file.
func compacted(s *etcdserver.EtcdServer) int64 {
	tx := s.Backend().ConcurrentReadTx()
	tx.RLock()
	defer tx.RUnlock()
	rev, _ := mvcc.UnsafeReadFinishedCompact(tx)
	return rev
}

// fits says that a file of that size is well below the quota.
func (c *Config) fits(size int64) bool { return size < c.QuotaBytes/10*9 }

// defragment gives unused space back.
func (e *Etcd) defragment(ctx context.Context, s *etcdserver.EtcdServer, client *clientv3.Client) {
	tick := time.NewTicker(cmp.Or(e.c.tidy, time.Minute))
	defer tick.Stop()
	var before int64 // compacted the last time
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		size, used, now := s.Backend().Size(), s.Backend().SizeInUse(), compacted(s)
		// What is in use is known as of some commits ago, and where puts are refused there may be no more commits: then it is found out.
		if !e.c.wasteful(size, used) && (e.c.fits(size) || now == before) {
			continue
		}
		start := time.Now()
		err := e.alternately(ctx, client, s.Defragment) // of the server: a client without a listener beside it panics
		if errors.Is(err, errOthersTurn) {
			continue
		}
		if err != nil {
			e.c.Log.Warn("defragmenting failed", "err", err)
			continue
		}
		before = now
		e.c.Log.Info("defragmented", "before", size, "after", s.Backend().Size(), "took", time.Since(start))
	}
}

// alarm raises or ends NOSPACE.
func alarm(ctx context.Context, s *etcdserver.EtcdServer, on bool) error {
	action := pb.AlarmRequest_DEACTIVATE
	if on {
		action = pb.AlarmRequest_ACTIVATE
	}
	_, err := s.Alarm(ctx, &pb.AlarmRequest{MemberID: uint64(s.MemberID()), Action: action, Alarm: pb.AlarmType_NOSPACE})
	return err
}

// lock takes the file for this process.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another process", filepath.Dir(path))
		}
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	return func() { f.Close() }, nil
}
