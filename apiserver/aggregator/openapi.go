package aggregator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	kjson "sigs.k8s.io/json"

	"github.com/yare-dev/yare/apiserver/openapi"
)

// refresh is for how long a server's OpenAPI documents are taken for what they were.
const refresh = 30 * time.Second

// published is what is kept of the OpenAPI of a remote APIService, from the first request for it on.
type published struct {
	uid string

	mu    sync.Mutex // held while the server is asked
	v2    Document
	etag  string    // the server's own, of the whole
	asked time.Time // when v2 was asked for; zero: never

	v3      string // where its document of version 3 is, with its hash; empty: it has none
	v3asked time.Time
}

func (a *Aggregator) documentOf(svc *Service) *published {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.documents[svc.Name]
	if d == nil || d.uid != string(svc.UID) {
		d = &published{uid: string(svc.UID)}
		a.documents[svc.Name] = d
	}
	return d
}

// Document is a document and what tells it from others. The Doc is read-only, and nil where there is none.
type Document struct {
	Doc openapi.Doc
	Tag string
}

// V2 returns the paths and definitions of the version of svc. A server that does not answer is taken at its last word.
func (a *Aggregator) V2(ctx context.Context, svc *Service) Document {
	d := a.documentOf(svc)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !available(svc) || !d.asked.IsZero() && time.Since(d.asked) < refresh {
		return d.v2
	}
	d.asked = time.Now()
	// What is read is for other clients too, should this one hang up. fetch bounds it.
	if err := a.readV2(context.WithoutCancel(ctx), svc, d); err != nil {
		a.d.Log.Warn("OpenAPI of an aggregated API server not read", "apiservice", svc.Name, "err", err)
	}
	return d.v2
}

func (a *Aggregator) readV2(ctx context.Context, svc *Service, d *published) error {
	text, h, err := a.fetch(ctx, svc, "/openapi/v2", "application/json", d.etag)
	if err != nil || text == nil {
		return err
	}
	whole := openapi.Doc{}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(text, &whole); err != nil {
		return fmt.Errorf("read OpenAPI of %s: %w", svc.Name, err)
	}
	part := openapi.Empty(openapi.V2)
	openapi.AddBelow(openapi.V2, part, whole, "/apis/"+svc.Spec.Group+"/"+svc.Spec.Version+"/")
	sum := sha256.Sum256(text)
	d.v2, d.etag = Document{part, hex.EncodeToString(sum[:])}, h.Get("ETag")
	return nil
}

// V3 returns the address, below this server, of the document of the version of svc; empty where its server has none.
func (a *Aggregator) V3(ctx context.Context, svc *Service) string {
	d := a.documentOf(svc)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !available(svc) || !d.v3asked.IsZero() && time.Since(d.v3asked) < refresh {
		return d.v3
	}
	d.v3asked = time.Now()
	if err := a.readV3(context.WithoutCancel(ctx), svc, d); err != nil {
		a.d.Log.Warn("OpenAPI of an aggregated API server not read", "apiservice", svc.Name, "err", err)
	}
	return d.v3
}

func (a *Aggregator) readV3(ctx context.Context, svc *Service, d *published) error {
	text, _, err := a.fetch(ctx, svc, "/openapi/v3", "application/json", "")
	if err != nil {
		return err
	}
	var index struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return fmt.Errorf("read the index of OpenAPI of %s: %w", svc.Name, err)
	}
	own := "apis/" + svc.Spec.Group + "/" + svc.Spec.Version
	at := index.Paths[own].URL
	// It is asked through this server: any other path would be something else here.
	if u, err := url.Parse(at); at == "" || err != nil || u.IsAbs() || strings.TrimPrefix(u.Path, "/") != "openapi/v3/"+own {
		at = ""
	}
	d.v3 = at
	return nil
}
