package keyring

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	kubeletapi "k8s.io/kubelet/config/v1"
	"sigs.k8s.io/yaml"
)

// configVersions and requestVersions are all that upstream knows. Their fields
// are alike.
var (
	configVersions  = []string{"kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"}
	requestVersions = []string{"credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v1beta1", "credentialprovider.kubelet.k8s.io/v1alpha1"}
)

// readProviders reads a CredentialProviderConfig, or all in a folder in the
// order of their names.
func readProviders(path string) ([]kubeletapi.CredentialProvider, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read credential providers: %w", err)
	}
	files := []string{path}
	if st.IsDir() {
		files = nil
		entries, err := os.ReadDir(path)
		if err != nil {
			return nil, fmt.Errorf("read credential providers: %w", err)
		}
		for _, e := range entries {
			if slices.Contains([]string{".json", ".yaml", ".yml"}, filepath.Ext(e.Name())) && !e.IsDir() {
				files = append(files, filepath.Join(path, e.Name()))
			}
		}
	}
	var all []kubeletapi.CredentialProvider
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read credential providers: %w", err)
		}
		var c kubeletapi.CredentialProviderConfig
		if err := yaml.UnmarshalStrict(raw, &c); err != nil {
			return nil, fmt.Errorf("read credential providers in %s: %w", file, err)
		}
		if c.Kind != "CredentialProviderConfig" || !slices.Contains(configVersions, c.APIVersion) {
			return nil, fmt.Errorf("read credential providers in %s: it is a %s %s, want %s CredentialProviderConfig", file, c.APIVersion, c.Kind, configVersions[0])
		}
		all = append(all, c.Providers...)
	}
	if err := validate(all); err != nil {
		return nil, fmt.Errorf("credential providers in %s: %w", path, err)
	}
	return all, nil
}

func validate(all []kubeletapi.CredentialProvider) error {
	var errs []error
	if len(all) == 0 {
		errs = append(errs, errors.New("providers: at least one is needed"))
	}
	names := map[string]bool{}
	for i, p := range all {
		bad := func(field, format string, args ...any) {
			errs = append(errs, fmt.Errorf("providers[%d].%s: %s", i, field, fmt.Sprintf(format, args...)))
		}
		switch {
		case p.Name == "" || p.Name == "." || p.Name == ".." || strings.ContainsAny(p.Name, "/ \\"):
			bad("name", "%q is not the name of a program", p.Name)
		case names[p.Name]:
			bad("name", "%q is there twice", p.Name)
		}
		names[p.Name] = true
		if !slices.Contains(requestVersions, p.APIVersion) {
			bad("apiVersion", "%q is not one of %v", p.APIVersion, requestVersions)
		}
		if len(p.MatchImages) == 0 {
			bad("matchImages", "at least one is needed")
		}
		for _, m := range p.MatchImages {
			if m == "" || strings.Contains(m, "://") {
				bad("matchImages", "%q is not a host with a path perhaps, without scheme", m)
			}
		}
		if p.DefaultCacheDuration == nil || p.DefaultCacheDuration.Duration < 0 {
			bad("defaultCacheDuration", "is required, and not less than 0")
		}
		validateToken(p, bad)
	}
	return errors.Join(errs...)
}

func validateToken(p kubeletapi.CredentialProvider, bad func(field, format string, args ...any)) {
	t := p.TokenAttributes
	if t == nil {
		return
	}
	if p.APIVersion != requestVersions[0] {
		bad("tokenAttributes", "needs apiVersion %s", requestVersions[0])
	}
	if t.ServiceAccountTokenAudience == "" {
		bad("tokenAttributes.serviceAccountTokenAudience", "is required")
	}
	if t.CacheType != kubeletapi.TokenServiceAccountTokenCacheType && t.CacheType != kubeletapi.ServiceAccountServiceAccountTokenCacheType {
		bad("tokenAttributes.cacheType", "%q is neither Token nor ServiceAccount", t.CacheType)
	}
	switch {
	case t.RequireServiceAccount == nil:
		bad("tokenAttributes.requireServiceAccount", "is required")
	case !*t.RequireServiceAccount && len(t.RequiredServiceAccountAnnotationKeys) > 0:
		bad("tokenAttributes.requiredServiceAccountAnnotationKeys", "needs requireServiceAccount")
	}
	for _, key := range t.RequiredServiceAccountAnnotationKeys {
		if slices.Contains(t.OptionalServiceAccountAnnotationKeys, key) {
			bad("tokenAttributes.optionalServiceAccountAnnotationKeys", "%q is required already", key)
		}
	}
}
