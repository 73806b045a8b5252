package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
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
	// Boot is the kernel's ID of the boot in which it was made, until Settle: in any other it need not be whole.
	Boot string `json:"boot,omitempty"`
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

func (s *Store) layerRecord(chain string) string {
	return filepath.Join(s.layerDir(chain), "layer.json")
}

// hasLayer tells a layer that is whole, and whether it is settled. One that an earlier boot left without that need not be whole.
func (s *Store) hasLayer(chain string) (has, settled bool) {
	r, err := readJSON[layerRecord](s.layerRecord(chain))
	return err == nil && (r.Boot == "" || r.Boot == s.boot), err == nil && r.Boot == ""
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
// which it is going to hide, seen through ids.
func likeRoot(lower, upper string, ids idMaps) error {
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return err
	}
	if err := os.Lchown(upper, ids.uid(int(st.Uid)), ids.gid(int(st.Gid))); err != nil {
		return err
	}
	return unix.Chmod(upper, st.Mode&0o7777)
}

// decompress tells the compression by the first bytes: media types are often
// wrong. close releases the decoder, not r.
func decompress(r io.Reader) (plain io.Reader, close func(), err error) {
	b := bufio.NewReaderSize(r, 32<<10)
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
