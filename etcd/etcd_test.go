package etcd

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("YARE_TEST_ETCD_WRITER"); dir != "" {
		if err := writeForEver(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// started is an Etcd that runs.
type started struct {
	*Etcd
	stop func() error
	done chan error // how it ended
}

func tryStart(t testing.TB, c Config) (*started, error) {
	t.Helper()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	e, err := New(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- e.Run(ctx, func() { close(ready) }) }()
	stop := sync.OnceValue(func() error { cancel(); return <-done })
	select {
	case <-ready:
		t.Cleanup(func() { _ = stop() })
		return &started{e, stop, done}, nil
	case err := <-done:
		cancel()
		return nil, err
	}
}

func mustStart(t testing.TB, c Config) *started {
	t.Helper()
	e, err := tryStart(t, c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestConfig(t *testing.T) {
	t.Parallel()
	log := slog.New(slog.DiscardHandler)
	for name, c := range map[string]Config{
		"nothing":   {Log: log},
		"both":      {DataDir: "/x", Endpoints: []string{"http://127.0.0.1:1"}, Log: log},
		"no logger": {DataDir: "/x"},
	} {
		if _, err := New(c); err == nil {
			t.Error(name, "is accepted")
		}
	}
}

func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx := t.Context()
	var revision int64
	const starts = 150 // enough entries in the log for raft to drop some
	for i := range starts {
		e := mustStart(t, Config{DataDir: dir, MinFree: 1 << 20, Ephemeral: true})
		if e.Client() == nil || !e.Exclusive() {
			t.Fatal("not usable, or not exclusive")
		}
		r, err := e.Client().Get(ctx, "/k")
		if err != nil || len(r.Kvs) != min(i, 1) || r.Header.Revision < revision {
			t.Fatalf("start %d: %v, %v", i, r, err)
		}
		if i%50 == 1 {
			churn(t, e) // past snapshots of the log
		}
		p, err := e.Client().Put(ctx, "/k", fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		revision = p.Header.Revision
		if err := e.stop(); err != nil {
			t.Error("stop:", err)
		}
	}
}

func churn(t *testing.T, e *started) {
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for range 400 {
				if _, err := e.Client().Put(t.Context(), fmt.Sprint("/churn/", w), "x"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mustStart(t, Config{DataDir: dir, Ephemeral: true})
	_, err := tryStart(t, Config{DataDir: dir, Ephemeral: true})
	if err == nil || !strings.Contains(err.Error(), dir+" is in use") {
		t.Errorf("second server on the same data: %v", err)
	}
}

// Unusable data is an error of Run, not the end of the process.
func TestCorruptData(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e := mustStart(t, Config{DataDir: dir, Ephemeral: true})
	if err := e.stop(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(dir, "member", "snap", "db")
	if err := os.WriteFile(db, bytes.Repeat([]byte("x"), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tryStart(t, Config{DataDir: dir, Ephemeral: true}); err == nil {
		t.Error("starts on garbage")
	}
}

// The messages of etcd arrive, with attributes; what it calls fatal ends its goroutine only.
func TestLog(t *testing.T) {
	t.Parallel()
	var buf bytes.Buffer
	fatal := make(chan error, 1)
	z := quiet(slog.New(slog.NewTextHandler(&buf, nil)), fatal).With(zap.String("member", "m"))
	z.Info("not this")
	z.Warn("slow disk", zap.Int("ms", 7))
	done := make(chan struct{})
	go func() {
		defer close(done)
		z.Fatal("cannot write", zap.Error(unix.ENOSPC))
	}()
	<-done
	if err := <-fatal; !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "cannot write") {
		t.Errorf("fatal is %v", err)
	}
	got := buf.String()
	for _, want := range []string{`text="slow disk"`, "ms=7", "member=m", "level=ERROR"} {
		if !strings.Contains(got, want) {
			t.Errorf("log lacks %s: %s", want, got)
		}
	}
	if strings.Contains(got, "not this") {
		t.Error("log is not quiet")
	}
}

// On a disk that runs full, puts are refused while reads and deletes work, and puts work again when there is space.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("yare-test", dir, "tmpfs", 0, "size=400m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error("unmount:", err)
		}
	})
	data, ballast := filepath.Join(dir, "etcd"), filepath.Join(dir, "ballast")
	e := mustStart(t, Config{DataDir: data, MinFree: 16 << 20, Ephemeral: true})
	ctx := t.Context()
	put := func() error { _, err := e.Client().Put(ctx, "/k", "v"); return err }
	var db unix.Stat_t
	if err := unix.Stat(filepath.Join(data, "member", "snap", "db"), &db); err != nil || db.Blocks*512 < db.Size+4<<20 {
		t.Errorf("the database has room for %d bytes of %d, with no look at the disk yet to come: %v", db.Blocks*512, db.Size, err)
	}
	for round := range 2 {
		if err := put(); err != nil {
			t.Fatal(err)
		}
		fill(t, dir, ballast, 4<<20)
		eventually(t, "puts are refused", func() bool { return e.Full() && errors.Is(put(), rpctypes.ErrNoSpace) })
		if r, err := e.Client().Get(ctx, "/k"); err != nil || len(r.Kvs) != 1 {
			t.Error("read on a full disk:", r, err)
		}
		if _, err := e.Client().Delete(ctx, "/k"); err != nil {
			t.Error("delete on a full disk:", err)
		}
		if round == 1 {
			// Restarting on a full disk works too.
			if err := e.stop(); err != nil {
				t.Fatal(err)
			}
			e = mustStart(t, Config{DataDir: data, MinFree: 16 << 20, Ephemeral: true})
			eventually(t, "puts are refused", func() bool { return e.Full() && errors.Is(put(), rpctypes.ErrNoSpace) })
		}
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
		eventually(t, "puts are taken again", func() bool { return !e.Full() && put() == nil })
		if _, err := e.Client().Delete(ctx, "/k"); err != nil {
			t.Error(err)
		}
	}
	if err := e.stop(); err != nil {
		t.Error(err)
	}
}

// fill writes to path until dir has no more than left bytes free.
func fill(t *testing.T, dir, path string, left int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	eventually(t, "the disk is filled", func() bool {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		// The member may take its reserve between the two calls.
		return unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-left) == nil
	})
}

// eventually waits for what a clock of etcd's brings about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never:", what)
		}
	}
}

// writeForEver writes ascending numbers and prints each after it was acknowledged.
func writeForEver(dir string) error {
	e, err := New(Config{DataDir: dir, MinFree: 1 << 20, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	return e.Run(ctx, func() {
		go func() {
			for i := 0; ; i++ {
				if _, err := e.Client().Put(ctx, fmt.Sprintf("/k/%d/%d", os.Getpid(), i), "v"); err != nil {
					return
				}
				fmt.Println(i)
			}
		}()
	})
}

// What was acknowledged before kill -9 is there afterwards.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	acked := map[int]int{} // by pid: the last number acknowledged
	for round := range 4 {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "YARE_TEST_ETCD_WRITER="+dir)
		c.Stderr = os.Stderr
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if n == 20+37*round {
				if err := c.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := fmt.Sscan(lines.Text(), new(int)); err == nil {
				acked[c.Process.Pid] = n
			}
		}
		_ = c.Wait() // killed
		if acked[c.Process.Pid] == 0 {
			t.Fatal("the writer made no progress")
		}
	}
	e := mustStart(t, Config{DataDir: dir, MinFree: 1 << 20})
	for pid, last := range acked {
		for i := range last + 1 {
			r, err := e.Client().Get(t.Context(), fmt.Sprintf("/k/%d/%d", pid, i))
			if err != nil || len(r.Kvs) != 1 {
				t.Fatalf("write %d of process %d is lost: %v", i, pid, err)
			}
		}
	}
}

// A member leads because it was told to, not because its clock ran: with this one that would take nine seconds at least. There is
// no snapshot, so that the restarted member learns from its log that it is alone. Not parallel: the state of raft is the process's.
func TestLeadsAtOnce(t *testing.T) {
	dir := t.TempDir()
	for range 10 {
		e := mustStart(t, Config{DataDir: dir, tick: 9 * time.Second})
		if e.stood.Load() == 0 {
			t.Error("nobody told it to stand for election")
		}
		if err := e.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	for _, again := range []bool{false, true} {
		name := map[bool]string{false: "new", true: "again"}[again]
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			for b.Loop() {
				if !again {
					dir = b.TempDir()
				}
				e := mustStart(b, Config{DataDir: dir})
				if err := e.stop(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
