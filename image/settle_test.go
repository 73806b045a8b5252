package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// reopen opens the folder of a Store as another process does, in the same boot or another one.
func reopen(t *testing.T, dir string, test hooks) *Store {
	t.Helper()
	again, err := Open(Config{Dir: dir, test: test}, newLog(t))
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// pullLater adds an image and leaves it to Settle, as CRI's pull does.
func pullLater(t *testing.T, s *Store, b *bundle, names ...string) *Image {
	t.Helper()
	im, err := addLater(t.Context(), s, b, names...)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func addLater(ctx context.Context, s *Store, b *bundle, names ...string) (*Image, error) {
	release, err := s.share()
	if err != nil {
		return nil, err
	}
	defer release()
	return s.ingest(ctx, b, names, false)
}

func wantImage(t *testing.T, s *Store, name string, want ...string) {
	t.Helper()
	root, err := s.Mount(t.Context(), name, "look")
	if err != nil {
		t.Error(err)
		return
	}
	wantListing(t, root, want...)
	if err := s.Unmount(t.Context(), "look"); err != nil {
		t.Error(err)
	}
}

func wantNoImage(t *testing.T, s *Store, name string) {
	t.Helper()
	if im, err := s.Get(t.Context(), name); !errors.Is(err, ErrNotFound) {
		t.Errorf("%s is there: %v, %v", name, im, err)
	}
}

// wantNothingOpen looks for descriptors of a Store's folder, and for layers beside those that images have.
func wantNothingOpen(t *testing.T, s *Store) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, s.dir) {
			t.Errorf("%s is still open", to)
		}
	}
	sweepNow(t, s)
	images, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	layers := map[string]bool{}
	for _, im := range images {
		for _, l := range im.Layers {
			layers[hexOf(l.Chain)] = true
		}
	}
	left, err := os.ReadDir(s.path("layers"))
	if err != nil || len(left) != len(layers) {
		t.Errorf("layers %v are left, images have %v, %v", left, layers, err)
	}
}

// TestUnwritable lets each sync of Settle fail: what was not durable is gone, its name is its predecessor's again, and the next pull
// makes the layers anew instead of taking what is in memory only; containers go on with that.
func TestUnwritable(t *testing.T) {
	t.Parallel()
	for _, fails := range []int{1, 2} {
		var syncs int
		s := newStore(t, func(c *Config) {
			c.test.faults = func(what, _ string) error {
				if what == "sync file system" {
					if syncs++; syncs == fails {
						return unix.EIO
					}
				}
				return nil
			}
		})
		base, top := layerOf(t, file("a", "A")), layerOf(t, file("b", "B"))
		pullLater(t, s, bundleOf(t, base), "name")
		syncs = 10
		if err := s.Settle(); err != nil {
			t.Fatal(err)
		}
		lost := pullLater(t, s, bundleOf(t, base, top), "name")
		root, err := s.Mount(t.Context(), "name", "k")
		if err != nil {
			t.Fatal(err)
		}
		syncs = 0
		if err := s.Settle(); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), lost.ID) {
			t.Errorf("sync %d failed: %v", fails, err)
		}
		wantNoImage(t, s, lost.ID)
		wantImage(t, s, "name", "a = A")
		damaged, err := filepath.Glob(s.path("layers", "*", "fs", "b"))
		if err != nil || len(damaged) != 1 {
			t.Fatal(damaged, err)
		}
		if err := os.WriteFile(damaged[0], []byte("lost"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ingest(t, s, bundleOf(t, base, top), "name"); err != nil {
			t.Fatal(err)
		}
		sweepNow(t, s)
		wantListing(t, root, "a = A", "b = lost") // it runs on what it had
		wantImage(t, reopen(t, s.dir, hooks{}), "name", "a = A", "b = B")
		if err := s.Unmount(t.Context(), "k"); err != nil {
			t.Fatal(err)
		}
		wantNothingOpen(t, s)
		next := reopen(t, s.dir, hooks{boot: "the next"})
		wantImage(t, next, "name", "a = A", "b = B")
	}
}

// TestUnwritableTwice lets also the removal fail: the next Settle knows, though the kernel says no more of it.
func TestUnwritableTwice(t *testing.T) {
	t.Parallel()
	broken := false
	s := newStore(t, func(c *Config) {
		c.test.faults = func(string, string) error {
			if broken {
				return unix.EIO
			}
			return nil
		}
	})
	im := pullLater(t, s, bundleOf(t, layerOf(t, file("a", "A"))), "x")
	broken = true
	if err := s.Settle(); !errors.Is(err, unix.EIO) {
		t.Error(err)
	}
	broken = false
	if err := s.Settle(); !errors.Is(err, unix.EIO) {
		t.Errorf("what was lost is taken for durable: %v", err)
	}
	wantNoImage(t, s, im.ID)
	if err := s.Settle(); err != nil {
		t.Error(err)
	}
	wantNothingOpen(t, s)
}

// TestSettledByAnother has a process's image settled by another, which does not hear of the first one's error.
func TestSettledByAnother(t *testing.T) {
	t.Parallel()
	server := newStore(t)
	line := reopen(t, server.dir, hooks{faults: func(what, _ string) error {
		if what == "sync file system" {
			return unix.EIO
		}
		return nil
	}})
	pullLater(t, line, bundleOf(t, layerOf(t, file("a", "A"))), "x")
	if err := server.Settle(); err != nil {
		t.Fatal(err)
	}
	if err := line.Settle(); !errors.Is(err, unix.EIO) {
		t.Errorf("the error is lost: %v", err)
	}
	wantNoImage(t, server, "x")
	wantNothingOpen(t, server)
}

// TestLostLayer has layers fail while a pull relies on them.
func TestLostLayer(t *testing.T) {
	t.Parallel()
	fail := false
	s := newStore(t, func(c *Config) {
		c.test.faults = func(what, _ string) error {
			if fail && what == "sync file system" {
				return unix.EIO
			}
			return nil
		}
	})
	base, top := layerOf(t, file("a", "A")), layerOf(t, file("b", "B"))
	pullLater(t, s, bundleOf(t, base), "base")
	b := bundleOf(t, base, top)
	open := b.layers[1].open
	b.layers[1].open = func(ctx context.Context) (io.ReadCloser, error) {
		fail = true
		if err := s.Settle(); !errors.Is(err, unix.EIO) {
			t.Error(err)
		}
		fail = false
		return open(ctx)
	}
	if im, err := addLater(t.Context(), s, b, "both"); err == nil {
		t.Errorf("image %v is of a lost layer", im.Tags)
	}
	if _, err := ingest(t, s, bundleOf(t, base, top), "both"); err != nil {
		t.Fatal(err)
	}
	wantImage(t, reopen(t, s.dir, hooks{boot: "the next"}), "both", "a = A", "b = B")
	wantNothingOpen(t, s)
}

// TestSettleDamage settles what is whole beside what is not, in a folder in which files were damaged or removed.
func TestSettleDamage(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	var broken []*Image
	for i, name := range []string{"a", "b", "c"} {
		broken = append(broken, pullLater(t, s, bundleOf(t, layerOf(t, file(name, strings.Repeat("x", i)))), name))
	}
	whole := pullLater(t, s, bundleOf(t, layerOf(t, file("d", "D"))), "d")
	for _, err := range []error{
		os.Remove(s.layerRecord(broken[0].Layers[0].Chain)),
		os.Truncate(s.layerRecord(broken[1].Layers[0].Chain), 3),
		os.Truncate(s.imagePath(broken[2].ID), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	err := s.Settle()
	for _, im := range broken[:2] {
		if err == nil || !strings.Contains(err.Error(), im.ID) {
			t.Errorf("%v does not name %v", err, im.Tags)
		}
		wantNoImage(t, s, im.ID)
	}
	if !s.settled(whole.ID) {
		t.Error("the whole image is not settled")
	}
	if err := s.Settle(); err != nil {
		t.Error(err)
	}
	next := reopen(t, s.dir, hooks{boot: "the next"})
	wantImage(t, next, "d", "d = D")
	if err := os.Remove(s.imagePath(broken[2].ID)); err != nil {
		t.Fatal(err)
	}
	wantNothingOpen(t, s)
}

// TestTornLayerRecord boots after each part of a layer's record came to the disk, while somebody holds off the sweep.
func TestTornLayerRecord(t *testing.T) {
	t.Parallel()
	for _, size := range []int64{0, 1, 20, 60, -1} {
		s := newStore(t)
		base, top := layerOf(t, file("a", "A")), layerOf(t, file("b", "B"))
		if _, err := ingest(t, s, bundleOf(t, base), "base"); err != nil {
			t.Fatal(err)
		}
		im := pullLater(t, s, bundleOf(t, base, top), "both")
		torn := s.layerRecord(im.Layers[1].Chain)
		err := os.Remove(torn)
		if size >= 0 {
			err = os.WriteFile(torn, []byte(`{"diffID":"sha256:0123456789012345678901234567890123456789012345678901234567890123"`)[:size], 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		release, err := s.share()
		if err != nil {
			t.Fatal(err)
		}
		next := reopen(t, s.dir, hooks{boot: "the next"})
		if u, err := next.Usage(); err != nil || u.Inodes == 0 {
			t.Errorf("with %d bytes: usage %v, %v", size, u, err)
		}
		wantNoImage(t, next, "both")
		wantImage(t, next, "base", "a = A")
		pullLater(t, next, bundleOf(t, base, top), "again")
		wantImage(t, next, "again", "a = A", "b = B")
		release()
		if err := errors.Join(s.Settle(), next.Settle()); err != nil {
			t.Fatal(err)
		}
		wantImage(t, reopen(t, s.dir, hooks{boot: "the one after"}), "again", "a = A", "b = B")
		wantNothingOpen(t, s)
	}
}

// TestNameOfBefore moves names in ways, of which each ends with a power cut.
func TestNameOfBefore(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ what, want string }{
		{"A settle B", "A"},
		{"A settle B C", "A"},
		{"A settle B settle C", "B"},
		{"A settle B settle C B", "B"},
		{"A settle B -A", ""},
		{"A settle B -A settle", "B"},
		{"A settle B C -A", ""},
		{"A settle B settle C -B", ""},
		{"A settle B A", "A"},
		{"A settle B settle A", "A"},
		{"A B", ""},
		{"A B settle", "B"},
		{"A settle B -B", ""},
		{"A settle B -B B", ""},
	} {
		s := newStore(t)
		images := map[string]*bundle{}
		for _, name := range []string{"A", "B", "C"} {
			images[name] = bundleOf(t, layerOf(t, file(name, "")))
		}
		for do := range strings.FieldsSeq(c.what) {
			var err error
			switch {
			case do == "settle":
				err = s.Settle()
			case do[0] == '-':
				err = s.Remove(t.Context(), digestOf(images[do[1:]].config))
			default:
				pullLater(t, s, images[do], "name")
			}
			if err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
		}
		next := reopen(t, s.dir, hooks{boot: "the next"})
		got := ""
		if im, err := next.Get(t.Context(), "name"); err == nil {
			root, err := next.Mount(t.Context(), im.ID, "look")
			if err != nil {
				t.Fatal(err)
			}
			got = strings.TrimSuffix(strings.Join(listing(t, root), " "), " = ")
			if err := next.Unmount(t.Context(), "look"); err != nil {
				t.Fatal(err)
			}
		}
		if got != c.want {
			t.Errorf("%s, and the power goes: the name is of %q, want %q", c.what, got, c.want)
		}
		if err := s.Settle(); err != nil {
			t.Error(err)
		}
		wantNothingOpen(t, next)
	}
}

// meanwhile lets another process do something, until it is done or waits for the lock of records.
func meanwhile(t *testing.T, done *sync.WaitGroup, dir string, do func()) {
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "images"), &st); err != nil {
		t.Error(err)
		return
	}
	over := make(chan struct{})
	done.Go(func() {
		defer close(over)
		do()
	})
	for {
		select {
		case <-over:
			return
		default:
		}
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Error(err)
			return
		}
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, "-> FLOCK") && strings.Contains(line, fmt.Sprintf(":%d ", st.Ino)) {
				return
			}
		}
		runtime.Gosched()
	}
}

// TestEditing removes, pins and forgets an image while another writes its record.
func TestEditing(t *testing.T) {
	t.Parallel()
	b := func() *bundle { return bundleOf(t, layerOf(t, file("a", "A"))) }
	id := digestOf(b().config)
	var do func(*Store)
	var done sync.WaitGroup
	s := newStore(t, func(c *Config) {
		c.test.faults = func(_, path string) error {
			if other := do; other != nil && path == filepath.Join(c.Dir, "images", hexOf(id)+".json") {
				do = nil
				process := reopen(t, c.Dir, hooks{})
				meanwhile(t, &done, c.Dir, func() { other(process) })
			}
			return nil
		}
	})
	settle := func(other func(*Store)) {
		t.Helper()
		do = other
		if err := s.Settle(); err != nil {
			t.Error(err)
		}
		done.Wait()
	}
	pullLater(t, s, b(), "x")
	settle(func(other *Store) {
		if err := other.Remove(t.Context(), "x"); err != nil {
			t.Error(err)
		}
	})
	wantNoImage(t, s, id)
	pullLater(t, s, b(), "x")
	settle(func(other *Store) {
		release, err := other.share()
		if err != nil {
			t.Error(err)
			return
		}
		defer release()
		if _, err := other.ingest(t.Context(), b(), []string{"x"}, true); err != nil {
			t.Error(err)
		}
	})
	im, err := s.Get(t.Context(), "x")
	if err != nil || !im.Pinned {
		t.Errorf("pinned while it was settled: %v, %v", im, err)
	}
	if !s.settled(id) {
		t.Error("added again while it was settled: a power cut would take what was on the disk")
	}
	wantNothingOpen(t, s)
}

// TestForgottenTwice boots with two processes, of which one pulls again what the other is forgetting.
func TestForgottenTwice(t *testing.T) {
	t.Parallel()
	b := func() *bundle { return bundleOf(t, layerOf(t, file("a", "A"))) }
	s := newStore(t, func(c *Config) { c.test.boot = "this" })
	pullLater(t, s, b(), "x")
	var first sync.Once
	var done sync.WaitGroup
	reopen(t, s.dir, hooks{boot: "next", faults: func(string, string) error {
		first.Do(func() {
			meanwhile(t, &done, s.dir, func() {
				other, err := Open(Config{Dir: s.dir, test: hooks{boot: "next"}}, newLog(t))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := addLater(t.Context(), other, b(), "x"); err != nil {
					t.Error(err)
				}
				if err := other.Settle(); err != nil {
					t.Error(err)
				}
			})
		})
		return nil
	}})
	done.Wait()
	wantImage(t, reopen(t, s.dir, hooks{boot: "next"}), "x", "a = A")
	if err := s.Settle(); err != nil {
		t.Error(err)
	}
	wantNothingOpen(t, s)
}

// TestSites counts descriptors: of pulls that bring nothing or fail none is left, of others until Settle.
func TestSites(t *testing.T) {
	t.Parallel()
	var committing func()
	s := newStore(t, func(c *Config) {
		c.test.faults = func(what, path string) error {
			if committing != nil && what == "rename" && filepath.Dir(path) == filepath.Join(c.Dir, "images") {
				committing()
			}
			return nil
		}
	})
	open := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.sites)
	}
	b := bundleOf(t, layerOf(t, file("a", "A")))
	committing = func() {
		if open() != 1 {
			t.Error("Settle can see the image, and not where its layers were made")
		}
	}
	pullLater(t, s, b, "x")
	committing = nil
	pullLater(t, s, b, "x", "y")
	if n := open(); n != 1 {
		t.Errorf("%d sites of one pull that brought anything", n)
	}
	broken := bundleOf(t, layerOf(t, file("b", "B")), layerOf(t, file("c", "C")))
	for _, cause := range []error{context.Canceled, unix.EIO} {
		broken.layers[1].open = func(context.Context) (io.ReadCloser, error) { return nil, cause }
		for range 5 {
			if _, err := addLater(t.Context(), s, broken, "z"); !errors.Is(err, cause) {
				t.Error(err)
			}
		}
	}
	if n := open(); n > 2 { // the first layer may have been whole when the second failed
		t.Errorf("%d sites are open after pulls that failed", n)
	}
	if err := s.Settle(); err != nil {
		t.Error(err)
	}
	wantNothingOpen(t, s)
}

// TestTwoSweeps has several processes remove the same.
func TestTwoSweeps(t *testing.T) {
	t.Parallel()
	for range 20 {
		dir := filepath.Join(t.TempDir(), "trash")
		for i := range 100 {
			if err := os.MkdirAll(filepath.Join(dir, fmt.Sprint(i), "a/b/c"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				if err := discard([]string{dir}); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}

// TestManyProcesses has several processes add, remove, name, mount and settle the same images at once. Whatever is there is whole, and
// it is the same after a boot.
func TestManyProcesses(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	layers := [][]byte{layerOf(t, file("0", "0")), layerOf(t, file("1", "1")), layerOf(t, file("2", "2"))}
	holds := []string{"0 = 0", "1 = 1", "2 = 2"}
	var all sync.WaitGroup
	for p := range 4 {
		process := reopen(t, s.dir, hooks{})
		all.Go(func() {
			for i := range 60 {
				n := 1 + rand.IntN(len(layers))
				name := fmt.Sprintf("%d", n)
				key := fmt.Sprintf("%d-%d", p, i)
				var err error
				switch rand.IntN(7) {
				case 0, 1:
					_, err = addLater(t.Context(), process, bundleOf(t, layers[:n]...), name, "last")
				case 2:
					err = process.Settle()
				case 3:
					err = process.Remove(t.Context(), name)
				case 4:
					_, err = process.Prune(t.Context())
				case 5:
					err = process.Tag(t.Context(), name, "example.org/tag:1")
				case 6:
					var root string
					if root, err = process.Mount(t.Context(), name, key); err == nil {
						wantListing(t, root, holds[:n]...)
						err = process.Unmount(t.Context(), key)
					}
				}
				if err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
			if err := process.Settle(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	before, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next := reopen(t, s.dir, hooks{boot: "the next"})
	after, err := next.List(t.Context())
	if err != nil || len(before) != len(after) {
		t.Errorf("%d images, after a boot %d, %v", len(before), len(after), err)
	}
	for _, im := range after {
		wantImage(t, next, im.ID, holds[:len(im.Layers)]...)
		i := slices.IndexFunc(before, func(b *Image) bool { return b.ID == im.ID })
		if i < 0 || !slices.Equal(before[i].Tags, im.Tags) {
			t.Errorf("image of %d layers has names %v", len(im.Layers), im.Tags)
		}
	}
	wantNothingOpen(t, s)
}
