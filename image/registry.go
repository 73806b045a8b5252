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
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/yare-dev/yare/run"
)

// attempts is how often a request is made before its error counts.
const attempts = 4

// repository is one repository of one registry host, authorised for pulling.
type repository struct {
	base   string // "https://host/v2/library/busybox"
	client *http.Client
	wire   *wire
}

// connect asks the host how it wants to be spoken to and gets a token.
func connect(ctx context.Context, h host, path string, auth authn.Authenticator) (*repository, error) {
	registry, err := name.NewRegistry(h.name)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w: %w", h.name, err, ErrInvalid)
	}
	scheme := "https"
	if h.config.PlainHTTP {
		if registry, err = name.NewRegistry(h.name, name.Insecure); err != nil {
			return nil, err
		}
	}
	w := h.transport()
	scope := registry.Repo(path).Scope(transport.PullScope)
	var authorised http.RoundTripper
	err = retry(ctx, func() error {
		authorised, err = transport.NewWithContext(ctx, registry, auth, w, []string{scope})
		return err
	})
	if err != nil {
		w.CloseIdleConnections()
		return nil, fmt.Errorf("connect to registry %s: %w", h.name, classify(err))
	}
	return &repository{
		base:   fmt.Sprintf("%s://%s/v2/%s", scheme, registry.RegistryStr(), path),
		client: &http.Client{Transport: authorised, CheckRedirect: checkRedirect},
		wire:   w,
	}, nil
}

func (r *repository) close() { r.wire.CloseIdleConnections() }

// get starts a request; the answer's status is one of ok.
func (r *repository) get(ctx context.Context, path string, header http.Header, ok ...int) (*http.Response, error) {
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+path, nil)
	if err != nil {
		return nil, err
	}
	q.Header = header
	resp, err := r.client.Do(q)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, ok...); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// fetch reads a whole small object and checks its digest, unless that is empty.
func (r *repository) fetch(ctx context.Context, path string, accept []string, digest string, most int64) (raw []byte, mediaType string, err error) {
	header := http.Header{}
	if len(accept) > 0 {
		header.Set("Accept", strings.Join(accept, ","))
	}
	err = retry(ctx, func() error {
		resp, err := r.get(ctx, path, header, http.StatusOK)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		mediaType = resp.Header.Get("Content-Type")
		raw, err = io.ReadAll(io.LimitReader(resp.Body, most+1))
		return err
	})
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("get %s%s: %w", r.base, path, classify(err))
	case int64(len(raw)) > most:
		return nil, "", fmt.Errorf("get %s%s: larger than %d bytes: %w", r.base, path, most, ErrInvalid)
	case digest != "" && digestOf(raw) != digest:
		return nil, "", fmt.Errorf("get %s%s: the content has digest %s instead of %s: %w", r.base, path, digestOf(raw), digest, ErrInvalid)
	}
	return raw, mediaType, nil
}

// download writes a blob to f, going on where an attempt broke off, and checks
// its size and digest.
func (r *repository) download(ctx context.Context, f *os.File, b blob, progress func(done int64)) error {
	d := &download{r: r, f: f, blob: b, hash: sha256.New(), progress: progress}
	if err := retry(ctx, func() error { return d.attempt(ctx) }); err != nil {
		return fmt.Errorf("download %s: %w", b.digest, classify(err))
	}
	if got := "sha256:" + hex.EncodeToString(d.hash.Sum(nil)); got != b.digest {
		return fmt.Errorf("download %s: the content has digest %s: %w", b.digest, got, ErrInvalid)
	}
	return nil
}

type download struct {
	r        *repository
	f        *os.File
	blob     blob
	hash     hash.Hash
	done     int64
	progress func(int64)
}

func (d *download) attempt(ctx context.Context) error {
	header := http.Header{}
	if d.done > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", d.done, d.blob.size-1))
	}
	resp, err := d.r.get(ctx, "/blobs/"+d.blob.digest, header, http.StatusOK, http.StatusPartialContent)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK && d.done > 0 {
		// The registry does not know ranges: from the beginning.
		d.done = 0
		d.hash.Reset()
		if _, err := d.f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	_, err = io.CopyBuffer(d, io.LimitReader(resp.Body, d.blob.size-d.done+1), make([]byte, 128<<10))
	switch {
	case d.done > d.blob.size:
		return fmt.Errorf("more than the %d bytes that the manifest says: %w", d.blob.size, ErrInvalid)
	case err == nil && d.done < d.blob.size:
		return fmt.Errorf("%d of %d bytes: %w", d.done, d.blob.size, io.ErrUnexpectedEOF)
	}
	return err
}

func (d *download) Write(p []byte) (int, error) {
	n, err := d.f.Write(p)
	d.hash.Write(p[:n])
	d.done += int64(n)
	d.progress(d.done)
	return n, err
}

// retry calls do again, after growing pauses, while its error may pass.
func retry(ctx context.Context, do func() error) error {
	pause := 100 * time.Millisecond
	for n := 1; ; n++ {
		err := do()
		if err == nil || n == attempts || !mayPass(err) || ctx.Err() != nil {
			return err
		}
		if run.Pause(ctx, pause) != nil {
			return err
		}
		pause *= 4
	}
}

// mayPass tells broken connections and busy registries from answers.
func mayPass(err error) bool {
	if errors.Is(err, ErrInvalid) || errors.Is(err, os.ErrInvalid) {
		return false
	}
	var answer *transport.Error
	if errors.As(err, &answer) {
		return answer.StatusCode == http.StatusTooManyRequests || answer.StatusCode == http.StatusRequestTimeout || answer.StatusCode >= 500
	}
	var timeout interface{ Timeout() bool }
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		strings.Contains(err.Error(), "connection reset") || strings.Contains(err.Error(), "broken pipe") ||
		errors.As(err, &timeout) && timeout.Timeout()
}

// classify gives a registry's refusals this package's classes.
func classify(err error) error {
	var answer *transport.Error
	if !errors.As(err, &answer) {
		return err
	}
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return fmt.Errorf("%w: %w", ErrUnauthorized, err)
	case http.StatusNotFound:
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	return err
}
