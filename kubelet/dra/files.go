package dra

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/linux/durable"
)

// Records are files of a folder, one for each claim. Each is synced before a driver is called: what a driver has prepared may outlast the boot, and
// has to be unprepared then.

const suffix = ".json"

func (s *Set) dir() string { return filepath.Join(s.config.Root, "dra_claims") }

func (s *Set) path(claim types.UID) string { return filepath.Join(s.dir(), string(claim)+suffix) }

// Open reads what was prepared before. It comes before any pod is looked at.
func (s *Set) Open() error {
	s.mu.Lock()
	s.openHealth(time.Now())
	s.mu.Unlock()
	entries, err := os.ReadDir(s.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read which resource claims are prepared: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		path := filepath.Join(s.dir(), e.Name())
		claim, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok { // a write that did not come to its end
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove unfinished record of a resource claim: %w", err)
			}
			continue
		}
		r, err := load(path)
		if err == nil && string(r.UID) != claim {
			err = fmt.Errorf("it is of the claim %q", r.UID)
		}
		if err != nil {
			return fmt.Errorf("read which resource claims are prepared: %s: %w; when no pod that uses a resource claim runs, remove it", path, err)
		}
		s.records[r.UID] = r
	}
	return nil
}

func load(path string) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, err
	}
	for name, p := range r.Drivers {
		if p == nil {
			return nil, fmt.Errorf("driver %s has no value", name)
		}
	}
	return r, nil
}

// save replaces the claim's file, in one step that outlasts the host.
func (s *Set) save(r *record) error {
	if uid := string(r.UID); uid == "" || strings.ContainsAny(uid, "/\x00") {
		return fmt.Errorf("UID %q of resource claim %s/%s is no file's name", uid, r.Namespace, r.Name)
	}
	b, err := json.Marshal(r)
	if err == nil {
		err = s.write(s.path(r.UID), b)
	}
	if err != nil {
		return fmt.Errorf("note resource claim %s/%s: %w", r.Namespace, r.Name, err)
	}
	return nil
}

func (s *Set) write(path string, b []byte) error {
	if err := os.MkdirAll(s.dir(), 0o750); err != nil {
		return err
	}
	return durable.Write(path, b, 0o600)
}

// forget removes the claim's record. One that comes back after a crash has its claim unprepared again.
func (s *Set) forget(claim types.UID) error {
	if err := os.Remove(s.path(claim)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget resource claim: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, claim)
	return nil
}
