package rmtree

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRemove(t *testing.T) {
	dir := t.TempDir()
	tree, beside := filepath.Join(dir, "tree"), filepath.Join(dir, "beside")
	for i := range 1500 {
		if err := os.MkdirAll(filepath.Join(tree, "a", fmt.Sprint(i%7), "b"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(tree, "a", fmt.Sprint("file", i)), nil, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	err := errors.Join(os.Mkdir(beside, 0o700), os.WriteFile(filepath.Join(beside, "f"), nil, 0o600),
		os.Symlink(beside, filepath.Join(tree, "link")), os.Symlink(beside, filepath.Join(dir, "linked")),
		Remove(tree), Remove(tree), Remove(filepath.Join(dir, "linked")), Remove(filepath.Join(dir, "no", "where")))
	if err != nil {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*", "*")); len(left) != 1 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
}

// deep makes a folder in a folder, and so on, with one file at each hundredth.
func deep(t *testing.T, dir string, levels int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for i := range levels {
		if err == nil {
			err = unix.Mkdirat(fd, "d", 0o700)
		}
		if i%100 == 0 && err == nil {
			err = unix.Mknodat(fd, "f", unix.S_IFREG|0o600, 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		var next int
		next, err = unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
}

// A tree that is far deeper than a process may have files open is removed. A process of its own has the limit.
func TestDeep(t *testing.T) {
	const variable = "YARE_TEST_DEEP"
	if dir := os.Getenv(variable); dir != "" {
		limit := unix.Rlimit{Cur: 100, Max: 100}
		if err := errors.Join(unix.Setrlimit(unix.RLIMIT_NOFILE, &limit), Remove(dir)); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "deep")
	for _, d := range []string{dir, filepath.Join(dir, "moved-1"), filepath.Join(dir, "e")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		deep(t, d, 1000)
	}
	c := exec.Command("/proc/self/exe", "-test.run=^TestDeep$")
	c.Env = append(os.Environ(), variable+"="+dir)
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("still there:", err)
		_ = exec.Command("rm", "-rf", dir).Run()
	}
}

// What cannot be removed is an error that names it, and all else goes.
func TestMounted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tree")
	mount := filepath.Join(dir, "a", "mount")
	if err := errors.Join(os.MkdirAll(mount, 0o700), os.MkdirAll(filepath.Join(dir, "a", "b", "c"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", mount, "tmpfs", 0, ""); err != nil {
		t.Skip("mount:", err)
	}
	err := Remove(dir)
	if !errors.Is(err, unix.EBUSY) {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "a", "*")); len(left) != 1 {
		t.Error("left:", left)
	}
	if err := errors.Join(unix.Unmount(mount, 0), Remove(dir)); err != nil {
		t.Error(err)
	}
}

// Who is not alone with a tree takes it for no error that something is gone already.
func TestTogether(t *testing.T) {
	t.Parallel()
	for range 30 {
		tree := filepath.Join(t.TempDir(), "tree")
		for i := range 40 {
			if err := os.MkdirAll(filepath.Join(tree, fmt.Sprint(i), "a/b/c"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		ends := make(chan error)
		for range 4 {
			go func() { ends <- Remove(tree) }()
		}
		for range 4 {
			if err := <-ends; err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Lstat(tree); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the tree: %v", err)
		}
	}
}
