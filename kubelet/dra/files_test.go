package dra

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOpen(t *testing.T) {
	for _, c := range []struct{ file, text, want string }{
		{"u.json", `{"uid":"u","pods":["p"],"drivers":{"x":{"prepared":true}}}`, ""},
		{"u.json.next", "half", ""},
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
