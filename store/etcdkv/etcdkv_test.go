package etcdkv_test

import (
	"context"
	"log/slog"
	"testing"

	"github.com/yare-dev/yare/etcd"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/etcdkv"
	"github.com/yare-dev/yare/store/storetest"
)

// run runs etcd as long as the test.
func run(t testing.TB, c etcd.Config) *etcd.Etcd {
	t.Helper()
	c.Log = slog.New(slog.DiscardHandler)
	if c.DataDir == "" && c.Endpoints == nil {
		c.DataDir = t.TempDir()
	}
	c.MinFree = 1 << 20
	e, err := etcd.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- e.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error("etcd stopped:", err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatal("etcd did not start:", err)
	}
	return e
}

func TestBackend(t *testing.T) {
	t.Parallel()
	storetest.Backend(t, func(t *testing.T) store.Backend {
		return etcdkv.New(run(t, etcd.Config{Ephemeral: true}))
	})
}

// The same over gRPC, as with members elsewhere.
func TestExternal(t *testing.T) {
	t.Parallel()
	storetest.Backend(t, func(t *testing.T) store.Backend {
		socket := "unix://" + t.TempDir() + "/etcd.sock"
		run(t, etcd.Config{Ephemeral: true, Listen: []string{socket}})
		return etcdkv.New(run(t, etcd.Config{Endpoints: []string{socket}}))
	})
}
