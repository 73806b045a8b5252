package pod

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// credential is what a pull secret says of a registry.
type credential struct {
	pattern string // host, host:port or host/path, without scheme; the host may contain *
	auth    *runtimeapi.AuthConfig
}

type dockerAuth struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentials reads the secrets' docker configurations. What cannot be read is left out: the pull then says what is
// missing.
func credentials(secrets []*corev1.Secret) []credential {
	var out []credential
	for _, s := range secrets {
		auths := map[string]dockerAuth{}
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			var config struct {
				Auths map[string]dockerAuth `json:"auths"`
			}
			if json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &config) == nil {
				auths = config.Auths
			}
		case corev1.SecretTypeDockercfg:
			if json.Unmarshal(s.Data[corev1.DockerConfigKey], &auths) != nil {
				continue
			}
		}
		for server, a := range auths {
			out = append(out, newCredential(server, a))
		}
	}
	// The most specific first, in a stable order.
	slices.SortStableFunc(out, func(a, b credential) int {
		if d := len(b.pattern) - len(a.pattern); d != 0 {
			return d
		}
		return strings.Compare(a.pattern, b.pattern)
	})
	return out
}

func newCredential(server string, a dockerAuth) credential {
	if a.Username == "" && a.Auth != "" {
		if b, err := base64.StdEncoding.DecodeString(a.Auth); err == nil {
			a.Username, a.Password, _ = strings.Cut(string(b), ":")
		}
	}
	pattern := server
	if _, rest, ok := strings.Cut(pattern, "://"); ok {
		pattern = rest
	}
	pattern = strings.TrimSuffix(pattern, "/")
	for _, suffix := range []string{"/v1", "/v2"} {
		pattern = strings.TrimSuffix(pattern, suffix)
	}
	if pattern == "index.docker.io" || pattern == "registry-1.docker.io" {
		pattern = "docker.io"
	}
	return credential{pattern, &runtimeapi.AuthConfig{
		Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: server,
	}}
}

// forImage returns the credentials that fit the image, the most specific first.
func forImage(all []credential, image string) []*runtimeapi.AuthConfig {
	name := repository(image)
	var out []*runtimeapi.AuthConfig
	for i := range all {
		if fits(all[i].pattern, name) {
			out = append(out, all[i].auth)
		}
	}
	return out
}

// repository returns the image's name with its registry, without tag and digest.
func repository(image string) string {
	name, _, _ := strings.Cut(image, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	host, rest, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		return "docker.io/library/" + name
	case !strings.ContainsAny(host, ".:") && host != "localhost":
		return "docker.io/" + name
	case host == "index.docker.io":
		return "docker.io/" + rest
	}
	return name
}

// fits reports whether the pattern names the repository's registry, or a path above the repository.
func fits(pattern, name string) bool {
	wantHost, wantPath, _ := strings.Cut(pattern, "/")
	host, path, _ := strings.Cut(name, "/")
	if wantPath != "" && path != wantPath && !strings.HasPrefix(path, wantPath+"/") {
		return false
	}
	want, have := strings.Split(wantHost, "."), strings.Split(host, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if !glob(want[i], have[i]) {
			return false
		}
	}
	return true
}

// glob matches one label of a host name against a pattern with *.
func glob(pattern, s string) bool {
	before, after, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	rest, ok := strings.CutPrefix(s, before)
	if !ok {
		return false
	}
	for i := 0; i <= len(rest); i++ {
		if glob(after, rest[i:]) {
			return true
		}
	}
	return false
}
