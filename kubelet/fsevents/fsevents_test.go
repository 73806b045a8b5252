package fsevents

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWatch(t *testing.T) {
	dir := t.TempDir()
	w, err := Watch(dir)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "a")
	for _, change := range []func() error{
		func() error { return os.WriteFile(name, []byte("1"), 0o600) },
		func() error { return os.Rename(name, name+"b") },
		func() error { return os.Remove(name + "b") },
	} {
		if err := change(); err != nil {
			t.Fatal(err)
		}
		<-w.C
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Watch(filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that does not exist is watched")
	}
}
