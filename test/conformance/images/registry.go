package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// refName is the annotation of a layout's index that names an image.
const refName = "org.opencontainers.image.ref.name"

// Registry serves the images of an OCI layout, read-only.
type Registry struct {
	dir  string
	tags map[string]v1.Descriptor // by "repository:tag"
}

// Open reads the index of the layout in dir.
func Open(dir string) (*Registry, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("read index of %s: %w", dir, err)
	}
	r := &Registry{dir: dir, tags: map[string]v1.Descriptor{}}
	for _, d := range index.Manifests {
		r.tags[d.Annotations[refName]] = d
	}
	return r, nil
}

// ServeHTTP answers the reading half of the distribution API.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
		return
	}
	if ok && path == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	if name, ref, is := cut(path, "/manifests/"); ok && is {
		r.manifest(w, req, name, ref)
		return
	}
	if _, digest, is := cut(path, "/blobs/"); ok && is {
		r.blob(w, req, digest, "application/octet-stream")
		return
	}
	refuse(w, http.StatusNotFound, "UNSUPPORTED", "no such path: "+req.URL.Path)
}

func cut(path, at string) (before, after string, ok bool) {
	i := strings.LastIndex(path, at)
	if i < 0 {
		return "", "", false
	}
	return path[:i], path[i+len(at):], true
}

func (r *Registry) manifest(w http.ResponseWriter, req *http.Request, name, ref string) {
	if d, ok := r.tags[name+":"+ref]; ok {
		r.blob(w, req, d.Digest.String(), string(d.MediaType))
		return
	}
	for tag, d := range r.tags {
		if strings.HasPrefix(tag, name+":") && d.Digest.String() == ref {
			r.blob(w, req, ref, string(d.MediaType))
			return
		}
	}
	refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "no image "+name+":"+ref)
}

func (r *Registry) blob(w http.ResponseWriter, req *http.Request, digest, mediaType string) {
	h, err := v1.NewHash(digest)
	if err != nil {
		refuse(w, http.StatusBadRequest, "DIGEST_INVALID", err.Error())
		return
	}
	f, err := os.Open(filepath.Join(r.dir, "blobs", h.Algorithm, h.Hex))
	if errors.Is(err, os.ErrNotExist) {
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", "no blob "+digest)
		return
	}
	if err != nil {
		refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		refuse(w, http.StatusInternalServerError, "UNKNOWN", err.Error())
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", digest)
	http.ServeContent(w, req, "", st.ModTime(), f)
}

// refuse writes an error of the distribution API.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// The client hangs up or reads it: nothing can be done about either.
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}
