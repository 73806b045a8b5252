package image

import (
	"context"
	"encoding/json"
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

// ingest unpacks what is missing of a bundle and records the image under names.
// Preconditions: the lock is shared.
func (s *Store) ingest(ctx context.Context, b *bundle, names []string, pinned bool) (*Image, error) {
	config, err := parseConfig(b.config, len(b.layers))
	if err != nil {
		return nil, err
	}
	m := record{
		ID: digestOf(b.config), Manifest: b.manifest, Config: config,
		Size: int64(len(b.config)), Pinned: pinned, Added: time.Now().UTC(),
	}
	var below []string
	for i, l := range b.layers {
		diffID := string(config.RootFS.DiffIDs[i])
		parent := ""
		if i > 0 {
			parent = below[i-1]
		}
		id := chain(parent, diffID)
		if !s.hasLayer(id) {
			if err := s.addBlob(ctx, below, l, diffID); err != nil {
				return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(b.layers), err)
			}
		}
		below = append(below, id)
		m.Layers = append(m.Layers, Layer{DiffID: diffID, Chain: id, Size: l.size})
		m.Size += l.size
	}
	if err := s.commit(m, names); err != nil {
		return nil, err
	}
	return s.Get(ctx, m.ID)
}

func (s *Store) addBlob(ctx context.Context, below []string, l blob, diffID string) error {
	r, err := l.open(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = s.addLayer(ctx, below, r, diffID)
	return err
}

// hostPlatform is what an image must have been built for.
func hostPlatform() ocispec.Platform {
	p := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if p.Architecture == "arm64" {
		p.Variant = "v8"
	}
	return p
}

// choose picks the manifest of an index for a platform: the first that fits,
// the variant counting only where both name one.
func choose(manifests []ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, error) {
	var have []string
	for _, d := range manifests {
		if d.Platform == nil {
			if len(manifests) == 1 {
				return d, nil
			}
			continue
		}
		p := *d.Platform
		if p.OS == want.OS && p.Architecture == want.Architecture &&
			(p.Variant == "" || want.Variant == "" || p.Variant == want.Variant) {
			return d, nil
		}
		have = append(have, p.OS+"/"+p.Architecture)
	}
	return ocispec.Descriptor{}, fmt.Errorf("no image for %s/%s in the index, which has %v: %w", want.OS, want.Architecture, have, ErrNotFound)
}
