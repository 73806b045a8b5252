package image

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"sync"
)

// unsettled is what of a Store need not be on the disk yet.
//
//	in place, with this boot's ID ──Settle: sync, records without it──> durable
//	             └──another boot──> layers are not trusted, images removed
//
// So an image can be used while the disk is still busy with it, which is half of
// what a pull takes on a slow one, and no power cut makes a container of a half layer.
type unsettled struct {
	mu sync.Mutex
	// sites are descriptors from before anything was written: by them the kernel tells of all errors of writing since.
	sites []*os.File
	// settling is held by one Settle after the other.
	settling sync.Mutex
}

// later notes that what was made in site is to be settled. Settle closes it.
func (u *unsettled) later(site *os.File) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sites = append(u.sites, site)
}

func (u *unsettled) take() []*os.File {
	u.mu.Lock()
	defer u.mu.Unlock()
	sites := u.sites
	u.sites = nil
	return sites
}

// Settle makes all images durable that came in this boot, also those of a process that ended too early. An image that cannot be
// written is removed, and its ID is part of the error.
func (s *Store) Settle() error {
	s.settling.Lock()
	defer s.settling.Unlock()
	release, err := s.share()
	if err != nil {
		return err
	}
	defer release()
	sites := s.take()
	defer func() {
		for _, site := range sites {
			site.Close()
		}
	}()
	images, err := s.readImages()
	if err != nil {
		return fmt.Errorf("settle images: %w", err)
	}
	var fresh []record
	for _, m := range images {
		if m.Boot != "" {
			fresh = append(fresh, m)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if err := s.syncAll(sites); err != nil {
		for _, m := range fresh {
			err = errors.Join(fmt.Errorf("image %s is removed, pull it again: %w", m.ID, err), s.remove(m.ID))
		}
		return err
	}
	// Layers' records have to be on the disk before an image's says that all is.
	for _, m := range fresh {
		if err := s.settleLayers(m); err != nil {
			return fmt.Errorf("settle layers of image %s: %w", m.ID, err)
		}
	}
	if err := s.syncAll(nil); err != nil {
		return err
	}
	for _, m := range fresh {
		if err := s.settleRecord(m.ID); err != nil {
			return fmt.Errorf("settle image %s: %w", m.ID, err)
		}
	}
	return nil
}

// syncAll syncs the file system, once for each descriptor, as each tells of its own errors.
func (s *Store) syncAll(sites []*os.File) error {
	if len(sites) == 0 {
		dir, err := os.Open(s.dir)
		if err != nil {
			return err
		}
		defer dir.Close()
		sites = []*os.File{dir}
	}
	var errs []error
	for _, site := range sites {
		errs = append(errs, s.syncFS(site))
	}
	return errors.Join(errs...)
}

func (s *Store) settleLayers(m record) error {
	for _, l := range m.Layers {
		r, err := readJSON[layerRecord](s.layerRecord(l.Chain))
		if err != nil {
			return err
		}
		if r.Boot == "" {
			continue
		}
		r.Boot = ""
		if err := s.writeQuickly(s.layerRecord(l.Chain), r); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) settleRecord(id string) error {
	m, err := readJSON[record](s.imagePath(id)) // it may have been removed meanwhile, or pinned
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	m.Boot = ""
	return s.writeJSON(s.imagePath(id), m)
}

func (s *Store) settled(id string) bool {
	m, err := readJSON[record](s.imagePath(id))
	return err == nil && m.Boot == ""
}

// forgetImages removes images that an earlier boot did not settle. Their names go back to the images that had them before.
func (s *Store) forgetImages() error {
	images, err := s.readImages()
	if err != nil {
		return err
	}
	for _, m := range images {
		if m.Boot == "" || m.Boot == s.boot {
			continue
		}
		names, err := s.readNames()
		if err != nil {
			return err
		}
		for _, n := range names {
			if n.Image == m.ID && n.Was != "" && s.settled(n.Was) {
				if err := s.writeJSON(s.namePath(n.Name), nameRecord{Name: n.Name, Image: n.Was}); err != nil {
					return err
				}
			}
		}
		s.log.Warn("image was not on the disk yet when the power went, and has to be pulled again", "image", cmp.Or(m.Manifest, m.ID))
		if err := s.remove(m.ID); err != nil {
			return err
		}
	}
	return nil
}
