package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Export writes an image as an OCI layout archive, which Import, `docker load`
// and `ctr image import` read. The Store keeps no archives, so layers are packed
// anew. Where each comes out as it came, as those of BuildFromDir do, so does the
// configuration, byte for byte, and the image ID with it. Else the configuration
// names the layers that are there, and is as it came in all other respects: with
// its old layers nobody would take it, for they are checked against it.
func (s *Store) Export(ctx context.Context, ref string, w io.Writer) error {
	im, err := s.Get(ctx, ref)
	if err != nil {
		return err
	}
	m, err := s.resolve(im.ID)
	if err != nil {
		return err
	}
	release, err := s.share()
	if err != nil {
		return err
	}
	defer release()
	tmp, err := s.temp("export")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	e := &exporter{out: tar.NewWriter(w), tmp: tmp, written: map[string]bool{}}
	if err := e.image(ctx, s, m, im.Tags); err != nil {
		return fmt.Errorf("export %s: %w", ref, err)
	}
	return e.out.Close()
}

type exporter struct {
	out     *tar.Writer
	tmp     string
	written map[string]bool
}

func (e *exporter) image(ctx context.Context, s *Store, m record, tags []string) error {
	chains := make([]string, 0, len(m.Layers))
	for _, l := range m.Layers {
		chains = append(chains, l.Chain)
	}
	dirs := s.lower(chains)
	slices.Reverse(dirs)
	if !s.overlay && len(dirs) > 1 {
		// Where layers are copies the top one is the whole image.
		dirs = dirs[len(dirs)-1:]
	}
	if err := e.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	var layers []ocispec.Descriptor
	for _, dir := range dirs {
		d, err := e.layer(ctx, dir)
		if err != nil {
			return err
		}
		layers = append(layers, d)
	}
	rawConfig, err := m.configOver(layers)
	if err != nil {
		return err
	}
	if err := e.blob(rawConfig); err != nil {
		return err
	}
	rawManifest, err := json.Marshal(manifestOf(rawConfig, layers))
	if err != nil {
		return err
	}
	if err := e.blob(rawManifest); err != nil {
		return err
	}
	return e.indexes(tags, rawConfig, rawManifest, layers)
}

// configOver is the configuration as it came, but for the layers where these are others. The history goes where they are of
// another number.
func (m record) configOver(layers []ocispec.Descriptor) ([]byte, error) {
	raw := m.Raw
	if raw == nil {
		var err error
		if raw, err = json.Marshal(m.Config); err != nil {
			return nil, err
		}
	}
	root := ocispec.RootFS{Type: m.Config.RootFS.Type}
	for _, l := range layers {
		root.DiffIDs = append(root.DiffIDs, l.Digest)
	}
	if slices.Equal(root.DiffIDs, m.Config.RootFS.DiffIDs) {
		return raw, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, err
	}
	var err error
	if fields["rootfs"], err = json.Marshal(root); err != nil {
		return nil, err
	}
	if len(layers) != len(m.Layers) {
		delete(fields, "history")
	}
	return json.Marshal(fields)
}

// indexes writes both formats' tables of contents.
func (e *exporter) indexes(tags []string, config, manifest []byte, layers []ocispec.Descriptor) error {
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, t := range tags {
		named := d
		named.Annotations = map[string]string{annotationImageName: t}
		index.Manifests = append(index.Manifests, named)
	}
	if len(tags) == 0 {
		index.Manifests = []ocispec.Descriptor{d}
	}
	entry := map[string]any{"Config": blobFile(digestOf(config)), "RepoTags": tags, "Layers": files(layers)}
	for name, v := range map[string]any{"index.json": index, "manifest.json": []any{entry}} {
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if err := e.file(name, raw); err != nil {
			return err
		}
	}
	return nil
}

func files(layers []ocispec.Descriptor) []string {
	var names []string
	for _, l := range layers {
		names = append(names, blobFile(string(l.Digest)))
	}
	return names
}

// layer packs a layer's directory: to a file first, since its size and digest
// come before it in the archive.
func (e *exporter) layer(ctx context.Context, dir string) (d ocispec.Descriptor, err error) {
	f, err := os.CreateTemp(e.tmp, "layer-*")
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	hash := sha256.New()
	count := &countingWriter{w: io.MultiWriter(f, hash)}
	if err := pack(ctx, dir, count); err != nil {
		return d, err
	}
	d = ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayer, Size: count.n,
		Digest: digest.Digest("sha256:" + hex.EncodeToString(hash.Sum(nil))),
	}
	name := blobFile(string(d.Digest))
	if e.written[name] {
		return d, nil
	}
	e.written[name] = true
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return d, err
	}
	if err := e.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: d.Size}); err != nil {
		return d, err
	}
	_, err = io.Copy(e.out, f)
	return d, err
}

func (e *exporter) blob(raw []byte) error { return e.file(blobFile(digestOf(raw)), raw) }

func (e *exporter) file(name string, raw []byte) error {
	if err := e.out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(raw))}); err != nil {
		return err
	}
	_, err := e.out.Write(raw)
	return err
}
