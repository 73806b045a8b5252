package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// A database that has grown to its quota takes puts again when enough was deleted, of one member as of two.
func TestQuota(t *testing.T) {
	t.Parallel()
	const quota, tidy = 8 << 20, 500 * time.Millisecond
	t.Run("one", func(t *testing.T) {
		t.Parallel()
		recovers(t, mustStart(t, Config{DataDir: t.TempDir(), Ephemeral: true, MinFree: 1 << 20, QuotaBytes: quota, tidy: tidy}))
	})
	t.Run("two", func(t *testing.T) {
		t.Parallel()
		x := newTrio(t)
		x.change = func(c *Config) { c.QuotaBytes, c.tidy = quota, tidy }
		a := x.start("a", nil)
		x.join("b", a)
		recovers(t, a)
	})
}

func recovers(t *testing.T, e *started) {
	t.Helper()
	value, keys := strings.Repeat("x", 64<<10), 0
	put := func(key string) error {
		_, err := e.Client().Put(t.Context(), key, value)
		return err
	}
	for ; ; keys++ {
		e.server.Load().Backend().ForceCommit() // the size that the quota is held to is as of the last commit
		if err := put(fmt.Sprint("/k/", keys)); errors.Is(err, rpctypes.ErrNoSpace) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if keys < 50 {
		t.Fatalf("full after %d keys", keys)
	}
	var rev int64
	for i := range keys {
		if i%5 >= 2 {
			continue
		}
		r, err := e.Client().Delete(t.Context(), fmt.Sprint("/k/", i))
		if err != nil {
			t.Fatal(err)
		}
		rev = r.Header.Revision
	}
	if _, err := e.Client().Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	within(t, "a put is taken", func(context.Context) error { return put("/again") })
}
