package sealed

import (
	"crypto/aes"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
)

// Config is upstream's EncryptionConfiguration, apiserver.config.k8s.io/v1: the first entry that names a resource says how it
// is encrypted.
type Config struct {
	metav1.TypeMeta `json:",inline"`
	Resources       []Resources `json:"resources"`
}

// Resources are encrypted by the first of the providers and read by any: a new key is put behind the others, then, when
// every server knows it, before them.
type Resources struct {
	// Resources are "secrets", "deployments.apps", "*.apps", "*." for the core group, or "*.*".
	Resources []string   `json:"resources"`
	Providers []Provider `json:"providers"`
}

// Provider is one way to encrypt; exactly one field is set.
type Provider struct {
	AESGCM    *Keys     `json:"aesgcm,omitempty"`
	AESCBC    *Keys     `json:"aescbc,omitempty"`
	Secretbox *Keys     `json:"secretbox,omitempty"`
	Identity  *struct{} `json:"identity,omitempty"`
	KMS       *KMS      `json:"kms,omitempty"`
}

// Keys are named keys; the first is written with.
type Keys struct {
	Keys []Key `json:"keys"`
}

// Key is a key in base64.
type Key struct {
	Name   string `json:"name"`
	Secret string `json:"secret"`
}

// KMS is a key management service at a unix socket.
type KMS struct {
	APIVersion string           `json:"apiVersion"`
	Name       string           `json:"name"`
	CacheSize  *int32           `json:"cachesize,omitempty"`
	Endpoint   string           `json:"endpoint"`
	Timeout    *metav1.Duration `json:"timeout,omitempty"`
}

func parse(text []byte) (*Config, error) {
	c := &Config{}
	if err := yaml.UnmarshalStrict(text, c); err != nil {
		return nil, err
	}
	return c, c.validate().ToAggregate()
}

func (c *Config) validate() (errs field.ErrorList) {
	if c.APIVersion != "apiserver.config.k8s.io/v1" {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), c.APIVersion, []string{"apiserver.config.k8s.io/v1"}))
	}
	if c.Kind != "EncryptionConfiguration" {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), c.Kind, []string{"EncryptionConfiguration"}))
	}
	root := field.NewPath("resources")
	if len(c.Resources) == 0 {
		errs = append(errs, field.Required(root, "must contain at least one resource"))
	}
	seen, names := map[string]bool{}, map[string]bool{}
	for i, r := range c.Resources {
		at := root.Index(i)
		if len(r.Resources) == 0 {
			errs = append(errs, field.Required(at.Child("resources"), "must contain at least one resource"))
		}
		for j, name := range r.Resources {
			p := at.Child("resources").Index(j)
			switch {
			case seen[name]:
				errs = append(errs, field.Duplicate(p, name))
			case name == "*" || strings.Contains(strings.TrimPrefix(name, "*."), "*") && name != "*.*":
				errs = append(errs, field.Invalid(p, name, "use '*.<group>' to encrypt all the resources from core API group or *.* to encrypt all resources"))
			}
			seen[name] = true
		}
		if len(r.Providers) == 0 {
			errs = append(errs, field.Required(at.Child("providers"), "must contain at least one provider"))
		}
		for j := range r.Providers {
			errs = append(errs, r.Providers[j].validate(at.Child("providers").Index(j), names)...)
		}
	}
	return errs
}

func (p *Provider) validate(at *field.Path, names map[string]bool) (errs field.ErrorList) {
	n := 0
	keys := func(name string, k *Keys, sizes ...int) {
		if k == nil {
			return
		}
		n++
		errs = append(errs, k.validate(at.Child(name, "keys"), sizes)...)
	}
	keys("aesgcm", p.AESGCM, 16, 24, 32)
	keys("aescbc", p.AESCBC, 32)
	keys("secretbox", p.Secretbox, 32)
	if p.Identity != nil {
		n++
	}
	if p.KMS != nil {
		n++
		errs = append(errs, p.KMS.validate(at.Child("kms"), names)...)
	}
	switch {
	case n == 0:
		errs = append(errs, field.Invalid(at, "provider", "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"))
	case n > 1:
		errs = append(errs, field.Invalid(at, "provider", "more than one provider specified in a single element, should split into different list elements"))
	}
	return errs
}

func (k *Keys) validate(at *field.Path, sizes []int) (errs field.ErrorList) {
	if len(k.Keys) == 0 {
		errs = append(errs, field.Required(at, "at least one key must be specified"))
	}
	seen := map[string]bool{}
	for i, key := range k.Keys {
		switch {
		case key.Name == "":
			errs = append(errs, field.Required(at.Index(i).Child("name"), "must not be empty"))
		case strings.Contains(key.Name, ":"):
			errs = append(errs, field.Invalid(at.Index(i).Child("name"), key.Name, "must not contain a colon"))
		case seen[key.Name]:
			errs = append(errs, field.Duplicate(at.Index(i).Child("name"), key.Name))
		}
		seen[key.Name] = true
		secret, err := base64.StdEncoding.DecodeString(key.Secret)
		good := false
		for _, n := range sizes {
			good = good || len(secret) == n
		}
		switch {
		case key.Secret == "":
			errs = append(errs, field.Required(at.Index(i).Child("secret"), "must not be empty"))
		case err != nil:
			errs = append(errs, field.Invalid(at.Index(i).Child("secret"), "REDACTED", "secrets must be base64 encoded"))
		case !good:
			errs = append(errs, field.Invalid(at.Index(i).Child("secret"), "REDACTED", fmt.Sprintf("secret is not of the expected length, got %d, expected one of %v", len(secret), sizes)))
		}
	}
	return errs
}

func (k *KMS) validate(at *field.Path, names map[string]bool) (errs field.ErrorList) {
	if k.APIVersion != "v2" {
		errs = append(errs, field.NotSupported(at.Child("apiVersion"), k.APIVersion, []string{"v2"}))
	}
	switch {
	case k.Name == "":
		errs = append(errs, field.Required(at.Child("name"), "must not be empty"))
	case strings.Contains(k.Name, ":"):
		errs = append(errs, field.Invalid(at.Child("name"), k.Name, "must not contain a colon"))
	case names[k.Name]:
		errs = append(errs, field.Invalid(at.Child("name"), k.Name, "duplicate KMS provider name, names must be unique"))
	}
	names[k.Name] = true
	if k.CacheSize != nil {
		errs = append(errs, field.Invalid(at.Child("cachesize"), *k.CacheSize, "cachesize is not supported in v2"))
	}
	if !strings.HasPrefix(k.Endpoint, "unix://") {
		errs = append(errs, field.Invalid(at.Child("endpoint"), k.Endpoint, "unsupported scheme, must be unix"))
	}
	if k.Timeout != nil && k.Timeout.Duration <= 0 {
		errs = append(errs, field.Invalid(at.Child("timeout"), k.Timeout.Duration.String(), "must be a positive value"))
	}
	return errs
}

// names says whether the entry is about a resource: "secrets", "deployments.apps".
func (r *Resources) names(k *api.Kind) bool {
	for _, name := range r.Resources {
		group, all := strings.CutPrefix(name, "*.")
		if name == k.String() || all && (group == "*" || group == k.Group) {
			return true
		}
	}
	return false
}

// transformers are those of the entry, in order.
func (r *Resources) transformers(made map[string]*service) ([]prefixed, error) {
	var all []prefixed
	for _, p := range r.Providers {
		each := func(name string, keys *Keys, make func(secret []byte) (transformer, error)) error {
			if keys == nil {
				return nil
			}
			for _, k := range keys.Keys {
				secret, err := base64.StdEncoding.DecodeString(k.Secret)
				if err != nil {
					return err
				}
				t, err := make(secret)
				if err != nil {
					return err
				}
				all = append(all, prefixed{"k8s:enc:" + name + ":v1:" + k.Name + ":", t})
			}
			return nil
		}
		err := each("aesgcm", p.AESGCM, newGCM)
		if err == nil {
			err = each("aescbc", p.AESCBC, func(secret []byte) (transformer, error) {
				b, err := aes.NewCipher(secret)
				return cbc{b}, err
			})
		}
		if err == nil {
			err = each("secretbox", p.Secretbox, func(secret []byte) (transformer, error) { return box{[32]byte(secret)}, nil })
		}
		if err != nil {
			return nil, fmt.Errorf("encryption key: %w", err)
		}
		if p.Identity != nil {
			all = append(all, prefixed{"", identity{}})
		}
		if k := p.KMS; k != nil {
			s := made[k.Name]
			if s == nil {
				timeout := 3 * time.Second
				if k.Timeout != nil {
					timeout = k.Timeout.Duration
				}
				if s, err = dial(k.Endpoint, timeout); err != nil {
					return nil, fmt.Errorf("key management service %s: %w", k.Name, err)
				}
				made[k.Name] = s
			}
			all = append(all, prefixed{"k8s:enc:kms:v2:" + k.Name + ":", s})
		}
	}
	return all, nil
}
