package store

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/yare-dev/yare/api"
)

// Entry is one state of one object. It never changes.
type Entry struct {
	// Object is shared and read-only. It has apiVersion, kind and resourceVersion. It is nil where Err is not.
	Object api.Object
	// Revision is that of the write, or of the deletion where this is the last state of a deleted object.
	Revision api.Revision
	Key      api.Key
	// Of is the entry as it is stored where this one is another form of it, made by As.
	Of *Entry

	as    *api.Kind // the kind that it is a form for
	forms atomic.Pointer[[]*Entry]
	stale func() bool
	err   error
	mu    sync.Mutex // held while encoding, so that it is done once
	made  [formats]atomic.Pointer[[]byte]
}

// Stale says that the object is stored in a form that it would not get now: sealed with an old key.
func (e *Entry) Stale() bool { return e.stale != nil && e.stale() }

// Err says why the stored bytes could not be read as an object; it is nil otherwise.
func (e *Entry) Err() error { return e.err }

// Bytes returns the object encoded in f. The slice is shared and read-only; it is made at most once. JSON ends in a
// newline.
func (e *Entry) Bytes(f Format) ([]byte, error) {
	if b := e.made[f].Load(); b != nil {
		return *b, nil
	}
	if e.err != nil {
		return nil, e.err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if b := e.made[f].Load(); b != nil {
		return *b, nil
	}
	b, err := encode(e.Object, f)
	if err != nil {
		return nil, err
	}
	e.made[f].Store(&b)
	return b, nil
}

// As returns the entry with its object in the form k, which keeps its own encodings. It is made at most once.
func (e *Entry) As(k *api.Kind) *Entry {
	if e == nil || e.err != nil || k.Of() == nil {
		return e
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if f := e.Form(k); f != nil {
		return f
	}
	return e.SetForm(k, k.Show(e.Object))
}

// Form returns what SetForm made for k, nil where nobody did.
func (e *Entry) Form(k *api.Kind) *Entry {
	if e.as == k {
		return e
	}
	if forms := e.forms.Load(); forms != nil {
		for _, f := range *forms {
			if f.as == k {
				return f
			}
		}
	}
	return nil
}

// SetForm makes o, which is read-only from now on, the object's form as k, and returns its entry: that which is there already where
// somebody was faster. It takes the place of a form for another kind of the same name, as a definition that changes leaves behind.
func (e *Entry) SetForm(k *api.Kind, o api.Object) *Entry {
	made := &Entry{Object: o, Revision: e.Revision, Key: e.Key, Of: e, as: k, stale: e.stale}
	for {
		old := e.forms.Load()
		next := []*Entry{made}
		if old != nil {
			for _, f := range *old {
				switch {
				case f.as == k:
					return f
				case f.as.GVK() != k.GVK():
					next = append(next, f)
				}
			}
		}
		if e.forms.CompareAndSwap(old, &next) {
			return made
		}
	}
}

// Encode is Bytes for who sends an object once, as the answer to its own write: bytes that nobody has asked for again are
// not kept.
func (e *Entry) Encode(f Format) ([]byte, error) {
	if b := e.made[f].Load(); b != nil {
		return *b, nil
	}
	if e.err != nil {
		return nil, e.err
	}
	return encode(e.Object, f)
}

func encode(o api.Object, f Format) ([]byte, error) {
	if f == Protobuf {
		return api.EncodeProto(o)
	}
	return api.EncodeJSON(o)
}

// marshaler is what types with a protobuf form implement.
type marshaler interface{ MarshalTo([]byte) (int, error) }

// stored returns o as it is kept in the database: protobuf where the type has it, without resourceVersion.
func stored(k *api.Kind, o api.Object) ([]byte, error) {
	o.SetResourceVersion("")
	o.SetSelfLink("")
	if k.Custom() { // in whatever version it comes
		return api.EncodeJSON(o)
	}
	o.GetObjectKind().SetGroupVersionKind(k.GVK())
	if _, ok := o.(marshaler); ok && !k.StoredJSON {
		return api.EncodeProto(o)
	}
	return api.EncodeJSON(o)
}

// load makes the Entry of a key's stored bytes. Bytes that cannot be read make an Entry that says so.
func load(k *api.Kind, key api.Key, kv KV) *Entry {
	o, err := decode(k, key, kv.Value)
	if err != nil {
		return &Entry{Key: key, Revision: kv.Modified, err: fmt.Errorf("read %s from the database: %w", kv.Key, err)}
	}
	return entry(o, key, kv.Modified)
}

// entry makes o, which it takes over, the object of revision rev.
func entry(o api.Object, key api.Key, rev api.Revision) *Entry {
	o.SetResourceVersion(rev.String())
	return &Entry{Object: o, Key: key, Revision: rev}
}

func decode(k *api.Kind, key api.Key, data []byte) (api.Object, error) {
	o := k.New()
	if k.Custom() {
		return decodeCustom(k, key, data, o)
	}
	tm, err := api.ProtoType(data)
	switch {
	case errors.Is(err, api.ErrNotProtobuf):
		if _, err := api.DecodeJSON(data, o); err != nil {
			return nil, err
		}
		gvk := o.GetObjectKind().GroupVersionKind()
		tm.APIVersion, tm.Kind = gvk.GroupVersion().String(), gvk.Kind
	case err != nil:
		return nil, err
	default:
		if err := api.DecodeStored(data, o); err != nil {
			return nil, err
		}
	}
	if tm.APIVersion != k.APIVersion() || tm.Kind != k.Kind {
		return nil, fmt.Errorf("stored as %s %s, which is not served", tm.APIVersion, tm.Kind)
	}
	if got := api.KeyOf(o); got != key {
		return nil, fmt.Errorf("object calls itself %q", got)
	}
	o.GetObjectKind().SetGroupVersionKind(k.GVK())
	return o, nil
}

// decodeCustom reads a custom resource, which stays in the version that it was stored in.
func decodeCustom(k *api.Kind, key api.Key, data []byte, o api.Object) (api.Object, error) {
	if _, err := api.DecodeJSON(data, o); err != nil {
		return nil, err
	}
	if gvk := o.GetObjectKind().GroupVersionKind(); gvk.GroupKind() != k.GroupKind() {
		return nil, fmt.Errorf("stored as %s %s, which is not served", gvk.GroupVersion(), gvk.Kind)
	}
	if got := api.KeyOf(o); got != key {
		return nil, fmt.Errorf("object calls itself %q", got)
	}
	return o, nil
}

// buried returns the Entry of e's deletion at rev: the last state with the deletion's revision.
func buried(e *Entry, rev api.Revision) *Entry {
	if e.err != nil {
		return &Entry{Key: e.Key, Revision: rev, err: e.err}
	}
	return &Entry{Object: api.AtRevision(e.Object, rev), Key: e.Key, Revision: rev}
}
