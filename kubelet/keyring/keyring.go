// Package keyring finds what a registry wants to see before it gives an image:
// pull secrets, a file of the node, and credential provider plugins. It replaces
// upstream's pkg/credentialprovider.
//
// A pattern names a registry, or a path in it: "registry.example:5000/team". In
// its host * stands for a part of one label. The most specific pattern that fits
// an image comes first.
package keyring

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Keyring is what a node has beside the pull secrets of pods.
type Keyring struct {
	file    string
	plugins []*plugin
}

// New reads the configuration of the plugins, a file or a folder of files, whose
// programs are in bin. file is a docker configuration, which is read anew for
// each pull and may be missing. Either may be empty.
func New(file, config, bin string) (*Keyring, error) {
	k := &Keyring{file: file}
	if config == "" {
		return k, nil
	}
	providers, err := readProviders(config)
	if err != nil {
		return nil, err
	}
	for _, p := range providers {
		k.plugins = append(k.plugins, newPlugin(p, bin))
	}
	return k, nil
}

// ForImage returns the credentials that fit the image: those of the secrets, of
// the node's file, of the plugins. There may be some beside the error, which says
// what could not be asked. A nil Keyring knows the secrets alone.
func (k *Keyring) ForImage(ctx context.Context, image string, secrets []*corev1.Secret, account *Account) ([]*runtimeapi.AuthConfig, error) {
	out := forImage(fromSecrets(secrets), image)
	if k == nil {
		return out, nil
	}
	node, err := k.fromFile()
	out = append(out, forImage(node, image)...)
	var provided []credential
	for _, p := range k.plugins {
		creds, pluginErr := p.ask(ctx, image, account)
		provided, err = append(provided, creds...), errors.Join(err, pluginErr)
	}
	specificFirst(provided)
	return append(out, forImage(provided, image)...), err
}

func (k *Keyring) fromFile() ([]credential, error) {
	if k.file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(k.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	auths, err := parseConfig(b)
	if err != nil {
		return nil, fmt.Errorf("read credentials in %s: %w", k.file, err)
	}
	return fromAuths(auths), nil
}

// credential is what is to be said to a registry.
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

func parseConfig(b []byte) (map[string]dockerAuth, error) {
	var config struct {
		Auths map[string]dockerAuth `json:"auths"`
	}
	err := json.Unmarshal(b, &config)
	return config.Auths, err
}

// fromSecrets reads the secrets' docker configurations. What cannot be read is left out: the pull then says what is
// missing.
func fromSecrets(secrets []*corev1.Secret) []credential {
	var out []credential
	for _, s := range secrets {
		var auths map[string]dockerAuth
		var err error
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			auths, err = parseConfig(s.Data[corev1.DockerConfigJsonKey])
		case corev1.SecretTypeDockercfg:
			err = json.Unmarshal(s.Data[corev1.DockerConfigKey], &auths)
		}
		if err == nil {
			out = append(out, fromAuths(auths)...)
		}
	}
	specificFirst(out)
	return out
}

func fromAuths(auths map[string]dockerAuth) []credential {
	var out []credential
	for server, a := range auths {
		out = append(out, newCredential(server, a))
	}
	specificFirst(out)
	return out
}

// specificFirst sorts longer patterns before shorter ones, and otherwise keeps
// the order but for equal lengths' names.
func specificFirst(all []credential) {
	slices.SortStableFunc(all, func(a, b credential) int {
		return cmp.Or(len(b.pattern)-len(a.pattern), strings.Compare(a.pattern, b.pattern))
	})
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

// forImage returns the credentials that fit the image, in their order.
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
