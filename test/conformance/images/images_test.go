package images

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// A client of another make pulls from the registry what was put into the layout, and is told by name what is not there.
func TestRegistry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{refName: "a/b:1"})); err != nil {
		t.Fatal(err)
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(r)
	defer s.Close()
	host := strings.TrimPrefix(s.URL, "http://")
	want, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{host + "/a/b:1", host + "/a/b@" + want.String()} {
		parsed, err := name.ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		got, err := remote.Image(parsed)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := got.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range layers {
			// The client checks the digest of what it reads.
			blob, err := l.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, blob); err != nil {
				t.Error(err)
			}
		}
	}
	for _, c := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/v2/a/b/manifests/2", 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/c/manifests/" + want.String(), 404, "MANIFEST_UNKNOWN"},
		{"GET", "/v2/a/b/blobs/sha256:" + strings.Repeat("0", 64), 404, "BLOB_UNKNOWN"},
		{"GET", "/v2/a/b/blobs/sha256:../../index.json", 400, "DIGEST_INVALID"},
		{"GET", "/elsewhere", 404, "UNSUPPORTED"},
		{"PUT", "/v2/a/b/manifests/1", 405, "UNSUPPORTED"},
	} {
		w := httptest.NewRecorder()
		r.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), c.method, c.path, http.NoBody))
		if w.Code != c.status || !strings.Contains(w.Body.String(), c.code) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, w.Code, w.Body, c.status, c.code)
		}
	}
}

// Every image has a name of its own, and layers that share a name are the same.
func TestRecipes(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, r := range recipes() {
		for _, n := range r.names {
			if seen[n] {
				t.Errorf("two images are named %s", n)
			}
			seen[n] = true
		}
		if len(r.layers) == 0 {
			t.Errorf("%s has no layers", r.names[0])
		}
	}
}

func TestKeyFollowsSources(t *testing.T) {
	t.Parallel()
	module := t.TempDir()
	write := func(path, text string) string {
		t.Helper()
		full := filepath.Join(module, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(module, "images"), 0o755); err != nil {
			t.Fatal(err)
		}
		key, err := Key(module)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	keys := map[string]bool{}
	for _, k := range []string{write("go.sum", "a"), write("go.sum", "b"), write("images/x.go", "c"), write("images/x/y.go", "d")} {
		if keys[k] {
			t.Error("a change left the key as it was")
		}
		keys[k] = true
	}
	if !keys[write("images/x_test.go", "e")] {
		t.Error("a test changed the key")
	}
}
