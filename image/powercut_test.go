package image

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux/rmtree"
)

// inode is a file as it is on disk, or will be.
type inode struct {
	mode   uint32 // with the kind
	uid    uint32
	gid    uint32
	dev    uint64
	data   string // contents or link
	xattrs map[string]string
	names  map[string]fileID // of a directory
}

// fileID tells files apart, also those that got the number of one that is gone.
type fileID struct {
	ino  uint64
	born unix.StatxTimestamp
}

// disk is what of a folder has come to the disk: file systems may keep
// everything else in memory, and write what they like of it in any order.
//
// Syncing a file makes its contents durable, not its name; syncing a directory
// its names, not what they stand for.
type disk struct {
	root    string
	durable map[fileID]*inode
}

func newDisk(root string) *disk { return &disk{root: root, durable: map[fileID]*inode{}} }

// look reads a file as it is now, with its names if it is a directory.
func look(path string) (fileID, *inode, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return fileID{}, nil, err
	}
	id := fileID{st.Ino, st.Btime}
	n := &inode{mode: uint32(st.Mode), uid: st.Uid, gid: st.Gid, dev: unix.Mkdev(st.Rdev_major, st.Rdev_minor), xattrs: map[string]string{}}
	buf := make([]byte, 64<<10)
	if size, err := unix.Llistxattr(path, buf); err == nil {
		for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:size]), "\x00"), "\x00") {
			value := make([]byte, 64<<10)
			if size, err := unix.Lgetxattr(path, name, value); err == nil {
				n.xattrs[name] = string(value[:size])
			}
		}
	}
	switch n.mode & unix.S_IFMT {
	case unix.S_IFREG:
		b, err := os.ReadFile(path)
		n.data = string(b)
		return id, n, err
	case unix.S_IFLNK:
		to, err := os.Readlink(path)
		n.data = to
		return id, n, err
	case unix.S_IFDIR:
		here := st
		n.names = map[string]fileID{}
		entries, err := os.ReadDir(path)
		for _, e := range entries {
			var st unix.Statx_t
			if unix.Statx(unix.AT_FDCWD, filepath.Join(path, e.Name()), unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO|unix.STATX_BTIME, &st) != nil {
				continue
			}
			if st.Dev_major == here.Dev_major && st.Dev_minor == here.Dev_minor { // no mount point
				n.names[e.Name()] = fileID{st.Ino, st.Btime}
			}
		}
		return id, n, err
	}
	return id, n, nil
}

// sync makes durable what a call of sync(2)'s family does.
func (d *disk) sync(t *testing.T, what, path string) {
	t.Helper()
	var err error
	switch what {
	case "sync file system":
		err = d.syncAll(d.root)
	case "sync file", "sync directory":
		id, n, lookErr := look(path)
		d.durable[id], err = n, lookErr
		for name, of := range n.names {
			if d.durable[of] == nil { // it has a number, and no more
				_, blank, lookErr := look(filepath.Join(path, name))
				err = errors.Join(err, lookErr)
				blank.data, blank.names, blank.xattrs = "", nil, nil
				d.durable[of] = blank
			}
		}
	}
	if err != nil {
		t.Fatalf("%s %s: %v", what, path, err)
	}
}

func (d *disk) syncAll(path string) error {
	id, n, err := look(path)
	if err != nil {
		return err
	}
	d.durable[id] = n
	for name := range n.names {
		if err := d.syncAll(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// restore makes a folder of what is durable below a file.
func (d *disk) restore(id fileID, to string) error {
	n := d.durable[id]
	if n == nil {
		return nil
	}
	if err := n.make(to); err != nil {
		return err
	}
	for name, of := range n.names {
		if err := d.restore(of, filepath.Join(to, name)); err != nil {
			return err
		}
	}
	return nil
}

func (n *inode) make(path string) (err error) {
	switch n.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.Mkdir(path, 0o700)
	case unix.S_IFREG:
		err = os.WriteFile(path, []byte(n.data), 0o600)
	case unix.S_IFLNK:
		return os.Symlink(n.data, path)
	default:
		err = unix.Mknod(path, n.mode, int(n.dev))
	}
	for name, value := range n.xattrs {
		err = errors.Join(err, unix.Lsetxattr(path, name, []byte(value), 0))
	}
	return errors.Join(err, os.Lchown(path, int(n.uid), int(n.gid)), unix.Chmod(path, n.mode&0o7777))
}

// lost are ways in which the power can go: what becomes of what is not durable.
var lost = []struct {
	what string
	keep func(d *disk, to string) error
}{
	{"all of it", func(d *disk, to string) error {
		id, _, err := look(d.root)
		return errors.Join(err, d.restore(id, to))
	}},
	{"none of it", func(d *disk, to string) error { return d.copy(d.root, to, nothing) }},
	{"half of contents", func(d *disk, to string) error { return d.copy(d.root, to, func(string) bool { return true }) }},
	{"half of what is not records'", func(d *disk, to string) error {
		return d.copy(d.root, to, func(path string) bool { return filepath.Ext(path) != ".json" })
	}},
}

func nothing(string) bool { return false }

// copy copies a folder as it is now. Those files that are not durable as they are
// have half their contents of which halved says so.
func (d *disk) copy(from, to string, halved func(path string) bool) error {
	id, n, err := look(from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if was := d.durable[id]; halved(from) && (was == nil || was.data != n.data) {
		n.data = n.data[:len(n.data)/2]
		if n.mode&unix.S_IFMT == unix.S_IFLNK {
			return nil
		}
	}
	if err := n.make(to); err != nil {
		return err
	}
	for name := range n.names {
		if err := d.copy(filepath.Join(from, name), filepath.Join(to, name), halved); err != nil {
			return err
		}
	}
	return nil
}

// cut is a Store whose power goes at every step.
type cut struct {
	t     *testing.T
	disk  *disk
	dir   string // for what is left
	steps int

	// images are what must be there, by name, and what they hold. Those of maybe
	// may be there.
	images, maybe map[string][]string
	// names are what each of these names may hold, now those that it holds when the process is killed and the power stays.
	names, now map[string][][]string
	// again, when set, adds images of maybe once more.
	again func(*Store) []*Image

	mu sync.Mutex
}

// fault is called before each step of the Store: the power may go here, or not
// at all, and then the step is done.
func (c *cut) fault(what, path string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.check(what + " " + path)
	c.disk.sync(c.t, what, path)
	return nil
}

// check cuts the power in each way, in a short run in turns, and opens what is
// left as after a boot.
func (c *cut) check(at string) {
	c.steps++
	for i, l := range lost {
		if testing.Short() && i != c.steps%len(lost) {
			continue
		}
		dir := filepath.Join(c.dir, fmt.Sprintf("%d %s", c.steps, l.what))
		if err := l.keep(c.disk, dir); err != nil {
			c.t.Fatalf("before %s, losing %s: %v", at, l.what, err)
		}
		if c.again != nil {
			c.addAgain(dir, fmt.Sprintf("added again after a power cut before %s, losing %s", at, l.what))
			if err := errors.Join(rmtree.Remove(dir), l.keep(c.disk, dir)); err != nil {
				c.t.Fatal(err)
			}
		}
		c.open(dir, fmt.Sprintf("power cut before %s, losing %s", at, l.what))
		if err := os.RemoveAll(dir); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *cut) open(dir, after string) {
	t := c.t
	s, err := Open(Config{Dir: dir, test: hooks{boot: "the next"}}, newLog(t))
	if err != nil {
		t.Fatalf("%s: %v", after, err)
	}
	sweepNow(t, s)
	if left, err := os.ReadDir(s.path("tmp")); err != nil || len(left) != 0 {
		t.Errorf("%s: left in tmp: %v, %v", after, left, err)
	}
	if left, err := os.ReadDir(s.path("snapshots")); err != nil || len(left) != 0 {
		t.Errorf("%s: left in snapshots: %v, %v", after, left, err)
	}
	images, err := s.List(t.Context())
	if err != nil {
		t.Fatalf("%s: %v", after, err)
	}
	layers, have := map[string]bool{}, map[string]bool{}
	for _, im := range images {
		for _, l := range im.Layers {
			layers[hexOf(l.Chain)] = true
			if has, settled := s.hasLayer(l.Chain); !has || !settled {
				t.Errorf("%s: image %v relies on layer %s, which need not be whole", after, im.Tags, l.Chain)
			}
		}
		for _, name := range im.Tags {
			have[name] = true
		}
		if _, err := s.Usage(); err != nil {
			t.Errorf("%s: %v", after, err)
		}
		root, err := s.Mount(t.Context(), im.ID, "check")
		if err != nil {
			t.Errorf("%s: image %v: %v", after, im.Tags, err)
			continue
		}
		got := listing(t, root)
		known := false
		for _, want := range slices.Concat(slices.Collect(maps.Values(c.images)), slices.Collect(maps.Values(c.maybe))) {
			known = known || slices.Equal(got, want)
		}
		if !known {
			t.Errorf("%s: image %v holds %q", after, im.Tags, got)
		}
		for _, name := range im.Tags {
			if may := c.names[name]; may != nil && !slices.ContainsFunc(may, func(want []string) bool { return slices.Equal(got, want) }) {
				t.Errorf("%s: %s holds %q", after, name, got)
			}
		}
		if err := s.Unmount(t.Context(), "check"); err != nil {
			t.Fatal(err)
		}
	}
	for name := range c.images {
		if !have[name] {
			t.Errorf("%s: image %s is gone", after, name)
		}
	}
	entries, err := os.ReadDir(s.path("layers"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if i, err := e.Info(); err != nil || !layers[e.Name()] || i.Mode().Perm() != 0o711 {
			t.Errorf("%s: layer %s (%v) is left, %v", after, e.Name(), i.Mode(), err)
		}
	}
}

// addAgain opens what is left while somebody holds off the sweep, and adds images of which some layers may be left.
func (c *cut) addAgain(dir, after string) {
	release, err := (&Store{dir: dir}).share()
	if err != nil {
		c.t.Fatal(err)
	}
	defer release()
	s, err := Open(Config{Dir: dir, test: hooks{boot: "the next"}}, newLog(c.t))
	if err != nil {
		c.t.Fatalf("%s: %v", after, err)
	}
	for _, im := range c.again(s) {
		root, err := s.Mount(c.t.Context(), im.ID, "check")
		if err != nil {
			c.t.Fatalf("%s: %v", after, err)
		}
		if got := listing(c.t, root); !slices.ContainsFunc(slices.Collect(maps.Values(c.maybe)), func(want []string) bool { return slices.Equal(got, want) }) {
			c.t.Errorf("%s: an image holds %q", after, got)
		}
		if err := s.Unmount(c.t.Context(), "check"); err != nil {
			c.t.Fatal(err)
		}
	}
	if err := s.Settle(); err != nil {
		c.t.Errorf("%s: %v", after, err)
	}
}

// kill leaves a folder as a process does that is killed. Another one in the same boot has all that was there, and settles it.
func (c *cut) kill(at string) {
	dir := filepath.Join(c.dir, fmt.Sprintf("%d killed", c.steps))
	if err := c.disk.copy(c.disk.root, dir, nothing); err != nil {
		c.t.Fatalf("killed before %s: %v", at, err)
	}
	s, err := Open(Config{Dir: dir, test: hooks{boot: "this"}}, newLog(c.t))
	if err == nil {
		err = s.Settle()
	}
	if err != nil {
		c.t.Fatalf("killed before %s: %v", at, err)
	}
	names := c.names
	c.names = c.now
	c.open(dir, "killed before "+at)
	c.names = names
	if err := os.RemoveAll(dir); err != nil {
		c.t.Fatal(err)
	}
}

// sweepNow sweeps, once no child of another test, just forked, has the lock any more.
func sweepNow(t *testing.T, s *Store) {
	t.Helper()
	for again := true; again; again = s.sweepDue.Load() {
		if err := s.sweep(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPowerCut cuts the power before every step of a Store's life: an image is
// whole or not there, and what was acknowledged is there.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	base := layerOf(t, file("bin/", ""), file("bin/a", "AAAA"), file("etc/", ""), file("etc/x", "xxxx"), symlink("lib", "usr/lib"))
	top := layerOf(t, file("etc/.wh.x", ""), file("etc/y", "yyyy"), file("bin/", ""), file("bin/.wh..wh..opq", ""), file("bin/b", "BBBB"))
	third := layerOf(t, file("var/", ""), file("var/data", strings.Repeat("data", 100)), hardlink("var/link", "var/data"))
	one := []string{"bin/", "bin/a = AAAA", "etc/", "etc/x = xxxx", "lib -> usr/lib"}
	three := []string{"bin/", "bin/b = BBBB", "etc/", "etc/y = yyyy", "lib -> usr/lib", "var/",
		"var/data = " + strings.Repeat("data", 100), "var/link = " + strings.Repeat("data", 100)}
	c := &cut{t: t, dir: t.TempDir(), images: map[string][]string{}, maybe: map[string][]string{}}
	s := newStore(t, func(cfg *Config) {
		c.disk = newDisk(cfg.Dir)
		cfg.test = hooks{boot: "this", faults: func(what, path string) error { return c.fault(what, path) }}
	})
	c.disk.sync(t, "sync file system", s.dir)

	c.maybe["one"] = one
	if _, err := ingest(t, s, bundleOf(t, base), "one"); err != nil {
		t.Fatal(err)
	}
	c.images["one"] = one
	c.maybe["three"] = three
	if _, err := ingest(t, s, bundleOf(t, base, top, third), "three"); err != nil {
		t.Fatal(err)
	}
	c.images["three"] = three
	c.check("anything else")
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"mount", func() error { _, err := s.Mount(t.Context(), "three", "k"); return err }},
		{"write", func() error { return os.WriteFile(filepath.Join(s.Rootfs("k"), "new"), []byte("new"), 0o600) }},
		{"remove", func() error {
			delete(c.images, "one")
			return s.Remove(t.Context(), "one")
		}},
		{"unmount", func() error { return s.Unmount(t.Context(), "k") }},
		{"prune", func() error {
			delete(c.images, "three")
			_, err := s.Prune(t.Context())
			return err
		}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		c.mu.Lock()
		c.check("what comes after " + step.name)
		c.mu.Unlock()
	}
	t.Logf("the power went at %d steps, in %d ways", c.steps, len(lost))
}

// TestAgain adds an image that is there: it stays settled.
func TestAgain(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	b := bundleOf(t, layerOf(t, file("a", "A")))
	im, err := ingest(t, s, b, "x")
	if err != nil {
		t.Fatal(err)
	}
	release, err := s.share()
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := s.ingest(t.Context(), b, []string{"x", "y"}, false); err != nil {
		t.Fatal(err)
	}
	if !s.settled(im.ID) {
		t.Error("a power cut would take what was on the disk")
	}
}

// TestFaultAtEveryStep lets each step of adding an image fail, as a disk that is
// full or broken does: the Store is as before, and the next attempt succeeds.
func TestFaultAtEveryStep(t *testing.T) {
	t.Parallel()
	b := func() *bundle {
		return bundleOf(t, layerOf(t, file("a", "1"), file("b/", "")), layerOf(t, file(".wh.a", ""), file("b/c", "2")))
	}
	var mu sync.Mutex
	var steps, fail int
	s := newStore(t, func(cfg *Config) {
		cfg.test.faults = func(what, path string) error {
			mu.Lock()
			defer mu.Unlock()
			if steps++; steps == fail {
				return unix.EIO
			}
			return nil
		}
	})
	if _, err := ingest(t, s, bundleOf(t, layerOf(t, file("x", ""))), "before"); err != nil {
		t.Fatal(err)
	}
	before := state(t, s.dir)
	for fail = 1; ; fail++ {
		steps = 0
		_, err := ingest(t, s, b(), "x")
		if err == nil && steps < fail {
			break
		}
		if err != nil && !errors.Is(err, unix.EIO) {
			t.Fatalf("step %d: %v", fail, err)
		}
		steps = fail // no more faults
		if err == nil {
			t.Fatalf("the error of step %d was lost", fail)
		}
		sweepNow(t, s)
		if images, _ := s.List(t.Context()); len(images) > 1 {
			// The last steps only make durable what is there already.
			if err := s.Remove(t.Context(), "x"); err != nil && !errors.Is(err, ErrNotFound) {
				t.Fatal(err)
			}
			for _, im := range images {
				if len(im.Tags) == 0 {
					_ = s.Remove(t.Context(), im.ID)
				}
			}
			sweepNow(t, s)
		}
		wantState(t, s.dir, before)
	}
	if fail < 10 {
		t.Errorf("only %d steps", fail)
	}
	fail = 0
	root, err := s.Mount(t.Context(), "x", "k")
	if err != nil {
		t.Fatal(err)
	}
	wantListing(t, root, "b/", "b/c = 2")
}
