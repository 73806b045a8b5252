package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	for i := range 4 {
		fails, byAnother := 1+i/2, i%2 == 1
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
		process := s
		if byAnother {
			process = reopen(t, s.dir, s.hooks)
		}
		syncs = 0
		if err := process.Settle(); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), lost.ID) {
			t.Errorf("sync %d failed: %v", fails, err)
		}
		wantNoImage(t, s, lost.ID)
		wantImage(t, s, "name", "a = A")
		syncs = 10
		if byAnother {
			if err := s.Settle(); err != nil { // of its own errors there were none
				t.Error(err)
			}
		}
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

// TestDiskTakesNothing has a disk from which files can be removed, and no more, from Settle's first sync on: what was durable has its
// name again, also for others and after a boot, and what was not is gone.
func TestDiskTakesNothing(t *testing.T) {
	t.Parallel()
	full := false
	s := newStore(t, func(c *Config) {
		c.test.faults = func(what, path string) error {
			if full && what != "remove" {
				return unix.ENOSPC
			}
			return nil
		}
	})
	if _, err := ingest(t, s, bundleOf(t, layerOf(t, file("a", "A"))), "name"); err != nil {
		t.Fatal(err)
	}
	lost := pullLater(t, s, bundleOf(t, layerOf(t, file("b", "B"))), "name", "new")
	full = true
	if err := s.Settle(); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), lost.ID) {
		t.Error(err)
	}
	if has, _ := s.hasLayer(lost.Layers[0].Chain); has {
		t.Error("the layer is taken for whole")
	}
	full = false
	for _, p := range []*Store{s, reopen(t, s.dir, hooks{}), reopen(t, s.dir, hooks{boot: "the next"})} {
		wantNoImage(t, p, lost.ID)
		wantNoImage(t, p, "new")
		wantImage(t, p, "name", "a = A")
		images, err := p.List(t.Context())
		if err != nil || len(images) != 1 || !slices.Equal(images[0].Tags, []string{"name"}) {
			t.Error(images, err)
		}
	}
	if err := s.Settle(); err != nil {
		t.Error(err)
	}
	if err := s.Remove(t.Context(), "name"); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(s.path("names")); err != nil || len(left) != 0 {
		t.Errorf("names %v are left, %v", left, err)
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

// TestPowerCutLater cuts the power, and kills the process, before every step of pulls that give a name to another image, and of Settle.
func TestPowerCutLater(t *testing.T) {
	t.Parallel()
	base, top, other := layerOf(t, file("a", "AAAA")), layerOf(t, file("b", "BBBB")), layerOf(t, file("c", "CCCC"))
	one, two, three := []string{"a = AAAA"}, []string{"a = AAAA", "b = BBBB"}, []string{"a = AAAA", "c = CCCC"}
	c := &cut{t: t, dir: t.TempDir(), maybe: map[string][]string{"one": one, "two": two, "three": three}}
	s := newStore(t, func(cfg *Config) {
		c.disk = newDisk(cfg.Dir)
		cfg.test = hooks{boot: "this", faults: func(what, path string) error {
			if c.images == nil {
				c.disk.sync(t, what, path)
				return nil
			}
			c.mu.Lock()
			c.kill(what + " " + path)
			c.mu.Unlock()
			return c.fault(what, path)
		}}
	})
	c.disk.sync(t, "sync file system", s.dir)
	c.again = func(s *Store) []*Image {
		return []*Image{pullLater(t, s, bundleOf(t, base, top)), pullLater(t, s, bundleOf(t, base, other))}
	}
	if _, err := ingest(t, s, bundleOf(t, base), "name"); err != nil {
		t.Fatal(err)
	}
	c.images = map[string][]string{"name": one}
	for _, step := range []struct {
		what       string
		do         func() error
		names, now [][]string
	}{
		{"pull two", func() error { _, err := addLater(t.Context(), s, bundleOf(t, base, top), "name"); return err }, [][]string{one}, [][]string{one, two}},
		{"nothing", func() error { return nil }, [][]string{one}, [][]string{two}},
		{"pull three", func() error { _, err := addLater(t.Context(), s, bundleOf(t, base, other), "name"); return err }, [][]string{one}, [][]string{two, three}},
		{"settle", s.Settle, [][]string{one, three}, [][]string{three}},
		{"nothing", func() error { return nil }, [][]string{three}, [][]string{three}},
		{"pull two again", func() error { _, err := addLater(t.Context(), s, bundleOf(t, base, top), "name"); return err }, [][]string{three, two}, [][]string{three, two}},
		{"settle again", s.Settle, [][]string{two}, [][]string{two}},
	} {
		c.names, c.now = map[string][][]string{"name": step.names}, map[string][][]string{"name": step.now}
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.what, err)
		}
		c.mu.Lock()
		if step.what == "nothing" {
			c.kill("anything else")
			c.check("anything else")
		}
		c.mu.Unlock()
	}
	t.Logf("the power went, and the process, at %d steps", c.steps)
}

// TestUnsettled uses an image before Settle. In another boot it is not there, its name is its predecessor's again, and what is left
// of its layers, spoilt, is not used.
func TestUnsettled(t *testing.T) {
	t.Parallel()
	base, top := layerOf(t, file("a", "A")), layerOf(t, file("b", "B"))
	for _, settle := range []bool{false, true} {
		dir := t.TempDir()
		open := func(boot string) *Store {
			s, err := Open(Config{Dir: dir, test: hooks{boot: boot}}, newLog(t))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		check := func(s *Store, name string, want ...string) {
			t.Helper()
			root, err := s.Mount(t.Context(), name, "k")
			if err != nil {
				t.Fatal(err)
			}
			wantListing(t, root, want...)
			if err := s.Unmount(t.Context(), "k"); err != nil {
				t.Fatal(err)
			}
		}
		s := open("this")
		if _, err := ingest(t, s, bundleOf(t, base), "name"); err != nil {
			t.Fatal(err)
		}
		release, err := s.share() // for all the test: nothing is swept
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		if _, err := s.ingest(t.Context(), bundleOf(t, base, top), []string{"name"}, false); err != nil {
			t.Fatal(err)
		}
		check(s, "name", "a = A", "b = B")
		s = open("this") // another process, the first was killed
		check(s, "name", "a = A", "b = B")
		if settle {
			if err := s.Settle(); err != nil {
				t.Fatal(err)
			}
			check(open("next"), "name", "a = A", "b = B")
			continue
		}
		torn, err := filepath.Glob(filepath.Join(dir, "layers", "*", "fs", "b"))
		if err != nil || len(torn) != 1 {
			t.Fatal(torn, err)
		}
		if err := os.Truncate(torn[0], 0); err != nil {
			t.Fatal(err)
		}
		s = open("next")
		check(s, "name", "a = A")
		if images, err := s.List(t.Context()); err != nil || len(images) != 1 {
			t.Error(images, err)
		}
		if _, err := ingest(t, s, bundleOf(t, base, top), "again"); err != nil {
			t.Fatal(err)
		}
		check(open("the one after"), "again", "a = A", "b = B")
		check(s, "name", "a = A")
	}
}
