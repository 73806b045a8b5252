package durable_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux/durable"
)

func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for name, write := range map[string]func(string, []byte, fs.FileMode) error{"Write": durable.Write, "Replace": durable.Replace} {
		// What a write that was cut short has left is in nobody's way.
		if err := os.WriteFile(filepath.Join(dir, ".f.new"), []byte("longer than what comes"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"first", "2"} {
			if err := write(path, []byte(text), 0o640); err != nil {
				t.Fatal(name, err)
			}
			got, err := os.ReadFile(path)
			if st, e := os.Stat(path); err != nil || e != nil || string(got) != text || st.Mode() != 0o640 {
				t.Error(name, string(got), st.Mode(), err, e)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
			t.Error(name, left, err)
		}
	}
}

// A disk that takes no more leaves the old content, and nothing beside it.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k"); err != nil {
		t.Skip("this needs to mount:", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	path := filepath.Join(dir, "f")
	if err := durable.Write(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := durable.Write(path, bytes.Repeat([]byte("x"), 64<<10), 0o600); err == nil {
		t.Error("64 kB fit into 16")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "old" {
		t.Error(string(got), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Error(left, err)
	}
}
