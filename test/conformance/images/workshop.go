// Package images makes the images that upstream's tests ask for, and serves them.
//
// Upstream publishes them in a registry; here they are made on the spot, so that a run needs no registry of others and
// nobody's build. The programs in them are compiled from the same module as the tests, what they stand on comes from
// Debian's packages. The result is an OCI layout in the cache, which Registry serves to the cluster under test.
//
// A recipe is an image: names, layers, configuration. A layer is a function that fills a folder. Layers are shared by
// name: made, compressed and stored once. The images depend on nothing but the recipes and the versions in go.mod; Key
// is their digest and names the folder, so a change of either makes new ones.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/yare-dev/yare/test/conformance/suite"
)

// Key is the digest of everything that the images are made of, the versions in module's go.sum included.
func Key(module string) (string, error) {
	h := sha256.New()
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return "", err
	}
	h.Write(sums)
	err = filepath.WalkDir(filepath.Join(module, "images"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(h, "%s %d\n%s", path, len(text), text)
		return err
	})
	return hex.EncodeToString(h.Sum(nil))[:12], err
}

// workshop is what recipes work with.
type workshop struct {
	module   string // folder of this Go module
	upstream string // folder of upstream's module
	scratch  string
	debian   *debian
	out      io.Writer
	layers   map[string]v1.Layer
}

// Build makes all images as an OCI layout in dir, which must not exist; it appears only when complete. Downloads are
// kept in cache. Progress is written to out, a line for each image.
func Build(ctx context.Context, module, cache, dir string, out io.Writer) error {
	scratch, err := os.MkdirTemp(cache, "images-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	w := &workshop{module: module, scratch: scratch, out: out, layers: map[string]v1.Layer{}}
	found, err := suite.Go(ctx, module, out, "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
	if err != nil {
		return err
	}
	w.upstream = strings.TrimSpace(found)
	if w.debian, err = newDebian(ctx, filepath.Join(cache, "debian"), out); err != nil {
		return err
	}
	path, err := layout.Write(filepath.Join(scratch, "layout"), empty.Index)
	if err != nil {
		return err
	}
	for _, r := range recipes() {
		fmt.Fprintf(out, "image %s\n", strings.Join(r.names, ", "))
		img, err := w.make(ctx, r)
		if err != nil {
			return fmt.Errorf("make image %s: %w", r.names[0], err)
		}
		for _, name := range r.names {
			if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{refName: name})); err != nil {
				return fmt.Errorf("store image %s: %w", name, err)
			}
		}
	}
	return os.Rename(filepath.Join(scratch, "layout"), dir)
}

func (w *workshop) make(ctx context.Context, r recipe) (v1.Image, error) {
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, l := range r.layers {
		made, err := w.layer(ctx, l)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.name, err)
		}
		if img, err = mutate.AppendLayers(img, made); err != nil {
			return nil, err
		}
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", "amd64", r.config
	file.Config.Env = append([]string{searchPath}, r.config.Env...)
	return mutate.ConfigFile(img, file)
}

func (w *workshop) layer(ctx context.Context, l layer) (v1.Layer, error) {
	if made, ok := w.layers[l.name]; ok {
		return made, nil
	}
	root, err := os.MkdirTemp(w.scratch, "root-")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chmod(root, 0o755), l.fill(ctx, w, root)); err != nil {
		return nil, err
	}
	archive := root + ".tar"
	c := exec.CommandContext(ctx, "tar", "-c", "--sort=name", "--mtime=@0", "--numeric-owner", "--owner=0", "--group=0",
		"-f", archive, "-C", root, ".")
	c.Stdout, c.Stderr = w.out, w.out
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	made, err := tarball.LayerFromFile(archive, tarball.WithCompressionLevel(1), tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	w.layers[l.name] = made
	return made, os.RemoveAll(root)
}

// compile builds a static program of this module's dependencies into the file path.
func (w *workshop) compile(ctx context.Context, pkg, path string) error {
	return w.compileIn(ctx, ".", pkg, path)
}

// compileIn builds a static program of the module in a folder of this one.
func (w *workshop) compileIn(ctx context.Context, folder, pkg, path string) error {
	_, err := suite.Go(ctx, filepath.Join(w.module, folder), w.out, "build", "-ldflags=-s -w", "-o", path, pkg)
	return err
}

// nestedRegistry writes the pause image the way agnhost's fake-registry-server serves it: a list of one manifest under
// a tag, and files named after their digests.
func (w *workshop) nestedRegistry(ctx context.Context, dir, tag string) error {
	img, err := w.make(ctx, pauseImage)
	if err != nil {
		return err
	}
	list := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}},
	})
	put := func(kind string, h v1.Hash, data []byte) error {
		return writeFiles(dir, map[string]string{filepath.Join("/", kind, h.Algorithm, h.Hex[:2], h.Hex, "data"): string(data)})
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		h, err := l.Digest()
		if err != nil {
			return err
		}
		r, err := l.Compressed()
		if err != nil {
			return err
		}
		data, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close(), put("blobs", h, data)); err != nil {
			return err
		}
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	manifest, err := img.RawManifest()
	if err != nil {
		return err
	}
	index, err := list.RawManifest()
	if err != nil {
		return err
	}
	names := func(data []byte) v1.Hash {
		sum := sha256.Sum256(data)
		return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
	}
	return errors.Join(put("blobs", names(config), config), put("manifests", names(manifest), manifest),
		put("manifests", names(index), index),
		writeFiles(dir, map[string]string{"/manifests/" + tag: names(index).String() + "\n"}))
}

func copyFile(from, to string, mode fs.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, mode)
}

// writeFiles writes files, by their paths below root, with the folders that they need.
func writeFiles(root string, files map[string]string) error {
	for path, text := range files {
		if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
			return err
		}
		// A package may have a link here; the file must not be written through it.
		if err := os.Remove(root + path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(root+path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// links makes symbolic links, by their paths below root; what a package has there gives way.
func links(root string, targets map[string]string) error {
	for path, target := range targets {
		if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
			return err
		}
		if err := os.Remove(root + path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(target, root+path); err != nil {
			return err
		}
	}
	return nil
}
