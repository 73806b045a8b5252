package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"time"

	"github.com/yare-dev/yare/run"
)

// again is the progress, in bytes, that earns a broken download another attempt.
const again = 1 << 20

// stream reads a blob from its registry. Where a connection breaks off it asks
// for the rest, after growing pauses.
type stream struct {
	ctx      context.Context
	from     *repository
	blob     blob
	progress func(done int64)

	body     io.ReadCloser // nil between two attempts
	done     int64
	failures int64 // in a row but for progress
	since    int64 // done at the last failure
	pause    time.Duration
}

func (r *repository) open(ctx context.Context, b blob, progress func(int64)) *stream {
	return &stream{ctx: ctx, from: r, blob: b, progress: progress, pause: r.wire.host.pause}
}

// Read fails when attempts do not get on any more.
func (s *stream) Read(p []byte) (int, error) {
	for {
		n, err := s.attempt(p)
		if n > 0 {
			s.done += int64(n)
			s.progress(s.done)
			return n, nil // an error comes again
		}
		if err == nil {
			continue
		}
		if s.done >= s.blob.size {
			return 0, io.EOF // whether it is the right one is checked elsewhere
		}
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("the registry ends it after %d of %d bytes: %w", s.done, s.blob.size, io.ErrUnexpectedEOF)
		}
		s.hangUp()
		if s.done-s.since >= again {
			s.failures, s.pause = 0, s.from.wire.host.pause
		}
		s.since = s.done
		s.failures++
		if s.failures >= attempts || !mayPass(err) || run.Pause(s.ctx, s.pause) != nil {
			return 0, fmt.Errorf("download: %w", classify(err))
		}
		s.pause *= 4
	}
}

func (s *stream) attempt(p []byte) (int, error) {
	if s.body == nil {
		if err := s.dial(); err != nil {
			return 0, err
		}
	}
	return s.body.Read(p)
}

func (s *stream) dial() error {
	header := http.Header{}
	if s.done > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", s.done, s.blob.size-1))
	}
	resp, err := s.from.get(s.ctx, "/blobs/"+s.blob.digest, header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return err
	}
	s.body = resp.Body
	if resp.StatusCode == http.StatusOK && s.done > 0 {
		// The registry does not know ranges. The digest tells if this is not what came before.
		if _, err := io.CopyN(io.Discard, s.body, s.done); err != nil {
			return err
		}
	}
	return nil
}

func (s *stream) hangUp() {
	if s.body != nil {
		s.body.Close()
		s.body = nil
	}
}

// Close ends the download.
func (s *stream) Close() error {
	s.hangUp()
	return nil
}

// checked is a blob that is checked while it is read: in place of its end comes
// an error when size or digest are not what the image says.
type checked struct {
	io.ReadCloser
	blob blob
	hash hash.Hash
	n    int64
	err  error // what Read returned last
}

func check(r io.ReadCloser, b blob) *checked {
	return &checked{ReadCloser: r, blob: b, hash: sha256.New()}
}

func (c *checked) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	n, err := c.ReadCloser.Read(p)
	c.n += int64(n)
	if c.blob.digest == "" {
		c.err = err
		return n, err
	}
	c.hash.Write(p[:n])
	if c.n > c.blob.size {
		n, err = 0, fmt.Errorf("more than the %d bytes that the manifest says: %w", c.blob.size, ErrInvalid)
	}
	if errors.Is(err, io.EOF) {
		if got := "sha256:" + hex.EncodeToString(c.hash.Sum(nil)); got != c.blob.digest {
			err = fmt.Errorf("its %d of %d bytes have digest %s: %w", c.n, c.blob.size, got, ErrInvalid)
		}
	}
	c.err = err
	return n, err
}

// verdict reads what is left, unless that is much, and returns why the blob is
// not what it should be; nil when it is.
func (c *checked) verdict() error {
	const most = 256 << 20
	if c.err == nil && c.blob.size-c.n <= most {
		_, _ = io.Copy(io.Discard, io.LimitReader(c, most+1))
	}
	if errors.Is(c.err, io.EOF) {
		return nil
	}
	return c.err
}
