package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/etcdhttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"github.com/yare-dev/yare/run"
)

// Peer is how members of one cluster reach each other. A first member listens to nobody until Admit is called; from then on it does at each start.
type Peer struct {
	// Address is where others reach this member. Its port is listened on, on all addresses.
	Address netip.AddrPort
	// File holds our key and certificate, to show others as their client; CAFile the authority of all members' certificates.
	File, CAFile string
	// TLS is what others are served with, and refused when they have no certificate of that authority.
	TLS *tls.Config
	// Join are the members of the cluster of which this one becomes one, itself included, as Admit has returned them. They do not matter once
	// there is data. Nil: this member begins a cluster.
	Join []Member
}

// URL is the address as members know it.
func (p *Peer) URL() string { return "https://" + p.Address.String() }

// Member is one of the cluster's.
type Member struct {
	ID      uint64 `json:"id"`
	Name    string `json:"name"` // empty until it has come up
	URL     string `json:"url"`
	Learner bool   `json:"learner,omitempty"` // it does not vote yet
	Leader  bool   `json:"leader,omitempty"`
}

// Errors of changes of the membership.
var (
	// ErrRemoved ends a member that the others have removed.
	ErrRemoved = errors.New("this member was removed from its cluster")
	// ErrAlone says that the member cannot have others.
	ErrAlone = errors.New("this database has no members that others could join")
	// ErrMajority says that a change would leave, or has left, the cluster without a majority.
	ErrMajority = errors.New("the members that are up would be no majority")
	// ErrJoining says that another member has not learned all yet.
	ErrJoining = errors.New("another member is joining")
	// ErrMember says that the one who is to join is a member.
	ErrMember = errors.New("is a member, and was up")
)

func markFile(dir string) string { return filepath.Join(dir, "peers") }

// HasPeers says that the member with its data in dir has, or had, others.
func HasPeers(dir string) bool {
	_, err := os.Stat(markFile(dir))
	return err == nil
}

func (e *Etcd) marked() bool { return HasPeers(e.c.DataDir) }

// mark notes, before the first other member can be there, that the member is to listen at its next starts.
func (e *Etcd) mark() error {
	if e.marked() {
		return nil
	}
	f, err := os.Create(markFile(e.c.DataDir))
	if err == nil {
		_, err = fmt.Fprintln(f, e.c.Peer.URL())
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return fmt.Errorf("note that there are other members: %w", err)
	}
	return nil
}

// joining makes c that of a member that joins, if it is to.
func (e *Etcd) joining(c *embed.Config) error {
	p := e.c.Peer
	if len(p.Join) == 0 {
		return nil
	}
	var all []string
	for _, m := range p.Join {
		name := "member-" + strconv.FormatUint(m.ID, 16) // names must differ; what they are matters to nobody
		if m.URL == p.URL() {
			name = c.Name
		}
		all = append(all, name+"="+m.URL)
	}
	c.InitialCluster, c.ClusterState = strings.Join(all, ","), embed.ClusterStateFlagExisting
	return e.mark()
}

// alone says that the member has a majority by itself.
func alone(s *etcdserver.EtcdServer) bool {
	voters := 0
	self := false
	for _, m := range s.Cluster().Members() {
		if !m.IsLearner {
			voters++
			self = self || m.ID == s.MemberID()
		}
	}
	return voters == 1 && self
}

// vote waits until a new member has learned what there is, and makes it one that votes. Where it ends meanwhile, the others may have removed it.
func (e *Etcd) vote(ctx context.Context, m *embed.Etcd, fatal <-chan error) error {
	inner, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		defer cancel()
		select {
		case <-inner.Done():
			ended <- nil
		case err := <-fatal:
			ended <- err
		case err := <-m.Err():
			ended <- fmt.Errorf("start the member: %w", err)
		case <-m.Server.StopNotify():
			ended <- ErrRemoved // whatever else stops it is an error of the two above
		}
	}()
	err := e.learn(inner, m.Server)
	cancel()
	if why := <-ended; why != nil {
		return why
	}
	return err
}

// learn is vote but for what ends the member.
func (e *Etcd) learn(ctx context.Context, s *etcdserver.EtcdServer) error {
	promoted := false // which arrives here as well
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		m := s.Cluster().Member(s.MemberID())
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case m == nil:
			return ErrRemoved
		case !m.IsLearner:
			return nil
		}
		if promoted {
			if err := run.Pause(ctx, 20*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		_, err := s.PromoteMember(try, uint64(s.MemberID()))
		cancel()
		promoted = err == nil
		if err != nil && wait == time.Second {
			e.c.Log.Warn("this member does not vote yet", "err", err)
		}
		if err := run.Pause(ctx, wait); err != nil {
			return err
		}
	}
}

// Members returns all members. Preconditions: Run has called ready.
func (e *Etcd) Members() []Member {
	s := e.server.Load()
	if s == nil {
		return nil
	}
	return members(s, s.Cluster().Members())
}

// Self is the ID of the member in this process, 0 where there is none.
func (e *Etcd) Self() uint64 {
	if s := e.server.Load(); s != nil {
		return uint64(s.MemberID())
	}
	return 0
}

func members(s *etcdserver.EtcdServer, all []*membership.Member) (ms []Member) {
	for _, m := range all {
		out := Member{ID: uint64(m.ID), Name: m.Name, Learner: m.IsLearner, Leader: m.ID == s.Leader()}
		if len(m.PeerURLs) > 0 {
			out.URL = m.PeerURLs[0]
		}
		ms = append(ms, out)
	}
	slices.SortFunc(ms, func(a, b Member) int { return strings.Compare(a.URL, b.URL) })
	return ms
}

// Led says whether a majority follows a leader, as far as this member knows. Where it does not, reads and writes wait in vain.
func (e *Etcd) Led() bool {
	s := e.server.Load()
	return s == nil || s.Leader() != 0
}

// Leads says that the member in this process leads, or that members are elsewhere.
func (e *Etcd) Leads() bool {
	s := e.server.Load()
	return s == nil || s.Leader() == s.MemberID()
}

// Admit makes the member that others reach at url one that learns, and returns all, it included. It may be repeated as long as that one has not come up. From
// the first call on, this process does not take itself for the only writer. Preconditions: Run has called ready.
func (e *Etcd) Admit(ctx context.Context, url string) ([]Member, error) {
	s := e.server.Load()
	if s == nil || e.peers == nil {
		return nil, ErrAlone
	}
	// In this order: a member that is marked does not start where it cannot listen, and one that others could not reach has none.
	if err := e.peers.open(); err != nil {
		return nil, err
	}
	if err := e.mark(); err != nil {
		return nil, err
	}
	e.shared.Store(true)
	try, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	if err := e.peers.sayAddress(try); err != nil {
		return nil, err
	}
	for _, m := range members(s, s.Cluster().Members()) {
		switch {
		case m.URL == url && m.Learner && m.Name == "":
			return members(s, s.Cluster().Members()), nil // it was admitted, and asks again
		case m.URL == url:
			return nil, fmt.Errorf("the one at %s %w: remove it first", url, ErrMember)
		}
	}
	now := time.Now()
	m := membership.NewMemberAsLearner("", nil, url, &now) // its ID is made of the time and the URL
	m.PeerURLs = []string{url}
	all, err := s.AddMember(try, *m)
	if err != nil {
		return nil, fmt.Errorf("admit %s: %w", url, changed(err))
	}
	return members(s, all), nil
}

// Expel removes a member; one that is none is none. It refuses to where those that are up would be no majority of those that are left.
func (e *Etcd) Expel(ctx context.Context, id uint64) error {
	s := e.server.Load()
	if s == nil || e.peers == nil {
		return ErrAlone
	}
	try, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	_, err := s.RemoveMember(try, id)
	if err != nil && !errors.Is(err, membership.ErrIDNotFound) && !errors.Is(err, membership.ErrIDRemoved) {
		return fmt.Errorf("remove member %x: %w", id, changed(err))
	}
	return nil
}

// changeLimit is for how long a change is waited for. One that is proposed while the leader changes may be lost, and is to be asked for again.
const changeLimit = 5 * time.Second

// changed puts a refusal of a change into our words.
func changed(err error) error {
	switch {
	case errors.Is(err, etcderrors.ErrUnhealthy), errors.Is(err, etcderrors.ErrNotEnoughStartedMembers), errors.Is(err, etcderrors.ErrNoLeader), errors.Is(err, etcderrors.ErrTimeout),
		errors.Is(err, etcderrors.ErrTimeoutDueToLeaderFail), errors.Is(err, etcderrors.ErrTimeoutDueToConnectionLost), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w (%w)", ErrMajority, err)
	case errors.Is(err, membership.ErrTooManyLearners):
		return ErrJoining
	}
	return err
}

// peers serves the other members.
type peers struct {
	e *Etcd
	s *etcdserver.EtcdServer

	mu     sync.Mutex
	server *http.Server
	done   chan struct{}
}

func newPeers(e *Etcd, s *etcdserver.EtcdServer) *peers { return &peers{e: e, s: s} }

// What etcd's own listener has: a member that is silent for longer than this is gone.
const peerTimeout = 5 * time.Second

// open begins to listen, if it has not begun.
func (p *peers) open() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		return nil
	}
	port := p.e.c.Peer.Address.Port()
	l, err := net.Listen("tcp", ":"+strconv.Itoa(int(port)))
	if err != nil {
		return fmt.Errorf("listen to other members at port %d: %w", port, err)
	}
	zap := quiet(p.e.c.Log, nil)
	p.server = &http.Server{
		Handler: etcdhttp.NewPeerHandler(zap, p.s), ReadTimeout: 5 * time.Minute,
		TLSConfig: p.e.c.Peer.TLS, ErrorLog: log.New(nowhere{}, "", 0), // strangers
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}, // streams of etcd's are of HTTP/1.1
	}
	p.done = make(chan struct{})
	server, done := p.server, p.done
	go func() {
		defer close(done)
		if err := server.ServeTLS(impatient{l}, "", ""); !errors.Is(err, http.ErrServerClosed) {
			p.e.c.Log.Error("other members are not served any more", "err", err)
		}
	}()
	return nil
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		_ = p.server.Close() // its listener's, which is of no use any more
		<-p.done
	}
}

// sayAddress has the other members know this one's present address.
func (p *peers) sayAddress(ctx context.Context) error {
	self := p.s.Cluster().Member(p.s.MemberID())
	url := p.e.c.Peer.URL()
	if self == nil || slices.Equal(self.PeerURLs, []string{url}) {
		return nil
	}
	_, err := p.s.UpdateMember(ctx, membership.Member{ID: self.ID, RaftAttributes: membership.RaftAttributes{PeerURLs: []string{url}, IsLearner: self.IsLearner}})
	if err != nil {
		return fmt.Errorf("tell other members the address %s: %w", url, changed(err))
	}
	p.e.c.Log.Info("other members know this one's address", "url", url, "before", self.PeerURLs)
	return nil
}

// tellAddress does the same at the start of a member that has others, however long it takes.
func (p *peers) tellAddress(ctx context.Context) {
	if !p.e.marked() {
		return
	}
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, time.Minute) {
		try, cancel := context.WithTimeout(ctx, 10*time.Second)
		err := p.sayAddress(try)
		cancel()
		if err == nil {
			return
		}
		p.e.c.Log.Warn("other members may not reach this one", "err", err, "again_in", wait)
		_ = run.Pause(ctx, wait)
	}
}

// nowhere is where complaints about strangers go.
type nowhere struct{}

func (nowhere) Write(b []byte) (int, error) { return len(b), nil }

// impatient is a listener whose connections end when a read or a write takes too long.
type impatient struct{ net.Listener }

func (l impatient) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return impatientConn{c}, nil
}

type impatientConn struct{ net.Conn }

func (c impatientConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(peerTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c impatientConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(peerTimeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// errOthersTurn says that another member does what only one may do at a time.
var errOthersTurn = errors.New("another member is at it")

// turnKey exists while a member does something that it does not answer meanwhile.
const turnKey = "/yare/turn"

// alternately calls f unless another member does the same now.
func (e *Etcd) alternately(ctx context.Context, c *clientv3.Client, f func() error) error {
	if e.Exclusive() {
		return f()
	}
	// Where puts are refused, a turn by a put would never come. Then it is the first's of those that are out of space, until it is no
	// more; two that have come to be so at the same time may both take it, which costs a pause.
	if full := outOfSpace(e.server.Load()); len(full) > 0 {
		if slices.Min(full) != e.Self() {
			return errOthersTurn
		}
		return f()
	}
	lease, err := c.Grant(ctx, 60)
	if err != nil {
		return fmt.Errorf("take the turn: %w", err)
	}
	// Revoked, it takes the key along.
	defer func() { _, _ = c.Revoke(context.WithoutCancel(ctx), lease.ID) }() // it ends by itself
	r, err := c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(turnKey), "=", 0)).
		Then(clientv3.OpPut(turnKey, "", clientv3.WithLease(lease.ID))).Commit()
	switch {
	case err != nil:
		return fmt.Errorf("take the turn: %w", err)
	case !r.Succeeded:
		return errOthersTurn
	}
	return f()
}
