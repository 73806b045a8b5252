package crd_test

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/store"
	"github.com/yare-dev/yare/store/memory"
)

// unreadable is a database that does not list what lies below a path while it is broken.
type unreadable struct {
	store.Backend
	broken atomic.Bool
	path   string
}

func (u *unreadable) Range(ctx context.Context, from, end string, limit int, at api.Revision) ([]store.KV, bool, api.Revision, error) {
	if u.broken.Load() && strings.HasPrefix(from, u.path) {
		return nil, false, 0, errors.New("the disk is gone")
	}
	return u.Backend.Range(ctx, from, end, limit, at)
}

// A definition whose objects cannot be read is not let go before they can be, and are deleted.
func TestDeletedUnread(t *testing.T) {
	db := &unreadable{Backend: memory.New(false), path: "/registry/stable.example.com/"}
	synctest.Test(t, func(t *testing.T) {
		s := store.New(db, api.Stored(), store.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Keep: -1})
		ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
		ready, done := make(chan struct{}), make(chan error, 1)
		go func() { done <- s.Run(ctx, func() { close(ready) }) }()
		t.Cleanup(func() { stop(); <-done })
		<-ready
		w := over(t, s)
		c := w.define(cronTabs)
		if a := w.call("POST", tabs, tab("a", `{"cronSpec":"x"}`)); a.Code != http.StatusCreated {
			t.Fatal(a.Body)
		}
		w.stop()
		s.Remove(stored(w, c)) // as in a process of its own
		if err := w.admin.Delete(t.Context(), c, client.DeleteOptions{AnyRevision: true}); err != nil {
			t.Fatal(err)
		}
		db.broken.Store(true)
		w, _ = begin(t, s)
		time.Sleep(10 * time.Second)
		if s.Snapshot(api.CustomResourceDefinitionKind).Get(api.KeyOf(c)) == nil {
			t.Error("the definition is gone")
		}
		db.broken.Store(false)
		w.wait(c.Name, func(c *apiextensionsv1.CustomResourceDefinition) bool { return c == nil })
		kvs, _, _, err := db.Range(t.Context(), db.path, db.path+"~", 0, 0)
		if err != nil || len(kvs) != 0 {
			t.Error("left behind:", len(kvs), err)
		}
	})
}

// A create that admission holds up until its definition is being deleted is refused.
func TestCreatedTooLate(t *testing.T) {
	var during func()
	w := start(t, rest.Admission{Name: "slow", Validate: func(_ context.Context, a *rest.Admitting) error {
		if a.Kind.Custom() && a.Operation == rest.OpCreate {
			during()
		}
		return nil
	}})
	c := w.define(cronTabs)
	during = func() {
		if err := w.admin.Delete(t.Context(), c, client.DeleteOptions{AnyRevision: true}); err != nil {
			t.Error(err)
		}
	}
	if a := w.call("POST", tabs, tab("a", `{"cronSpec":"x"}`)); a.Code != http.StatusMethodNotAllowed && a.Code != http.StatusNotFound {
		t.Error(a.Code, a.Body)
	}
	w.wait(c.Name, func(c *apiextensionsv1.CustomResourceDefinition) bool { return c == nil })
}

// What managers own in versions other than that of the request stays theirs when the scale is written, and the replicas go to who wrote them.
func TestScaleOwnership(t *testing.T) {
	w := start(t)
	w.define(cronTabs)
	old := strings.Replace(tab("a", `{"cronSpec":"x","extra":"y"}`), "/v1", "/v1beta1", 1)
	if a := w.call("PATCH", oldTabs+"/a?fieldManager=old", old, "Content-Type", inApply); a.Code != http.StatusCreated {
		t.Fatal(a.Code, a.Body)
	}
	if a := w.call("PATCH", tabs+"/a?fieldManager=other", `{"spec":{"replicas":3}}`, "Content-Type", inMerge); a.Code != http.StatusOK {
		t.Fatal(a.Code, a.Body)
	}
	if a := w.call("PATCH", tabs+"/a/scale?fieldManager=scaler", `{"spec":{"replicas":5}}`, "Content-Type", inMerge); a.Code != http.StatusOK {
		t.Fatal(a.Code, a.Body)
	}
	text := w.call("GET", tabs+"/a", "").Body.String()
	for _, has := range []string{`"manager":"old","operation":"Apply"`, `"manager":"scaler","operation":"Update","subresource":"scale"`} {
		if !strings.Contains(text, has) {
			t.Errorf("%s\nhas no %s", text, has)
		}
	}
}

// Admission does not hold up the end of a definition, whether any of its versions is served or not; finalizers do.
func TestDeletedUnasked(t *testing.T) {
	for name, served := range map[string]bool{"served": true, "not served": false} {
		t.Run(name, func(t *testing.T) {
			w := start(t, rest.Admission{Name: "never", Validate: func(_ context.Context, a *rest.Admitting) error {
				if a.Kind.Custom() && a.Operation == rest.OpDelete {
					return errors.New("never")
				}
				return nil
			}})
			c := w.define(cronTabs)
			if a := w.call("POST", tabs, tab("a", `{"cronSpec":"x"}`)); a.Code != http.StatusCreated {
				t.Fatal(a.Body)
			}
			_, err := client.Mutate(t.Context(), w.admin, c, "", func(c *apiextensionsv1.CustomResourceDefinition) {
				for i := range c.Spec.Versions {
					c.Spec.Versions[i].Served = served
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if a := w.call("DELETE", tabs+"/a", ""); a.Code == http.StatusOK {
				t.Fatal("deleted:", a.Body)
			}
			if err := w.admin.Delete(t.Context(), c, client.DeleteOptions{AnyRevision: true}); err != nil {
				t.Fatal(err)
			}
			w.wait(c.Name, func(c *apiextensionsv1.CustomResourceDefinition) bool { return c == nil })
		})
	}
}

// A deletion that fails again and again says so once, and does not try without pause.
func TestDeletionFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t)
		c := w.define(cronTabs)
		if a := w.call("POST", tabs, tab("a", `{"cronSpec":"x"}`)); a.Code != http.StatusCreated {
			t.Fatal(a.Body)
		}
		w.failing.Store(true)
		if err := w.admin.Delete(t.Context(), c, client.DeleteOptions{AnyRevision: true}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		at := w.store.Revision()
		tried := w.tried.Load()
		time.Sleep(10 * time.Minute)
		if now := w.store.Revision(); now != at {
			t.Error("written meanwhile:", now-at)
		}
		if n := w.tried.Load() - tried; n < 19 || n > 21 {
			t.Error("attempts in ten minutes:", n)
		}
		w.failing.Store(false)
		for w.store.Snapshot(api.CustomResourceDefinitionKind).Len() > 0 {
			time.Sleep(time.Second)
		}
	})
}
