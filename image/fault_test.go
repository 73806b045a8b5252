package image

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// guarded is a registry with TLS that wants a token for everything, which it
// gives to me:secret.
type guarded struct {
	*fakeRegistry
	// answer, when set, sees what bears the right token.
	answer func(http.ResponseWriter, *http.Request) bool
	// token, when set, answers in place of the token server.
	token http.HandlerFunc
	// ping, when set, answers who asks how to be spoken to.
	ping http.HandlerFunc
}

func newGuarded(t *testing.T) *guarded {
	g := &guarded{fakeRegistry: newRegistry(t, func(h http.Handler) *httptest.Server {
		s := httptest.NewUnstartedServer(h)
		s.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that fail on purpose
		s.StartTLS()
		return s
	})}
	g.meddle = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/v2/" && g.ping != nil:
			g.ping(w, r)
		case r.URL.Path == "/token" && g.token != nil:
			g.token(w, r)
		case r.URL.Path == "/token":
			if u, p, _ := r.BasicAuth(); u != "me" || p != "secret" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			fmt.Fprintf(w, `{"token": "for %s"}`, r.URL.Query().Get("scope"))
		case r.Header.Get("Authorization") == "Bearer for repository:app:pull":
			return g.answer != nil && g.answer(w, r)
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="x"`, g.URL))
			w.WriteHeader(http.StatusUnauthorized)
		}
		return true
	}
	return g
}

// trust writes a folder of registries that trusts the registry.
func (g *guarded) trust(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "registries")
	host := filepath.Join(dir, g.hostname())
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(host, "ca.crt"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// state tells all of a folder that could differ: names, kinds, modes, contents.
func state(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := e.Info()
		if err != nil {
			return err
		}
		all[p] = i.Mode().String()
		if i.Mode().IsRegular() {
			b, err := os.ReadFile(p)
			all[p] += " " + digestOf(b)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// wantState compares, but for the time stamps.
func wantState(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := state(t, dir)
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if want[p] != got[p] {
			t.Errorf("left: %s is %s, was %q", p, got[p], want[p])
		}
	}
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if got[p] == "" {
			t.Errorf("gone: %s", p)
		}
	}
}

// wantNoGoroutine waits until no goroutine of a pull is left.
func wantNoGoroutine(t *testing.T) {
	t.Helper()
	var left string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		buf := make([]byte, 1<<20)
		left = ""
		for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			ours := strings.Contains(g, "/image.(*ahead)") || strings.Contains(g, "/image.(*Store)") || strings.Contains(g, "/image.(*flow)") ||
				strings.Contains(g, "net/http.(*persistConn)") || strings.Contains(g, "net/http.(*http2ClientConn)")
			if ours && !strings.Contains(g, "testing.tRunner") {
				left = g
			}
		}
		if left == "" {
			return
		}
	}
	t.Errorf("a goroutine is left:\n%s", left)
}

// fault is something that a registry or an image can do to a pull.
type fault struct {
	name string
	// layers are what the image has, as they are sent; else one small layer.
	layers [][]byte
	// manifest changes the manifest, config the configuration before they are pushed.
	manifest func(*ocispec.Manifest)
	config   func(*ocispec.Image)
	// set changes the registry once the image is pushed, and may return another reference to pull.
	set    func(g *guarded, manifest []byte) string
	auth   *Auth
	limits Limits
	store  func(*Config)

	is   error
	says []string
	// alloc is what the pull may allocate in all, in bytes: more than it holds at
	// any time. 0 means 24 MiB.
	alloc uint64
}

const smallData = "0123456789abcdef"

func smallLayer(t *testing.T) []byte {
	return layerOf(t, file("etc/", ""), file("etc/a", strings.Repeat(smallData, 1000)))
}

// endless answers for as long as somebody listens.
func endless(w http.ResponseWriter, text string) {
	b := bytes.Repeat([]byte(text), 64<<10/len(text))
	for {
		if _, err := w.Write(b); err != nil {
			return
		}
	}
}

// on answers requests for a path that has part in it.
func on(part string, answer http.HandlerFunc) func(*guarded, []byte) string {
	return func(g *guarded, _ []byte) string {
		g.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, part) {
				return false
			}
			answer(w, r)
			return true
		}
		return ""
	}
}

// TestFaults pulls from registries, and images, that are not as they should be.
// The error names the image, what of it is wrong and what to do; the Store is as
// before; memory is bounded; no goroutine is left.
//
// It runs alone, since it counts what is allocated.
func TestFaults(t *testing.T) {
	small := smallLayer(t)
	packed := gzipped(small)
	digest := digestOf(packed)
	blob := "/blobs/" + digest
	var faults []fault
	faults = append(faults, registryFaults(packed)...)
	faults = append(faults, blobFaults(t, packed, blob)...)
	faults = append(faults, manifestFaults()...)
	faults = append(faults, archiveFaults(t)...)
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) { f.test(t, packed) })
	}
}

func (f *fault) test(t *testing.T, packed []byte) {
	g := newGuarded(t)
	name := g.hostname() + "/app:1"
	layers := f.layers
	if layers == nil {
		layers = [][]byte{packed}
	}
	manifest := f.push(t, g, layers)
	s := newStore(t, func(c *Config) {
		c.Registries, c.Limits = g.trust(t), f.limits
		c.test = hooks{stall: time.Minute, pause: time.Millisecond}
		if f.store != nil {
			f.store(c)
		}
	})
	if _, err := ingest(t, s, bundleOf(t, layerOf(t, file("before", "1"))), "before"); err != nil && f.limits == (Limits{}) {
		t.Fatal(err)
	}
	if f.set != nil {
		if other := f.set(g, manifest); other != "" {
			name = other
		}
	}
	auth := Auth{Username: "me", Password: "secret"}
	if f.auth != nil {
		auth = *f.auth
	}
	before := state(t, s.dir)
	var m0, m1 runtime.MemStats
	runtime.ReadMemStats(&m0)
	_, err := s.Pull(t.Context(), name, PullOptions{Auth: auth})
	runtime.ReadMemStats(&m1)
	if err == nil {
		t.Fatal("pulled")
	}
	t.Log(err)
	if f.is != nil && !errors.Is(err, f.is) {
		t.Errorf("error %v, want %v", err, f.is)
	}
	for _, part := range append(f.says, "pull "+name+": from ") {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %v\nwant %q", err, part)
		}
	}
	if got, most := m1.TotalAlloc-m0.TotalAlloc, max(f.alloc, 24<<20); got > most {
		t.Errorf("the pull allocated %d bytes, more than %d", got, most)
	}
	wantState(t, s.dir, before)
	g.CloseClientConnections()
	g.Close()
	wantNoGoroutine(t)
}

// push puts the fault's image into the registry, past its guard.
func (f *fault) push(t *testing.T, g *guarded, layers [][]byte) []byte {
	t.Helper()
	guard := g.meddle
	g.meddle = nil
	defer func() { g.meddle = guard }()
	c := ConfigOptions{}.config()
	var ds []ocispec.Descriptor
	for _, l := range layers {
		g.blob(t, l)
		ds = append(ds, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: descriptorDigest(l), Size: int64(len(l))})
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, descriptorDigest(unpacked(l)))
	}
	if f.config != nil {
		f.config(&c)
	}
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	g.blob(t, raw)
	m := manifestOf(raw, ds)
	if f.manifest != nil {
		f.manifest(&m)
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	g.put(t, "PUT", "/v2/app/manifests/1", ocispec.MediaTypeImageManifest, manifest)
	return manifest
}

// unpacked is a layer's archive, as far as it can be had.
func unpacked(l []byte) []byte {
	r, done, err := decompress(bytes.NewReader(l))
	if err != nil {
		return l
	}
	defer done()
	var b bytes.Buffer
	_, _ = io.Copy(&b, io.LimitReader(r, 1<<20))
	return b.Bytes()
}

// registryFaults are those of hosts, connections and credentials.
func registryFaults(packed []byte) []fault {
	layer := digestOf(packed)
	circle := func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) }
	return []fault{
		{name: "no such tag", set: func(g *guarded, _ []byte) string { return g.hostname() + "/app:2" },
			is: ErrNotFound, says: []string{"/manifests/2", "check name and tag"}},
		{name: "no such blob", set: on(layer, http.NotFound), is: ErrNotFound, says: []string{"layer 1 of 1, " + layer}},
		{name: "no credentials", auth: &Auth{}, is: ErrUnauthorized, says: []string{"imagePullSecrets"}},
		{name: "wrong credentials", auth: &Auth{Username: "me", Password: "guess"}, is: ErrUnauthorized, says: []string{"imagePullSecrets"}},
		{name: "forbidden", set: on("/manifests/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }),
			is: ErrUnauthorized, says: []string{"/manifests/1", "imagePullSecrets"}},
		{name: "unknown authority", store: func(c *Config) { c.Registries = filepath.Dir(c.Registries) }, says: []string{"certificate", "/ca.crt"}},
		{name: "nobody there", set: func(g *guarded, _ []byte) string { g.Close(); return "" }, says: []string{"connection refused", "check the registry's name"}},
		{name: "always busy", set: on("/manifests/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }),
			says: []string{"/manifests/1", "429"}},
		{name: "always broken", set: on("/blobs/", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }), says: []string{"502"}},
		{name: "endless complaint", set: on("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			endless(w, "no! ")
		}), is: ErrUnauthorized},
		{name: "endless welcome", set: func(g *guarded, _ []byte) string {
			g.ping = func(w http.ResponseWriter, _ *http.Request) { endless(w, "hello ") }
			g.answer = func(w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true }
			return ""
		}, is: ErrUnauthorized},
		{name: "endless token", set: func(g *guarded, _ []byte) string {
			g.token = func(w http.ResponseWriter, _ *http.Request) { endless(w, `{"token": "`) }
			return ""
		}, says: []string{"connect"}},
		{name: "token server elsewhere inside", set: func(g *guarded, _ []byte) string {
			g.ping = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("WWW-Authenticate", `Bearer realm="https://169.254.169.254/token"`)
				w.WriteHeader(http.StatusUnauthorized)
			}
			return ""
		}, says: []string{"169.254.169.254"}},
		{name: "manifest in circles", set: on("/manifests/", circle), says: []string{"stopped after 10 redirects", "/manifests/1"}},
		{name: "layer in circles", set: on(layer, circle), says: []string{"stopped after 10 redirects", layer}},
		{name: "token in circles", set: func(g *guarded, _ []byte) string { g.token = circle; return "" }, says: []string{"stopped after 10 redirects"}},
		{name: "sent to plain HTTP", set: on("/manifests/", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://10.1.2.3/", http.StatusFound)
		}), says: []string{"10.1.2.3"}},
		{name: "sent to the metadata service", set: on(layer, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://169.254.169.254/", http.StatusFound)
		}), says: []string{"169.254.169.254", layer}},
	}
}

// blobFaults are those of a layer's bytes on their way.
func blobFaults(t *testing.T, packed []byte, blob string) []fault {
	layer := digestOf(packed)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)/2] ^= 1
	stalled := func(c *Config) { c.test.stall = 50 * time.Millisecond }
	return []fault{
		{name: "truncated on the way", set: on(blob, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(packed)))
			_, _ = w.Write(packed[:len(packed)/2])
		}), says: []string{layer}},
		{name: "truncated in the registry", set: on(blob, func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(packed[:len(packed)/2])
		}), says: []string{layer, fmt.Sprintf("of %d bytes", len(packed))}},
		{name: "corrupted on the way", set: on(blob, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(flipped) }),
			is: ErrInvalid, says: []string{layer, "digest " + digestOf(flipped), "push it anew"}},
		{name: "something else", set: on(blob, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("evil"), len(packed)/4+1)[:len(packed)])
		}), is: ErrInvalid, says: []string{layer, "digest"}},
		{name: "more and more", set: on(blob, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(packed); endless(w, "more") }),
			is: ErrInvalid, says: []string{layer, fmt.Sprintf("more than the %d bytes", len(packed))}},
		{name: "stalls", store: stalled, set: on(blob, func(w http.ResponseWriter, r *http.Request) {
			_, _ = w.Write(packed[:10])
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}), says: []string{layer, "nothing came for 50ms"}},
		{name: "drips", store: stalled, set: on(blob, func(w http.ResponseWriter, r *http.Request) {
			for i := 0; r.Context().Err() == nil; i++ {
				_, _ = w.Write(packed[i%2 : i%2+1])
				_ = http.NewResponseController(w).Flush()
				time.Sleep(5 * time.Millisecond)
			}
		}), says: []string{layer}},
		{name: "manifest stalls", store: stalled, set: on("/manifests/", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }),
			says: []string{"/manifests/1"}},
		{name: "corrupted before it was pushed", layers: [][]byte{flipped}, is: ErrInvalid, says: []string{digestOf(flipped), "push it anew"}},
		{name: "truncated before it was pushed", layers: [][]byte{packed[:len(packed)-20]}, says: []string{digestOf(packed[:len(packed)-20]), "unexpected EOF"}},
		{name: "archive truncated before it was packed", layers: [][]byte{gzipped(unpacked(packed)[:5000])}, says: []string{"layer 1 of 1, sha256:", "unexpected EOF"}},
		{name: "good layer, bad layer", layers: [][]byte{gzipped(layerOf(t, file("a", "1"))), flipped}, is: ErrInvalid, says: []string{"layer 2 of 2, " + digestOf(flipped)}},
	}
}

// manifestFaults are those of manifests, indexes and configurations.
func manifestFaults() []fault {
	alien := ocispec.Platform{OS: "linux", Architecture: "s390x"}
	index := func(of ...ocispec.Descriptor) func(*guarded, []byte) string {
		return func(g *guarded, m []byte) string {
			i := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: of}
			i.SchemaVersion = 2
			for n := range i.Manifests {
				if i.Manifests[n].Digest == "" {
					i.Manifests[n].Digest = descriptorDigest(m)
				}
			}
			return on("/manifests/1", func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
				_ = json.NewEncoder(w).Encode(i)
			})(g, m)
		}
	}
	text := func(mediaType, text string) func(*guarded, []byte) string {
		return on("/manifests/", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			_, _ = io.WriteString(w, text)
		})
	}
	return []fault{
		{name: "wrong platform", set: index(ocispec.Descriptor{Platform: &alien}), is: ErrNotFound, says: []string{"no image for linux/" + runtime.GOARCH, "linux/s390x", "build the image for this machine"}},
		{name: "index of nothing", set: index(), is: ErrNotFound, says: []string{"no image for"}},
		{name: "index of no digest", set: index(ocispec.Descriptor{Digest: "md5:1"}), is: ErrInvalid, says: []string{"md5:1"}},
		{name: "indexes without end", set: func(g *guarded, _ []byte) string {
			// Each names another that nobody has seen, and is served under its own digest.
			raw := []byte(`{}`)
			known := map[string][]byte{}
			for range 5 {
				i := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{{Digest: descriptorDigest(raw)}}}
				i.SchemaVersion = 2
				raw, _ = json.Marshal(i)
				known[digestOf(raw)] = raw
			}
			known["1"] = raw
			return on("/manifests/", func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(known[filepath.Base(r.URL.Path)]) })(g, nil)
		}, is: ErrInvalid, says: []string{"indexes of indexes"}},
		{name: "other manifest than asked for", set: func(g *guarded, m []byte) string {
			text(ocispec.MediaTypeImageManifest, `{"schemaVersion": 2}`)(g, m)
			return g.hostname() + "/app@" + digestOf(m)
		}, is: ErrInvalid, says: []string{"the content has digest"}},
		{name: "endless manifest", set: on("/manifests/", func(w http.ResponseWriter, _ *http.Request) { endless(w, "[[[[") }),
			is: ErrInvalid, says: []string{"larger than 8388608 bytes"}, alloc: 64 << 20},
		{name: "deep manifest", set: text("", strings.Repeat(`[`, 1<<20)), is: ErrInvalid, says: []string{"decode manifest"}},
		{name: "schema 1", set: text(dockerSchema1+"+prettyjws", `{"schemaVersion": 1}`), is: ErrInvalid, says: []string{"schema 1", "push it anew"}},
		{name: "a web page", set: text("text/html", `<html>`), is: ErrInvalid, says: []string{"decode manifest"}},
		{name: "layer of less than nothing", manifest: func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }, is: ErrInvalid, says: []string{"-1 bytes"}},
		{name: "layer of other size", manifest: func(m *ocispec.Manifest) { m.Layers[0].Size-- }, is: ErrInvalid, says: []string{"more than the"}},
		{name: "layer without digest", manifest: func(m *ocispec.Manifest) { m.Layers[0].Digest = "../../../etc/passwd" }, is: ErrInvalid, says: []string{"etc/passwd"}},
		{name: "thousands of layers", config: func(c *ocispec.Image) {
			c.RootFS.DiffIDs = slices.Repeat(c.RootFS.DiffIDs, 5000)
		}, manifest: func(m *ocispec.Manifest) { m.Layers = slices.Repeat(m.Layers, 5000) }, is: ErrInvalid, says: []string{"more than 500"}, alloc: 64 << 20},
		{name: "configuration of other layers", config: func(c *ocispec.Image) { c.RootFS.DiffIDs = nil }, is: ErrInvalid, says: []string{"names 0 layers, the manifest 1"}},
		{name: "wrong diff ID", config: func(c *ocispec.Image) { c.RootFS.DiffIDs[0] = descriptorDigest(nil) }, is: ErrInvalid,
			says: []string{"layer 1 of 1, sha256:", "it unpacks to", "the image says " + digestOf(nil)}},
		{name: "endless configuration", set: func(g *guarded, m []byte) string {
			var manifest ocispec.Manifest
			_ = json.Unmarshal(m, &manifest)
			return on(string(manifest.Config.Digest), func(w http.ResponseWriter, _ *http.Request) { endless(w, "    ") })(g, m)
		}, is: ErrInvalid, says: []string{"larger than 8388608 bytes"}, alloc: 64 << 20},
	}
}

// archiveFaults are those of archives that strangers made.
func archiveFaults(t *testing.T) []fault {
	few := Limits{Entries: 50, Bytes: 1 << 20, Names: 4 << 10}
	one := func(name, says string, is error, entries ...entry) fault {
		return fault{name: name, layers: [][]byte{gzipped(layerOf(t, entries...))}, limits: few, is: is, says: []string{"layer 1 of 1, sha256:", says}}
	}
	onTop := func(name, says string, is error, entries ...entry) fault {
		f := one(name, says, is, entries...)
		f.layers = [][]byte{gzipped(layerOf(t, file("etc/", ""), file("etc/a", "1"))), f.layers[0]}
		f.says[0] = "layer 2 of 2, sha256:"
		return f
	}
	var many, names []entry
	for i := range 60 {
		many = append(many, file(fmt.Sprintf("f%d", i), ""))
		names = append(names, file(strings.Repeat(fmt.Sprint(i%10), 200)+"/", ""))
	}
	up := strings.Repeat("../", 20)
	sparse := one("sparse file of a terabyte", "larger than 1048576 bytes", ErrInvalid)
	sparse.layers = [][]byte{gzipped(sparseArchive(1 << 40))}
	return []fault{
		{name: "gzip bomb", layers: [][]byte{gzipped(layerOf(t, file("zeros", string(make([]byte, 32<<20)))))}, limits: few, is: ErrInvalid, says: []string{`unpack "zeros"`, "larger than 1048576 bytes"}},
		{name: "bomb behind the archive's end", layers: [][]byte{gzipped(append(layerOf(t), make([]byte, 32<<20)...))}, limits: few, is: ErrInvalid, says: []string{"larger than allowed"}},
		{name: "zstd with a window of 2 GB", layers: [][]byte{hugeWindow()}, says: []string{"layer 1 of 1, sha256:", "window"}},
		sparse,
		one("too many entries", "more than 50 entries", ErrInvalid, many...),
		one("too many names", "names of more than 4096 bytes", ErrInvalid, names[:40]...),
		onTop("too many names on top", "names of more than 4096 bytes", ErrInvalid, names[:40]...),
		one("name of 5,000 bytes", "name of", ErrInvalid, file(strings.Repeat("n/", 2500)+"x", "")),
		one("name that climbs", "leads out of the image", ErrInvalid, file(up+"tmp/x", "1")),
		onTop("name that climbs on top", "leads out of the image", ErrInvalid, file("etc/../../x", "1")),
		one("hard link that climbs", "leads out of the image", ErrInvalid, hardlink("l", up+"etc/passwd")),
		one("hard link to the host", "no such file", nil, hardlink("l", "/etc/passwd")),
		onTop("hard link to nothing on top", "no such file", nil, hardlink("l", "etc/b")),
		one("links in a circle", "symbolic links", nil, symlink("a", "b"), symlink("b", "a"), file("a/f", "1")),
		onTop("links in a circle on top", "symbolic links", nil, symlink("a", "b"), symlink("b", "a"), file("a/f", "1")),
		one("file as directory", "not a directory", nil, file("f", "1"), file("f/g", "2")),
		onTop("file as directory on top", "not a directory", nil, file("etc/a/b", "2")),
		one("root that is a link", "root must be a directory", ErrInvalid, entry{tar.Header{Name: ".", Typeflag: tar.TypeSymlink, Linkname: "/"}, ""}),
		one("overlayfs's whiteout", "overlayfs's own", ErrInvalid, entry{tar.Header{Name: "d", Typeflag: tar.TypeChar}, ""}),
		one("overlayfs's redirect", "overlayfs's own", ErrInvalid, entry{tar.Header{Name: "d", Typeflag: tar.TypeDir, Mode: 0o755, Format: tar.FormatPAX,
			PAXRecords: map[string]string{paxXattr + "trusted.overlay.redirect": "/etc"}}, ""}),
		one("unknown kind of entry", "not known", ErrInvalid, entry{tar.Header{Name: "x", Typeflag: 'Z'}, ""}),
		one("whiteout of the directory above", "whiteout of nothing", ErrInvalid, file("a/.wh...", "")),
		{name: "no archive", layers: [][]byte{gzipped(bytes.Repeat([]byte("no archive "), 1000))}, says: []string{"layer 1 of 1, sha256:", "archive"}},
		{name: "disk too small", layers: [][]byte{gzipped(layerOf(t, file("zeros", string(make([]byte, 20<<20)))))}, is: unix.ENOSPC,
			says: []string{`unpack "zeros"`, "do not fit", "make room"}, store: func(c *Config) { c.Dir = smallDisk(t) }},
	}
}

// hugeWindow is a zstd frame that wants 2 GB of memory.
func hugeWindow() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0xFD2FB528)
	b = append(b, 0, 21<<3) // no flags; a window of 2^(10+21) bytes
	b = append(b, 1, 0, 0)  // the last block, empty
	return append(b, zstdded([]byte("x"))...)
}

// sparseArchive is an archive of one sparse file of that many bytes, all a hole.
func sparseArchive(size int64) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: "hole", Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"YARE.note": "sparse"}})
	_ = w.Close()
	raw := b.Bytes()
	// The writer refuses GNU's records: they are written over the note, which is as long as they are.
	records := ""
	for _, kv := range []string{"GNU.sparse.major=0", "GNU.sparse.minor=1", "GNU.sparse.numblocks=1", "GNU.sparse.map=0,0", fmt.Sprintf("GNU.sparse.size=%d", size)} {
		n := len(kv) + 3
		n += len(fmt.Sprint(n)) - 1
		records += fmt.Sprintf("%d %s\n", n, kv)
	}
	return paxArchive(raw, records)
}

// paxArchive replaces the PAX records of an archive's first entry.
func paxArchive(raw []byte, records string) []byte {
	head := bytes.Clone(raw[:512])
	copy(head[124:136], fmt.Sprintf("%011o\x00", len(records)))
	copy(head[148:156], "        ")
	sum := 0
	for _, c := range head {
		sum += int(c)
	}
	copy(head[148:156], fmt.Sprintf("%06o\x00 ", sum))
	out := append(head, records...)
	out = append(out, make([]byte, (512-len(records)%512)%512)...)
	return append(out, raw[1024:]...)
}

// smallDisk is a folder on a file system of 16 MB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "store")
}
