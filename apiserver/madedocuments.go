package apiserver

import (
	"context"
	"errors"
	"sync"
	"time"
)

// docKept is for how long an encoded document is kept after it was made.
const docKept = time.Minute

// docKey names one encoding of a document.
type docKey struct{ path, mediaType string }

// madeDocuments has documents made once for all who ask at the same time, one after the other, since one costs some hundred megabytes
// for a moment. The encoded ones, of some megabytes at most, are kept for a while, of each the edition that was asked for last.
type madeDocuments struct {
	making chan struct{} // has one place

	mu   sync.Mutex
	kept map[docKey]*madeDocument
}

func newMadeDocuments() *madeDocuments {
	return &madeDocuments{making: make(chan struct{}, 1), kept: map[docKey]*madeDocument{}}
}

// madeDocument is one of them.
type madeDocument struct {
	tag  string
	done chan struct{} // closed when it is made
	text []byte
	err  error
}

// errNotMade is the error of those who waited for one whose making panicked.
var errNotMade = errors.New("the OpenAPI document was not made")

// get returns the document of that name in the edition of the tag, which make makes where it is not kept.
func (d *madeDocuments) get(ctx context.Context, key docKey, tag string, make func() ([]byte, error)) ([]byte, error) {
	one, ours := d.find(key, tag)
	if ours {
		d.make(key, one, make)
	}
	select {
	case <-one.done:
		return one.text, one.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// find returns the document, and whether it is the caller's to make.
func (d *madeDocuments) find(key docKey, tag string) (one *madeDocument, ours bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if one = d.kept[key]; one != nil && one.tag == tag {
		return one, false
	}
	one = &madeDocument{tag: tag, done: make(chan struct{}), err: errNotMade}
	d.kept[key] = one
	return one, true
}

// make makes the document. One that could not be made is not kept.
func (d *madeDocuments) make(key docKey, one *madeDocument, make func() ([]byte, error)) {
	d.making <- struct{}{}
	defer func() { <-d.making }()
	defer func() {
		if close(one.done); one.err != nil {
			d.forget(key, one)
			return
		}
		time.AfterFunc(docKept, func() { d.forget(key, one) })
	}()
	one.text, one.err = make()
}

func (d *madeDocuments) forget(key docKey, one *madeDocument) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.kept[key] == one {
		delete(d.kept, key)
	}
}
