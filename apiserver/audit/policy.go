package audit

import (
	"fmt"
	"os"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/apiserver/authz"
)

// Level is how much of a request is recorded.
type Level string

// The levels, each with all of the one before.
const (
	None            Level = "None"
	Metadata        Level = "Metadata"
	Request         Level = "Request"         // the object that the client sent
	RequestResponse Level = "RequestResponse" // the object that it got
)

// Stage is when of a request something is recorded.
type Stage string

// The stages.
const (
	RequestReceived  Stage = "RequestReceived"
	ResponseStarted  Stage = "ResponseStarted" // of watches and streams
	ResponseComplete Stage = "ResponseComplete"
	Panic            Stage = "Panic"
)

var (
	levels = []Level{None, Metadata, Request, RequestResponse}
	stages = []Stage{RequestReceived, ResponseStarted, ResponseComplete, Panic}
)

// has says whether a record of level l has what other records have.
func (l Level) has(other Level) bool {
	return slices.Index(levels, l) >= slices.Index(levels, other)
}

// Policy is upstream's, audit.k8s.io/v1: the first rule that matches a request says what is recorded of it; nothing where none does.
type Policy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Rules []Rule `json:"rules"`
	// OmitStages are not recorded, whatever the rule.
	OmitStages []Stage `json:"omitStages,omitempty"`
	// OmitManagedFields leaves these out of objects, unless a rule says otherwise.
	OmitManagedFields bool `json:"omitManagedFields,omitempty"`
}

// Rule is about requests that match in everything that it names.
type Rule struct {
	Level             Level            `json:"level"`
	Users             []string         `json:"users,omitempty"`
	UserGroups        []string         `json:"userGroups,omitempty"`
	Verbs             []string         `json:"verbs,omitempty"`
	Resources         []GroupResources `json:"resources,omitempty"`
	Namespaces        []string         `json:"namespaces,omitempty"`
	NonResourceURLs   []string         `json:"nonResourceURLs,omitempty"`
	OmitStages        []Stage          `json:"omitStages,omitempty"`
	OmitManagedFields *bool            `json:"omitManagedFields,omitempty"`
}

// GroupResources are resources of one group: "pods", "pods/log", "pods/*", "*/scale", "*".
type GroupResources struct {
	Group         string   `json:"group,omitempty"`
	Resources     []string `json:"resources,omitempty"`
	ResourceNames []string `json:"resourceNames,omitempty"`
}

// LoadPolicy reads and checks the file.
func LoadPolicy(file string) (*Policy, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("audit policy: %w", err)
	}
	p := &Policy{}
	if err := yaml.UnmarshalStrict(text, p); err != nil {
		return nil, fmt.Errorf("audit policy in %s: %w", file, err)
	}
	if err := p.validate().ToAggregate(); err != nil {
		return nil, fmt.Errorf("audit policy in %s: %w", file, err)
	}
	return p, nil
}

func (p *Policy) validate() (errs field.ErrorList) {
	if p.APIVersion != "audit.k8s.io/v1" {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), p.APIVersion, []string{"audit.k8s.io/v1"}))
	}
	if p.Kind != "Policy" {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), p.Kind, []string{"Policy"}))
	}
	checkStages := func(at *field.Path, given []Stage) {
		for i, s := range given {
			if !slices.Contains(stages, s) {
				errs = append(errs, field.Invalid(at.Index(i), s, fmt.Sprintf("allowed stages are %s", strings.Join(texts(stages), ","))))
			}
		}
	}
	checkStages(field.NewPath("omitStages"), p.OmitStages)
	for i := range p.Rules {
		r, at := &p.Rules[i], field.NewPath("rules").Index(i)
		if !slices.Contains(levels, r.Level) {
			errs = append(errs, field.NotSupported(at.Child("level"), r.Level, levels))
		}
		checkStages(at.Child("omitStages"), r.OmitStages)
		if len(r.NonResourceURLs) > 0 && (len(r.Resources) > 0 || len(r.Namespaces) > 0) {
			errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), r.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
		}
		for j, u := range r.NonResourceURLs {
			switch p := at.Child("nonResourceURLs").Index(j); {
			case u == "*":
			case !strings.HasPrefix(u, "/"):
				errs = append(errs, field.Invalid(p, u, "non-resource URL rules must begin with a '/' character"))
			case strings.Contains(strings.TrimSuffix(u, "*"), "*"):
				errs = append(errs, field.Invalid(p, u, "non-resource URL wildcards '*' must be the final character of the rule"))
			}
		}
		for j, g := range r.Resources {
			if len(g.ResourceNames) > 0 && len(g.Resources) == 0 {
				errs = append(errs, field.Invalid(at.Child("resources").Index(j).Child("resourceNames"), g.ResourceNames, "using resourceNames requires at least one resource"))
			}
		}
	}
	return errs
}

func texts[T ~string](list []T) (out []string) {
	for _, s := range list {
		out = append(out, string(s))
	}
	return out
}

// extent is what is recorded of one request.
type extent struct {
	level   Level
	omit    []Stage
	managed bool // with managedFields
}

// decide returns what is recorded of a request.
func (p *Policy) decide(a *authz.Attributes) extent {
	for i := range p.Rules {
		if r := &p.Rules[i]; r.matches(a) {
			omit := p.OmitManagedFields
			if r.OmitManagedFields != nil {
				omit = *r.OmitManagedFields
			}
			return extent{r.Level, append(slices.Clone(p.OmitStages), r.OmitStages...), !omit}
		}
	}
	return extent{level: None}
}

func (r *Rule) matches(a *authz.Attributes) bool {
	if len(r.Users) > 0 && !slices.Contains(r.Users, a.User.Name) || len(r.UserGroups) > 0 && !slices.ContainsFunc(r.UserGroups, a.User.In) ||
		len(r.Verbs) > 0 && !slices.Contains(r.Verbs, a.Verb) {
		return false
	}
	if len(r.Namespaces) > 0 || len(r.Resources) > 0 {
		return a.Path == "" && r.aboutResource(a)
	}
	if len(r.NonResourceURLs) > 0 {
		return a.Path != "" && slices.ContainsFunc(r.NonResourceURLs, func(u string) bool {
			prefix, open := strings.CutSuffix(u, "*")
			return u == a.Path || open && strings.HasPrefix(a.Path, prefix)
		})
	}
	return true
}

func (r *Rule) aboutResource(a *authz.Attributes) bool {
	if len(r.Namespaces) > 0 && !slices.Contains(r.Namespaces, a.Namespace) {
		return false
	}
	full := a.Resource
	if a.Subresource != "" {
		full += "/" + a.Subresource
	}
	for _, g := range r.Resources {
		if g.Group != a.Group {
			continue
		}
		if len(g.Resources) == 0 {
			return true
		}
		for _, res := range g.Resources {
			named := len(g.ResourceNames) == 0 || slices.Contains(g.ResourceNames, a.Name)
			match := res == "*" || res == full || a.Subresource != "" && (res == a.Resource+"/*" || res == "*/"+a.Subresource)
			if named && match {
				return true
			}
		}
	}
	return len(r.Resources) == 0
}
