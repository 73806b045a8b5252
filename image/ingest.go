package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxLayers bounds an image's layers; overlayfs itself takes 500.
const maxLayers = 500

// bundle is an image on its way into the Store, from wherever it comes.
type bundle struct {
	manifest string // digest
	config   []byte // as it came: its digest is the image ID
	layers   []blob
}

// blob is one layer's archive.
type blob struct {
	digest string // of the archive as it comes; may be empty if not known
	size   int64  // of the archive as it comes
	open   func(context.Context) (io.ReadCloser, error)
}

// parseConfig checks what the Store relies on.
func parseConfig(raw []byte, layers int) (ocispec.Image, error) {
	var c ocispec.Image
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("decode image configuration: %w: %w", err, ErrInvalid)
	}
	if len(c.RootFS.DiffIDs) != layers {
		return c, fmt.Errorf("image configuration names %d layers, the manifest %d: %w", len(c.RootFS.DiffIDs), layers, ErrInvalid)
	}
	if layers > maxLayers {
		return c, fmt.Errorf("image has %d layers, more than %d: %w", layers, maxLayers, ErrInvalid)
	}
	for _, d := range c.RootFS.DiffIDs {
		if !references().digest.MatchString(string(d)) {
			return c, fmt.Errorf("image configuration names layer %q, which is no sha256 digest: %w", d, ErrInvalid)
		}
	}
	return c, nil
}

// ingest unpacks what is missing of a bundle and records the image under names, for Settle to make it durable.
// Preconditions: the lock is shared.
func (s *Store) ingest(ctx context.Context, b *bundle, names []string, pinned bool) (*Image, error) {
	config, err := parseConfig(b.config, len(b.layers))
	if err != nil {
		return nil, err
	}
	m := record{
		ID: digestOf(b.config), Manifest: b.manifest, Config: config, Raw: b.config,
		Size: int64(len(b.config)), Pinned: pinned, Added: time.Now().UTC(),
	}
	err = s.inSite(func(site *site) error {
		layers := s.layersOf(b.layers, diffIDs(config), site.dir.Name())
		if err := s.unpack(ctx, layers); err != nil {
			if worthKeeping(err) {
				err = errors.Join(err, s.keep(whole(layers), site))
			}
			return err
		}
		if err := s.keep(layers, site); err != nil {
			return err
		}
		for _, l := range layers {
			m.Layers = append(m.Layers, Layer{DiffID: l.diffID, Chain: l.chain, Size: l.size})
			m.Size += l.size
		}
		return s.commit(m, names)
	})
	if err != nil {
		return nil, err
	}
	return s.Get(ctx, m.ID)
}

func diffIDs(config ocispec.Image) (ids []string) {
	for _, d := range config.RootFS.DiffIDs {
		ids = append(ids, string(d))
	}
	return ids
}

// worthKeeping tells a pull that was broken off, or met a registry that is busy:
// the next one need not fetch again what was whole.
func worthKeeping(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		mayPass(err) && !errors.Is(err, io.ErrUnexpectedEOF)
}

// hostPlatform is what an image must have been built for.
func hostPlatform() ocispec.Platform {
	p := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if p.Architecture == "arm64" {
		p.Variant = "v8"
	}
	return p
}

// choose picks the manifest of an index for a platform: the same variant before
// none before any other, of equals the first.
func choose(manifests []ocispec.Descriptor, want ocispec.Platform) (best ocispec.Descriptor, err error) {
	var have []string
	rank := 0
	for _, d := range manifests {
		if d.Platform == nil {
			if len(manifests) == 1 {
				return d, nil
			}
			continue
		}
		if r := fit(*d.Platform, want); r > rank {
			best, rank = d, r
		}
		have = append(have, platformName(*d.Platform))
	}
	if rank > 0 {
		return best, nil
	}
	return best, fmt.Errorf("no image for %s in the index, which has %v: %w", platformName(want), have, ErrNotFound)
}

func platformName(p ocispec.Platform) string {
	if p.Variant == "" {
		return p.OS + "/" + p.Architecture
	}
	return p.OS + "/" + p.Architecture + "/" + p.Variant
}

// fit is 0 for an image that cannot run, and more the better it fits.
func fit(p, want ocispec.Platform) int {
	switch {
	case p.OS != want.OS || p.Architecture != want.Architecture:
		return 0
	case p.Variant == want.Variant || want.Architecture == "amd64" && want.Variant == "" && p.Variant == "v1":
		return 3
	case p.Variant == "":
		return 2
	case want.Variant == "":
		return 1
	}
	return 0
}
