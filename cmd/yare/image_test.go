package main

import (
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/image"
)

// Logins that other programs have kept are made use of, those of the image's registry alone.
func TestKeptCredentials(t *testing.T) {
	home, bin := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", filepath.Join(home, ".docker")) // the same, but that the library would remember the first test's
	for _, v := range []string{"REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"} {
		t.Setenv(v, "")
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	write := func(file, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(bin, "docker-credential-fake"), "#!/bin/sh\nread host\necho '{\"Username\":\"of '$host'\",\"Secret\":\"helped\"}'\n")
	basic := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	docker, podman := filepath.Join(home, ".docker/config.json"), filepath.Join(home, ".config/containers/auth.json")
	for _, c := range []struct {
		name, file, text, creds, ref string
		want                         image.Auth
		fails                        string
	}{
		{name: "none", ref: "example.com/a"},
		{name: "docker", file: docker, text: `{"auths":{"example.com":{"auth":"` + basic("me:se:cret") + `"}}}`, ref: "example.com/a:1", want: image.Auth{Username: "me", Password: "se:cret"}},
		{name: "a port", file: docker, text: `{"auths":{"example.com:5000":{"auth":"` + basic("me:x") + `"}}}`, ref: "example.com:5000/a", want: image.Auth{Username: "me", Password: "x"}},
		{name: "another registry", file: docker, text: `{"auths":{"example.com":{"auth":"` + basic("me:x") + `"}}}`, ref: "example.com.evil.test/a"},
		{name: "Docker Hub", file: docker, text: `{"auths":{"https://index.docker.io/v1/":{"auth":"` + basic("hub:x") + `"}}}`, ref: "busybox", want: image.Auth{Username: "hub", Password: "x"}},
		{name: "token", file: docker, text: `{"auths":{"example.com":{"auth":"` + basic("0:") + `","identitytoken":"T"}}}`, ref: "example.com/a", want: image.Auth{Username: "0", IdentityToken: "T"}},
		{name: "helper", file: docker, text: `{"credHelpers":{"example.com":"fake"}}`, ref: "example.com/a", want: image.Auth{Username: "of example.com", Password: "helped"}},
		{name: "store", file: docker, text: `{"credsStore":"fake"}`, ref: "example.com/a", want: image.Auth{Username: "of example.com", Password: "helped"}},
		{name: "no helper", file: docker, text: `{"credHelpers":{"example.com":"absent"}}`, ref: "example.com/a", fails: "registry example.com (--creds"},
		{name: "podman", file: podman, text: `{"auths":{"example.com":{"auth":"` + basic("pod:x") + `"}}}`, ref: "example.com/a", want: image.Auth{Username: "pod", Password: "x"}},
		{name: "given", file: docker, text: `{"auths":{"example.com":{"auth":"` + basic("me:x") + `"}}}`, creds: "you:y:z", ref: "example.com/a", want: image.Auth{Username: "you", Password: "y:z"}},
		{name: "malformed", file: docker, text: `{`, ref: "example.com/a", fails: "registry example.com (--creds"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.file != "" {
				write(c.file, c.text)
				defer os.Remove(c.file)
			}
			got, err := credentials(t.Context(), c.creds, c.ref)
			if got != c.want || (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%+v, %v, want %+v", got, err, c.want)
			}
		})
	}
}

// What is kept reaches the registry.
func TestPullWithKeptCredentials(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	told := make(chan string, 100)
	registry := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, ok := r.BasicAuth()
		if !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="r"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		told <- user + " " + password
		http.NotFound(w, r)
	}))
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "http://")
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("DOCKER_CONFIG", dir)
	text := `{"auths":{"` + host + `":{"auth":"` + base64.StdEncoding.EncodeToString([]byte("me:secret")) + `"}}}`
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := imageCommand()
	c.SetOut(io.Discard)
	c.SetErr(io.Discard)
	c.SetArgs([]string{"pull", "--data-dir", filepath.Join(dir, "data"), host + "/a:1"})
	if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("%v", err)
	}
	select {
	case got := <-told:
		if got != "me secret" {
			t.Errorf("told %q", got)
		}
	default:
		t.Error("told nothing")
	}
}

// A helper that does not answer holds nobody up who gives up: it says that it was asked, and is left without an answer.
func TestHelperHangs(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	asked, ends := filepath.Join(dir, "asked"), filepath.Join(dir, "ends")
	err := errors.Join(unix.Mkfifo(asked, 0o600), unix.Mkfifo(ends, 0o600),
		os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"credsStore":"hangs"}`), 0o600),
		os.WriteFile(filepath.Join(dir, "docker-credential-hangs"), []byte("#!/bin/sh\n: >"+asked+"\nread x <"+ends+"\n"), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		if f, err := os.Open(asked); err == nil { // opens when the helper runs
			f.Close()
		}
		cancel()
	}()
	if _, err := credentials(ctx, "", "example.com/a"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	f, err := os.OpenFile(ends, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
