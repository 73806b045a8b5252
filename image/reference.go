package image

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// Reference is a parsed image reference, complete: the registry and, unless
// there is a digest, the tag are always set.
type Reference struct {
	Registry   string // host, with port if any: "docker.io", "localhost:5000"
	Repository string // path: "library/busybox"
	Tag        string // may be empty when Digest is set
	Digest     string // "sha256:..." or empty
}

// maxName bounds registry and repository together, as the registries do.
const maxName = 255

// grammar is what the parts of a reference must match.
type grammar struct{ host, path, tag, digest *regexp.Regexp }

func newGrammar() grammar {
	const part = `[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*`
	const label = `[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?`
	return grammar{
		host:   regexp.MustCompile(`^(?:` + label + `(?:\.` + label + `)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?$`),
		path:   regexp.MustCompile(`^` + part + `(?:/` + part + `)*$`),
		tag:    regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}$`),
		digest: regexp.MustCompile(`^sha256:[a-f0-9]{64}$`),
	}
}

// references compiles the grammar when it is first asked for.
var references = sync.OnceValue(newGrammar)

// ParseReference completes a reference as Docker's users know it: "hello" is
// docker.io/library/hello:latest. The error wraps ErrInvalid.
func ParseReference(ref string) (Reference, error) {
	bad := func(why string) (Reference, error) {
		return Reference{}, fmt.Errorf("image reference %q: %s: %w", ref, why, ErrInvalid)
	}
	var r Reference
	rest, digest, hasDigest := strings.Cut(ref, "@")
	if hasDigest {
		if !references().digest.MatchString(digest) {
			return bad("the digest is not sha256 and 64 hexadecimal digits")
		}
		r.Digest = digest
	}
	r.Registry = "docker.io"
	if host, path, ok := strings.Cut(rest, "/"); ok && isHost(host) {
		r.Registry, rest = host, path
	}
	if r.Registry == "index.docker.io" {
		r.Registry = "docker.io"
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		rest, r.Tag = rest[:i], rest[i+1:]
		if !references().tag.MatchString(r.Tag) {
			return bad("malformed tag")
		}
	}
	if r.Registry == "docker.io" && rest != "" && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	r.Repository = rest
	switch {
	case !references().host.MatchString(r.Registry):
		return bad("malformed registry host")
	case !references().path.MatchString(r.Repository):
		return bad("malformed repository name (lower-case letters, digits and separators)")
	case len(r.Registry)+1+len(r.Repository) > maxName:
		return bad("longer than 255 characters")
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r, nil
}

// isHost tells a registry host from the first part of a Docker Hub repository.
func isHost(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:[") || strings.ToLower(s) != s
}

// Name is registry and repository.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String is the complete reference.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// names are the two names under which a pulled image is recorded: by tag, if
// it has one, and by digest.
func (r Reference) names(manifest string) []string {
	names := []string{r.Name() + "@" + manifest}
	if r.Tag != "" && r.Digest == "" {
		names = append(names, r.Name()+":"+r.Tag)
	}
	return names
}
