package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// newStore opens a Store in a fresh folder and checks at the end that no mount
// and no work in progress is left.
func newStore(t *testing.T, change ...func(*Config)) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cfg := Config{Dir: filepath.Join(t.TempDir(), "store")}
	for _, c := range change {
		c(&cfg)
	}
	s, err := Open(cfg, newLog(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		snapshots, err := s.Snapshots()
		if err != nil {
			t.Error(err)
		}
		for _, sn := range snapshots {
			if err := s.Unmount(context.Background(), sn.Key); err != nil {
				t.Error(err)
			}
		}
		checkNoLeak(t, s)
	})
	return s
}

func newLog(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func checkNoLeak(t *testing.T, s *Store) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), s.dir) {
		t.Errorf("mounts left below %s", s.dir)
	}
	left, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range left {
		t.Errorf("left behind: tmp/%s", e.Name())
	}
}

// entry is one entry of a layer archive, with short forms: a name that ends in
// a slash is a directory.
type entry struct {
	tar.Header
	data string
}

func file(name, data string) entry {
	h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}
	if strings.HasSuffix(name, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	return entry{h, data}
}

func symlink(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}, ""}
}

func hardlink(name, to string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}, ""}
}

func layerOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatalf("write %s: %v", e.Name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// bundleOf makes an image of uncompressed layers.
func bundleOf(t *testing.T, layers ...[]byte) *bundle {
	t.Helper()
	c := ConfigOptions{Cmd: []string{"/bin/true"}}.config()
	b := &bundle{}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l))
		b.layers = append(b.layers, blob{digest: digestOf(l), size: int64(len(l)), open: func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(l)), nil
		}})
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	b.config = raw
	return b
}

func ingest(t *testing.T, s *Store, b *bundle, names ...string) (*Image, error) {
	t.Helper()
	release, err := s.share()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	im, err := s.ingest(t.Context(), b, names, false)
	if err != nil {
		return nil, err
	}
	return im, s.Settle()
}

// listing shows a tree: one line per entry, with contents and link targets.
func listing(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		switch {
		case name == "":
		case e.IsDir():
			lines = append(lines, name+"/")
		case e.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			lines = append(lines, name+" -> "+to)
		case e.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			lines = append(lines, name+" = "+string(b))
		default:
			lines = append(lines, name+" "+e.Type().String())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

func wantListing(t *testing.T, root string, want ...string) {
	t.Helper()
	if got := listing(t, root); !slices.Equal(got, want) {
		t.Errorf("in %s:\n%s\nwant:\n%s", root, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// busybox is a root file system with one program.
func busybox(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"bin", "etc", "tmp"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip("no /bin/busybox")
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("busybox", filepath.Join(dir, "bin/sh")); err != nil {
		t.Fatal(err)
	}
	return dir
}
