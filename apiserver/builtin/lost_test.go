package builtin_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// lossy is a database that answers nothing to who writes a Service, and writes it when it likes.
type lossy struct {
	store.Backend
	lose bool
	late func() error // writes what was lost last
}

func (b *lossy) Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error) {
	if !b.lose || !strings.HasPrefix(key, api.ServiceKind.StorePrefix()) {
		return b.Backend.Put(ctx, key, value, want, ttl)
	}
	b.late = func() error {
		_, err := b.Backend.Put(context.WithoutCancel(ctx), key, value, want, ttl)
		return err
	}
	return 0, store.ErrUnknown
}

// The only address is nobody else's as long as the write of a Service that was promised it may still happen.
func TestAddressOfLostWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := &lossy{Backend: memory.New(false)}
		s := store.New(db, api.Stored(), store.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Keep: -1})
		ctx, cancel := context.WithCancel(t.Context())
		up, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- s.Run(ctx, func() { close(up) }) }()
		<-up
		c := (&cluster{t: t, store: s, roles: authz.NewRBAC(s)}).with(netip.MustParsePrefix("10.43.0.0/30"))
		c.must(c.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}}))
		lose := func(name string) {
			t.Helper()
			db.lose = true
			if _, err := c.create(service(name, "")); err == nil {
				t.Error("a lost write is none")
			}
			db.lose = false
		}
		full := func(what string) {
			t.Helper()
			if _, err := c.create(service("other", "")); err == nil || !strings.Contains(err.Error(), "range is full") {
				t.Errorf("%s: %v", what, err)
			}
		}
		lose("never")
		full("the write may still happen")
		time.Sleep(time.Minute + time.Second)
		lose("late")
		full("the write may happen")
		if err := db.late(); err != nil {
			t.Fatal(err)
		}
		full("the write has happened")
		time.Sleep(time.Minute + time.Second)
		full("it is there to stay")
		c.remove(service("late", ""))
		c.must(c.create(service("other", "")))
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
