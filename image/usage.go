package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/yare-dev/yare/linux/diskusage"
)

// Usage is space taken on the store's file system.
type Usage struct {
	Bytes  int64
	Inodes int64
}

// Usage is what all layers take, those of removed images that are still in use
// included.
func (s *Store) Usage() (Usage, error) {
	var u Usage
	layers, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return u, fmt.Errorf("measure images: %w", err)
	}
	for _, l := range layers {
		dir := s.path("layers", l.Name())
		r, err := readJSON[layerRecord](filepath.Join(dir, "layer.json"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errDamaged) { // until a sweep, or a pull, takes the layer
			r.Used, err = measured(dir)
		}
		if err != nil {
			return u, fmt.Errorf("measure images: %w", err)
		}
		u.Bytes += r.Used.Bytes
		u.Inodes += r.Used.Inodes
	}
	return u, nil
}

func measured(dir string) (usage, error) {
	u, err := diskusage.Of(dir)
	return usage(u), err
}

// SnapshotUsage is what was written to a snapshot, measured now. What vanishes
// meanwhile is not counted.
func (s *Store) SnapshotUsage(key string) (Usage, error) {
	dir, err := s.snapshotDir(key)
	if err != nil {
		return Usage{}, err
	}
	written := filepath.Join(dir, "upper")
	if copied(dir) {
		written = filepath.Join(dir, "copy")
	}
	u, err := diskusage.Of(written)
	if err != nil {
		return Usage{}, fmt.Errorf("measure snapshot %s: %w", key, err)
	}
	return Usage(u), nil
}
