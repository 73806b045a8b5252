package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"time"
)

const ref = "example.com/busybox:1"

func TestBuildMountExportImport(t *testing.T) {
	t.Parallel()
	for _, plainCopy := range []bool{false, true} {
		s := newStore(t, func(c *Config) { c.Copy = plainCopy })
		im, err := s.BuildFromDir(t.Context(), busybox(t), ref, ConfigOptions{Entrypoint: []string{"/bin/sh"}, Env: []string{"A=b"}})
		if err != nil {
			t.Fatal(err)
		}
		if len(im.Tags) != 1 || im.Tags[0] != ref || !im.Pinned || im.Config.Config.Env[0] != "A=b" || im.Size == 0 {
			t.Errorf("built %+v", im)
		}
		root, err := s.Mount(t.Context(), ref, "c1")
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(filepath.Join(root, "bin/sh"), "-c", "echo hi").CombinedOutput(); err != nil || string(out) != "hi\n" {
			t.Errorf("run: %q, %v", out, err)
		}
		if err := os.WriteFile(filepath.Join(root, "mine"), []byte("12345"), 0o600); err != nil {
			t.Fatal(err)
		}
		if again, err := s.Mount(t.Context(), ref, "c1"); err != nil || again != root {
			t.Errorf("mount again = %s, %v", again, err)
		}
		if u, err := s.SnapshotUsage("c1"); err != nil || u.Bytes == 0 || u.Inodes == 0 {
			t.Errorf("usage %+v, %v", u, err)
		}
		var archive bytes.Buffer
		if err := s.Export(t.Context(), im.ID, &archive); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "x.tar")
		if err := os.WriteFile(file, archive.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		other := newStore(t)
		got, err := other.Import(t.Context(), file)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != 1 || got[0].ID != im.ID || got[0].Tags[0] != ref || !got[0].Pinned {
			t.Errorf("imported %+v, want ID %s", got, im.ID)
		}
	}
}

// What a configuration says beside OCI's fields goes with it, and where the layers come out as they came, its very bytes do.
func TestExportKeepsConfiguration(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	if err := pack(t.Context(), busybox(t), &packed); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name  string
		layer []byte
		same  bool
	}{
		{"as Yare packs", packed.Bytes(), true},
		{"as others do", layerOf(t, file("z", "1"), file("a", "2")), false},
	} {
		for _, plainCopy := range []bool{false, true} {
			s := newStore(t, func(c *Config) { c.Copy = plainCopy })
			b := bundleOf(t, c.layer)
			b.config = append([]byte("{ \"docker_version\" : \"20\",\n"), b.config[1:]...)
			im, err := ingest(t, s, b, ref)
			if err != nil {
				t.Fatal(err)
			}
			name := filepath.Join(t.TempDir(), "x.tar")
			archive, err := os.Create(name)
			if err == nil {
				err = errors.Join(s.Export(t.Context(), ref, archive), archive.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			other := newStore(t)
			got, err := other.Import(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			m, err := other.resolve(got[0].ID)
			if err != nil {
				t.Fatal(err)
			}
			if (m.ID == im.ID) != c.same || !bytes.Contains(m.Raw, []byte("docker_version")) || m.Config.Config.Cmd[0] != "/bin/true" {
				t.Errorf("%s, copy=%v: %s became %s: %s", c.name, plainCopy, im.ID, m.ID, m.Raw)
			}
		}
	}
}

func TestReadOnlyMount(t *testing.T) {
	t.Parallel()
	for _, plainCopy := range []bool{false, true} {
		t.Run(fmt.Sprintf("copy=%v", plainCopy), func(t *testing.T) {
			testReadOnlyMount(t, newStore(t, func(c *Config) { c.Copy = plainCopy }))
		})
	}
}

func testReadOnlyMount(t *testing.T, s *Store) {
	im, err := ingest(t, s, bundleOf(t, layerOf(t, file("a", "1"))), "x")
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.MountReadOnly(t.Context(), im.ID, "volume")
	if err != nil {
		t.Fatal(err)
	}
	wantListing(t, root, "a = 1")
	if err := os.WriteFile(root+"/b", nil, 0o600); err == nil {
		t.Error("a read-only mount was written to")
	}
	for _, key := range []string{"", ".", "..", "a/b", ".hidden", strings.Repeat("k", 201)} {
		if _, err := s.Mount(t.Context(), im.ID, key); !errors.Is(err, ErrInvalid) {
			t.Errorf("key %q: %v, want ErrInvalid", key, err)
		}
	}
}

func TestGet(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	name := "docker.io/library/hello:latest"
	im, err := ingest(t, s, bundleOf(t, layerOf(t, file("a", "1"))), name, "docker.io/library/hello@sha256:"+strings.Repeat("0", 64), "Odd Name")
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"hello", "hello:latest", "docker.io/hello", name, im.ID, hexOf(im.ID), hexOf(im.ID)[:12], "hello@sha256:" + strings.Repeat("0", 64), "Odd Name"} {
		if got, err := s.Get(t.Context(), ref); err != nil || got.ID != im.ID {
			t.Errorf("Get(%q) = %v, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"", "hello:2", "other", "sha256:" + strings.Repeat("1", 64), hexOf(im.ID)[:4], "../images/x"} {
		if _, err := s.Get(t.Context(), ref); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get(%q): %v, want ErrNotFound", ref, err)
		}
	}
	if err := s.Tag(t.Context(), "hello", "moved:2"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get(t.Context(), "moved:2"); err != nil || got.ID != im.ID {
		t.Errorf("after Tag: %v, %v", got, err)
	}
}

// TestRemoveWhileUsed removes an image whose snapshot is mounted: the layers
// stay until the snapshot goes.
func TestRemoveWhileUsed(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	im, err := ingest(t, s, bundleOf(t, layerOf(t, file("a", "1"))), "x")
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Mount(t.Context(), "x", "k")
	if err != nil {
		t.Fatal(err)
	}
	if pruned, err := s.Prune(t.Context()); err != nil || len(pruned) != 0 {
		t.Errorf("Prune took a used image: %v, %v", pruned, err)
	}
	if err := s.Remove(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), im.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get after Remove: %v", err)
	}
	wantListing(t, root, "a = 1")
	if err := s.Unmount(t.Context(), "k"); err != nil {
		t.Fatal(err)
	}
	if err := s.sweep(); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Usage(); err != nil || u != (Usage{}) {
		t.Errorf("usage after all is gone: %+v, %v", u, err)
	}
}

// A server that was killed while it started a shim may leave its lock with the child for a moment: what it left in tmp/ is
// then removed later.
func TestLeftoversWait(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	lock, err := s.lock(unix.LOCK_SH)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.path("tmp", "trash-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err = Open(Config{Dir: s.dir}, s.log)
	if err != nil {
		t.Fatal(err)
	}
	lock.Close()
	release, err := s.share()
	if err != nil {
		t.Fatal(err)
	}
	release()
	if left, err := os.ReadDir(s.path("tmp")); err != nil || len(left) != 0 {
		t.Errorf("left in tmp: %v, %v", left, err)
	}
}

func TestPruneKeepsPinned(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	if _, err := ingest(t, s, bundleOf(t, layerOf(t, file("a", "1"))), "x"); err != nil {
		t.Fatal(err)
	}
	pinned, err := s.BuildFromDir(t.Context(), t.TempDir(), "pinned", ConfigOptions{})
	if err != nil {
		t.Fatal(err)
	}
	removed, err := s.Prune(t.Context())
	if err != nil || len(removed) != 1 {
		t.Errorf("Prune = %v, %v", removed, err)
	}
	left, err := s.List(t.Context())
	if err != nil || len(left) != 1 || left[0].ID != pinned.ID {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestSweepSparesWorkInProgress removes an image that shares a layer with one
// on its way in, whose record does not exist yet.
func TestSweepSparesWorkInProgress(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	shared := layerOf(t, file("a", "1"))
	if _, err := ingest(t, s, bundleOf(t, shared), "x"); err != nil {
		t.Fatal(err)
	}
	b := bundleOf(t, shared, layerOf(t, file("b", "2")))
	open := b.layers[1].open
	b.layers[1].open = func(ctx context.Context) (io.ReadCloser, error) {
		if err := s.Remove(ctx, "x"); err != nil {
			t.Error(err)
		}
		return open(ctx)
	}
	im, err := ingest(t, s, b, "y")
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Mount(t.Context(), im.ID, "k")
	if err != nil {
		t.Fatal(err)
	}
	wantListing(t, root, "a = 1", "b = 2")
}

// TestSameImageAtOnce adds one image from several goroutines and two Stores on
// the same folder.
func TestSameImageAtOnce(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	other, err := Open(Config{Dir: s.dir}, s.log)
	if err != nil {
		t.Fatal(err)
	}
	layer := layerOf(t, file("a", "1"), file("b", "2"))
	var wg sync.WaitGroup
	for i := range 8 {
		st := []*Store{s, other}[i%2]
		wg.Go(func() {
			if _, err := ingest(t, st, bundleOf(t, layer), "x"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if images, err := other.List(t.Context()); err != nil || len(images) != 1 {
		t.Errorf("images: %v, %v", images, err)
	}
}

// TestKilled kills a process that builds, mounts and removes over and over, and
// looks whether what is visible is whole and what is left can be swept.
func TestKilled(t *testing.T) {
	if dir := os.Getenv("IMAGE_TEST_KILLED"); dir != "" {
		builder(dir)
		return
	}
	t.Parallel()
	s := newStore(t)
	for i := range 15 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
		cmd.Env = append(os.Environ(), "IMAGE_TEST_KILLED="+s.dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(30+17*i%90) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		again, err := Open(Config{Dir: s.dir}, s.log)
		if err != nil {
			t.Fatalf("open after kill %d: %v", i, err)
		}
		images, err := again.List(t.Context())
		if err != nil {
			t.Fatalf("list after kill %d: %v", i, err)
		}
		for _, im := range images {
			root, err := again.Mount(t.Context(), im.ID, "check")
			if err != nil {
				t.Fatalf("mount after kill %d: %v", i, err)
			}
			if got := len(listing(t, root)); got != 300 {
				t.Errorf("after kill %d an image has %d files, want 300", i, got)
			}
			if err := again.Unmount(t.Context(), "check"); err != nil {
				t.Fatal(err)
			}
		}
		if err := again.Unmount(t.Context(), "child"); err != nil {
			t.Fatal(err)
		}
	}
}

// builder is the process that TestKilled kills.
func builder(dir string) {
	src, err := os.MkdirTemp(filepath.Dir(dir), "src")
	if err != nil {
		return
	}
	s, err := Open(Config{Dir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		return
	}
	for i := range 300 {
		_ = os.WriteFile(filepath.Join(src, string(rune('a'+i%26))+strings.Repeat("x", i/26)), make([]byte, 100), 0o600)
	}
	ctx := context.Background()
	for {
		im, err := s.BuildFromDir(ctx, src, "x", ConfigOptions{})
		if err != nil {
			return
		}
		if _, err := s.Mount(ctx, im.ID, "child"); err != nil {
			return
		}
		_ = s.Unmount(ctx, "child")
		_ = s.Remove(ctx, im.ID)
	}
}
