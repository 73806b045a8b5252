package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// record is what images/<id>.json holds.
type record struct {
	ID       string        `json:"id"`
	Manifest string        `json:"manifest"`
	Layers   []Layer       `json:"layers"`
	Config   ocispec.Image `json:"config"`
	// Raw is the configuration as it came, which may say more than Config knows. Records of older releases lack it.
	Raw    []byte    `json:"raw,omitempty"`
	Size   int64     `json:"size"`
	Pinned bool      `json:"pinned,omitempty"`
	Added  time.Time `json:"added"`
	// Boot is the kernel's ID of the boot in which it came, until Settle: in any other its layers need not be whole.
	Boot string `json:"boot,omitempty"`
}

// Layer is one layer of an image.
type Layer struct {
	DiffID string `json:"diffID"`
	Chain  string `json:"chain"`
	// Size is that of the archive as it came, in bytes.
	Size int64 `json:"size"`
}

// nameRecord is what names/<hash>.json holds.
type nameRecord struct {
	Name  string `json:"name"`
	Image string `json:"image"`
	// Was is the settled image that had the name before. It gets it back when Image is lost, see readName.
	Was string `json:"was,omitempty"`
}

func hexOf(digest string) string {
	return strings.TrimPrefix(digest, "sha256:")
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (s *Store) imagePath(id string) string { return s.path("images", hexOf(id)+".json") }

func (s *Store) namePath(name string) string {
	return s.path("names", hexOf(digestOf([]byte(name)))+".json")
}

// errDamaged says that a record's file holds something else.
var errDamaged = errors.New("damaged")

func readJSON[T any](path string) (v T, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("decode %s: %w: %w", path, err, errDamaged)
	}
	return v, nil
}

// readAll reads every record of a folder. A file that vanishes meanwhile was
// removed by somebody else and is left out, as are those with an error that pass takes.
func readAll[T any](dir string, pass func(error) bool) ([]T, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []T
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		v, err := readJSON[T](filepath.Join(dir, e.Name()))
		if err != nil && (errors.Is(err, fs.ErrNotExist) || pass(err)) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

func (s *Store) readImages() ([]record, error) { return readAll[record](s.path("images"), none) }

func (s *Store) readNames() ([]nameRecord, error) {
	names, err := readAll[nameRecord](s.path("names"), none)
	for i, n := range names {
		names[i] = s.asMeant(n)
	}
	return names, err
}

func (s *Store) readName(name string) (nameRecord, error) {
	n, err := readJSON[nameRecord](s.namePath(name))
	return s.asMeant(n), err
}

// asMeant gives a name back to the image that had it before where the one that it was given to had to be removed, and the disk took no
// other record of the name.
func (s *Store) asMeant(n nameRecord) nameRecord {
	if n.Was == "" {
		return n
	}
	if _, err := os.Lstat(s.imagePath(n.Image)); !errors.Is(err, fs.ErrNotExist) {
		return n
	}
	return nameRecord{Name: n.Name, Image: n.Was}
}

func none(error) bool { return false }

// soundImages is readImages without what is damaged: nobody can use that, and no other image is to wait for it.
func (s *Store) soundImages() ([]record, error) {
	return readAll[record](s.path("images"), func(err error) bool {
		if !errors.Is(err, errDamaged) {
			return false
		}
		s.log.Error("record of an image cannot be read: remove the file, and pull the image again", "err", err)
		return true
	})
}

// commit records an image whose layers are in place, then its names. An image
// that is there already keeps its pin, and stays settled if all its layers are. Preconditions: the lock is shared.
func (s *Store) commit(m record, names []string) error {
	done, err := s.edit()
	if err != nil {
		return err
	}
	defer done()
	settled := false
	if old, err := readJSON[record](s.imagePath(m.ID)); err == nil {
		m.Pinned = m.Pinned || old.Pinned
		if m.Size == 0 {
			m.Size = old.Size
		}
		settled = old.Boot == ""
	}
	for _, l := range m.Layers {
		has, durable := s.hasLayer(l.Chain)
		if !has {
			return fmt.Errorf("record image %s: layer %s could not be written to the disk, pull the image again", m.ID, l.DiffID)
		}
		settled = settled && durable
	}
	if !settled {
		m.Boot = s.boot
	}
	if err := s.writeJSON(s.imagePath(m.ID), m); err != nil {
		return fmt.Errorf("record image %s: %w", m.ID, err)
	}
	for _, n := range names {
		if err := s.name(n, m.ID); err != nil {
			return err
		}
	}
	return nil
}

// name lets a name mean an image. Preconditions: edit.
func (s *Store) name(name, id string) error {
	r := nameRecord{Name: name, Image: id}
	if old, err := s.readName(name); err == nil {
		if old.Image == id {
			return nil
		}
		if r.Was = old.Was; s.settled(old.Image) {
			r.Was = old.Image
		}
	}
	if err := s.writeJSON(s.namePath(name), r); err != nil {
		return fmt.Errorf("record name %s: %w", name, err)
	}
	return nil
}

// namesOf are the names of every image, sorted, by image ID.
func (s *Store) namesOf() (map[string][]string, error) {
	all, err := s.readNames()
	if err != nil {
		return nil, fmt.Errorf("read image names: %w", err)
	}
	by := map[string][]string{}
	for _, n := range all {
		by[n.Image] = append(by[n.Image], n.Name)
	}
	for _, names := range by {
		slices.Sort(names)
	}
	return by, nil
}
