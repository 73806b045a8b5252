package keyring

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func users(auths []*runtimeapi.AuthConfig) string {
	var names []string
	for _, a := range auths {
		names = append(names, a.Username)
	}
	return strings.Join(names, " ")
}

func TestSecrets(t *testing.T) {
	secret := func(json string) *corev1.Secret {
		return &corev1.Secret{Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(json)}}
	}
	all := fromSecrets([]*corev1.Secret{
		secret(`{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOnB3"},"r.io":{"username":"r"},"r.io/team":{"username":"team"},"*.w.io":{"username":"w"},"p.io:5000":{"username":"port"}}}`),
		secret("not json"),
		{Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: []byte(`{"old.io":{"username":"old"}}`)}},
	})
	for image, want := range map[string]string{
		"nginx": "hub", "user/nginx:1": "hub", "docker.io/library/nginx@sha256:1": "hub", "r.io/x": "r", "r.io/team/x:1": "team r", "r.io/teams/x": "r",
		"a.w.io/x": "w", "a.b.w.io/x": "", "p.io:5000/x:2": "port", "p.io/x": "", "old.io/x": "old", "none.io/x": "",
	} {
		if got := users(forImage(all, image)); got != want {
			t.Errorf("%s: %q, want %q", image, got, want)
		}
	}
}

// TestFile has credentials of the node: they come after those of the pod, and a
// change is seen.
func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.json")
	k, err := New(file, "", "")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.ForImage(t.Context(), "r.io/x", nil, nil); err != nil || len(got) != 0 {
		t.Errorf("without a file: %v, %v", got, err)
	}
	write(t, file, `{"auths":{"r.io":{"username":"node"}}}`)
	secret := &corev1.Secret{Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: []byte(`{"r.io":{"username":"pod"}}`)}}
	if got, err := k.ForImage(t.Context(), "r.io/x", []*corev1.Secret{secret}, nil); err != nil || users(got) != "pod node" {
		t.Errorf("with a file: %q, %v", users(got), err)
	}
	write(t, file, `{`)
	if got, err := k.ForImage(t.Context(), "r.io/x", []*corev1.Secret{secret}, nil); err == nil || !strings.Contains(err.Error(), file) || users(got) != "pod" {
		t.Errorf("with a broken file: %q, %v", users(got), err)
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// provider makes a plugin of a shell script that answers with $answer and notes
// its calls and requests in files beside it.
func provider(t *testing.T, attributes, answer string) (k *Keyring, calls func() string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "program"), "#!/bin/sh\nd="+dir+`
cat >>$d/requests; echo >>$d/requests
echo "$1 $WHO" >>$d/calls
`+answer)
	write(t, filepath.Join(dir, "config.yaml"), `
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: program
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["*.cloud.io", "other.io/team"]
  defaultCacheDuration: 1h
  args: [--give]
  env: [{name: WHO, value: me}]
`+attributes)
	k, err := New("", filepath.Join(dir, "config.yaml"), dir)
	if err != nil {
		t.Fatal(err)
	}
	return k, func() string {
		b, _ := os.ReadFile(filepath.Join(dir, "calls"))
		return strings.TrimSpace(strings.ReplaceAll(string(b), "\n", ","))
	}
}

func answerOf(key, duration, auth string) string {
	return `echo '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"` + key + `",` + duration + `"auth":` + auth + `}'`
}

// TestProviderCache asks for images and counts how often the program ran.
func TestProviderCache(t *testing.T) {
	auth := `{"*.cloud.io":{"username":"cloud","password":"p"},"a.cloud.io/deep":{"username":"deep","password":"p"}}`
	images := []string{"a.cloud.io/x:1", "a.cloud.io/x:2", "a.cloud.io/y", "b.cloud.io/x", "none.io/x"}
	for name, c := range map[string]struct {
		key, duration string
		calls         int
	}{
		"per image":    {"Image", "", 3},
		"per registry": {"Registry", "", 2},
		"for all":      {"Global", "", 1},
		"not at all":   {"Image", `"cacheDuration":"0s",`, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, calls := provider(t, "", answerOf(c.key, c.duration, auth))
			for _, image := range images {
				got, err := k.ForImage(t.Context(), image, nil, nil)
				want := "cloud"
				if image == "none.io/x" {
					want = ""
				}
				if err != nil || users(got) != want {
					t.Errorf("%s: %q, %v", image, users(got), err)
				}
			}
			if got := strings.Count(calls(), "--give me"); got != c.calls {
				t.Errorf("the program ran %d times, want %d", got, c.calls)
			}
			if got, err := k.ForImage(t.Context(), "a.cloud.io/deep/x", nil, nil); err != nil || users(got) != "deep cloud" {
				t.Errorf("the more specific first: %q, %v", users(got), err)
			}
		})
	}
}

// TestProviderFails has programs that do not do what they should: the error names
// them, and the pod's own credentials are there.
func TestProviderFails(t *testing.T) {
	secret := &corev1.Secret{Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: []byte(`{"a.cloud.io":{"username":"pod"}}`)}}
	for name, c := range map[string]struct{ answer, says string }{
		"fails":            {"echo no network >&2; exit 3", "exit status 3: no network"},
		"says nothing":     {"", "decode its answer"},
		"another version":  {`echo '{"apiVersion":"v9","kind":"CredentialProviderResponse"}'`, "answers with v9"},
		"no cache key":     {answerOf("", "", "null"), "want Image, Registry or Global"},
		"never stops":      {"while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx || exit 1; done", "more than 1048576 bytes"},
		"no such program?": {"rm $0; exit 1", "exit status 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k, _ := provider(t, "", c.answer)
			got, err := k.ForImage(t.Context(), "a.cloud.io/x", []*corev1.Secret{secret}, nil)
			if err == nil || !strings.Contains(err.Error(), "credential provider program: ") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %q", err, c.says)
			}
			if users(got) != "pod" {
				t.Errorf("credentials %q", users(got))
			}
		})
	}
}

// TestProviderToken gives a plugin the token and annotations of the pod's account.
func TestProviderToken(t *testing.T) {
	attributes := `  tokenAttributes:
    serviceAccountTokenAudience: registry
    cacheType: ServiceAccount
    requireServiceAccount: true
    requiredServiceAccountAnnotationKeys: [role]
    optionalServiceAccountAnnotationKeys: [zone]
`
	k, calls := provider(t, attributes, answerOf("Registry", "", `{"a.cloud.io":{"username":"u","password":"p"}}`))
	account := func(name string, annotations map[string]string) *Account {
		return &Account{Namespace: "ns", Name: name,
			Read: func(context.Context) (string, map[string]string, error) { return "uid-" + name, annotations, nil },
			Token: func(_ context.Context, audience string) (string, error) {
				if audience != "registry" {
					return "", errors.New("audience " + audience)
				}
				return "token of " + name, nil
			}}
	}
	for _, c := range []struct {
		account *Account
		says    string
	}{
		{account("a", map[string]string{"role": "r", "other": "o"}), ""},
		{account("a", map[string]string{"role": "r"}), ""}, // cached
		{account("b", map[string]string{"role": "r", "zone": "z"}), ""},
		{account("c", nil), "lacks the annotation role"},
		{account("", nil), "no service account"},
		{nil, "no service account"},
	} {
		_, err := k.ForImage(t.Context(), "a.cloud.io/x", nil, c.account)
		if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("error %v, want %q", err, c.says)
		}
	}
	if got := strings.Count(calls(), "--give"); got != 2 {
		t.Errorf("the program ran %d times, want once for each account", got)
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(k.plugins[0].program), "requests"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	want := `{"kind":"CredentialProviderRequest","apiVersion":"credentialprovider.kubelet.k8s.io/v1","image":"a.cloud.io/x","serviceAccountToken":"token of a","serviceAccountAnnotations":{"role":"r"}}`
	if first != want {
		t.Errorf("the program was told\n%s, want\n%s", first, want)
	}
}

func TestProviderConfig(t *testing.T) {
	head := "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\n"
	good := "{name: p, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: [a.io], defaultCacheDuration: 1m}"
	for name, c := range map[string]struct{ text, says string }{
		"good":             {head + "providers: [" + good + "]", ""},
		"another kind":     {"apiVersion: v1\nkind: Pod", "want kubelet.config.k8s.io/v1 CredentialProviderConfig"},
		"misspelt":         {head + "provider: []", "provider"},
		"none":             {head, "at least one is needed"},
		"twice":            {head + "providers: [" + good + "," + good + "]", "providers[1].name: \"p\" is there twice"},
		"a path":           {head + "providers: [{name: ../sh}]", "is not the name of a program"},
		"nothing of it":    {head + "providers: [{name: p}]", "providers[0].matchImages"},
		"no time":          {head + "providers: [{name: p}]", "providers[0].defaultCacheDuration"},
		"no version":       {head + "providers: [{name: p}]", "providers[0].apiVersion"},
		"token half asked": {head + "providers: [{name: p, tokenAttributes: {}}]", "serviceAccountTokenAudience: is required"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "a.yaml"), c.text)
			write(t, filepath.Join(dir, "README"), "not read")
			for _, path := range []string{dir, filepath.Join(dir, "a.yaml")} {
				_, err := New("", path, "/bin")
				if c.says == "" && err != nil || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
					t.Errorf("%s: error %v, want %q", path, err, c.says)
				}
			}
		})
	}
}
