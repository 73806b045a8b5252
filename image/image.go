package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is one image of a Store.
type Image struct {
	// ID is the digest of the configuration.
	ID string
	// Manifest is the digest of the manifest that the image came with.
	Manifest string
	// Tags are its names with a tag (or, imported, whatever name they gave),
	// Digests those with a digest; both sorted.
	Tags, Digests []string
	Layers        []Layer
	// Config is the configuration: entrypoint, environment, user, history.
	Config ocispec.Image
	// Size is that of configuration and layer archives as they came, in bytes.
	Size int64
	// Pinned images are not garbage.
	Pinned bool
	// Added is when the image came into the Store.
	Added time.Time
}

func (m record) image(names []string) *Image {
	im := &Image{
		ID: m.ID, Manifest: m.Manifest, Layers: m.Layers, Config: m.Config,
		Size: m.Size, Pinned: m.Pinned, Added: m.Added,
	}
	for _, n := range names {
		if strings.Contains(n, "@") {
			im.Digests = append(im.Digests, n)
		} else {
			im.Tags = append(im.Tags, n)
		}
	}
	return im
}

// List returns all images, the latest added first.
func (s *Store) List(context.Context) ([]*Image, error) {
	names, err := s.namesOf()
	if err != nil {
		return nil, err
	}
	records, err := s.readImages()
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	images := make([]*Image, 0, len(records))
	for _, m := range records {
		images = append(images, m.image(names[m.ID]))
	}
	slices.SortFunc(images, func(a, b *Image) int { return b.Added.Compare(a.Added) })
	return images, nil
}

// Get finds an image by ID, by a unique beginning of its ID of at least six
// digits, by name as written, or by the complete form of a familiar name. The
// error wraps ErrNotFound.
func (s *Store) Get(_ context.Context, ref string) (*Image, error) {
	m, err := s.resolve(ref)
	if err != nil {
		return nil, err
	}
	names, err := s.namesOf()
	if err != nil {
		return nil, err
	}
	return m.image(names[m.ID]), nil
}

// resolve reads the record that ref means.
func (s *Store) resolve(ref string) (record, error) {
	for _, name := range candidates(ref) {
		n, err := s.readName(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return record{}, fmt.Errorf("find image %s: %w", ref, err)
		}
		m, err := readJSON[record](s.imagePath(n.Image))
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return m, err
		}
	}
	if !isHex(hexOf(ref)) {
		return record{}, fmt.Errorf("image %s: %w", ref, ErrNotFound)
	}
	m, err := readJSON[record](s.imagePath(ref))
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	return s.resolvePrefix(ref)
}

func (s *Store) resolvePrefix(ref string) (record, error) {
	prefix := hexOf(ref)
	var found []string
	if len(prefix) >= 6 {
		entries, err := os.ReadDir(s.path("images"))
		if err != nil {
			return record{}, err
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), prefix) {
				found = append(found, strings.TrimSuffix(e.Name(), ".json"))
			}
		}
	}
	switch len(found) {
	case 0:
		return record{}, fmt.Errorf("image %s: %w", ref, ErrNotFound)
	case 1:
		return readJSON[record](s.imagePath(found[0]))
	default:
		return record{}, fmt.Errorf("image %s: %d images begin so: %w", ref, len(found), ErrInvalid)
	}
}

func isHex(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// candidates are the names that ref may be recorded under, likeliest first.
func candidates(ref string) []string {
	names := []string{ref}
	r, err := ParseReference(ref)
	if err != nil {
		return names
	}
	if r.Digest != "" {
		// A tag beside a digest says nothing.
		return append(names, r.Name()+"@"+r.Digest)
	}
	return append(names, r.String())
}

// Tag gives an image another name, which it takes from any image that has it.
func (s *Store) Tag(_ context.Context, ref, name string) error {
	r, err := ParseReference(name)
	if err != nil {
		return err
	}
	release, err := s.share()
	if err != nil {
		return err
	}
	defer release()
	done, err := s.edit()
	if err != nil {
		return err
	}
	defer done()
	m, err := s.resolve(ref)
	if err != nil {
		return err
	}
	return s.name(r.String(), m.ID)
}

// Remove removes an image with all its names, as CRI's RemoveImage does. Its
// layers stay on disk for as long as a snapshot or another image needs them.
// The error wraps ErrNotFound when there is no such image.
func (s *Store) Remove(_ context.Context, ref string) error {
	m, err := s.resolve(ref)
	if err != nil {
		return err
	}
	if err := s.remove(m.ID); err != nil {
		return err
	}
	return s.sweep()
}

func (s *Store) remove(id string) error {
	done, err := s.edit()
	if err != nil {
		return err
	}
	defer done()
	names, err := s.namesOf()
	if err != nil {
		return err
	}
	for _, n := range names[id] {
		if err := s.removeFile(s.namePath(n)); err != nil {
			return fmt.Errorf("remove name %s: %w", n, err)
		}
	}
	if err := s.removeFile(s.imagePath(id)); err != nil {
		return fmt.Errorf("remove image %s: %w", id, err)
	}
	return s.syncRecords()
}

func (s *Store) syncRecords() error {
	return errors.Join(s.syncDir(s.path("names")), s.syncDir(s.path("images")))
}

func (s *Store) removeFile(path string) error {
	if err := s.step("remove", path); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Prune removes every image that no snapshot uses and that is not pinned, and
// returns what it removed.
func (s *Store) Prune(ctx context.Context) ([]*Image, error) {
	images, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	snapshots, err := s.Snapshots()
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, sn := range snapshots {
		used[sn.Image] = true
	}
	var removed []*Image
	for _, im := range images {
		if im.Pinned || used[im.ID] {
			continue
		}
		if err := s.remove(im.ID); err != nil {
			return removed, err
		}
		removed = append(removed, im)
	}
	return removed, s.sweep()
}
