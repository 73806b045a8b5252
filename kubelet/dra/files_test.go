package dra

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/yare-dev/yare/kubelet/dra/dratest"
)

func TestOpen(t *testing.T) {
	for _, c := range []struct{ file, text, want string }{
		{"u.json", `{"uid":"u","pods":["p"],"drivers":{"x":{"prepared":true}}}`, ""},
		{".u.json.new", "half", ""},
		{"u.json", "", "u.json: unexpected end of JSON input; when no pod"},
		{"u.json", `{"uid":"v"}`, `it is of the claim "v"`},
		{"u.json", `{"uid":"u","drivers":{"x":null}}`, "driver x has no value"},
	} {
		s := New(Config{Root: t.TempDir(), Boot: "b", Log: slog.New(slog.DiscardHandler)})
		if err := s.Open(); err != nil {
			t.Error("nothing there:", err)
		}
		if err := os.Mkdir(s.dir(), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(s.dir(), c.file), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		switch err := s.Open(); {
		case c.want == "" && err != nil, c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s %s: %v, want %q", c.file, c.text, err, c.want)
		}
	}
	s := New(Config{Root: t.TempDir()})
	if err := s.put(&record{UID: "../x", Namespace: "n", Name: "c"}); err == nil || !strings.Contains(err.Error(), `"../x"`) {
		t.Error(err)
	}
}

// What cannot be noted is not asked of a driver.
func TestUnsaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		x := dratest.New("x.example.com")
		defer n.come(x, "/x")()
		p, q := claimer("p", "c"), claimer("q", "c")
		n.claim("c", []string{"x.example.com"}, p, q)
		spoil := func() {
			_ = os.Rename(n.set.dir(), n.set.dir()+".away")
			if err := os.WriteFile(n.set.dir(), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		mend := func() {
			if err := os.Remove(n.set.dir()); err != nil {
				t.Fatal(err)
			}
			_ = os.Rename(n.set.dir()+".away", n.set.dir())
		}
		spoil()
		n.fails(n.set.Prepare(t.Context(), p), "note resource claim default/c")
		n.calls(x)
		mend()
		x.Before = func(context.Context, string) error { spoil(); return nil }
		n.fails(n.set.Prepare(t.Context(), p), "note resource claim default/c")
		mend()
		x.Change(func() { x.Before = nil })
		n.calls(x, "prepare c")
		n.prepare(p)
		n.calls(x, "prepare c")
		spoil()
		n.fails(n.set.Prepare(t.Context(), q), "note resource claim default/c")
		n.fails(n.set.Release(t.Context(), p.UID), "note resource claim default/c")
		mend()
		n.calls(x)
		if !n.set.Ready(p) || n.set.Holds(q.UID) {
			t.Error("what is known differs from what is on disk")
		}
		n.release(p)
		n.empty()
	})
}
