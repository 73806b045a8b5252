package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
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
	// Later leaves it to the caller to call Settle, while the image is in use already. Until then a power cut takes it away, whole.
	Later bool
}

// Progress is the state of one layer's download.
type Progress struct {
	Digest     string
	Done, Size int64 // bytes
}

// Pull gets an image from its registry, or a mirror of it, unpacks what is new
// and records it under its tag and its digest. Errors wrap ErrNotFound,
// ErrUnauthorized or ErrInvalid where these fit. Nothing is left of a pull that
// failed, but that whole layers wait for the next attempt, or sweep, when it was
// broken off or its registry was busy.
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
	im, err := s.pullAny(ctx, hosts, r, o)
	if err == nil && !o.Later {
		if err = s.Settle(); err == nil {
			err = s.checkSettled(im.ID)
		}
	}
	if err == nil {
		return im, nil
	}
	if !worthKeeping(err) {
		if err := s.sweep(); err != nil {
			s.log.Warn("what is left of a pull that failed stays", "image", r.String(), "err", err)
		}
	}
	return nil, fmt.Errorf("pull %s: %w", r, err)
}

// pullAny tries the hosts one after the other.
func (s *Store) pullAny(ctx context.Context, hosts []host, r Reference, o PullOptions) (*Image, error) {
	release, err := s.share()
	if err != nil {
		return nil, err
	}
	defer release()
	if len(hosts) == 0 {
		return nil, errors.New("mirrorsOnly without a mirror")
	}
	var failed []error
	for _, h := range hosts {
		im, err := s.pullFrom(ctx, h, r, o)
		if err == nil {
			return im, nil
		}
		failed = append(failed, fmt.Errorf("from %s: %w", h.name, s.mend(err, h)))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(failed...)
}

func (s *Store) pullFrom(ctx context.Context, h host, r Reference, o PullOptions) (*Image, error) {
	auth := authn.Anonymous
	if a := h.auth(o.Auth, r.Registry); a != (Auth{}) {
		auth = authn.FromConfig(authn.AuthConfig{
			Username: a.Username, Password: a.Password, Auth: a.Basic,
			IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		})
	}
	repo, err := connect(ctx, h, h.below+r.Repository, auth)
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
		b.layers = append(b.layers, p.blob(l))
	}
	return s.ingest(ctx, b, r.names(p.named), false)
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

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerList
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
	if both.Manifests != nil || isIndex(mediaType) || isIndex(both.MediaType) {
		return append([]ocispec.Descriptor{}, both.Manifests...), nil
	}
	*m = both.Manifest
	for _, d := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if !references().digest.MatchString(string(d.Digest)) || d.Size < 0 {
			return nil, fmt.Errorf("manifest names %q of %d bytes, which cannot be: %w", d.Digest, d.Size, ErrInvalid)
		}
	}
	return nil, nil
}

// blob is a layer that is downloaded while it is read.
func (p *pull) blob(d ocispec.Descriptor) blob {
	b := blob{digest: string(d.Digest), size: d.Size}
	b.open = func(ctx context.Context) (io.ReadCloser, error) {
		return p.repo.open(ctx, b, func(done int64) {
			if p.options.Progress != nil {
				p.options.Progress(Progress{Digest: b.digest, Done: done, Size: b.size})
			}
		}), nil
	}
	return b
}
