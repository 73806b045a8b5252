package authn

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// Configuration is upstream's AuthenticationConfiguration, apiserver.config.k8s.io/v1: who issues tokens beside us, and
// which paths need none. Rules in CEL are refused by name.
type Configuration struct {
	metav1.TypeMeta `json:",inline"`
	// JWT are the issuers of OpenID Connect tokens.
	JWT []JWT `json:"jwt,omitempty"`
	// Anonymous says which requests may come without credentials; all when absent.
	Anonymous *AnonymousConfig `json:"anonymous,omitempty"`
}

// AnonymousConfig limits requests without credentials.
type AnonymousConfig struct {
	Enabled    bool            `json:"enabled"`
	Conditions []AnonymousPath `json:"conditions,omitempty"`
}

// AnonymousPath is a path that needs no credentials.
type AnonymousPath struct {
	Path string `json:"path"`
}

// JWT is one issuer, and how its claims become a user.
type JWT struct {
	Issuer               JWTIssuer   `json:"issuer"`
	ClaimValidationRules []ClaimRule `json:"claimValidationRules,omitempty"`
	ClaimMappings        Mappings    `json:"claimMappings"`
	UserValidationRules  []any       `json:"userValidationRules,omitempty"`
}

// JWTIssuer says who issues and for whom.
type JWTIssuer struct {
	URL                  string   `json:"url"`
	DiscoveryURL         *string  `json:"discoveryURL,omitempty"`
	CertificateAuthority string   `json:"certificateAuthority,omitempty"`
	Audiences            []string `json:"audiences"`
	AudienceMatchPolicy  string   `json:"audienceMatchPolicy,omitempty"`
	EgressSelectorType   string   `json:"egressSelectorType,omitempty"`
}

// ClaimRule is a claim that must have a value.
type ClaimRule struct {
	Claim         string `json:"claim,omitempty"`
	RequiredValue string `json:"requiredValue,omitempty"`
	Expression    string `json:"expression,omitempty"`
	Message       string `json:"message,omitempty"`
}

// Mappings say which claims the parts of a user are.
type Mappings struct {
	Username Mapping `json:"username"`
	Groups   Mapping `json:"groups,omitempty"`
	UID      Mapping `json:"uid,omitempty"`
	Extra    []any   `json:"extra,omitempty"`
}

// Mapping is a claim, and what is put before its value.
type Mapping struct {
	Claim      string  `json:"claim,omitempty"`
	Prefix     *string `json:"prefix,omitempty"`
	Expression string  `json:"expression,omitempty"`
}

// LoadConfiguration reads and checks the file.
func LoadConfiguration(file string) (*Configuration, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("authentication configuration: %w", err)
	}
	c := &Configuration{}
	if err := yaml.UnmarshalStrict(text, c); err != nil {
		return nil, fmt.Errorf("authentication configuration in %s: %w", file, err)
	}
	if err := c.validate().ToAggregate(); err != nil {
		return nil, fmt.Errorf("authentication configuration in %s: %w", file, err)
	}
	return c, nil
}

// cel is what rules are refused with that this release cannot evaluate.
const cel = "CEL expressions are not supported by this release"

func (c *Configuration) validate() (errs field.ErrorList) {
	if c.APIVersion != "apiserver.config.k8s.io/v1" && c.APIVersion != "apiserver.config.k8s.io/v1beta1" {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), c.APIVersion, []string{"apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"}))
	}
	if c.Kind != "AuthenticationConfiguration" {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), c.Kind, []string{"AuthenticationConfiguration"}))
	}
	seen := map[string]bool{}
	for i := range c.JWT {
		j, at := &c.JWT[i], field.NewPath("jwt").Index(i)
		if seen[j.Issuer.URL] {
			errs = append(errs, field.Duplicate(at.Child("issuer", "url"), j.Issuer.URL))
		}
		seen[j.Issuer.URL] = true
		errs = append(errs, j.Issuer.validate(at.Child("issuer"))...)
		errs = append(errs, j.validateClaims(at)...)
	}
	if a := c.Anonymous; a != nil && !a.Enabled && len(a.Conditions) > 0 {
		errs = append(errs, field.Invalid(field.NewPath("anonymous", "conditions"), a.Conditions, "enabled should be set to true when conditions are defined"))
	}
	return errs
}

func (i *JWTIssuer) validate(at *field.Path) (errs field.ErrorList) {
	address := func(p *field.Path, text string) {
		switch u, err := url.Parse(text); {
		case text == "":
			errs = append(errs, field.Required(p, "URL is required"))
		case err != nil:
			errs = append(errs, field.Invalid(p, text, err.Error()))
		case u.Scheme != "https":
			errs = append(errs, field.Invalid(p, text, "URL scheme must be https"))
		case u.User != nil:
			errs = append(errs, field.Invalid(p, text, "URL must not contain a username or password"))
		case u.RawQuery != "":
			errs = append(errs, field.Invalid(p, text, "URL must not contain a query"))
		case u.Fragment != "":
			errs = append(errs, field.Invalid(p, text, "URL must not contain a fragment"))
		}
	}
	address(at.Child("url"), i.URL)
	if d := i.DiscoveryURL; d != nil {
		address(at.Child("discoveryURL"), *d)
		if *d == i.URL {
			errs = append(errs, field.Invalid(at.Child("discoveryURL"), *d, "discoveryURL must be different from URL"))
		}
	}
	if len(i.Audiences) == 0 {
		errs = append(errs, field.Required(at.Child("audiences"), "at least one jwt[0].issuer.audiences is required"))
	}
	if len(i.Audiences) > 1 && i.AudienceMatchPolicy != "MatchAny" {
		errs = append(errs, field.Invalid(at.Child("audienceMatchPolicy"), i.AudienceMatchPolicy, "audienceMatchPolicy must be MatchAny for multiple audiences"))
	}
	if i.EgressSelectorType != "" {
		errs = append(errs, field.Forbidden(at.Child("egressSelectorType"), "not supported by this release"))
	}
	if i.CertificateAuthority != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(i.CertificateAuthority)) {
		errs = append(errs, field.Invalid(at.Child("certificateAuthority"), "<omitted>", "holds no certificates"))
	}
	return errs
}

func (j *JWT) validateClaims(at *field.Path) (errs field.ErrorList) {
	for i, r := range j.ClaimValidationRules {
		p := at.Child("claimValidationRules").Index(i)
		if r.Expression != "" {
			errs = append(errs, field.Forbidden(p.Child("expression"), cel))
		} else if r.Claim == "" {
			errs = append(errs, field.Required(p, "claim or expression is required"))
		}
	}
	if len(j.UserValidationRules) > 0 {
		errs = append(errs, field.Forbidden(at.Child("userValidationRules"), cel))
	}
	m, p := &j.ClaimMappings, at.Child("claimMappings")
	if len(m.Extra) > 0 {
		errs = append(errs, field.Forbidden(p.Child("extra"), cel))
	}
	check := func(m *Mapping, p *field.Path, prefixed bool) {
		if m.Expression != "" {
			errs = append(errs, field.Forbidden(p.Child("expression"), cel))
		}
		if prefixed && m.Claim != "" && m.Prefix == nil {
			errs = append(errs, field.Required(p.Child("prefix"), "prefix is required when claim is set. It can be set to an empty string to disable prefixing"))
		}
		if m.Claim == "" && m.Prefix != nil {
			errs = append(errs, field.Invalid(p.Child("prefix"), *m.Prefix, "non-nil prefix can't be set when claim is empty"))
		}
	}
	if m.Username.Claim == "" && m.Username.Expression == "" {
		errs = append(errs, field.Required(p.Child("username"), "claim or expression is required"))
	}
	check(&m.Username, p.Child("username"), true)
	check(&m.Groups, p.Child("groups"), true)
	check(&m.UID, p.Child("uid"), false)
	return errs
}

// AnonymousOn says whether a request without credentials may be about path.
func (c *Configuration) AnonymousOn(path string) bool {
	if c == nil || c.Anonymous == nil {
		return true
	}
	if !c.Anonymous.Enabled {
		return false
	}
	for _, a := range c.Anonymous.Conditions {
		if a.Path == path {
			return true
		}
	}
	return len(c.Anonymous.Conditions) == 0
}
