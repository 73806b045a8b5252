package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// maxWindow bounds the memory of one zstd decoder, in bytes: the window of
// `zstd --ultra -22`.
const maxWindow = 128 << 20

// layerRecord is what layers/<chain>/layer.json holds.
type layerRecord struct {
	DiffID string `json:"diffID"`
	Used   usage  `json:"used"`
}

// chain names a layer and everything below it, as the OCI image specification
// defines.
func chain(parent, diffID string) string {
	if parent == "" {
		return diffID
	}
	return digestOf([]byte(parent + " " + diffID))
}

func (s *Store) layerDir(chain string) string { return s.path("layers", hexOf(chain)) }

func (s *Store) hasLayer(chain string) bool {
	_, err := os.Lstat(s.layerDir(chain))
	return err == nil
}

// addLayer unpacks an archive, compressed or not, on top of the layers whose
// chain IDs are given from the bottom up, and returns its diff ID. With want it
// refuses an archive of another diff ID. Preconditions: the lock is shared.
func (s *Store) addLayer(ctx context.Context, below []string, archive io.Reader, want string) (diffID string, err error) {
	plain, closePlain, err := decompress(archive)
	if err != nil {
		return "", err
	}
	defer closePlain()
	tmp, err := s.temp("layer")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	fd, err := s.prepare(ctx, tmp, below)
	if err != nil {
		return "", fmt.Errorf("prepare layer: %w", err)
	}
	hash := sha256.New()
	// Metadata, padding and what follows the archive's end count as well.
	most := s.limits.Bytes + int64(s.limits.Entries)*2048
	stream := &boundedReader{ctx: ctx, r: io.TeeReader(plain, hash), left: most}
	used, err := apply(ctx, fd, stream, s.limits)
	if err == nil {
		_, err = io.Copy(io.Discard, stream)
	}
	if err != nil {
		return "", err
	}
	diffID = "sha256:" + hex.EncodeToString(hash.Sum(nil))
	if want != "" && diffID != want {
		return "", fmt.Errorf("layer unpacks to %s, the image says %s: %w", diffID, want, ErrInvalid)
	}
	parent := ""
	if len(below) > 0 {
		parent = below[len(below)-1]
	}
	return diffID, s.keep(tmp, chain(parent, diffID), layerRecord{DiffID: diffID, Used: used})
}

// prepare makes tmp/fs and returns a descriptor of the tree that the layer is
// to be applied to: tmp/fs as the upper of an overlay, or alone.
func (s *Store) prepare(ctx context.Context, tmp string, below []string) (int, error) {
	upper := filepath.Join(tmp, "fs")
	if err := os.Mkdir(upper, 0o755); err != nil {
		return -1, err
	}
	if len(below) > 0 && !s.overlay {
		if err := copyTree(ctx, s.lower(below)[0], upper); err != nil {
			return -1, err
		}
	}
	if len(below) == 0 || !s.overlay {
		return unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	o := stack{lower: s.lower(below), upper: upper, work: filepath.Join(tmp, "work")}
	if err := os.Mkdir(o.work, 0o700); err != nil {
		return -1, err
	}
	if err := likeRoot(o.lower[0], upper); err != nil {
		return -1, err
	}
	mount, err := o.mount()
	if err != nil {
		return -1, err
	}
	defer unix.Close(mount)
	// The mount lives for as long as this descriptor of its root.
	return unix.Openat(mount, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// lower lists the layers' directories from the top down.
func (s *Store) lower(below []string) []string {
	dirs := make([]string, 0, len(below))
	for i := len(below) - 1; i >= 0; i-- {
		dirs = append(dirs, filepath.Join(s.layerDir(below[i]), "fs"))
	}
	return dirs
}

// likeRoot gives an upper directory the owner and mode of the lower's root,
// which it is going to hide.
func likeRoot(lower, upper string) error {
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return err
	}
	if err := os.Lchown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&0o7777)
}

// keep moves a finished layer from tmp to its place, durably. Somebody else's
// being there already is as good.
func (s *Store) keep(tmp, chain string, r layerRecord) error {
	if err := os.RemoveAll(filepath.Join(tmp, "work")); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(tmp, "layer.json"), r); err != nil {
		return err
	}
	if err := syncFS(tmp); err != nil {
		return fmt.Errorf("sync layer: %w", err)
	}
	if err := os.Chmod(tmp, 0o711); err != nil {
		return err
	}
	err := os.Rename(tmp, s.layerDir(chain))
	if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("keep layer: %w", err)
	}
	return syncDir(s.path("layers"))
}

// syncFS writes everything of the file system that dir is on to disk.
func syncFS(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// decompress tells the compression by the first bytes: media types are often
// wrong. close releases the decoder, not r.
func decompress(r io.Reader) (plain io.Reader, close func(), err error) {
	b := bufio.NewReaderSize(r, 128<<10)
	magic, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("read archive: %w", err)
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, fmt.Errorf("read gzip archive: %w", err)
		}
		return z, func() { z.Close() }, nil
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, fmt.Errorf("read zstd archive: %w", err)
		}
		return z, z.Close, nil
	default:
		return b, func() {}, nil
	}
}

// boundedReader fails when ctx ends or more than left bytes come.
type boundedReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("archive is larger than allowed: %w", ErrInvalid)
	}
	return n, err
}
