package critest

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// images are what the cases run, in two registries.
type images struct {
	open, guarded string // addresses
	served        map[string]http.Handler
	layer         v1.Layer
	// box runs `sleep 100000` as root, app `echo entry image-argument` as alice in /work; bare has no command.
	box, app, bare string
	// data holds files alone: /dir/file and /link to it.
	data string
}

// Credentials of the guarded registry.
const registryUser, registryPassword = "alice", "opensesame"

// applets are the names that busybox has in the images.
func applets() []string {
	return []string{"sh", "cat", "echo", "sleep", "id", "ls", "true", "false", "hostname", "mount", "umount", "head", "touch", "grep", "stty",
		"tty", "readlink", "dd", "ps", "kill", "wc", "chmod", "chown", "mkdir", "mknod", "env", "yes", "stat", "tail", "httpd", "printf", "pwd", "test",
		"ln", "cut", "awk", "sort", "df", "ip", "nc", "tr", "rm", "seq"}
}

const passwd = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001::/home/alice:/bin/sh\n"
const groupFile = "root:x:0:\nalice:x:1001:\nstaff:x:50:alice\nwheel:x:10:root\n"

func newImages(t *testing.T, target Target) *images {
	t.Helper()
	quiet := registry.Logger(log.New(io.Discard, "", 0))
	open, guarded := registry.New(quiet), registry.New(quiet)
	i := &images{open: serve(t, target.Registry, open), guarded: serve(t, target.Guarded, guard(guarded)), layer: boxLayer(t)}
	i.served = map[string]http.Handler{i.open: open, i.guarded: guarded}
	env := []string{"PATH=/bin", "IMAGE=yes"}
	i.box = i.push(t, i.open+"/box:1", v1.Config{Cmd: forever(), Env: env})
	i.app = i.push(t, i.open+"/team/app:1", v1.Config{
		Entrypoint: []string{"/bin/echo", "entry"}, Cmd: []string{"image-argument"}, Env: env, WorkingDir: "/work", User: "alice", StopSignal: "SIGUSR1",
	})
	i.bare = i.push(t, i.open+"/bare:1", v1.Config{Env: env})
	i.push(t, i.guarded+"/box:1", v1.Config{Cmd: forever(), Env: append(env, "GUARDED=yes")})
	files := archive(t, tar.Header{Name: "dir/", Typeflag: tar.TypeDir, Mode: 0o755}, "", tar.Header{Name: "dir/file", Mode: 0o644}, "data\n",
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "/dir/file", Mode: 0o777}, "")
	i.data = i.write(t, i.open+"/data:1", static.NewLayer(files, types.OCIUncompressedLayer), v1.Config{})
	if target.Sandbox != "" {
		i.push(t, i.open+"/"+target.Sandbox, v1.Config{Cmd: []string{"/bin/sleep", "2147483647"}, Labels: map[string]string{"is": "sandbox"}})
	}
	return i
}

// serve serves h until the test ends, and returns its address.
func serve(t *testing.T, l net.Listener, h http.Handler) string {
	t.Helper()
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	server := &http.Server{Handler: h}
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// guard asks for the password.
func guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != registryUser || password != registryPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="critest"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// boxLayer is a root file system of the host's busybox.
func boxLayer(t *testing.T) v1.Layer {
	t.Helper()
	found, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	busybox, err := os.ReadFile(found)
	if err != nil {
		t.Fatal(err)
	}
	var entries []any
	for _, d := range []string{"bin/", "dev/", "proc/", "sys/", "etc/", "root/", "home/", "work/", "var/", "mnt/"} {
		entries = append(entries, tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	entries = append(entries, tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, "",
		tar.Header{Name: "home/alice/", Typeflag: tar.TypeDir, Mode: 0o755, Uid: 1000, Gid: 1001}, "",
		tar.Header{Name: "bin/busybox", Mode: 0o755}, string(busybox),
		tar.Header{Name: "bin/garbage", Mode: 0o755}, "\x01\x02\x03\x04",
		tar.Header{Name: "etc/passwd", Mode: 0o644}, passwd, tar.Header{Name: "etc/group", Mode: 0o644}, groupFile)
	for _, a := range applets() {
		entries = append(entries, tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, "")
	}
	return static.NewLayer(archive(t, entries...), types.OCIUncompressedLayer)
}

// archive writes pairs of a header and a content.
func archive(t *testing.T, pairs ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		h, text := pairs[i].(tar.Header), pairs[i+1].(string)
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(text))
		}
		err := w.WriteHeader(&h)
		if err == nil {
			_, err = io.WriteString(w, text)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// push writes an image of the box under a name.
func (i *images) push(t testing.TB, ref string, config v1.Config) string {
	t.Helper()
	return i.write(t, ref, i.layer, config)
}

func (i *images) write(t testing.TB, ref string, layer v1.Layer, config v1.Config) string {
	t.Helper()
	img, err := build(layer, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(i.parse(t, ref), img, remote.WithTransport(i)); err != nil {
		t.Fatal(err)
	}
	return ref
}

// RoundTrip asks a registry without a connection: it may listen where the test cannot reach it.
func (i *images) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, asked := httptest.NewRecorder(), r.Clone(r.Context())
	if asked.Body == nil {
		asked.Body = http.NoBody
	}
	i.served[r.URL.Host].ServeHTTP(answer, asked)
	resp := answer.Result()
	resp.Request = r
	return resp, nil
}

func build(layer v1.Layer, config v1.Config) (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(base, mutate.Addendum{Layer: layer, MediaType: types.OCIUncompressedLayer})
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(img, file)
}

func (i *images) parse(t testing.TB, ref string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// digest is that of the manifest (or the index) under a name.
func (i *images) digest(t testing.TB, ref string) string {
	t.Helper()
	d, err := remote.Head(i.parse(t, ref), remote.WithTransport(i))
	if err != nil {
		t.Fatal(err)
	}
	return d.Digest.String()
}

// fresh pushes an image that no other is like, and returns its name.
func (t *T) fresh() string {
	t.Helper()
	n := t.unique("fresh")
	return t.images.push(t.TB, fmt.Sprintf("%s/%s:1", t.images.open, n), v1.Config{Cmd: forever(), Env: []string{"PATH=/bin", "FRESH=" + n}})
}

// pull pulls an image and returns its ID.
func (t *T) pull(ref string) string {
	t.Helper()
	r, err := t.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	return r.ImageRef
}

// with is a change of a configuration: another image, which is pulled first.
func (t *T) with(ref string) func(*runtimeapi.ContainerConfig) {
	t.Helper()
	t.pull(ref)
	return func(c *runtimeapi.ContainerConfig) { c.Image = &runtimeapi.ImageSpec{Image: ref} }
}

// Registry serves the suite's images on l until the test ends. box is the name of one that has busybox and sleeps.
func Registry(t *testing.T, l net.Listener) (box string) {
	t.Helper()
	return newImages(t, Target{Registry: l}).box
}
