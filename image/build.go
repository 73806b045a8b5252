package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ConfigOptions is the configuration of an image that is built here.
type ConfigOptions struct {
	Entrypoint, Cmd []string
	Env             []string // "KEY=value"
	WorkingDir      string
	User            string // "uid", "name", with ":gid" or ":group"
	StopSignal      string
	ExposedPorts    []string // "80/tcp"
	Volumes         []string
	Labels          map[string]string
}

// BuildFromDir makes a pinned image of one layer from a root file system in a
// plain directory and names it ref. The same directory and options give the
// same image ID.
func (s *Store) BuildFromDir(ctx context.Context, dir, ref string, o ConfigOptions) (*Image, error) {
	name, err := ParseReference(ref)
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil, fmt.Errorf("build image of %s: %w", dir, errors.Join(err, errors.New("a directory is needed")))
	}
	release, err := s.share()
	if err != nil {
		return nil, err
	}
	defer release()
	diffID, size, err := s.packLayer(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("build image of %s: %w", dir, err)
	}
	config, err := json.Marshal(o.config(diffID))
	if err != nil {
		return nil, fmt.Errorf("encode image configuration: %w", err)
	}
	manifest, err := json.Marshal(manifestOf(config, []ocispec.Descriptor{{
		MediaType: ocispec.MediaTypeImageLayer, Digest: digest.Digest(diffID), Size: size,
	}}))
	if err != nil {
		return nil, fmt.Errorf("encode image manifest: %w", err)
	}
	b := &bundle{manifest: digestOf(manifest), config: config, layers: []blob{{digest: diffID, size: size}}}
	im, err := s.ingest(ctx, b, []string{name.String()}, true)
	if err := errors.Join(err, s.Settle()); err != nil {
		return nil, fmt.Errorf("build image of %s: %w", dir, err)
	}
	return im, s.checkSettled(im.ID)
}

// packLayer makes a bottom layer of a directory.
func (s *Store) packLayer(ctx context.Context, dir string) (diffID string, size int64, err error) {
	r, w := io.Pipe()
	count := &countingWriter{w: w}
	err = s.inSite(func(site *site) error {
		var packed sync.WaitGroup
		packed.Go(func() { w.CloseWithError(pack(ctx, dir, count)) })
		layers := s.layersOf([]blob{{open: func(context.Context) (io.ReadCloser, error) { return r, nil }}}, []string{""}, site.dir.Name())
		err := s.unpack(ctx, layers)
		r.Close()
		packed.Wait()
		if err != nil {
			return err
		}
		diffID = layers[0].diffID
		return s.keep(layers, site)
	})
	return diffID, count.n, err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// config has no time of its own, so that it is the same every time.
func (o ConfigOptions) config(diffIDs ...string) ocispec.Image {
	epoch := time.Unix(0, 0).UTC()
	c := ocispec.Image{
		Created:  &epoch,
		Platform: hostPlatform(),
		Config: ocispec.ImageConfig{
			Entrypoint: o.Entrypoint, Cmd: o.Cmd, Env: o.Env, WorkingDir: o.WorkingDir,
			User: o.User, StopSignal: o.StopSignal, Labels: o.Labels,
			ExposedPorts: set(o.ExposedPorts), Volumes: set(o.Volumes),
		},
		RootFS: ocispec.RootFS{Type: "layers"},
	}
	for _, d := range diffIDs {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.Digest(d))
	}
	return c
}

func set(names []string) map[string]struct{} {
	if len(names) == 0 {
		return nil
	}
	m := map[string]struct{}{}
	for _, n := range names {
		m[n] = struct{}{}
	}
	return m
}

func manifestOf(config []byte, layers []ocispec.Descriptor) ocispec.Manifest {
	return ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config)),
		},
		Layers: layers,
	}
}
