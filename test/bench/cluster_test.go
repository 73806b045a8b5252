package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestOthersStay opens a bench among folders that are called like those of benches. Only those go that a bench has made that is dead.
func TestOthersStay(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	for _, file := range []string{"yare-bench-1/.yare-bench", "yare-bench-2/data", "yare-bench-3/.yare-bench/data", "yare-bench-4/.yare-bench", "elsewhere/.yare-bench", "yare-benches/.yare-bench"} {
		file = filepath.Join(tmp, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o700), os.WriteFile(file, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	lives, err := hold(filepath.Join(tmp, "yare-bench-4"))
	if err != nil {
		t.Fatal(err)
	}
	defer lives.Close()
	if err := os.Symlink("elsewhere", filepath.Join(tmp, "yare-bench-5")); err != nil {
		t.Fatal(err)
	}
	b := bench{yare: "/bin/false"}
	if err := b.open(); err != nil {
		t.Fatal(err)
	}
	defer b.lock.Close()
	var left []string
	for _, e := range must(t, tmp) {
		if e.Name() != filepath.Base(b.dir) {
			left = append(left, e.Name())
		}
	}
	if want := []string{"elsewhere", "yare-bench-2", "yare-bench-3", "yare-bench-4", "yare-bench-5", "yare-benches"}; !slices.Equal(left, want) {
		t.Errorf("left %q, want %q", left, want)
	}
	if len(must(t, filepath.Join(tmp, "elsewhere"))) != 1 {
		t.Error("what a link leads to is gone")
	}
}

func must(t *testing.T, dir string) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
