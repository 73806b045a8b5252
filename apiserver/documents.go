package apiserver

import (
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	openapi_v3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/version"

	"github.com/yare-dev/yare/apiserver/openapi"
	"github.com/yare-dev/yare/apiserver/rest"
)

// documents serves OpenAPI. Documents are made on each request and only their hashes are kept: clients keep the
// documents, and ask again only when the hash has changed.
type documents struct {
	kinds   map[string][]rest.Any // by path below /openapi/v3: "api/v1", "apis/apps/v1"
	all     []rest.Any
	version string

	once   sync.Once
	hashes map[string]string
	err    error
}

// Media types of OpenAPI in protobuf. Clients ask for them with an @ before the version, which no media type may
// have; answers have a dot.
const (
	protoV2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	protoV3 = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
)

func newDocuments(kinds []rest.Any, v version.Info) *documents {
	d := &documents{kinds: map[string][]rest.Any{}, version: v.GitVersion}
	for _, a := range kinds {
		if a.Custom() != nil {
			continue // what they look like is not published yet
		}
		d.all = append(d.all, a)
		path := "apis/" + a.Kind.APIVersion()
		if a.Kind.Group == "" {
			path = "api/" + a.Kind.Version
		}
		d.kinds[path] = append(d.kinds[path], a)
	}
	return d
}

func (d *documents) make(path string) ([]byte, error) {
	b, err := json.Marshal(openapi.Document(openapi.V3, d.kinds[path], d.version))
	if err != nil {
		return nil, fmt.Errorf("make OpenAPI of %s: %w", path, err)
	}
	return b, nil
}

func (d *documents) hash() {
	d.hashes = make(map[string]string, len(d.kinds))
	for path := range d.kinds {
		b, err := d.make(path)
		if err != nil {
			d.err = err
			return
		}
		sum := sha512.Sum512(b)
		d.hashes[path] = strings.ToUpper(hex.EncodeToString(sum[:]))
	}
}

// serve answers /openapi/v2, the index /openapi/v3 and the documents below it.
func (d *documents) serve(c *call, rest string) error {
	form, path, _ := strings.Cut(rest, "/")
	switch {
	case form == "v2" && path == "":
		return d.serveV2(c)
	case form != "v3" || path != "" && d.kinds[path] == nil:
		return c.nothing()
	}
	if d.once.Do(d.hash); d.err != nil {
		return d.err
	}
	if path == "" {
		return d.index(c)
	}
	tag := d.hashes[path]
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
	return d.answer(c, `"`+tag+`"`, protoV3, func() ([]byte, error) { return d.make(path) }, func(b []byte) (proto.Message, error) {
		return openapi_v3.ParseDocument(b)
	})
}

func (d *documents) index(c *call) error {
	type entry struct {
		URL string `json:"serverRelativeURL"`
	}
	paths := make(map[string]entry, len(d.hashes))
	for p, h := range d.hashes {
		paths[p] = entry{"/openapi/v3/" + p + "?hash=" + h}
	}
	b, err := json.Marshal(map[string]any{"paths": paths})
	if err != nil {
		return err
	}
	c.send(format{}, http.StatusOK, b)
	return nil
}

func (d *documents) serveV2(c *call) error {
	return d.answer(c, "", protoV2, func() ([]byte, error) {
		return json.Marshal(openapi.Document(openapi.V2, d.all, d.version))
	}, func(b []byte) (proto.Message, error) { return openapi_v2.ParseDocument(b) })
}

// answer sends a document as JSON, or in protobuf to clients that ask for it.
func (d *documents) answer(c *call, tag, protoType string, document func() ([]byte, error), parse func([]byte) (proto.Message, error)) error {
	h := c.w.Header()
	h.Set("Vary", "Accept")
	if tag != "" {
		h.Set("ETag", tag)
		if slices.Contains(c.r.Header["If-None-Match"], tag) {
			c.w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	binary := prefersProto(c.r, protoType)
	b, err := document()
	if err != nil {
		return err
	}
	typ := typeJSON
	if binary {
		m, err := parse(b)
		if err != nil {
			return fmt.Errorf("read our own OpenAPI: %w", err)
		}
		if b, err = proto.Marshal(m); err != nil {
			return fmt.Errorf("encode OpenAPI: %w", err)
		}
		typ = protoType
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
