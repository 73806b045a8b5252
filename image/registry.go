package image

import (
	"context"
	"errors"
	"fmt"
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

// firstPause comes before the second attempt; it grows fourfold each time.
const firstPause = 100 * time.Millisecond

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
		return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
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
	err = retry(ctx, h.pause, func() error {
		authorised, err = transport.NewWithContext(ctx, registry, auth, w, []string{scope})
		return err
	})
	if err != nil {
		w.CloseIdleConnections()
		return nil, fmt.Errorf("connect: %w", classify(err))
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
	err = retry(ctx, r.wire.host.pause, func() error {
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

// retry calls do again, after growing pauses, while its error may pass.
func retry(ctx context.Context, pause time.Duration, do func() error) error {
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
