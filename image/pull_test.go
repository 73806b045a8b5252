package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// fakeRegistry is a registry on loopback whose answers a test may change.
type fakeRegistry struct {
	*httptest.Server
	// meddle, when set, sees each request first and tells whether it answered.
	meddle func(http.ResponseWriter, *http.Request) bool
	blobs  atomic.Int64 // blob requests
}

func newRegistry(t *testing.T, start func(http.Handler) *httptest.Server) *fakeRegistry {
	t.Helper()
	f := &fakeRegistry{}
	real := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	f.Server = start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			f.blobs.Add(1)
		}
		if f.meddle == nil || r.Method != http.MethodGet || !f.meddle(w, r) {
			real.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fakeRegistry) hostname() string { return f.Listener.Addr().String() }

func (f *fakeRegistry) put(t *testing.T, method, path, mediaType string, body []byte) {
	t.Helper()
	r, err := http.NewRequest(method, f.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", mediaType)
	resp, err := f.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode >= 300 {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
}

func (f *fakeRegistry) blob(t *testing.T, b []byte) {
	f.put(t, "POST", "/v2/app/blobs/uploads/?digest="+digestOf(b), "application/octet-stream", b)
}

// push puts an image of the layers, packed as given, under a tag and returns
// its manifest.
func (f *fakeRegistry) push(t *testing.T, tag string, packers []func([]byte) []byte, layers ...[]byte) []byte {
	t.Helper()
	b := bundleOf(t, layers...)
	f.blob(t, b.config)
	var ds []ocispec.Descriptor
	for i, l := range layers {
		l = packers[i%len(packers)](l)
		f.blob(t, l)
		ds = append(ds, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: descriptorDigest(l), Size: int64(len(l))})
	}
	m, err := json.Marshal(manifestOf(b.config, ds))
	if err != nil {
		t.Fatal(err)
	}
	f.put(t, "PUT", "/v2/app/manifests/"+tag, ocispec.MediaTypeImageManifest, m)
	return m
}

func descriptorDigest(b []byte) digest.Digest { return digest.FromBytes(b) }

func plain(b []byte) []byte { return b }

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zstdded(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		return nil
	}
	return w.EncodeAll(b, nil)
}

func threeLayers(t *testing.T) [][]byte {
	return [][]byte{
		layerOf(t, file("etc/", ""), file("etc/a", "1"), file("etc/b", "2")),
		layerOf(t, file("etc/.wh.a", "")),
		layerOf(t, file("big", strings.Repeat("0123456789", 100_000))),
	}
}

func TestPull(t *testing.T) {
	t.Parallel()
	f := newRegistry(t, httptest.NewServer)
	manifest := f.push(t, "1", []func([]byte) []byte{gzipped, zstdded, plain}, threeLayers(t)...)
	s := newStore(t)
	name := f.hostname() + "/app:1"
	var done atomic.Int64
	im, err := s.Pull(t.Context(), name, PullOptions{Progress: func(p Progress) {
		if p.Done == p.Size {
			done.Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if len(im.Tags) != 1 || im.Tags[0] != name || im.Digests[0] != f.hostname()+"/app@"+digestOf(manifest) || im.Pinned {
		t.Errorf("pulled %+v", im)
	}
	if done.Load() != 3 {
		t.Errorf("progress told of %d finished layers, want 3", done.Load())
	}
	root, err := s.Mount(t.Context(), name, "k")
	if err != nil {
		t.Fatal(err)
	}
	if got := len(listing(t, root)); got != 3 {
		t.Errorf("%d entries: %v", got, listing(t, root)[:2])
	}
	before := f.blobs.Load()
	if _, err := s.Pull(t.Context(), f.hostname()+"/app@"+digestOf(manifest), PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if n := f.blobs.Load() - before; n != 1 {
		t.Errorf("pulling what is there asked for %d blobs, want the configuration only", n)
	}
}

func TestPullByPlatform(t *testing.T) {
	t.Parallel()
	f := newRegistry(t, httptest.NewServer)
	packers := []func([]byte) []byte{gzipped}
	ours := f.push(t, "ours", packers, layerOf(t, file("ours", "")))
	theirs := f.push(t, "theirs", packers, layerOf(t, file("theirs", "")))
	host := hostPlatform()
	index := func(descriptors ...ocispec.Descriptor) []byte {
		i := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: descriptors}
		i.SchemaVersion = 2
		b, err := json.Marshal(i)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	of := func(m []byte, p ocispec.Platform) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: descriptorDigest(m), Size: int64(len(m)), Platform: &p}
	}
	alien := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	f.put(t, "PUT", "/v2/app/manifests/both", ocispec.MediaTypeImageIndex, index(of(theirs, alien), of(ours, host)))
	f.put(t, "PUT", "/v2/app/manifests/alien", ocispec.MediaTypeImageIndex, index(of(theirs, alien)))
	s := newStore(t)
	im, err := s.Pull(t.Context(), f.hostname()+"/app:both", PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if im.Manifest != digestOf(ours) {
		t.Errorf("pulled manifest %s, want %s", im.Manifest, digestOf(ours))
	}
	_, err = s.Pull(t.Context(), f.hostname()+"/app:alien", PullOptions{})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "linux/s390x") {
		t.Errorf("no platform fits: %v", err)
	}
	if _, err = s.Pull(t.Context(), f.hostname()+"/app:alien", PullOptions{Platform: alien}); err != nil {
		t.Error(err)
	}
}

// TestBadRegistry meets registries that break off, lie, stall or refuse.
func TestBadRegistry(t *testing.T) {
	t.Parallel()
	layers := threeLayers(t)
	big := gzipped(layers[2])
	var cuts atomic.Int64
	for name, c := range map[string]struct {
		meddle func(http.ResponseWriter, *http.Request) bool
		is     error
		says   string
	}{
		"breaks off once, then goes on": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, digestOf(big)) || cuts.Add(1) > 1 {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			w.Write(big[:len(big)/2])
			return true
		}},
		"always breaks off": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, digestOf(big)) {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			return true
		}, says: "unexpected EOF"},
		"other content": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, digestOf(big)) {
				return false
			}
			w.Write(append([]byte("evil"), big[4:]...))
			return true
		}, is: ErrInvalid, says: "have digest"},
		"too much": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, digestOf(big)) {
				return false
			}
			w.Write(append(big, big...))
			return true
		}, is: ErrInvalid, says: "more than the"},
		"endless manifest": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return true
				}
			}
		}, is: ErrInvalid, says: "larger than"},
		"schema 1": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			w.Header().Set("Content-Type", dockerSchema1+"+prettyjws")
			io.WriteString(w, `{"schemaVersion": 1}`)
			return true
		}, is: ErrInvalid, says: "schema 1"},
		"not JSON": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			io.WriteString(w, `<html>`)
			return true
		}, is: ErrInvalid, says: "decode manifest"},
		"no such image": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				http.NotFound(w, r)
				return true
			}
			return false
		}, is: ErrNotFound},
		"forbidden": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			return false
		}, is: ErrUnauthorized},
		"sends us to the metadata service": {meddle: func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/") {
				http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
				return true
			}
			return false
		}, says: "not allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newRegistry(t, httptest.NewServer)
			f.push(t, "1", []func([]byte) []byte{gzipped}, layers...)
			f.meddle = c.meddle
			s := newStore(t)
			im, err := s.Pull(t.Context(), f.hostname()+"/app:1", PullOptions{})
			if c.is == nil && c.says == "" {
				if err != nil || len(im.Layers) != 3 {
					t.Errorf("Pull = %+v, %v", im, err)
				}
				return
			}
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %v and %q", err, c.is, c.says)
			}
			if images, _ := s.List(t.Context()); len(images) != 0 {
				t.Errorf("recorded %v", images)
			}
		})
	}
}

func TestPullWithCredentials(t *testing.T) {
	t.Parallel()
	f := newRegistry(t, httptest.NewServer)
	f.push(t, "1", []func([]byte) []byte{gzipped}, threeLayers(t)...)
	f.meddle = func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == "me" && p == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	s := newStore(t)
	name := f.hostname() + "/app:1"
	if _, err := s.Pull(t.Context(), name, PullOptions{}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("without credentials: %v", err)
	}
	if _, err := s.Pull(t.Context(), name, PullOptions{Auth: Auth{Username: "me", Password: "wrong"}}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("with wrong ones: %v", err)
	}
	if _, err := s.Pull(t.Context(), name, PullOptions{Auth: Auth{Username: "me", Password: "secret"}}); err != nil {
		t.Error(err)
	}
}

func TestPullWithToken(t *testing.T) {
	t.Parallel()
	f := newRegistry(t, httptest.NewServer)
	f.push(t, "1", []func([]byte) []byte{gzipped}, threeLayers(t)...)
	f.meddle = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			fmt.Fprintf(w, `{"token": "for %s"}`, r.URL.Query().Get("scope"))
			return true
		case r.Header.Get("Authorization") == "Bearer for repository:app:pull":
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, f.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	if _, err := newStore(t).Pull(t.Context(), f.hostname()+"/app:1", PullOptions{}); err != nil {
		t.Error(err)
	}
}

// TestHosts configures certificates and mirrors in folders.
func TestHosts(t *testing.T) {
	t.Parallel()
	f := newRegistry(t, httptest.NewTLSServer)
	f.push(t, "1", []func([]byte) []byte{gzipped}, threeLayers(t)...)
	write := func(dir, host, file, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, host, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}))
	for name, c := range map[string]struct {
		write func(dir string)
		image string
		fails string
	}{
		"unknown authority": {func(string) {}, f.hostname() + "/app:1", "certificate"},
		"authority":         {func(d string) { write(d, f.hostname(), "ca.crt", ca) }, f.hostname() + "/app:1", ""},
		"skip verify":       {func(d string) { write(d, f.hostname(), "host.yaml", "skipVerify: true") }, f.hostname() + "/app:1", ""},
		"mirror": {func(d string) {
			write(d, "registry.invalid", "host.yaml", "mirrors: ["+f.hostname()+"]")
			write(d, f.hostname(), "ca.crt", ca)
		}, "registry.invalid/app:1", ""},
		"default mirror": {func(d string) {
			write(d, "_default", "host.yaml", "mirrors: ["+f.hostname()+"]\nmirrorsOnly: true")
			write(d, f.hostname(), "ca.crt", ca)
		}, "registry.invalid/app:1", ""},
		"misspelt":     {func(d string) { write(d, f.hostname(), "host.yaml", "skipverify_: true") }, f.hostname() + "/app:1", "skipverify_"},
		"containerd's": {func(d string) { write(d, f.hostname(), "hosts.toml", "") }, f.hostname() + "/app:1", "hosts.toml"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			c.write(dir)
			s := newStore(t, func(cfg *Config) { cfg.Registries = dir })
			im, err := s.Pull(t.Context(), c.image, PullOptions{})
			if c.fails == "" {
				if err != nil || im.Tags[0] != c.image {
					t.Errorf("Pull = %+v, %v", im, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("error %v, want %q", err, c.fails)
			}
		})
	}
}

func TestPlainHTTPNeedsLeave(t *testing.T) {
	w := host{name: "10.0.0.1"}.transport()
	r := httptest.NewRequest("GET", "http://10.0.0.1/v2/", nil)
	if _, err := w.RoundTrip(r); err == nil || !strings.Contains(err.Error(), "not allowed") {
		t.Errorf("error %v", err)
	}
}

func TestPullCancelled(t *testing.T) {
	t.Parallel()
	f := newRegistry(t, httptest.NewServer)
	f.push(t, "1", []func([]byte) []byte{gzipped}, threeLayers(t)...)
	ctx, cancel := context.WithCancel(t.Context())
	f.meddle = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			cancel()
			<-r.Context().Done()
			return true
		}
		return false
	}
	if _, err := newStore(t).Pull(ctx, f.hostname()+"/app:1", PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestImportDockerArchive(t *testing.T) {
	t.Parallel()
	layer := layerOf(t, file("a", "1"))
	b := bundleOf(t, layer)
	sum := sha256.Sum256(b.config)
	config := hex.EncodeToString(sum[:]) + ".json"
	for name, c := range map[string]struct {
		entries []entry
		fails   string
	}{
		"plain": {[]entry{file(config, string(b.config)), file("l/layer.tar", string(layer)),
			file("manifest.json", `[{"Config":"`+config+`","RepoTags":["app:1"],"Layers":["l/layer.tar"]}]`)}, ""},
		"layer by link": {[]entry{file(config, string(b.config)), file("x/layer.tar", string(layer)), symlink("l", "x"),
			file("manifest.json", `[{"Config":"`+config+`","RepoTags":["app:1"],"Layers":["l/layer.tar"]}]`)}, ""},
		"link to the host": {[]entry{symlink(config, "/etc/passwd"),
			file("manifest.json", `[{"Config":"`+config+`","Layers":[]}]`)}, "escapes"},
		"climbing name": {[]entry{file("manifest.json", `[{"Config":"../../../../etc/passwd","Layers":[]}]`)}, "escapes"},
		"wrong config":  {[]entry{file(config, "{}"), file("manifest.json", `[{"Config":"`+config+`","Layers":[]}]`)}, "has digest"},
		"no manifest":   {[]entry{file("x", "")}, "neither index.json nor manifest.json"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			path := filepath.Join(t.TempDir(), "x.tar.gz")
			if err := os.WriteFile(path, gzipped(layerOf(t, c.entries...)), 0o600); err != nil {
				t.Fatal(err)
			}
			images, err := s.Import(t.Context(), path)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("error %v, want %q", err, c.fails)
				}
				return
			}
			if err != nil || len(images) != 1 || images[0].Tags[0] != "docker.io/library/app:1" || images[0].ID != digestOf(b.config) {
				t.Errorf("Import = %+v, %v", images, err)
			}
		})
	}
}
