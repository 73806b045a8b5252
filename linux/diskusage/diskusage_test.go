package diskusage

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write := func(path string, size int) {
		t.Helper()
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	usage := func() Usage {
		t.Helper()
		u, err := Of(dir)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	write(filepath.Join(outside, "big"), 1<<20)
	empty := usage()
	if empty.Inodes != 1 {
		t.Error(empty)
	}
	deep := filepath.Join(dir, "a", "b\xff") // no UTF-8
	if err := os.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(deep, "f"), 256<<10)
	for name, of := range map[string]func() error{
		"another name":     func() error { return os.Link(filepath.Join(deep, "f"), filepath.Join(dir, "again")) },
		"link to a file":   func() error { return os.Symlink(filepath.Join(outside, "big"), filepath.Join(dir, "file")) },
		"link to a folder": func() error { return os.Symlink(outside, filepath.Join(dir, "folder")) },
	} {
		if err := of(); err != nil {
			t.Fatal(name, err)
		}
	}
	if u := usage(); u.Inodes != 1+2+1+2 || u.Bytes < 256<<10 || u.Bytes > 256<<10+empty.Bytes+64<<10 {
		t.Errorf("%+v, empty %+v", u, empty)
	}
	if u, err := Of(filepath.Join(dir, "none")); err != nil || u != (Usage{}) {
		t.Error(u, err)
	}
	if _, err := Of(filepath.Join(dir, "folder")); err == nil || !strings.Contains(err.Error(), "folder") {
		t.Error(err)
	}
}
