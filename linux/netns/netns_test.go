package netns

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func root(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// mounted counts the mounts below dir.
func mounted(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), " "+dir+"/")
}

// inode tells a namespace from others, for as long as it lives.
func inode(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	return st.Ino, err
}

func TestLife(t *testing.T) {
	root(t)
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	before, err := inode(self)
	if err != nil {
		t.Fatal(err)
	}
	var inside uint64
	if err := New(path, func() (err error) { inside, err = inode(self); return err }); err != nil {
		t.Fatal(err)
	}
	if id, _ := inode(path); id != inside || id == before {
		t.Errorf("namespace at path is %d, setup ran in %d, home is %d", id, inside, before)
	}
	if !IsHeld(path) {
		t.Error("a new namespace is not held")
	}
	err = Do(path, func() error {
		links, err := net.Interfaces()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Name == "eth0" {
				t.Error("the host's eth0 is in the new namespace")
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := New(path, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("New on a used path: %v", err)
	}
	for range 2 {
		if err := Delete(path); err != nil {
			t.Error(err)
		}
	}
	if n := mounted(t, dir); n != 0 {
		t.Errorf("%d mounts left", n)
	}
	if err := Do(path, func() error { return nil }); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Do after Delete: %v", err)
	}
}

func TestFailedSetupLeavesNothing(t *testing.T) {
	root(t)
	t.Parallel()
	dir := t.TempDir()
	want := errors.New("no")
	if err := New(filepath.Join(dir, "a"), func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v", err)
	}
	if left, _ := List(dir); len(left) != 0 || mounted(t, dir) != 0 {
		t.Errorf("left: %v, %d mounts", left, mounted(t, dir))
	}
}

// TestThreadsComeHome makes namespaces from many goroutines and then checks that
// no thread of the process was left in one of them.
func TestThreadsComeHome(t *testing.T) {
	root(t)
	dir := t.TempDir()
	home, err := inode(self)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		wg.Go(func() {
			path := filepath.Join(dir, name)
			if err := New(path, nil); err != nil {
				t.Error(err)
			}
			if err := Delete(path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, task := range tasks {
		if id, err := inode(task); err == nil && id != home {
			t.Errorf("thread %s is in namespace %d", task, id)
		}
	}
}

func TestFileWithoutMount(t *testing.T) {
	root(t)
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if IsHeld(path) {
		t.Error("a plain file holds no namespace")
	}
	if err := Delete(path); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file is left: %v", err)
	}
}

func BenchmarkNewDelete(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("needs root")
	}
	path := filepath.Join(b.TempDir(), "a")
	for b.Loop() {
		if err := New(path, nil); err != nil {
			b.Fatal(err)
		}
		if err := Delete(path); err != nil {
			b.Fatal(err)
		}
	}
}
