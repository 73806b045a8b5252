package image

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/rmtree"
)

var (
	// ErrNotFound says that no image, or no snapshot, has the name given.
	ErrNotFound = errors.New("not found")
	// ErrInvalid says that a reference, an archive or a manifest breaks its
	// format or a limit. Trying again does not help.
	ErrInvalid = errors.New("invalid")
	// ErrUnauthorized says that the registry refused the credentials.
	ErrUnauthorized = errors.New("unauthorized")
)

// Limits bounds what one layer may ask of the disk and of memory.
type Limits struct {
	// Entries is the number of archive entries; 0 means 2,000,000.
	Entries int
	// Bytes is the uncompressed size in bytes; 0 means 128 GiB.
	Bytes int64
	// Manifest is the size in bytes of a manifest or configuration; 0 means 8 MiB.
	Manifest int64
	// Names is what of a layer's names has to be remembered while it is unpacked,
	// in bytes; 0 means 256 MiB. A layer at the bottom needs only its directories'.
	Names int64
	// Free is what unpacking leaves on the file system, in bytes; 0 means 256 MiB.
	Free int64
}

func (l Limits) orDefault() Limits {
	return Limits{
		Entries:  cmp.Or(l.Entries, 2_000_000),
		Bytes:    cmp.Or(l.Bytes, 128<<30),
		Manifest: cmp.Or(l.Manifest, 8<<20),
		Names:    cmp.Or(l.Names, 256<<20),
		Free:     cmp.Or(l.Free, 256<<20),
	}
}

// archive is the size in bytes of a layer's archive: metadata, padding and what
// follows its end come on top.
func (l Limits) archive() int64 { return l.Bytes + int64(l.Entries)*2048 }

// Config says where a Store lives and how it meets registries.
type Config struct {
	// Dir is the store's folder; it is made when missing.
	Dir string
	// Registries is a folder with one folder per registry host, see hosts.go.
	// Empty means that every registry is reached by its name over HTTPS.
	Registries string
	Limits     Limits
	// Copy forgoes overlayfs: every layer and snapshot is a full copy. It is
	// also chosen by itself where the kernel or the folder's file system does
	// not support overlayfs.
	Copy bool

	test hooks
}

// hooks are what tests replace; zero values are as in life.
type hooks struct {
	// faults is called before whatever a crash may come between.
	faults func(what, path string) error
	// boot is the kernel's ID of this boot.
	boot string
	// stall is how long a registry may bring nothing, pause how long the second
	// attempt waits.
	stall, pause time.Duration
}

// Store is a folder of images. All methods may be called at the same time,
// also from several processes on the same folder.
type Store struct {
	dir        string
	registries string
	limits     Limits
	overlay    bool
	log        *slog.Logger

	hooks

	// sweepDue is set when a sweep was put off because someone was adding.
	sweepDue atomic.Bool
	unsettled
}

// Open makes the folder's layout, tries overlayfs once, and removes what
// interrupted operations left, unless another process is at work. There is
// nothing to close, but what PullOptions.Later leaves to Settle.
func Open(cfg Config, log *slog.Logger) (*Store, error) {
	if !filepath.IsAbs(cfg.Dir) {
		return nil, fmt.Errorf("open image store %q: the path must be absolute", cfg.Dir)
	}
	s := &Store{dir: cfg.Dir, registries: cfg.Registries, limits: cfg.Limits.orDefault(), log: log, hooks: cfg.test}
	for _, d := range []string{"", "images", "names", "layers", "snapshots", "tmp"} {
		// Searchable for others: a container in a user namespace must reach
		// its root file system below here.
		if err := os.MkdirAll(s.path(d), 0o711); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	if !cfg.Copy {
		release, err := s.share()
		if err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
		err = s.tryOverlay()
		release()
		if err != nil {
			log.Warn("overlayfs does not work here, layers and root file systems are copied", "dir", cfg.Dir, "err", err)
		}
		s.overlay = err == nil
	}
	s.stall, s.pause = cmp.Or(s.stall, defaultStall), cmp.Or(s.pause, firstPause)
	if s.boot == "" {
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
		s.boot = strings.TrimSpace(string(boot))
	}
	if err := s.forget(); err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	if err := s.sweep(); err != nil { // it is tried again, and nothing depends on it
		log.Warn("image store not swept", "err", err)
	}
	return s, nil
}

// Dir is the store's folder.
func (s *Store) Dir() string { return s.dir }

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// share takes the lock for adding. It waits only while another process sweeps,
// which renames a few directories.
func (s *Store) share() (release func(), err error) {
	f, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return func() {
		f.Close()
		if s.sweepDue.Load() {
			if err := s.sweep(); err != nil {
				s.log.Warn("image store not swept", "err", err)
			}
		}
	}, nil
}

func (s *Store) lock(how int) (*os.File, error) {
	return flock(s.path("lock"), os.O_CREATE|os.O_RDWR, how)
}

// edit takes the lock of records, for a moment: whoever writes one back that he read holds it, so that no removal, pin or name of
// somebody else's is lost in between.
func (s *Store) edit() (done func(), err error) {
	f, err := flock(s.path("images"), unix.O_DIRECTORY, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}

func flock(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock image store: %w", err)
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock image store: %w", err)
		}
	}
}

// sweep removes layers that neither an image nor a snapshot refers to, and
// what interrupted operations left in tmp/. When somebody is adding it is put off
// until that is done.
func (s *Store) sweep() error {
	lock, err := s.lock(unix.LOCK_EX | unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		s.sweepDue.Store(true)
		return nil
	}
	if err != nil {
		return err
	}
	s.sweepDue.Store(false)
	trash, err := s.unreachable()
	lock.Close()
	if err := errors.Join(err, discard(trash)); err != nil {
		return fmt.Errorf("sweep image store: %w", err)
	}
	return nil
}

// discard removes directories in tmp/, without the lock: others may be at it too, and what one has removed is missing in the middle of the other's.
func discard(trash []string) (err error) {
	for _, t := range trash {
		e := rmtree.Remove(t)
		for errors.Is(e, fs.ErrNotExist) {
			e = rmtree.Remove(t)
		}
		err = errors.Join(err, e)
	}
	return err
}

// unreachable moves unreferenced layers to tmp/ and returns what can be deleted
// without the lock. Preconditions: the lock is held exclusively.
func (s *Store) unreachable() (trash []string, err error) {
	old, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return nil, err
	}
	for _, e := range old { // all of operations that are over: they hold the lock
		trash = append(trash, s.path("tmp", e.Name()))
	}
	if trash, err = s.unrecorded(trash); err != nil {
		return trash, err
	}
	live, used, err := s.liveLayers()
	if err != nil {
		// An unreadable record may be all that keeps a layer: keep everything.
		return trash, err
	}
	layers, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return trash, err
	}
	for _, e := range layers {
		chain, _, aside := strings.Cut(e.Name(), "-") // see place
		if used[chain] || live[chain] && !aside {
			continue
		}
		if trash, err = s.trash(trash, s.path("layers", e.Name())); err != nil {
			return trash, err
		}
	}
	return trash, nil
}

// unrecorded moves snapshots that were never finished to tmp/.
func (s *Store) unrecorded(trash []string) ([]string, error) {
	snapshots, err := os.ReadDir(s.path("snapshots"))
	if err != nil {
		return trash, err
	}
	for _, e := range snapshots {
		_, err := os.Lstat(s.path("snapshots", e.Name(), "snapshot.json"))
		if !errors.Is(err, fs.ErrNotExist) || isMountPoint(s.Rootfs(e.Name())) {
			continue
		}
		if trash, err = s.trash(trash, s.path("snapshots", e.Name())); err != nil {
			return trash, err
		}
	}
	return trash, nil
}

// trash moves a directory to tmp/.
func (s *Store) trash(to []string, dir string) ([]string, error) {
	bin, err := s.temp("trash")
	if err != nil {
		return to, err
	}
	return append(to, bin), s.rename(dir, filepath.Join(bin, filepath.Base(dir)))
}

// liveLayers are the sets of chain IDs (hex) that images have, and that snapshots use.
func (s *Store) liveLayers() (live, used map[string]bool, err error) {
	live = map[string]bool{}
	images, err := s.readImages()
	if err != nil {
		return nil, nil, err
	}
	for _, m := range images {
		for _, l := range m.Layers {
			live[hexOf(l.Chain)] = true
		}
	}
	used, err = s.usedLayers()
	return live, used, err
}

func (s *Store) usedLayers() (map[string]bool, error) {
	used := map[string]bool{}
	snapshots, err := s.Snapshots()
	if err != nil {
		return nil, err
	}
	for _, sn := range snapshots {
		for _, l := range sn.Layers {
			used[hexOf(l)] = true
		}
	}
	return used, nil
}

// temp makes a private directory in tmp/. The caller holds the lock and removes
// the directory.
func (s *Store) temp(what string) (string, error) {
	return os.MkdirTemp(s.path("tmp"), what+"-")
}

// inSite lets do make layers in a private directory in tmp/, which is removed after it.
func (s *Store) inSite(do func(*site) error) error {
	path, err := s.temp("layers")
	if err != nil {
		return err
	}
	defer os.RemoveAll(path)
	dir, err := os.Open(path) // before anything is written
	if err != nil {
		return err
	}
	// Layers are unpacked side by side. All in one block group of ext4, each new file would have to look for a free inode among
	// those of the others, and without a journal also among what was deleted in the last minutes: up to 30 times as long.
	linux.SpreadBelow(int(dir.Fd()))
	in := &site{dir: dir}
	err = do(in)
	if len(in.made) == 0 { // else it is Settle's
		dir.Close()
	}
	return err
}
