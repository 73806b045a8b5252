package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// annotationImageName is where containerd and Docker write an image's full name
// in a layout's index.
const annotationImageName = "io.containerd.image.name"

// Import reads images from an OCI layout (a directory or an archive of one) or
// from an archive of `docker save`, compressed or not, and pins them. Of images
// for several platforms it takes the host's.
func (s *Store) Import(ctx context.Context, file string) ([]*Image, error) {
	st, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	release, err := s.share()
	if err != nil {
		return nil, err
	}
	defer release()
	dir := file
	if !st.IsDir() {
		tmp, err := s.temp("import")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(tmp)
		if err := s.unpackArchive(ctx, file, tmp); err != nil {
			return nil, fmt.Errorf("import %s: %w", file, err)
		}
		dir = tmp
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	defer root.Close()
	images, err := (&layout{store: s, root: root}).images(ctx)
	err = errors.Join(err, s.Settle())
	for _, im := range images {
		err = errors.Join(err, s.checkSettled(im.ID))
	}
	if err != nil {
		return images, fmt.Errorf("import %s: %w", file, err)
	}
	return images, nil
}

// unpackArchive puts the outer archive into dir by the same rules as a layer.
func (s *Store) unpackArchive(ctx context.Context, file, dir string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, closePlain, err := decompress(f)
	if err != nil {
		return err
	}
	defer closePlain()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	a := newApplier(fd, s.limits, false)
	defer func() { a.tree.close() }()
	a.room = s.room
	return a.apply(ctx, &boundedReader{ctx: ctx, r: plain, left: s.limits.Bytes})
}

// layout is a directory of an image interchange format. All files are opened
// below root, so that no link in it leads elsewhere.
type layout struct {
	store *Store
	root  *os.Root
}

func (l *layout) images(ctx context.Context) ([]*Image, error) {
	raw, err := l.read("index.json")
	if err == nil {
		return l.ociImages(ctx, raw)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	raw, err = l.read("manifest.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("neither index.json nor manifest.json is in it: %w", ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	return l.dockerImages(ctx, raw)
}

// read reads a small file.
func (l *layout) read(name string) ([]byte, error) {
	f, err := l.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	most := l.store.limits.Manifest
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(raw)) > most {
		err = fmt.Errorf("%s is larger than %d bytes: %w", name, most, ErrInvalid)
	}
	return raw, err
}

// blob reads a small blob and checks its digest.
func (l *layout) blob(digest string) ([]byte, error) {
	if !references().digest.MatchString(digest) {
		return nil, fmt.Errorf("%q is no sha256 digest: %w", digest, ErrInvalid)
	}
	raw, err := l.read(blobFile(digest))
	if err == nil && digestOf(raw) != digest {
		err = fmt.Errorf("blob %s has digest %s: %w", digest, digestOf(raw), ErrInvalid)
	}
	return raw, err
}

func blobFile(digest string) string { return path.Join("blobs/sha256", hexOf(digest)) }

func (l *layout) archive(file string) func(context.Context) (io.ReadCloser, error) {
	return func(context.Context) (io.ReadCloser, error) { return l.root.Open(file) }
}

func (l *layout) ociImages(ctx context.Context, raw []byte) ([]*Image, error) {
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("decode index.json: %w: %w", err, ErrInvalid)
	}
	var images []*Image
	var foreign error
	for _, d := range index.Manifests {
		im, err := l.ociImage(ctx, d)
		if errors.Is(err, ErrNotFound) && d.Platform != nil {
			foreign = err
			continue
		}
		if err != nil {
			return images, err
		}
		images = append(images, im)
	}
	if len(images) == 0 {
		return nil, errors.Join(foreign, fmt.Errorf("no image for this host in index.json: %w", ErrNotFound))
	}
	return images, nil
}

func (l *layout) ociImage(ctx context.Context, d ocispec.Descriptor) (*Image, error) {
	if d.Platform != nil {
		if _, err := choose([]ocispec.Descriptor{d, {Platform: &ocispec.Platform{}}}, hostPlatform()); err != nil {
			return nil, err
		}
	}
	name := d.Annotations[annotationImageName]
	if name == "" {
		name = d.Annotations[ocispec.AnnotationRefName]
	}
	named := string(d.Digest)
	for range 3 {
		raw, err := l.blob(string(d.Digest))
		if err != nil {
			return nil, err
		}
		var m ocispec.Manifest
		index, err := parseManifest(raw, d.MediaType, &m)
		if err != nil {
			return nil, err
		}
		if index != nil {
			if d, err = choose(index, hostPlatform()); err != nil {
				return nil, err
			}
			continue
		}
		b := &bundle{manifest: string(d.Digest)}
		if b.config, err = l.blob(string(m.Config.Digest)); err != nil {
			return nil, err
		}
		for _, layer := range m.Layers {
			digest := string(layer.Digest)
			b.layers = append(b.layers, blob{digest: digest, size: layer.Size, open: l.archive(blobFile(digest))})
		}
		return l.store.ingest(ctx, b, importedNames(name, named), true)
	}
	return nil, fmt.Errorf("indexes of indexes of indexes: %w", ErrInvalid)
}

// importedNames are the names for a name in an archive. One that is no
// reference is kept as it is: whoever wrote it may ask for it.
func importedNames(name, digest string) []string {
	if name == "" {
		return nil
	}
	r, err := ParseReference(name)
	if err != nil {
		return []string{name}
	}
	if digest == "" {
		return []string{r.String()}
	}
	return r.names(digest)
}

func (l *layout) dockerImages(ctx context.Context, raw []byte) ([]*Image, error) {
	var entries []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("decode manifest.json: %w: %w", err, ErrInvalid)
	}
	var images []*Image
	for _, e := range entries {
		var err error
		b := &bundle{}
		if b.config, err = l.read(e.Config); err != nil {
			return images, err
		}
		// The file's name tells the configuration's digest, if anything does.
		base := strings.TrimSuffix(filepath.Base(e.Config), ".json")
		if len(base) == 64 && isHex(base) && hexOf(digestOf(b.config)) != base {
			return images, fmt.Errorf("%s has digest %s: %w", e.Config, digestOf(b.config), ErrInvalid)
		}
		for _, file := range e.Layers {
			st, err := l.root.Stat(file)
			if err != nil {
				return images, err
			}
			b.layers = append(b.layers, blob{size: st.Size(), open: l.archive(file)})
		}
		var names []string
		for _, t := range e.RepoTags {
			names = append(names, importedNames(t, "")...)
		}
		im, err := l.store.ingest(ctx, b, names, true)
		if err != nil {
			return images, err
		}
		images = append(images, im)
	}
	return images, nil
}
