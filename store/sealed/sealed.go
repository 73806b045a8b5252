// Package sealed is a store.Backend that encrypts values of some kinds before they reach the database beneath it, by
// upstream's configuration file and in its form on disk: "k8s:enc:aesgcm:v1:NAME:" and its kin before the sealed text. It
// replaces k8s.io/apiserver's storage transformers.
//
// A value that cannot be opened is handed on as it is: the Store cannot read it, says so of that object, and the others are there. Where
// it is the key management service that cannot be asked, nothing is known of the value: reading fails as a whole, to be tried again.
package sealed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// prefixed is a transformer with what its values begin with.
type prefixed struct {
	prefix string
	transformer
}

// Backend encrypts what goes into another, by a file that may change meanwhile.
type Backend struct {
	store.Backend
	file  string
	text  []byte
	kinds []*api.Kind
	log   *slog.Logger
	now   atomic.Pointer[rules]
}

// rules are what the file says at a time.
type rules struct {
	// byPrefix has the transformers of built-in kinds by their folder below /registry/.
	byPrefix map[string][]prefixed
	all      []rule
	services map[string]*service // by name
	// changed says that these are not the rules any more: values that were read by them may have another form now.
	changed func() bool
}

// rule is an entry of the configuration.
type rule struct {
	about *Resources
	by    []prefixed
}

const root = "/registry/"

// New returns a Backend over b for the built-in kinds, and those that are defined later, as the file has it.
func New(b store.Backend, file string, kinds []*api.Kind, log *slog.Logger) (*Backend, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("encryption configuration: %w", err)
	}
	s := &Backend{Backend: b, file: file, text: text, kinds: kinds, log: log.With("component", "store")}
	r, err := s.rules(text)
	if err != nil {
		return nil, fmt.Errorf("encryption configuration in %s: %w", file, err)
	}
	s.now.Store(r)
	return s, nil
}

// rules reads a file's text.
func (b *Backend) rules(text []byte) (*rules, error) {
	c, err := parse(text)
	if err != nil {
		return nil, err
	}
	r := &rules{byPrefix: map[string][]prefixed{}, services: map[string]*service{}}
	r.changed = func() bool { return b.now.Load() != r }
	for i := range c.Resources {
		by, err := c.Resources[i].transformers(r.services)
		if err != nil {
			return nil, errors.Join(err, r.close())
		}
		r.all = append(r.all, rule{&c.Resources[i], by})
	}
	for _, k := range b.kinds {
		r.byPrefix[k.Prefix] = r.of(k)
	}
	return r, nil
}

// close ends the connections to key management services.
func (r *rules) close() (err error) {
	for _, s := range r.services {
		err = errors.Join(err, s.close())
	}
	return err
}

// of returns the transformers of a kind, none where it is stored as it is.
func (r *rules) of(k *api.Kind) []prefixed {
	for _, one := range r.all {
		if one.about.names(k) {
			return one.by
		}
	}
	return nil
}

// transformers returns those of a key of the database.
func (r *rules) transformers(key string) []prefixed {
	rest, ok := strings.CutPrefix(key, root)
	if !ok {
		return nil
	}
	first, rest, _ := strings.Cut(rest, "/")
	if t, ok := r.byPrefix[first]; ok {
		return t
	}
	second, _, _ := strings.Cut(rest, "/")
	if t, ok := r.byPrefix[first+"/"+second]; ok {
		return t
	}
	if strings.Contains(first, ".") { // a custom resource: its group, then its name
		return r.of(&api.Kind{Group: first, Plural: second})
	}
	return nil
}

// Put implements store.Backend.
func (b *Backend) Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error) {
	if ts := b.now.Load().transformers(key); len(ts) > 0 {
		text, err := ts[0].seal(ctx, key, value)
		if err != nil {
			return 0, err
		}
		value = append([]byte(ts[0].prefix), text...)
	}
	return b.Backend.Put(ctx, key, value, want, ttl)
}

// Range implements store.Backend.
func (b *Backend) Range(ctx context.Context, from, end string, limit int, at api.Revision) ([]store.KV, bool, api.Revision, error) {
	kvs, more, rev, err := b.Backend.Range(ctx, from, end, limit, at)
	if err != nil {
		return nil, false, 0, err
	}
	for i := range kvs {
		if err := b.open(ctx, &kvs[i]); err != nil {
			return nil, false, 0, err
		}
	}
	return kvs, more, rev, nil
}

// Watch implements store.Backend.
func (b *Backend) Watch(ctx context.Context, prefix string, from api.Revision, emit func(api.Revision, []store.Change) error) error {
	return b.Backend.Watch(ctx, prefix, from, func(rev api.Revision, changes []store.Change) error {
		for i := range changes {
			if changes[i].Value == nil {
				continue
			}
			if err := b.open(ctx, &changes[i].KV); err != nil {
				return err
			}
		}
		return emit(rev, changes)
	})
}

var errUnknown = errors.New("no matching prefix found")

// open replaces the value by what it was before it was sealed. It fails where that cannot be found out now.
func (b *Backend) open(ctx context.Context, kv *store.KV) error {
	r := b.now.Load()
	kv.Stale = r.changed
	ts := r.transformers(kv.Key)
	if len(ts) == 0 {
		return nil
	}
	err := errUnknown
	for i, t := range ts {
		text, ok := bytes.CutPrefix(kv.Value, []byte(t.prefix))
		if !ok {
			continue
		}
		plain, stale, e := t.open(ctx, kv.Key, text)
		if e == nil {
			if kv.Value = plain; stale || i > 0 {
				kv.Stale = always
			}
			return nil
		}
		if errors.Is(e, errAway) {
			return fmt.Errorf("open %s: %w (%w)", kv.Key, store.ErrUnavailable, e)
		}
		err = e
	}
	b.log.Error("sealed object cannot be opened", "key", kv.Key, "err", err)
	return nil
}

func always() bool { return true }
