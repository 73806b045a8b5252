package image

import (
	"errors"
	"fmt"
	"io/fs"
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
	dirs, err := filepath.Glob(s.path("layers", "*", "layer.json"))
	if err != nil {
		return u, err
	}
	for _, d := range dirs {
		r, err := readJSON[layerRecord](d)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if errors.Is(err, errDamaged) { // a power cut's, until a sweep or a pull takes the layer
			r.Used, err = measured(filepath.Dir(d))
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
