package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

const (
	// parallelDownloads is the number of layers under way at once.
	parallelDownloads = 3

	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1"
)

// Auth is what a registry is told; all zero means anonymous.
type Auth struct {
	Username, Password string
	// Basic is user:password in base64, in place of the two.
	Basic string
	// IdentityToken is exchanged for an access token, RegistryToken is one.
	IdentityToken, RegistryToken string
}

// PullOptions says how to pull.
type PullOptions struct {
	Auth Auth
	// Platform to choose from an index; the zero value is the host's.
	Platform ocispec.Platform
	// Progress, when set, is called from several goroutines as bytes arrive.
	Progress func(Progress)
}

// Progress is the state of one layer's download.
type Progress struct {
	Digest     string
	Done, Size int64 // bytes
}

// Pull gets an image from its registry, or a mirror of it, unpacks what is new
// and records it under its tag and its digest. Errors wrap ErrNotFound,
// ErrUnauthorized or ErrInvalid where these fit. Nothing is left of a pull that
// failed, but for whole layers until the next sweep.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	r, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if o.Platform.OS == "" {
		o.Platform = hostPlatform()
	}
	hosts, err := s.endpoints(r.Registry)
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", r, err)
	}
	release, err := s.share()
	if err != nil {
		return nil, err
	}
	defer release()
	var failed error
	for _, h := range hosts {
		im, err := s.pullFrom(ctx, h, r, o)
		if err == nil {
			return im, nil
		}
		failed = errors.Join(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	if failed == nil {
		failed = errors.New("mirrorsOnly without a mirror")
	}
	return nil, fmt.Errorf("pull %s: %w", r, failed)
}

func (s *Store) pullFrom(ctx context.Context, h host, r Reference, o PullOptions) (*Image, error) {
	auth := authn.Anonymous
	// Credentials are for the registry that the image names, not for mirrors.
	if o.Auth != (Auth{}) && h.name == r.Registry {
		auth = authn.FromConfig(authn.AuthConfig{
			Username: o.Auth.Username, Password: o.Auth.Password, Auth: o.Auth.Basic,
			IdentityToken: o.Auth.IdentityToken, RegistryToken: o.Auth.RegistryToken,
		})
	}
	repo, err := connect(ctx, h, r.Repository, auth)
	if err != nil {
		return nil, err
	}
	defer repo.close()
	p := &pull{store: s, repo: repo, options: o}
	m, err := p.manifest(ctx, r)
	if err != nil {
		return nil, err
	}
	b := &bundle{manifest: p.chosen}
	b.config, _, err = repo.fetch(ctx, "/blobs/"+string(m.Config.Digest), nil, string(m.Config.Digest), s.limits.Manifest)
	if err != nil {
		return nil, err
	}
	for _, l := range m.Layers {
		b.layers = append(b.layers, blob{digest: string(l.Digest), size: l.Size})
	}
	im, err := p.layers(ctx, b, r.names(p.named))
	if err != nil {
		return nil, err
	}
	return im, nil
}

// pull is one image on its way from one host.
type pull struct {
	store   *Store
	repo    *repository
	options PullOptions
	// named is the digest of what the reference names, an index or a manifest;
	// chosen that of the platform's manifest.
	named, chosen string
}

// manifest follows indexes to the platform's manifest.
func (p *pull) manifest(ctx context.Context, r Reference) (m ocispec.Manifest, err error) {
	what := r.Digest
	if what == "" {
		what = r.Tag
	}
	accept := []string{ocispec.MediaTypeImageIndex, dockerList, ocispec.MediaTypeImageManifest, dockerManifest}
	digest := r.Digest
	for range 3 {
		raw, mediaType, err := p.repo.fetch(ctx, "/manifests/"+what, accept, digest, p.store.limits.Manifest)
		if err != nil {
			return m, err
		}
		p.chosen = digestOf(raw)
		if p.named == "" {
			p.named = p.chosen
		}
		index, err := parseManifest(raw, mediaType, &m)
		if err != nil || index == nil {
			return m, err
		}
		d, err := choose(index, p.options.Platform)
		if err != nil {
			return m, err
		}
		what, digest = string(d.Digest), string(d.Digest)
		if !references().digest.MatchString(digest) {
			return m, fmt.Errorf("index names manifest %q, which is no sha256 digest: %w", digest, ErrInvalid)
		}
	}
	return m, fmt.Errorf("indexes of indexes of indexes: %w", ErrInvalid)
}

// parseManifest decodes a manifest into m, or returns the manifests of an index.
func parseManifest(raw []byte, mediaType string, m *ocispec.Manifest) (index []ocispec.Descriptor, err error) {
	if strings.HasPrefix(mediaType, dockerSchema1) {
		return nil, fmt.Errorf("the image has a schema 1 manifest, which registries gave up in 2019: push it anew: %w", ErrInvalid)
	}
	var both struct {
		ocispec.Manifest
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &both); err != nil {
		return nil, fmt.Errorf("decode manifest: %w: %w", err, ErrInvalid)
	}
	if both.SchemaVersion != 2 {
		return nil, fmt.Errorf("manifest of schema version %d, only 2 is known: %w", both.SchemaVersion, ErrInvalid)
	}
	if both.Manifests != nil {
		return both.Manifests, nil
	}
	*m = both.Manifest
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if !references().digest.MatchString(string(d.Digest)) || d.Size < 0 {
			return nil, fmt.Errorf("manifest names %q of %d bytes, which cannot be: %w", d.Digest, d.Size, ErrInvalid)
		}
	}
	return nil, nil
}

// layers downloads the missing layers, several at once, and unpacks each as
// soon as it and those below it are there.
func (p *pull) layers(ctx context.Context, b *bundle, names []string) (*Image, error) {
	config, err := parseConfig(b.config, len(b.layers))
	if err != nil {
		return nil, err
	}
	tmp, err := p.store.temp("pull")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	ctx, stop := context.WithCancel(ctx)
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelDownloads + 1)
	queue := []func() error{}
	known := map[string]func(context.Context) (io.ReadCloser, error){}
	parent := ""
	for i := range b.layers {
		l := &b.layers[i]
		parent = chain(parent, string(config.RootFS.DiffIDs[i]))
		if p.store.hasLayer(parent) {
			continue
		}
		if known[l.digest] == nil {
			job, open := p.fetchTo(groupCtx, filepath.Join(tmp, hexOf(l.digest)), *l)
			queue, known[l.digest] = append(queue, job), open
		}
		l.open = known[l.digest]
	}
	group.Go(func() error {
		for _, job := range queue {
			group.Go(job)
		}
		return nil
	})
	im, err := p.store.ingest(ctx, b, names, false)
	stop()
	if groupErr := group.Wait(); err != nil && groupErr != nil && !errors.Is(groupErr, context.Canceled) {
		return nil, groupErr // the cause; err says that a layer did not come
	}
	return im, err
}

// fetchTo returns a job that downloads a blob to a file, and what waits for it
// and opens the file.
func (p *pull) fetchTo(ctx context.Context, file string, b blob) (job func() error, open func(context.Context) (io.ReadCloser, error)) {
	done := make(chan struct{})
	progress := func(n int64) {
		if p.options.Progress != nil {
			p.options.Progress(Progress{Digest: b.digest, Done: n, Size: b.size})
		}
	}
	job = func() error {
		if b.size > p.store.limits.Bytes {
			return fmt.Errorf("layer %s has %d bytes, more than %d: %w", b.digest, b.size, p.store.limits.Bytes, ErrInvalid)
		}
		f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := p.repo.download(ctx, f, b, progress); err != nil {
			return err
		}
		close(done)
		return nil
	}
	open = func(context.Context) (io.ReadCloser, error) {
		select {
		case <-done:
			return os.Open(file)
		case <-ctx.Done():
			return nil, fmt.Errorf("layer %s: %w", b.digest, ctx.Err())
		}
	}
	return job, open
}
