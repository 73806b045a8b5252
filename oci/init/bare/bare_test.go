package bare

import (
	"fmt"
	"math"
	"os"
	"path"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests are not parallel: there is one space.

func TestText(t *testing.T) {
	if e := Reserve(0); e != 0 {
		t.Fatal(e)
	}
	for _, n := range []int{0, 7, -7, 10, 1234567890, math.MaxInt, math.MinInt} {
		if got, want := Number(n), fmt.Sprint(n); got != want {
			t.Errorf("number %s, want %s", got, want)
		}
	}
	for _, name := range []string{"", "/", "a", "/a/b/", "a//b/./c", "../../a", "a/../..", "a/b/../../c/..", "...", "/.../a..", "./", "a/..b"} {
		clean := Clean(name)
		if want := path.Clean("/" + name)[1:]; clean != want {
			t.Errorf("%q is %q, want %q", name, clean, want)
		}
		dir, base := Split(clean)
		if want := "/" + clean; path.Join("/", dir, base) != want {
			t.Errorf("%q is split in %q and %q", clean, dir, base)
		}
	}
	f := Wrap("open", "b", unix.ENOENT).In("mount", "/a")
	if got, want := f.Text(), "mount /a: open b: no such file or directory"; got != want || !f.Is(unix.ENOENT) || f.Is(unix.EPERM) {
		t.Errorf("got %q, want %q", got, want)
	}
	if Wrap("open", "b", 0).In("mount", "/a") != nil || (*Fault)(nil).Is(0) {
		t.Error("nothing failed")
	}
	if got, want := Because("", "", "this is why").In("mount", "/a").Text(), "mount /a: this is why"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReleasedMemoryIsZero(t *testing.T) {
	if e := Reserve(0); e != 0 {
		t.Fatal(e)
	}
	for range 100 {
		mark := Mark()
		for _, b := range Make[byte](room / 4) {
			if b != 0 {
				t.Fatal("not cleared")
			}
		}
		copy(Make[byte](100), "something")
		Release(mark)
	}
}

func TestPathsStayInTheRoot(t *testing.T) {
	if e := Reserve(0); e != 0 {
		t.Fatal(e)
	}
	for _, c := range []struct {
		what string
		f    func(root int, name string) (int, *Fault)
		name string
		want string // below the folder; empty: ENOENT
	}{
		{"directory", MakeDirIn, "a/b/../c", "root/a/c"},
		{"directory", MakeDirIn, "/", "root"},
		{"directory", MakeDirIn, "good/new", "root/inside/new"},
		{"directory", MakeDirIn, "../../outside/new", "root/outside/new"},
		{"directory", MakeDirIn, "up/new", ""},
		{"directory", MakeDirIn, "absolute/new", ""},
		{"directory", MakeDirIn, "dangling/new", ""},
		{"file", MakeFileIn, "x/y", "root/x/y"},
		{"file", MakeFileIn, "good/y", "root/inside/y"},
		{"file", MakeFileIn, "../y", "root/y"},
		{"file", MakeFileIn, "up/y", ""},
		{"file", MakeFileIn, "dangling", ""},
	} {
		t.Run(c.what+" "+c.name, func(t *testing.T) {
			dir, root := host(t)
			fd, f := c.f(root, c.name)
			switch {
			case c.want == "" && !f.Is(unix.ENOENT):
				t.Errorf("descriptor %d; want ENOENT", fd)
			case c.want != "" && f != nil:
				t.Error(f.Text())
			case c.want != "":
				at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
				if want := filepath.Join(dir, c.want); err != nil || at != want {
					t.Errorf("reached %s, %v; want %s", at, err, want)
				}
				Close(fd)
			}
			if made, _ := os.ReadDir(filepath.Join(dir, "outside")); len(made) > 0 {
				t.Errorf("made outside of the root: %v", made)
			}
		})
	}
}

// host is a folder with a root in it. What lies beside the root must not be reached or made through it.
func host(t *testing.T) (dir string, root int) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range []string{"root/inside", "outside"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"up": "../../outside", "absolute": filepath.Join(dir, "outside"), "dangling": "nowhere/at/all", "good": "/inside",
	} {
		if err := os.Symlink(to, filepath.Join(dir, "root", link)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := unix.Open(filepath.Join(dir, "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(root) })
	return dir, root
}
