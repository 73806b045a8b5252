package apiserver

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/aggregator"
	"github.com/yare-dev/yare/apiserver/openapi"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// documents serves OpenAPI: of the built-in kinds, of custom resources as their definitions are stored, and of what other servers serve.
// Of documents only the hashes are kept for long: clients keep the documents, and ask again only when the hash has changed. When it has, all
// of them come at the same time: what was made last is kept for a minute, see madeDocuments.
type documents struct {
	kinds     map[string][]rest.Any // built in, by path below /openapi/v3: "api/v1", "apis/apps/v1"
	all       []rest.Any
	version   string
	store     *store.Store
	elsewhere *aggregator.Aggregator // may be nil

	once   sync.Once
	hashes map[string]string // of the built-in kinds alone
	err    error

	onceV2 sync.Once
	hashV2 string
	errV2  error

	made *madeDocuments

	mu    sync.Mutex
	since map[string]edition // by path, v2 for the one of version 2
}

// edition is when a document became what it is, as far as this process has seen.
type edition struct {
	tag  string
	time time.Time
}

// Media types of OpenAPI in protobuf. Clients ask for them with an @ before the version, which no media type may
// have; answers have a dot.
const (
	protoV2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	protoV3 = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
)

func newDocuments(kinds []rest.Any, v version.Info, st *store.Store, elsewhere *aggregator.Aggregator) *documents {
	d := &documents{kinds: map[string][]rest.Any{}, all: kinds, version: v.GitVersion, store: st, elsewhere: elsewhere, made: newMadeDocuments(), since: map[string]edition{}}
	for _, a := range kinds {
		path := "apis/" + a.Kind.APIVersion()
		if a.Kind.Group == "" {
			path = "api/" + a.Kind.Version
		}
		d.kinds[path] = append(d.kinds[path], a)
	}
	return d
}

// custom is one version of a definition that is served.
type custom struct {
	crd     *apiextensionsv1.CustomResourceDefinition
	version string
}

// custom returns the versions of definitions that are served, by path below /openapi/v3, and the identity of them all.
func (d *documents) custom() (byPath map[string][]custom, all string) {
	var id strings.Builder
	for e := range d.store.Snapshot(api.CustomResourceDefinitionKind).All("", api.Key{}) {
		crd := e.Object.(*apiextensionsv1.CustomResourceDefinition)
		if !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
			continue
		}
		if byPath == nil {
			byPath = map[string][]custom{}
		}
		id.WriteString(identity(crd))
		for _, v := range crd.Spec.Versions {
			if v.Served {
				path := "apis/" + crd.Spec.Group + "/" + v.Name
				byPath[path] = append(byPath[path], custom{crd, v.Name})
			}
		}
	}
	return byPath, id.String()
}

// identity tells states of what a definition says apart.
func identity(crd *apiextensionsv1.CustomResourceDefinition) string {
	return fmt.Sprintf("%s,%d;", crd.UID, crd.Generation)
}

// make makes the document of version 3 at a path.
func (d *documents) make(path string, more []custom) ([]byte, error) {
	doc := openapi.Document(openapi.V3, d.kinds[path], d.version)
	if err := addCustom(openapi.V3, doc, more); err != nil {
		return nil, err
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("make OpenAPI of %s: %w", path, err)
	}
	return b, nil
}

func addCustom(f openapi.Form, doc openapi.Doc, more []custom) error {
	for _, c := range more {
		part, err := openapi.Custom(f, c.crd, c.version)
		if err != nil {
			return err
		}
		openapi.Add(f, doc, part)
	}
	return nil
}

func (d *documents) hash() {
	d.hashes = make(map[string]string, len(d.kinds))
	for path := range d.kinds {
		b, err := d.make(path, nil)
		if err != nil {
			d.err = err
			return
		}
		d.hashes[path] = hashOf(b)
	}
}

func hashOf(b []byte) string {
	sum := sha512.Sum512(b)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// tag is the hash of the document at a path: of its text where only built-in kinds are in it, else of what it is made of.
func (d *documents) tag(path string, more []custom) string {
	if len(more) == 0 {
		return d.hashes[path]
	}
	id := d.version + ";" + d.hashes[path]
	for _, c := range more {
		id += identity(c.crd)
	}
	return hashOf([]byte(id))
}

// serve answers /openapi/v2, the index /openapi/v3 and the documents below it.
func (d *documents) serve(c *call, rest string) error {
	form, path, _ := strings.Cut(rest, "/")
	switch {
	case form == "v2" && path == "":
		return d.serveV2(c)
	case form != "v3":
		return c.nothing()
	}
	// The document of a version, and nothing below it: who may read documents may not read what else that server has there.
	if svc := d.elsewhere.State().ForPath("/" + path); svc != nil && strings.Count(path, "/") == 2 {
		c.elsewhere(svc)
		return nil
	}
	byPath, _ := d.custom()
	if path != "" && d.kinds[path] == nil && byPath[path] == nil {
		return c.nothing()
	}
	if d.once.Do(d.hash); d.err != nil {
		return d.err
	}
	if path == "" {
		return d.index(c, byPath)
	}
	more := byPath[path]
	tag := d.tag(path, more)
	h := c.w.Header()
	if asked := c.r.URL.Query().Get("hash"); asked != "" {
		if asked != tag {
			h.Set("Cache-Control", "no-cache")
			http.Redirect(c.w, c.r, "/openapi/v3/"+path+"?hash="+tag, http.StatusMovedPermanently)
			return nil
		}
		// Its name contains its hash: it will never be another.
		h.Set("Cache-Control", "public, immutable")
		h.Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	return d.answer(c, path, tag, protoV3, func() ([]byte, error) { return d.make(path, more) }, func(b []byte) (proto.Message, error) {
		return openapi_v3.ParseDocument(b)
	})
}

func (d *documents) index(c *call, byPath map[string][]custom) error {
	type entry struct {
		URL string `json:"serverRelativeURL"`
	}
	paths := make(map[string]entry, len(d.hashes)+len(byPath))
	for p := range d.hashes {
		paths[p] = entry{}
	}
	for p := range byPath {
		paths[p] = entry{}
	}
	for p := range paths {
		paths[p] = entry{"/openapi/v3/" + p + "?hash=" + d.tag(p, byPath[p])}
	}
	if state := d.elsewhere.State(); state != nil {
		urls := each(c.s.deps.Log, state.Remote(), func(svc *aggregator.Service) string { return d.elsewhere.V3(c.r.Context(), svc) })
		for i, svc := range state.Remote() {
			p := "apis/" + svc.Spec.Group + "/" + svc.Spec.Version
			if delete(paths, p); urls[i] != "" {
				paths[p] = entry{urls[i]}
			}
		}
	}
	b, err := json.Marshal(map[string]any{"paths": paths})
	if err != nil {
		return err
	}
	c.send(format{}, http.StatusOK, b)
	return nil
}

// each calls f for all at the same time: servers that do not answer are waited for together.
// One at which f panics has nothing.
func each[T any](log *slog.Logger, all []*aggregator.Service, f func(*aggregator.Service) T) []T {
	out := make([]T, len(all))
	var wg sync.WaitGroup
	for i, svc := range all {
		wg.Go(func() {
			run.Guard(log.With("apiservice", svc.Name), "OpenAPI of an aggregated API server", func() { out[i] = f(svc) })
		})
	}
	wg.Wait()
	return out
}

func (d *documents) serveV2(c *call) error {
	d.onceV2.Do(func() {
		var b []byte
		if b, d.errV2 = json.Marshal(openapi.Document(openapi.V2, d.all, d.version)); d.errV2 == nil {
			d.hashV2 = hashOf(b)
		}
	})
	if d.errV2 != nil {
		return fmt.Errorf("make OpenAPI: %w", d.errV2)
	}
	byPath, id := d.custom()
	var parts []aggregator.Document
	if state := d.elsewhere.State(); state != nil {
		parts = each(c.s.deps.Log, state.Remote(), func(svc *aggregator.Service) aggregator.Document { return d.elsewhere.V2(c.r.Context(), svc) })
	}
	for _, p := range parts {
		id += p.Tag + ";"
	}
	tag := d.hashV2
	if id != "" {
		tag = hashOf([]byte(tag + id))
	}
	return d.answer(c, "v2", tag, protoV2, func() ([]byte, error) {
		doc := openapi.Document(openapi.V2, d.all, d.version)
		for _, path := range slices.Sorted(maps.Keys(byPath)) {
			if err := addCustom(openapi.V2, doc, byPath[path]); err != nil {
				return nil, err
			}
		}
		for _, p := range parts {
			if p.Doc != nil {
				openapi.Add(openapi.V2, doc, p.Doc)
			}
		}
		return json.Marshal(doc)
	}, func(b []byte) (proto.Message, error) { return openapi_v2.ParseDocument(b) })
}

// modified is when the document at the path became what the tag is of.
func (d *documents) modified(path, tag string) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.since[path]; e.tag != tag {
		d.since[path] = edition{tag, time.Now().Truncate(time.Second)}
	}
	return d.since[path].time
}

// unchanged says that the client has the document already.
func unchanged(r *http.Request, tag string, modified time.Time) bool {
	if tags, given := r.Header["If-None-Match"]; given {
		return slices.Contains(tags, tag)
	}
	t, err := http.ParseTime(r.Header.Get("If-Modified-Since"))
	return err == nil && !modified.After(t)
}

// answer sends a document as JSON, or in protobuf to clients that ask for it.
func (d *documents) answer(c *call, path, tag, protoType string, document func() ([]byte, error), parse func([]byte) (proto.Message, error)) error {
	h := c.w.Header()
	h.Set("Vary", "Accept")
	tag = `"` + tag + `"`
	since := d.modified(path, tag)
	h.Set("ETag", tag)
	h.Set("Last-Modified", since.UTC().Format(http.TimeFormat))
	if unchanged(c.r, tag, since) {
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	typ := typeJSON
	if prefersProto(c.r, protoType) {
		typ = protoType
	}
	b, err := d.made.get(c.r.Context(), docKey{path, typ}, tag, func() ([]byte, error) {
		b, err := document()
		if err != nil || typ == typeJSON {
			return b, err
		}
		m, err := parse(b)
		if err != nil {
			return nil, fmt.Errorf("read our own OpenAPI: %w", err)
		}
		if b, err = proto.Marshal(m); err != nil {
			return nil, fmt.Errorf("encode OpenAPI: %w", err)
		}
		return b, nil
	})
	if err != nil {
		return err
	}
	h.Set("Content-Type", typ)
	c.sendRaw(b)
	return nil
}

// prefersProto says whether the client names protobuf before JSON. The types are compared as text, for the @'s sake.
func prefersProto(r *http.Request, protoType string) bool {
	for a := range strings.SplitSeq(strings.Join(r.Header["Accept"], ","), ",") {
		media, _, _ := strings.Cut(strings.TrimSpace(a), ";")
		switch strings.Replace(media, "@v1.0+", ".v1.0+", 1) {
		case protoType:
			return true
		case typeJSON, "*/*":
			return false
		}
	}
	return false
}
