package admission

import (
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/util/validation/field"
	config "k8s.io/apiserver/pkg/apis/apiserver"

	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/settings"
)

// Configured returns the plug-ins that an AdmissionConfiguration of apiserver.config.k8s.io in the file asks for beside those of
// All. Their own configuration is in the same file, or in one beside it.
func Configured(file string) ([]rest.Admission, error) {
	all, err := configured(file)
	if err != nil {
		return nil, fmt.Errorf("admission configuration in %s: %w", file, err)
	}
	return all, nil
}

func configured(file string) (all []rest.Admission, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	c, err := settings.Decode[*config.AdmissionConfiguration](text)
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for i, p := range c.Plugins {
		at := field.NewPath("plugins").Index(i)
		if seen[p.Name] {
			return nil, field.Duplicate(at.Child("name"), p.Name)
		}
		seen[p.Name] = true
		if p.Name != eventRateLimitName {
			return nil, field.NotSupported(at.Child("name"), p.Name, []string{eventRateLimitName})
		}
		own, err := ownConfiguration(file, &p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		limits, err := eventRateLimit(own)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		all = append(all, limits)
	}
	return all, nil
}

// ownConfiguration is the text of a plug-in's configuration.
func ownConfiguration(file string, p *config.AdmissionPluginConfiguration) ([]byte, error) {
	switch {
	case p.Configuration != nil:
		return p.Configuration.Raw, nil
	case p.Path == "":
		return nil, nil
	case filepath.IsAbs(p.Path):
		return os.ReadFile(p.Path)
	}
	return os.ReadFile(filepath.Join(filepath.Dir(file), p.Path))
}
