package image

import (
	"errors"
	"strings"
	"testing"
)

func TestParseReference(t *testing.T) {
	sum := "sha256:" + strings.Repeat("ab", 32)
	for in, want := range map[string]string{
		"hello":                             "docker.io/library/hello:latest",
		"hello:1.2":                         "docker.io/library/hello:1.2",
		"user/hello":                        "docker.io/user/hello:latest",
		"docker.io/hello":                   "docker.io/library/hello:latest",
		"index.docker.io/user/hello":        "docker.io/user/hello:latest",
		"localhost/hello":                   "localhost/hello:latest",
		"localhost:5000/a/b/c:v1":           "localhost:5000/a/b/c:v1",
		"registry.k8s.io/pause:3.9":         "registry.k8s.io/pause:3.9",
		"Registry/hello":                    "Registry/hello:latest",
		"[::1]:5000/hello":                  "[::1]:5000/hello:latest",
		"hello@" + sum:                      "docker.io/library/hello@" + sum,
		"a.b/c_d/e__f/g-h:x@" + sum:         "a.b/c_d/e__f/g-h:x@" + sum,
		"":                                  "",
		"Hello":                             "",
		"hello:":                            "",
		"hello:.x":                          "",
		"hello@sha256:12":                   "",
		"a//b":                              "",
		"../etc":                            "",
		"host.example/../x":                 "",
		"-host.example/x":                   "",
		"hello world":                       "",
		"x.y/" + strings.Repeat("a", 260):   "",
		"hello:" + strings.Repeat("t", 129): "",
	} {
		r, err := ParseReference(in)
		if want == "" {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("ParseReference(%q) = %v, %v, want ErrInvalid", in, r, err)
			}
			continue
		}
		if err != nil || r.String() != want {
			t.Errorf("ParseReference(%q) = %v, %v, want %v", in, r, err, want)
		}
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("docker.io/library/busybox:1.36")
	f.Add("a@sha256:" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, in string) {
		r, err := ParseReference(in)
		if err != nil {
			return
		}
		again, err := ParseReference(r.String())
		if err != nil || again != r {
			t.Errorf("%q parses to %v, which parses to %v, %v", in, r, again, err)
		}
	})
}
