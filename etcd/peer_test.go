package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"github.com/yare-dev/yare/pki"
)

// trio is up to three members on this machine's loopback.
type trio struct {
	t      *testing.T
	shared map[string][]byte
	dirs   map[string]string
	up     map[string]*started
	at     map[string]netip.AddrPort
	change func(*Config) // may be nil
}

func newTrio(t *testing.T) *trio {
	return &trio{t: t, dirs: map[string]string{}, up: map[string]*started{}, at: map[string]netip.AddrPort{}}
}

func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

func (x *trio) config(name string, join []Member) Config {
	x.t.Helper()
	if x.dirs[name] == "" {
		x.dirs[name] = x.t.TempDir()
		x.at[name] = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), freePort(x.t))
	}
	keys := filepath.Join(x.dirs[name], "pki")
	if x.shared != nil {
		if err := pki.Share(keys, x.shared); err != nil {
			x.t.Fatal(err)
		}
	}
	p, err := pki.Ensure(keys, pki.Config{Addresses: []netip.Addr{x.at[name].Addr()}})
	if err != nil {
		x.t.Fatal(err)
	}
	if x.shared == nil {
		if x.shared, err = p.Shared(); err != nil {
			x.t.Fatal(err)
		}
	}
	c := Config{DataDir: filepath.Join(x.dirs[name], "etcd"), Name: name, Ephemeral: true, MinFree: 1 << 20,
		Peer: &Peer{Address: x.at[name], File: p.PeerFile(), CAFile: p.PeerAuthorityFile(), TLS: p.PeerTLS(), Join: join}}
	if x.change != nil {
		x.change(&c)
	}
	return c
}

func (x *trio) start(name string, join []Member) *started {
	x.t.Helper()
	x.up[name] = mustStart(x.t, x.config(name, join))
	return x.up[name]
}

// join has one more member come up, admitted by another.
func (x *trio) join(name string, by *started) *started {
	x.t.Helper()
	c := x.config(name, nil)
	var all []Member
	within(x.t, name+" is admitted", func(ctx context.Context) (err error) {
		all, err = by.Admit(ctx, c.Peer.URL())
		return err
	})
	again, err := by.Admit(x.t.Context(), c.Peer.URL())
	if err != nil || len(again) != len(all) {
		x.t.Fatalf("admitted again: %v, %v", again, err)
	}
	return x.start(name, all)
}

func (x *trio) stop(name string) {
	x.t.Helper()
	if err := x.up[name].stop(); err != nil {
		x.t.Errorf("%s: %v", name, err)
	}
	delete(x.up, name)
}

// within calls f until it succeeds.
func within(t *testing.T, what string, f func(ctx context.Context) error) {
	t.Helper()
	var err error
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err = f(ctx)
		cancel()
		if err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

func write(t *testing.T, e *started, value string) {
	t.Helper()
	within(t, "write "+value, func(ctx context.Context) error {
		_, err := e.Client().Put(ctx, "/k", value)
		return err
	})
}

// sees asks for the revision first, as a consistent read does, and then looks at what the member has by itself.
func sees(t *testing.T, e *started, value string) {
	t.Helper()
	within(t, "read "+value, func(ctx context.Context) error {
		rev, err := e.Revision(ctx)
		if err != nil {
			return err
		}
		r, err := e.server.Load().KV().Range(ctx, []byte("/k"), nil, mvcc.RangeOptions{Rev: rev})
		if err != nil {
			return err
		}
		if len(r.KVs) != 1 || string(r.KVs[0].Value) != value {
			t.Errorf("%d keys at %d, want %s", len(r.KVs), rev, value)
		}
		return nil
	})
}

// A member alone becomes three without a restart; one goes, and the others go on; all start again; one leaves, one is removed dead.
func TestMembers(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	a := x.start("a", nil)
	if !a.Exclusive() || !a.Leads() || !a.Led() {
		t.Error("one alone is not exclusive")
	}
	if c, err := net.Dial("tcp", x.at["a"].String()); err == nil {
		c.Close()
		t.Error("one alone listens to others")
	}
	write(t, a, "1")
	b := x.join("b", a)
	if a.Exclusive() || b.Exclusive() {
		t.Error("exclusive beside another")
	}
	sees(t, b, "1")
	write(t, b, "2")
	sees(t, a, "2")
	c := x.join("c", b)
	sees(t, c, "2")
	ms := c.Members()
	if len(ms) != 3 {
		t.Fatalf("%+v", ms)
	}
	for _, m := range ms {
		if m.Learner || m.Name == "" || !strings.HasPrefix(m.URL, "https://127.0.0.1:") {
			t.Errorf("%+v", m)
		}
	}
	x.stop("a")
	write(t, c, "3")
	sees(t, b, "3")
	a = x.start("a", nil)
	if a.Exclusive() {
		t.Error("exclusive beside others after a start")
	}
	sees(t, a, "3")

	// All at once.
	for _, name := range []string{"a", "b", "c"} {
		x.stop(name)
	}
	all := map[string]chan *started{}
	for _, name := range []string{"a", "b", "c"} {
		conf, came := x.config(name, nil), make(chan *started, 1)
		all[name] = came
		go func() {
			e, err := tryStart(t, conf)
			if err != nil {
				t.Error(err)
			}
			came <- e
		}()
	}
	for name, came := range all {
		if x.up[name] = <-came; x.up[name] == nil {
			t.FailNow()
		}
	}
	a, b, c = x.up["a"], x.up["b"], x.up["c"]
	sees(t, b, "3")

	// One that is down is removed by another, and finds out when it comes back.
	gone := c.Self()
	x.stop("c")
	within(t, "remove c", func(ctx context.Context) error { return a.Expel(ctx, gone) })
	write(t, b, "4")
	if _, err := tryStart(t, x.config("c", nil)); !errors.Is(err, ErrRemoved) {
		t.Errorf("a removed member starts: %v", err)
	}
	// One that is up leaves, which ends it, and the last one goes on.
	within(t, "b leaves", func(ctx context.Context) error { return b.Expel(ctx, b.Self()) })
	if err := ended(t, b); !errors.Is(err, ErrRemoved) {
		t.Errorf("b ended by %v", err)
	}
	write(t, a, "5")
	sees(t, a, "5")
	x.stop("a")
	a = x.start("a", nil)
	sees(t, a, "5")
	if !a.Exclusive() {
		t.Error("alone again, and not exclusive after a start")
	}
}

// ended tells how a member ended by itself.
func ended(t *testing.T, e *started) error {
	t.Helper()
	select {
	case err := <-e.done:
		e.done <- nil // for stop
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("does not end")
		return nil
	}
}

// A member that is removed while it learns ends.
func TestLearnerRemoved(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	a := x.start("a", nil)
	c := x.config("b", nil)
	within(t, "b is admitted", func(ctx context.Context) (err error) {
		c.Peer.Join, err = a.Admit(ctx, c.Peer.URL())
		return err
	})
	c.Log = slog.New(slog.DiscardHandler)
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	fatal := make(chan error, 1)
	conf, err := b.config(fatal)
	if err != nil {
		t.Fatal(err)
	}
	m, err := start(conf, fatal)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	b.peers = newPeers(b, m.Server)
	defer b.peers.close()
	if err := b.peers.open(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.lead(t.Context(), m, fatal); err != nil {
		t.Fatal(err)
	}
	within(t, "remove b", func(ctx context.Context) error { return a.Expel(ctx, uint64(m.Server.MemberID())) })
	<-m.Server.StopNotify()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := b.vote(ctx, m, fatal); !errors.Is(err, ErrRemoved) {
		t.Errorf("ended by %v", err)
	}
	write(t, a, "1")
}

// Without a majority a start waits for it, and says so.
func TestMemberWaits(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	a := x.start("a", nil)
	x.join("b", a)
	x.stop("b")
	x.stop("a")
	waits, came := make(chan struct{}), make(chan *started, 1)
	c := x.config("a", nil)
	c.Waits = func() { close(waits) }
	go func() {
		e, err := tryStart(t, c)
		if err != nil {
			t.Error(err)
		}
		came <- e
	}()
	select {
	case <-waits:
	case <-came:
		t.Fatal("up without a majority")
	}
	x.start("b", nil)
	if e := <-came; e != nil {
		write(t, e, "1")
	}
}

// Who cannot listen to others has none: it is alone as before, also after a start.
func TestMemberCannotListen(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	a := x.start("a", nil)
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", x.at["a"].Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := a.Admit(t.Context(), "https://127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "listen to other members") {
		t.Errorf("admitted with a port that is taken: %v", err)
	}
	x.stop("a")
	if a = x.start("a", nil); !a.Exclusive() {
		t.Error("not alone any more")
	}
}

// A change that would cost the majority is refused, in words; so is one who asks to be what he is.
func TestMembersRefuse(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	a := x.start("a", nil)
	b := x.join("b", a)
	if _, err := a.Admit(t.Context(), b.c.Peer.URL()); !errors.Is(err, ErrMember) {
		t.Errorf("a member joins again: %v", err)
	}
	x.stop("b")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := a.Admit(ctx, "https://127.0.0.1:1"); !errors.Is(err, ErrMajority) {
		t.Errorf("without a majority: %v", err)
	}
	if _, err := a.Revision(ctx); err == nil {
		t.Error("a read without a majority")
	}
	single := mustStart(t, Config{DataDir: t.TempDir(), Ephemeral: true, MinFree: 1 << 20})
	if _, err := single.Admit(t.Context(), "https://127.0.0.1:1"); !errors.Is(err, ErrAlone) {
		t.Errorf("%v", err)
	}
	if err := single.Expel(t.Context(), 1); !errors.Is(err, ErrAlone) {
		t.Errorf("%v", err)
	}
}

// A member that has another address after a start says so.
func TestMemberMoves(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	a := x.start("a", nil)
	x.join("b", a)
	x.join("c", a)
	x.stop("b")
	x.at["b"] = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), freePort(t))
	b := x.start("b", nil)
	within(t, "the new address", func(context.Context) error {
		for _, m := range a.Members() {
			if m.ID == b.Self() && m.URL == b.c.Peer.URL() {
				return nil
			}
		}
		return fmt.Errorf("%+v", a.Members())
	})
	x.stop("c")
	write(t, a, "without c")
	sees(t, b, "without c")
}

// The disk of one is full: all refuse, by etcd; the alarm is that one's to end, and it does.
func TestMemberFull(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	a := x.start("a", nil)
	b := x.join("b", a)
	if err := alarm(t.Context(), b.server.Load(), true); err != nil {
		t.Fatal(err)
	}
	within(t, "a write is refused", func(ctx context.Context) error {
		if _, err := a.Client().Put(ctx, "/k", "x"); err == nil || !strings.Contains(err.Error(), "database space exceeded") {
			return fmt.Errorf("not refused: %v", err)
		}
		return nil
	})
	write(t, a, "y") // b's next look finds that it has room
}

// Of two that would do what only one may do at a time, one waits for another day.
func TestAlternately(t *testing.T) {
	t.Parallel()
	x := newTrio(t)
	a := x.start("a", nil)
	b := x.join("b", a)
	err := a.alternately(t.Context(), a.Client(), func() error {
		return b.alternately(t.Context(), b.Client(), func() error { return errors.New("both at once") })
	})
	if !errors.Is(err, errOthersTurn) {
		t.Error(err)
	}
	if err := b.alternately(t.Context(), b.Client(), func() error { return os.ErrClosed }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after the turn: %v", err)
	}
}
