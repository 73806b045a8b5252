package apiserver

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/store"
)

// gzipFrom is the size from which answers are compressed for clients that accept it, as upstream. Clients on this
// machine get them as they are: compressing costs more than it saves there.
const gzipFrom = 128 << 10

// chunk is how much is written at once.
const chunk = 256 << 10

// corkFrom is the size from which an answer is more than the one write that HTTP/1 makes of a small one.
const corkFrom = 4 << 10

// encode returns o in the format's encoding.
func (f format) encode(o runtime.Object) ([]byte, error) {
	switch f.encoding {
	case asProtobuf:
		return api.EncodeProto(o)
	case asCBOR:
		return api.EncodeCBOR(o)
	}
	b, err := api.EncodeJSON(o)
	if err != nil {
		return nil, err
	}
	return f.dress(b)
}

// dress turns JSON into the form asked for.
func (f format) dress(b []byte) ([]byte, error) {
	switch {
	case f.encoding == asYAML:
		return yaml.JSONToYAML(b)
	case f.encoding == asJSON && f.pretty:
		var out bytes.Buffer
		if err := json.Indent(&out, b, "", "  "); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	}
	return b, nil
}

// entry returns e's bytes in the format's encoding, made by encode, which is one of e's methods.
func (f format) entry(e *store.Entry, encode func(store.Format) ([]byte, error)) ([]byte, error) {
	switch {
	case f.encoding == asProtobuf:
		return encode(store.Protobuf)
	case f.encoding == asCBOR:
		return api.EncodeCBOR(e.Object)
	}
	b, err := encode(store.JSON)
	if err != nil {
		return nil, err
	}
	return f.dress(b)
}

// write answers with o.
func (c *call) write(f format, code int, o runtime.Object) {
	if c.record.Answers() && code < http.StatusBadRequest {
		if text, err := api.EncodeJSON(o); err == nil {
			c.record.Answered(text)
		}
	}
	b, err := f.encode(o)
	if err != nil {
		// Only what has no protobuf form comes here; the client gets it as JSON.
		f.encoding = asJSON
		if b, err = f.encode(o); err != nil {
			http.Error(c.w, err.Error(), http.StatusInternalServerError)
			return
		}
	}
	c.send(f, code, b)
}

// send answers with bytes that are already encoded.
func (c *call) send(f format, code int, parts ...[]byte) {
	c.w.Header().Set("Content-Type", f.encoding.String())
	c.sendParts(code, parts)
}

// sendRaw answers 200 with bytes whose type has been set.
func (c *call) sendRaw(b []byte) { c.sendParts(http.StatusOK, [][]byte{b}) }

func (c *call) sendParts(code int, parts [][]byte) {
	h := c.w.Header()
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	var w io.Writer = c.w
	if size > gzipFrom && c.compresses() {
		h.Set("Content-Encoding", "gzip")
		h.Add("Vary", "Accept-Encoding")
		z, err := gzip.NewWriterLevel(c.w, gzip.BestSpeed)
		if err == nil {
			w = z
			defer z.Close()
		}
	} else {
		h.Set("Content-Length", strconv.Itoa(size))
	}
	c.w.WriteHeader(code)
	if c.r.Method == http.MethodHead {
		return
	}
	var err error
	if size > corkFrom {
		err = together(c.r, func() error { return gather(w, parts) })
	} else {
		err = gather(w, parts)
	}
	if err != nil {
		c.s.deps.Log.Debug("client went away", "path", c.r.URL.Path, "err", err)
	}
}

// gather writes the parts, small ones together.
func gather(w io.Writer, parts [][]byte) error {
	if len(parts) == 1 {
		_, err := w.Write(parts[0])
		return err
	}
	buf := make([]byte, 0, chunk)
	for _, p := range parts {
		if len(buf)+len(p) > chunk && len(buf) > 0 {
			if _, err := w.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
		if len(p) > chunk {
			if _, err := w.Write(p); err != nil {
				return err
			}
			continue
		}
		buf = append(buf, p...)
	}
	if len(buf) == 0 {
		return nil
	}
	_, err := w.Write(buf)
	return err
}

// compresses says whether the client takes gzip and is worth it.
func (c *call) compresses() bool {
	if !strings.Contains(c.r.Header.Get("Accept-Encoding"), "gzip") {
		return false
	}
	host, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		return true
	}
	ip := net.ParseIP(host)
	return ip == nil || !ip.IsLoopback()
}

// list answers with a page of objects, made of the bytes that the entries share.
func (c *call) list(f format, a rest.Any, page *rest.Page) error {
	meta := metav1.ListMeta{
		ResourceVersion: listVersion(page.Revision), Continue: page.Continue, RemainingItemCount: page.Remaining,
	}
	if f.shape != whole {
		o, err := f.shaped(a, meta, page.Entries)
		if err != nil {
			return err
		}
		c.write(f, http.StatusOK, o)
		return nil
	}
	var parts [][]byte
	var err error
	switch f.encoding {
	case asProtobuf:
		parts, err = protoList(a.Kind, meta, page.Entries)
	case asCBOR:
		parts, err = cborList(a.Kind, meta, page.Entries)
	default:
		if parts, err = jsonList(a.Kind, meta, page.Entries); err != nil {
			return err
		}
		if f.encoding == asYAML || f.pretty {
			parts = [][]byte{bytes.Join(parts, nil)}
			parts[0], err = f.dress(parts[0])
		}
	}
	if err != nil {
		return err
	}
	if c.record.Answers() {
		text, err := jsonList(a.Kind, meta, page.Entries)
		if err != nil {
			return err
		}
		c.record.Answered(bytes.Join(text, nil))
	}
	c.send(f, http.StatusOK, parts...)
	return nil
}

// shaped returns a list of the entries as a Table or as metadata only.
func (f format) shaped(a rest.Any, meta metav1.ListMeta, entries []*store.Entry) (runtime.Object, error) {
	switch f.shape {
	case table:
		t := a.Table(entries, f.table.IncludeObject, !f.table.NoHeaders)
		t.APIVersion, t.ListMeta = f.version(), meta
		return t, nil
	case metadataOnly:
		return nil, unacceptable(fmt.Sprintf("you requested PartialObjectMetadata, but the requested object is a list (%s)", a.Kind.Kind+"List"))
	}
	l := &metav1.PartialObjectMetadataList{
		TypeMeta: metav1.TypeMeta{APIVersion: f.version(), Kind: "PartialObjectMetadataList"},
		ListMeta: meta, Items: make([]metav1.PartialObjectMetadata, len(entries)),
	}
	for i, e := range entries {
		l.Items[i] = *f.metadata(e.Object)
	}
	return l, nil
}

func (f format) metadata(o api.Object) *metav1.PartialObjectMetadata {
	m := rest.Metadata(o)
	m.APIVersion = f.version()
	return m
}

// cborList returns a list in CBOR. It is not put together from parts: CBOR is a format of the future that few ask for.
func cborList(k *api.Kind, meta metav1.ListMeta, entries []*store.Entry) ([][]byte, error) {
	l := k.NewList()
	if custom, ok := l.(*unstructured.UnstructuredList); ok {
		for _, e := range entries {
			custom.Items = append(custom.Items, *e.Object.(*unstructured.Unstructured))
		}
		custom.SetResourceVersion(meta.ResourceVersion)
		custom.SetContinue(meta.Continue)
		custom.SetRemainingItemCount(meta.RemainingItemCount)
		b, err := api.EncodeCBOR(l)
		return [][]byte{b}, err
	}
	v := reflect.ValueOf(l).Elem()
	v.FieldByName("ListMeta").Set(reflect.ValueOf(meta))
	items := reflect.MakeSlice(v.FieldByName("Items").Type(), len(entries), len(entries))
	for i, e := range entries {
		item := items.Index(i)
		item.Set(reflect.ValueOf(e.Object).Elem())
		item.FieldByName("TypeMeta").SetZero()
	}
	v.FieldByName("Items").Set(items)
	b, err := api.EncodeCBOR(l)
	return [][]byte{b}, err
}

// jsonList returns the parts of a list in JSON. Its items are the entries' bytes without kind and apiVersion, as
// upstream sends them.
func jsonList(k *api.Kind, meta metav1.ListMeta, entries []*store.Entry) ([][]byte, error) {
	if k.Custom() {
		return customList(k, meta, entries)
	}
	m, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	parts := make([][]byte, 0, 3*len(entries)+2)
	parts = append(parts, fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,"metadata":%s,"items":[`, k.Kind+"List", k.APIVersion(), m))
	head := fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,`, k.Kind, k.APIVersion())
	first, next := []byte("{"), []byte(",{")
	open := first
	for _, e := range entries {
		b, err := e.Bytes(store.JSON)
		if err != nil {
			return nil, err
		}
		item, ok := bytes.CutPrefix(b, head)
		if !ok {
			return nil, fmt.Errorf("%v %q is not encoded as its kind", k, e.Key)
		}
		parts = append(parts, open, bytes.TrimSuffix(item, []byte("\n")))
		open = next
	}
	return append(parts, []byte("]}\n")), nil
}

// customList is jsonList for custom resources, which upstream sends as maps: ordered by key, and each item whole.
func customList(k *api.Kind, meta metav1.ListMeta, entries []*store.Entry) ([][]byte, error) {
	parts := make([][]byte, 0, 2*len(entries)+2)
	parts = append(parts, fmt.Appendf(nil, `{"apiVersion":%q,"items":[`, k.APIVersion()))
	for i, e := range entries {
		b, err := e.Bytes(store.JSON)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			parts = append(parts, []byte(","))
		}
		parts = append(parts, bytes.TrimSuffix(b, []byte("\n")))
	}
	m := map[string]any{"continue": meta.Continue, "resourceVersion": meta.ResourceVersion}
	if meta.RemainingItemCount != nil {
		m["remainingItemCount"] = *meta.RemainingItemCount
	}
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return append(parts, fmt.Appendf(nil, `],"kind":%q,"metadata":%s}`+"\n", k.ListKind(), b)), nil
}

// Tags of protobuf fields with length: number<<3 | 2.
const (
	tag1 = 1<<3 | 2
	tag2 = 2<<3 | 2
	tag3 = 3<<3 | 2
	tag4 = 4<<3 | 2
)

// protoMagic opens every object in protobuf.
const protoMagic = "k8s\x00"

// protoList returns the parts of a list in protobuf:
//
//	magic | Unknown{ 1: TypeMeta, 2: List{ 1: ListMeta, 2: item, 2: item, ... }, 3: "", 4: "" }
func protoList(k *api.Kind, meta metav1.ListMeta, entries []*store.Entry) ([][]byte, error) {
	m, err := meta.Marshal()
	if err != nil {
		return nil, err
	}
	tm := runtime.TypeMeta{APIVersion: k.APIVersion(), Kind: k.Kind + "List"}
	t, err := tm.Marshal()
	if err != nil {
		return nil, err
	}
	parts := make([][]byte, 1, 2*len(entries)+2)
	inner := 1 + uvarintLen(len(m)) + len(m)
	heads := make([]byte, 0, 5*len(entries)) // not grown, since parts point into it
	for _, e := range entries {
		b, err := e.Bytes(store.Protobuf)
		if err != nil {
			return nil, err
		}
		raw, err := protoRaw(b)
		if err != nil {
			return nil, fmt.Errorf("%v %q: %w", k, e.Key, err)
		}
		at := len(heads)
		heads = binary.AppendUvarint(append(heads, tag2), uint64(len(raw)))
		parts = append(parts, heads[at:len(heads):len(heads)], raw)
		inner += len(heads) - at + len(raw)
	}
	head := append([]byte(protoMagic), tag1)
	head = append(binary.AppendUvarint(head, uint64(len(t))), t...)
	head = binary.AppendUvarint(append(head, tag2), uint64(inner))
	head = binary.AppendUvarint(append(head, tag1), uint64(len(m)))
	parts[0] = append(head, m...)
	return append(parts, []byte{tag3, 0, tag4, 0}), nil
}

func uvarintLen(n int) int { return len(binary.AppendUvarint(nil, uint64(n))) }

// protoRaw returns the object's own bytes out of the envelope.
func protoRaw(b []byte) ([]byte, error) {
	rest, ok := bytes.CutPrefix(b, []byte(protoMagic))
	for ok && len(rest) > 0 {
		tag := rest[0]
		n, w := binary.Uvarint(rest[1:])
		if w <= 0 || uint64(len(rest)-1-w) < n {
			break
		}
		body := rest[1+w : 1+w+int(n)]
		if tag == tag2 {
			return body, nil
		}
		rest = rest[1+w+int(n):]
	}
	return nil, api.ErrNotProtobuf
}

// entry answers with one object.
func (c *call) entry(f format, code int, a rest.Any, e *store.Entry) error {
	if f.shape != whole {
		o, err := f.one(a, e)
		if err != nil {
			return err
		}
		c.write(f, code, o)
		return nil
	}
	bytes := e.Encode
	if c.r.Method == http.MethodGet {
		bytes = e.Bytes
	}
	b, err := f.entry(e, bytes)
	if err != nil {
		return err
	}
	if c.record.Answers() {
		if text, err := e.Bytes(store.JSON); err == nil {
			c.record.Answered(text)
		}
	}
	c.send(f, code, b)
	return nil
}

// one returns the entry as a Table or as metadata only.
func (f format) one(a rest.Any, e *store.Entry) (runtime.Object, error) {
	switch f.shape {
	case table:
		t := a.Table([]*store.Entry{e}, f.table.IncludeObject, !f.table.NoHeaders)
		t.APIVersion, t.ResourceVersion = f.version(), e.Object.GetResourceVersion()
		return t, nil
	case metadataList:
		return nil, unacceptable(fmt.Sprintf("you requested PartialObjectMetadataList, but the requested object is not a list (%s)", a.Kind.Kind))
	}
	return f.metadata(e.Object), nil
}

// listVersion is the resourceVersion of a list, empty where what it holds has none.
func listVersion(rev api.Revision) string {
	if rev == 0 {
		return ""
	}
	return rev.String()
}
