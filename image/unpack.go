package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// parallelLayers is how many layers of an image are fetched and unpacked at
// once. Each takes two rings of blocks (see ahead) and a decoder's window.
const parallelLayers = 4

// layer is one layer of an image that is being added.
type layer struct {
	blob
	// diffID may be empty where the layer is made here: it is then what comes out.
	diffID, chain string
	below         []*layer // from the bottom up

	// dir holds fs: a private directory, or the layer's place once it is kept.
	dir  string
	used usage
	// done is closed when the layer, and all that are below, are whole.
	done chan struct{}
	// kept layers are in their places.
	kept bool
}

// layersOf lists a bundle's layers, those that the Store has as done. The
// others are to be made in site.
func (s *Store) layersOf(blobs []blob, diffIDs []string, site string) []*layer {
	var all []*layer
	parent := ""
	for i, b := range blobs {
		// A name that is new each time: ext4 begins by it to look for a block group, and that of an image just removed is slow (see inSite).
		dir := filepath.Join(site, strconv.Itoa(i)+"-"+filepath.Base(site))
		l := &layer{blob: b, diffID: diffIDs[i], dir: dir, below: all[:i:i], done: make(chan struct{})}
		l.chain = chain(parent, l.diffID)
		parent = l.chain
		if l.kept, _ = s.hasLayer(l.chain); l.kept {
			l.dir = s.layerDir(l.chain)
		}
		all = append(all, l)
	}
	return all
}

// unpack makes the layers that are missing, several at once, each in a
// directory of its own. Those below take their turn first, so that a layer that
// waits for them never keeps them from it. When it fails, layers may be done
// nonetheless.
func (s *Store) unpack(ctx context.Context, layers []*layer) error {
	group, ctx := errgroup.WithContext(ctx)
	turns := make(chan struct{}, parallelLayers)
	for i, l := range layers {
		if !l.kept {
			turns <- struct{}{}
		}
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			if !l.kept {
				over := sync.OnceFunc(func() { <-turns })
				defer over()
				if err := s.unpackLayer(ctx, l, over); err != nil {
					return fmt.Errorf("layer %d of %d, %s: %w", i+1, len(layers), l.title(), err)
				}
			}
			if err := l.await(ctx); err != nil {
				return err
			}
			close(l.done)
			return nil
		})
	}
	return group.Wait()
}

func (l *layer) title() string {
	if l.digest != "" {
		return l.digest
	}
	return l.diffID
}

// await waits for the layers below.
func (l *layer) await(ctx context.Context) error {
	if len(l.below) == 0 {
		return nil
	}
	select {
	case <-l.below[len(l.below)-1].done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// lower lists the directories of the layers below, from the top down.
func (l *layer) lower() []string {
	var dirs []string
	for i := len(l.below) - 1; i >= 0; i-- {
		dirs = append(dirs, l.below[i].fs())
	}
	return dirs
}

func (l *layer) fs() string { return filepath.Join(l.dir, "fs") }

// unpackLayer makes one layer. It calls over when others may have its turn.
func (s *Store) unpackLayer(ctx context.Context, l *layer, over func()) error {
	if most := s.limits.archive(); l.size > most {
		return fmt.Errorf("it has %d bytes, more than %d: %w", l.size, most, ErrInvalid)
	}
	a, err := s.applier(ctx, l)
	if err != nil {
		return err
	}
	defer func() { a.tree.close() }() // of the merged tree in the end
	got, err := s.pour(ctx, l, a)
	if err != nil {
		return err
	}
	if l.diffID == "" {
		l.diffID, l.chain = got, chain("", got)
	}
	if got != l.diffID {
		return fmt.Errorf("it unpacks to %s, the image says %s: %w", got, l.diffID, ErrInvalid)
	}
	over()
	if err := l.await(ctx); err != nil {
		return err
	}
	if len(l.below) > 0 && !a.rooted && s.overlay && a.lower != nil {
		if err := likeRoot(l.lower()[0], l.fs(), idMaps{}); err != nil {
			return err
		}
	}
	l.used, err = a.finish(ctx)
	return err
}

// applier makes the layer's directory and what unpacks into it.
func (s *Store) applier(ctx context.Context, l *layer) (*applier, error) {
	if err := os.Mkdir(l.dir, 0o700); err != nil {
		return nil, err
	}
	if err := os.Mkdir(l.fs(), 0o755); err != nil {
		return nil, err
	}
	if len(l.below) > 0 && !s.overlay {
		if err := l.await(ctx); err != nil {
			return nil, err
		}
		if err := copyTree(ctx, l.lower()[0], l.fs(), idMaps{}); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Open(l.fs(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	a := newApplier(fd, s.limits, len(l.below) > 0)
	a.room = s.room
	a.step = func(name string) error { return s.step("write", filepath.Join(l.fs(), name)) }
	if len(l.below) > 0 && s.overlay {
		a.lower = func() (int, error) { return s.merged(ctx, l, a.rooted) }
	}
	return a, nil
}

// merged returns the root of an overlay of the layer, as far as it is there,
// over those below.
func (s *Store) merged(ctx context.Context, l *layer, rooted bool) (int, error) {
	if err := l.await(ctx); err != nil {
		return -1, err
	}
	o := stack{lower: l.lower(), upper: l.fs(), work: filepath.Join(l.dir, "work")}
	if err := os.Mkdir(o.work, 0o700); err != nil {
		return -1, err
	}
	if !rooted {
		if err := likeRoot(o.lower[0], o.upper, idMaps{}); err != nil {
			return -1, err
		}
	}
	mount, err := o.mount()
	if err != nil {
		return -1, err
	}
	defer unix.Close(mount)
	// The mount lives for as long as this descriptor of its root.
	return unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// pour sends the layer's archive through the stages: fetch and check,
// decompress and check, unpack. It returns the diff ID.
func (s *Store) pour(ctx context.Context, l *layer, a *applier) (diffID string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := l.open(ctx)
	if err != nil {
		return "", err
	}
	defer r.Close()
	archive := check(r, l.blob)
	hash := sha256.New()
	fetched := readAhead(archive)
	err = func() error {
		plain, closePlain, err := decompress(fetched)
		if err != nil {
			return unreadable(err)
		}
		defer closePlain()
		decompressed := readAhead(&boundedReader{ctx: ctx, r: io.TeeReader(plain, hash), left: s.limits.archive()})
		defer decompressed.close()
		if err := a.apply(ctx, decompressed); err != nil {
			return err
		}
		if _, err = io.Copy(io.Discard, decompressed); err != nil {
			return fmt.Errorf("read its archive: %w", unreadable(err))
		}
		return nil
	}()
	fetched.close()
	if err != nil && ctx.Err() == nil {
		// What cannot be read may be something else than what was asked for.
		if wrong := archive.verdict(); wrong != nil {
			err = wrong
		}
	}
	return "sha256:" + hex.EncodeToString(hash.Sum(nil)), err
}

// keep moves layers that are done to their places, and leaves it to Settle to make them durable.
func (s *Store) keep(layers []*layer, from *site) error {
	// Also those that are in their places when another fails: Settle has to hear of all that could not be written.
	defer func() {
		if len(from.made) > 0 {
			s.later(from)
		}
	}()
	var fresh []*layer
	for _, l := range layers {
		if l.kept {
			continue
		}
		fresh = append(fresh, l)
		if err := os.RemoveAll(filepath.Join(l.dir, "work")); err != nil {
			return err
		}
		if err := s.writeQuickly(filepath.Join(l.dir, "layer.json"), layerRecord{DiffID: l.diffID, Used: l.used, Boot: s.boot}); err != nil {
			return err
		}
		if err := os.Chmod(l.dir, 0o711); err != nil {
			return err
		}
	}
	for _, l := range fresh {
		made, err := s.place(l)
		if err != nil {
			return fmt.Errorf("keep layer: %w", err)
		}
		if made {
			from.made = append(from.made, l.chain)
		}
		l.dir, l.kept = s.layerDir(l.chain), true
	}
	return nil
}

// place tells whether it was this one that came to the layer's place. Somebody else's being there already is as good, unless it need not be whole.
func (s *Store) place(l *layer) (made bool, err error) {
	err = s.rename(l.dir, s.layerDir(l.chain))
	if !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err == nil, err
	}
	trash, made, err := s.replace(l)
	return made, errors.Join(err, discard(trash))
}

// replace puts a layer in the place of one that need not be whole, and returns what is to be removed.
func (s *Store) replace(l *layer) (trash []string, made bool, err error) {
	done, err := s.edit()
	if err != nil {
		return nil, false, err
	}
	defer done()
	if has, _ := s.hasLayer(l.chain); has {
		return nil, false, nil
	}
	used, err := s.usedLayers()
	if err != nil {
		return nil, false, err
	}
	place := s.layerDir(l.chain)
	if used[hexOf(l.chain)] { // aside, for those that run on it: the sweep takes it when they are gone
		err = s.rename(place, place+"-"+filepath.Base(l.dir))
	} else {
		trash, err = s.trash(nil, place)
	}
	if err == nil {
		err = s.rename(l.dir, place)
	}
	return trash, err == nil, err
}

// whole are the layers that are done.
func whole(layers []*layer) (done []*layer) {
	for _, l := range layers {
		select {
		case <-l.done:
			done = append(done, l)
		default:
		}
	}
	return done
}

// room fails when bytes more would fill the file system.
func (s *Store) room(bytes int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return err
	}
	left := int64(fs.Bavail) * fs.Bsize
	reserve := min(s.limits.Free, int64(fs.Blocks)*fs.Bsize/50)
	if bytes > left-reserve {
		return fmt.Errorf("%d bytes do not fit into the %d that are free below %s, of which %d stay so: remove images or make room: %w", bytes, left, s.dir, reserve, unix.ENOSPC)
	}
	return nil
}
