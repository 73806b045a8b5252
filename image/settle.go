package image

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
)

// unsettled is what of a Store need not be on the disk yet.
//
//	in place, with this boot's ID ──Settle: sync, records without it──> durable
//	             │              └──it cannot be written──> layers are lost, images removed
//	             └──another boot──> layers are not trusted, images removed
//
// So an image can be used while the disk is still busy with it, which is half of
// what a pull takes on a slow one, and no power cut makes a container of a half layer.
type unsettled struct {
	mu    sync.Mutex
	sites []*site
	// settling is held by one Settle after the other.
	settling sync.Mutex
	// broken is why an earlier Settle failed that could not record it. The kernel tells of an error once only.
	broken error
}

// site is where layers were made.
type site struct {
	// dir is a descriptor from before anything was written: by it the kernel tells of all errors of writing since.
	dir *os.File
	// made are the chain IDs of the layers.
	made []string
}

// later leaves sites to Settle, which closes them.
func (u *unsettled) later(sites ...*site) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.sites = append(u.sites, sites...)
}

func (u *unsettled) take() []*site {
	u.mu.Lock()
	defer u.mu.Unlock()
	sites := u.sites
	u.sites = nil
	return sites
}

// Settle makes all images durable that came in this boot, also those of a process that ended too early. When something cannot be
// written, all that was not durable yet is removed: the error names the images.
func (s *Store) Settle() error {
	s.settling.Lock()
	defer s.settling.Unlock()
	release, err := s.share()
	if err != nil {
		return err
	}
	defer release()
	sites := s.take() // before images are read: each of this process is there with its site, or its site was synced before
	images, err := s.soundImages()
	if err != nil {
		s.later(sites...)
		return fmt.Errorf("settle images: %w", err)
	}
	images = slices.DeleteFunc(images, func(m record) bool { return m.Boot != s.boot })
	if len(images) == 0 && len(sites) == 0 && s.broken == nil {
		return nil
	}
	if len(sites) == 0 {
		dir, err := os.Open(s.dir)
		if err != nil {
			return fmt.Errorf("settle images: %w", err)
		}
		sites = []*site{{dir: dir}}
	}
	defer func() {
		for _, site := range sites {
			site.dir.Close()
		}
	}()
	return s.settle(images, sites)
}

// settle settles images, and layers that were made in sites, of which there is at least one.
func (s *Store) settle(images []record, sites []*site) error {
	made := map[string]bool{}
	failed := s.broken
	for _, site := range sites {
		failed = errors.Join(failed, s.syncFS(site.dir)) // each tells of its own errors
		for _, chain := range site.made {
			made[chain] = true
		}
	}
	if failed != nil {
		return s.lose(made, failed)
	}
	// Layers' records have to be on the disk before an image's says that all is.
	var errs []error
	images = slices.DeleteFunc(images, func(m record) bool {
		err := s.settleLayers(m, made)
		if err != nil {
			errs = append(errs, fmt.Errorf("settle image %s: %w", m.ID, err))
		}
		return err != nil
	})
	if len(images) == 0 {
		return errors.Join(errs...)
	}
	if err := s.syncFS(sites[0].dir); err != nil {
		return s.lose(made, err)
	}
	for _, m := range images {
		if err := s.settleRecord(m.ID); err != nil {
			errs = append(errs, fmt.Errorf("settle image %s: %w", m.ID, err))
		}
	}
	return errors.Join(errs...)
}

// settleLayers says in the records of an image's layers that they are durable, and adds those that were not to made.
// An image without its layers is removed: it is nothing, and others need not wait for it.
func (s *Store) settleLayers(m record, made map[string]bool) error {
	done, err := s.edit()
	if err != nil {
		return err
	}
	defer done()
	for _, l := range m.Layers {
		has, settled := s.hasLayer(l.Chain)
		if !has {
			return errors.Join(fmt.Errorf("layer %s is lost: the image is removed, pull it again", l.DiffID), s.drop(m.ID))
		}
		if settled {
			continue
		}
		r, err := readJSON[layerRecord](s.layerRecord(l.Chain))
		if err != nil {
			return err
		}
		r.Boot = ""
		if err := s.writeQuickly(s.layerRecord(l.Chain), r); err != nil {
			return err
		}
		made[l.Chain] = true
	}
	return nil
}

func (s *Store) settleRecord(id string) error {
	done, err := s.edit()
	if err != nil {
		return err
	}
	defer done()
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

// checkSettled is for who was promised that an image is durable: somebody else's Settle may have had to remove it.
func (s *Store) checkSettled(id string) error {
	if !s.settled(id) {
		return fmt.Errorf("image %s could not be made durable, or was removed meanwhile: %w", id, ErrNotFound)
	}
	return nil
}

// lose has layers that could not be written, and all others that are not durable yet, made anew by the next pull, and removes the
// images that have them. Who hears of an error does so for everybody: the kernel does not tell who asks later.
func (s *Store) lose(made map[string]bool, cause error) error {
	s.broken = cause
	s.sweepDue.Store(true)
	done, err := s.edit()
	if err != nil {
		return errors.Join(cause, err)
	}
	defer done()
	failed := s.loseLayers(made)
	images, err := s.soundImages()
	if err != nil {
		return errors.Join(cause, failed, err)
	}
	var removed error
	for _, m := range images {
		if m.Boot == "" && !slices.ContainsFunc(m.Layers, func(l Layer) bool { has, _ := s.hasLayer(l.Chain); return !has }) {
			continue
		}
		removed = errors.Join(removed, fmt.Errorf("image %s is removed, pull it again: %w", m.ID, cause))
		failed = errors.Join(failed, s.drop(m.ID))
	}
	if failed == nil {
		s.broken = nil
	}
	return errors.Join(cmp.Or(removed, cause), failed, s.syncRecords())
}

// loseLayers takes away the records of layers, without which they are nothing: a disk that takes nothing any more takes that.
func (s *Store) loseLayers(made map[string]bool) error {
	entries, err := os.ReadDir(s.path("layers"))
	for _, e := range entries {
		chain := "sha256:" + e.Name()
		r, readErr := readJSON[layerRecord](s.layerRecord(chain))
		if readErr == nil && (r.Boot != "" || made[chain]) {
			err = errors.Join(err, s.removeFile(s.layerRecord(chain)))
		}
	}
	return err
}

// drop removes an image that is not whole, for now. Its names go back to the images that had them before. It gets by with a disk that takes
// nothing any more: see asMeant. Preconditions: edit.
func (s *Store) drop(id string) error {
	names, err := s.readNames()
	if err != nil {
		return err
	}
	for _, n := range names {
		switch {
		case n.Image != id:
		case n.Was == id || !s.settled(n.Was):
			if err := s.removeFile(s.namePath(n.Name)); err != nil {
				return err
			}
		default:
			if err := s.writeJSON(s.namePath(n.Name), nameRecord{Name: n.Name, Image: n.Was}); err != nil {
				s.log.Warn("name of an image that is removed is given back, but not recorded", "name", n.Name, "err", err)
			}
		}
	}
	return s.removeFile(s.imagePath(id))
}

// forgetImages removes images that an earlier boot did not settle.
func (s *Store) forgetImages() error {
	stale := func(m record) bool { return m.Boot != "" && m.Boot != s.boot }
	images, err := s.soundImages()
	if err != nil || !slices.ContainsFunc(images, stale) {
		return err
	}
	done, err := s.edit()
	if err != nil {
		return err
	}
	defer done()
	// Another process may have forgotten them meanwhile, and pulled them again.
	if images, err = s.soundImages(); err != nil {
		return err
	}
	for _, m := range images {
		if !stale(m) {
			continue
		}
		s.log.Warn("image was not on the disk yet when the power went, and has to be pulled again", "image", cmp.Or(m.Manifest, m.ID))
		if err := s.drop(m.ID); err != nil {
			return err
		}
	}
	return s.syncRecords()
}
