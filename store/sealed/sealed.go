// Package sealed is a store.Backend that encrypts values of some kinds before they reach the database beneath it, by
// upstream's configuration file and in its form on disk: "k8s:enc:aesgcm:v1:NAME:" and its kin before the sealed text. It
// replaces k8s.io/apiserver's storage transformers.
//
// A value that cannot be opened is handed on as it is: the Store cannot read it, says so of that object, and the others are there.
package sealed

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// prefixed is a transformer with what its values begin with.
type prefixed struct {
	prefix string
	transformer
}

// Backend encrypts what goes into another.
type Backend struct {
	store.Backend
	log *slog.Logger
	// byPrefix has the transformers of built-in kinds by their folder below /registry/.
	byPrefix map[string][]prefixed
	rules    []rule
}

// rule is an entry of the configuration.
type rule struct {
	about *Resources
	by    []prefixed
}

const root = "/registry/"

// New returns a Backend over b for the built-in kinds, and those that are defined later.
func New(b store.Backend, c *Config, kinds []*api.Kind, log *slog.Logger) (*Backend, error) {
	s := &Backend{Backend: b, log: log.With("component", "store"), byPrefix: map[string][]prefixed{}}
	made := map[string]*service{}
	for i := range c.Resources {
		by, err := c.Resources[i].transformers(made)
		if err != nil {
			return nil, err
		}
		s.rules = append(s.rules, rule{&c.Resources[i], by})
	}
	for _, k := range kinds {
		s.byPrefix[k.Prefix] = s.of(k)
	}
	return s, nil
}

// of returns the transformers of a kind, none where it is stored as it is.
func (b *Backend) of(k *api.Kind) []prefixed {
	for _, r := range b.rules {
		if r.about.names(k) {
			return r.by
		}
	}
	return nil
}

// transformers returns those of a key of the database.
func (b *Backend) transformers(key string) []prefixed {
	rest, ok := strings.CutPrefix(key, root)
	if !ok {
		return nil
	}
	first, rest, _ := strings.Cut(rest, "/")
	if t, ok := b.byPrefix[first]; ok {
		return t
	}
	second, _, _ := strings.Cut(rest, "/")
	if t, ok := b.byPrefix[first+"/"+second]; ok {
		return t
	}
	if strings.Contains(first, ".") { // a custom resource: its group, then its name
		return b.of(&api.Kind{Group: first, Plural: second})
	}
	return nil
}

// Put implements store.Backend.
func (b *Backend) Put(ctx context.Context, key string, value []byte, want api.Revision, ttl time.Duration) (api.Revision, error) {
	if ts := b.transformers(key); len(ts) > 0 {
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
	for i := range kvs {
		b.open(ctx, &kvs[i])
	}
	return kvs, more, rev, err
}

// Watch implements store.Backend.
func (b *Backend) Watch(ctx context.Context, prefix string, from api.Revision, emit func(api.Revision, []store.Change) error) error {
	return b.Backend.Watch(ctx, prefix, from, func(rev api.Revision, changes []store.Change) error {
		for i := range changes {
			if changes[i].Value != nil {
				b.open(ctx, &changes[i].KV)
			}
		}
		return emit(rev, changes)
	})
}

var errUnknown = errors.New("no matching prefix found")

// open replaces the value by what it was before it was sealed.
func (b *Backend) open(ctx context.Context, kv *store.KV) {
	ts := b.transformers(kv.Key)
	if len(ts) == 0 {
		return
	}
	err := errUnknown
	for i, t := range ts {
		text, ok := bytes.CutPrefix(kv.Value, []byte(t.prefix))
		if !ok {
			continue
		}
		plain, stale, e := t.open(ctx, kv.Key, text)
		if e == nil {
			kv.Value, kv.Stale = plain, stale || i > 0
			return
		}
		err = e
	}
	b.log.Error("sealed object cannot be opened", "key", kv.Key, "err", err)
}
