package keyring

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	credentialapi "k8s.io/kubelet/pkg/apis/credentialprovider/v1"

	kubeletapi "k8s.io/kubelet/config/v1"
)

const (
	// pluginTime is how long a plugin may take, upstream's.
	pluginTime = time.Minute
	// maxAnswer bounds what a plugin may say, in bytes.
	maxAnswer = 1 << 20
	// maxCached bounds the answers that one plugin's cache holds.
	maxCached = 1000
)

// Account is the service account of the pod that an image is pulled for.
type Account struct {
	Namespace, Name string
	// Read returns the account's UID and annotations.
	Read func(context.Context) (uid string, annotations map[string]string, err error)
	// Token returns a token of the account for an audience, bound to the pod.
	Token func(ctx context.Context, audience string) (string, error)
}

// plugin is one program that knows credentials.
type plugin struct {
	kubeletapi.CredentialProvider
	program string
	asked   singleflight.Group // by what the program is told

	mu    sync.Mutex
	cache map[string]answer // by cacheKey
}

type answer struct {
	credentials []credential
	until       time.Time
}

func newPlugin(p kubeletapi.CredentialProvider, bin string) *plugin {
	return &plugin{CredentialProvider: p, program: filepath.Join(bin, p.Name), cache: map[string]answer{}}
}

// ask returns what the plugin has for an image, nothing for one that is none of
// its business.
func (p *plugin) ask(ctx context.Context, image string, account *Account) ([]credential, error) {
	name := repository(image)
	if !slices.ContainsFunc(p.MatchImages, func(pattern string) bool { return fits(pattern, name) }) {
		return nil, nil
	}
	request := credentialapi.CredentialProviderRequest{Image: image}
	request.APIVersion, request.Kind = p.APIVersion, "CredentialProviderRequest"
	who, err := p.identify(ctx, account, &request)
	if err != nil {
		return nil, fmt.Errorf("credential provider %s: %w", p.Name, err)
	}
	if have, ok := p.cached(name, who); ok {
		return have, nil
	}
	text, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	got, err, _ := p.asked.Do(string(text), func() (any, error) { return p.exec(ctx, text) })
	if err != nil {
		return nil, fmt.Errorf("credential provider %s: %w", p.Name, err)
	}
	response := got.(*credentialapi.CredentialProviderResponse)
	var out []credential
	for _, pattern := range slices.Sorted(maps.Keys(response.Auth)) {
		a := response.Auth[pattern]
		out = append(out, newCredential(pattern, dockerAuth{Username: a.Username, Password: a.Password}))
	}
	return out, p.keep(name, who, response, out)
}

// identify puts into the request what the plugin is to know of the account, and
// returns what of that its answers depend on.
func (p *plugin) identify(ctx context.Context, account *Account, r *credentialapi.CredentialProviderRequest) (who string, err error) {
	t := p.TokenAttributes
	if t == nil {
		return "", nil
	}
	if account == nil || account.Name == "" {
		if *t.RequireServiceAccount {
			return "", errors.New("the pod has no service account, which the plugin requires")
		}
		return "", nil
	}
	uid, annotations, err := account.Read(ctx)
	if err != nil {
		return "", fmt.Errorf("read service account %s/%s: %w", account.Namespace, account.Name, err)
	}
	r.ServiceAccountAnnotations = map[string]string{}
	for _, key := range t.RequiredServiceAccountAnnotationKeys {
		v, ok := annotations[key]
		if !ok {
			return "", fmt.Errorf("service account %s/%s lacks the annotation %s, which the plugin requires", account.Namespace, account.Name, key)
		}
		r.ServiceAccountAnnotations[key] = v
	}
	for _, key := range t.OptionalServiceAccountAnnotationKeys {
		if v, ok := annotations[key]; ok {
			r.ServiceAccountAnnotations[key] = v
		}
	}
	if r.ServiceAccountToken, err = account.Token(ctx, t.ServiceAccountTokenAudience); err != nil {
		return "", fmt.Errorf("request token of service account %s/%s: %w", account.Namespace, account.Name, err)
	}
	if t.CacheType == kubeletapi.TokenServiceAccountTokenCacheType {
		return r.ServiceAccountToken, nil
	}
	raw, err := json.Marshal([]any{account.Namespace, account.Name, uid, r.ServiceAccountAnnotations})
	return string(raw), err
}

// exec runs the program once.
func (p *plugin) exec(ctx context.Context, request []byte) (*credentialapi.CredentialProviderResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pluginTime)
	defer cancel()
	c := exec.CommandContext(ctx, p.program, p.Args...)
	c.Env = os.Environ()
	for _, e := range p.Env {
		c.Env = append(c.Env, e.Name+"="+e.Value)
	}
	out, complaint := limited{full: cancel}, limited{full: cancel}
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(request), &out, &complaint
	c.WaitDelay = time.Second // for what it left behind with its pipes
	if err := c.Run(); err != nil {
		if out.over || complaint.over {
			return nil, fmt.Errorf("it says more than %d bytes", maxAnswer)
		}
		if text := strings.TrimSpace(string(complaint.text)); text != "" {
			err = fmt.Errorf("%w: %s", err, text[:min(len(text), 1000)])
		}
		return nil, err
	}
	var r credentialapi.CredentialProviderResponse
	if err := json.Unmarshal(out.text, &r); err != nil {
		return nil, fmt.Errorf("decode its answer: %w", err)
	}
	if r.APIVersion != p.APIVersion || r.Kind != "CredentialProviderResponse" {
		return nil, fmt.Errorf("it answers with %s %s, want %s CredentialProviderResponse", r.APIVersion, r.Kind, p.APIVersion)
	}
	return &r, nil
}

// limited is a buffer that takes so much, and then ends the program.
type limited struct {
	text []byte
	full context.CancelFunc
	over bool
}

func (l *limited) Write(b []byte) (int, error) {
	if len(l.text)+len(b) > maxAnswer {
		l.over = true
		l.full()
		return len(b), nil
	}
	l.text = append(l.text, b...)
	return len(b), nil
}

// cacheKey says for what an answer holds: all images of the plugin, a registry's
// or one, of one account.
func cacheKey(of credentialapi.PluginCacheKeyType, name, who string) string {
	switch of {
	case credentialapi.RegistryPluginCacheKeyType:
		name, _, _ = strings.Cut(name, "/")
	case credentialapi.GlobalPluginCacheKeyType:
		name = ""
	}
	return string(of) + " " + name + " " + who
}

func (p *plugin) cached(name, who string) ([]credential, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, of := range []credentialapi.PluginCacheKeyType{
		credentialapi.ImagePluginCacheKeyType, credentialapi.RegistryPluginCacheKeyType, credentialapi.GlobalPluginCacheKeyType,
	} {
		if a, ok := p.cache[cacheKey(of, name, who)]; ok && time.Now().Before(a.until) {
			return a.credentials, true
		}
	}
	return nil, false
}

func (p *plugin) keep(name, who string, r *credentialapi.CredentialProviderResponse, out []credential) error {
	switch r.CacheKeyType {
	case credentialapi.ImagePluginCacheKeyType, credentialapi.RegistryPluginCacheKeyType, credentialapi.GlobalPluginCacheKeyType:
	default:
		return fmt.Errorf("credential provider %s: its cacheKeyType is %q, want Image, Registry or Global", p.Name, r.CacheKeyType)
	}
	life := p.DefaultCacheDuration.Duration
	if r.CacheDuration != nil {
		life = r.CacheDuration.Duration
	}
	if life <= 0 {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(p.cache, func(_ string, a answer) bool { return !now.Before(a.until) })
	if len(p.cache) < maxCached {
		p.cache[cacheKey(r.CacheKeyType, name, who)] = answer{out, now.Add(life)}
	}
	return nil
}
