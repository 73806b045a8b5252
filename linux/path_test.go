package linux

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

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
		"magic": "/proc/self/root",
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

// where returns the path of a descriptor below dir, and closes it.
func where(t *testing.T, dir string, fd int) string {
	t.Helper()
	defer unix.Close(fd)
	p, err := os.Readlink(FDPath(fd))
	if err != nil {
		t.Fatal(err)
	}
	p, err = filepath.Rel(dir, p)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPathsStayInTheRoot(t *testing.T) {
	t.Parallel()
	open := func(root int, name string) (int, error) { return OpenIn(root, name, unix.O_PATH) }
	for _, c := range []struct {
		what string
		f    func(root int, name string) (int, error)
		name string
		want string // below the folder; empty: ENOENT
	}{
		{"open", open, "inside", "root/inside"},
		{"open", open, "/inside", "root/inside"},
		{"open", open, "../../inside", "root/inside"},
		{"open", open, "good", "root/inside"},
		{"open", open, "up", ""},
		{"open", open, "absolute", ""},
		{"open", open, "magic", ""},
		{"open", open, "dangling", ""},
		{"directory", MakeDirIn, "a/b/../c", "root/a/c"},
		{"directory", MakeDirIn, "good/new", "root/inside/new"},
		{"directory", MakeDirIn, "../../outside/new", "root/outside/new"},
		{"directory", MakeDirIn, "up/new", ""},
		{"directory", MakeDirIn, "absolute/new", ""},
		{"directory", MakeDirIn, "dangling/new", ""},
	} {
		t.Run(c.what+" "+c.name, func(t *testing.T) {
			t.Parallel()
			dir, root := host(t)
			fd, err := c.f(root, c.name)
			switch {
			case c.want == "" && !errors.Is(err, unix.ENOENT):
				t.Errorf("descriptor %d, error %v; want ENOENT", fd, err)
			case c.want != "" && err != nil:
				t.Error(err)
			case c.want != "":
				if got := where(t, dir, fd); got != c.want {
					t.Errorf("reached %s, want %s", got, c.want)
				}
			}
			if made, _ := os.ReadDir(filepath.Join(dir, "outside")); len(made) > 0 {
				t.Errorf("made outside of the root: %v", made)
			}
		})
	}
}

func TestSpreadBelow(t *testing.T) {
	dir, _ := host(t)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	before, _ := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	SpreadBelow(fd)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		t.Fatal(err)
	}
	after, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if fs.Type == unix.EXT4_SUPER_MAGIC && (err != nil || after != before|topDir) {
		t.Errorf("attributes are %#x, %v: they were %#x", after, err, before)
	}
	SpreadBelow(-1) // says nothing
}
