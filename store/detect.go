package store

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"sync"
)

// detector finds objects that were changed after they were published. A nil detector finds nothing.
type detector struct {
	mu        sync.Mutex
	published []hashed
}

type hashed struct {
	e   *Entry
	sum [sha256.Size]byte
}

func hash(e *Entry) ([sha256.Size]byte, error) {
	b, err := encode(e.Object, JSON)
	return sha256.Sum256(bytes.TrimSpace(b)), err
}

func (d *detector) add(e *Entry) {
	if d == nil || e.err != nil {
		return
	}
	sum, err := hash(e)
	if err != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.published = append(d.published, hashed{e, sum})
}

// check returns an error that names the first object that is no longer what was published.
func (d *detector) check() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range d.published {
		sum, err := hash(h.e)
		if err != nil {
			return err
		}
		if sum != h.sum {
			kind := h.e.Object.GetObjectKind().GroupVersionKind().Kind
			return fmt.Errorf("%s %v of revision %d was changed after it was published", kind, h.e.Key, h.e.Revision)
		}
	}
	return nil
}
