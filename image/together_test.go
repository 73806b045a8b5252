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
