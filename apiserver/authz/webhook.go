package authz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/apiserver/authn"
)

// ErrDenied is an answer that no authorizer after the one that gave it may change.
var ErrDenied = errors.New("denied")

// answersKept is how many answers of a webhook are kept.
const answersKept = 8192

// Configuration is upstream's AuthorizationConfiguration, apiserver.config.k8s.io/v1: who is asked, in order.
type Configuration struct {
	metav1.TypeMeta `json:",inline"`
	Authorizers     []AuthorizerConfig `json:"authorizers"`
}

// AuthorizerConfig is one of them: Node, RBAC, AlwaysAllow, AlwaysDeny or Webhook.
type AuthorizerConfig struct {
	Type    string         `json:"type"`
	Name    string         `json:"name"`
	Webhook *WebhookConfig `json:"webhook,omitempty"`
}

// WebhookConfig says where a webhook is, for how long its answers count and what its silence means.
type WebhookConfig struct {
	AuthorizedTTL             metav1.Duration `json:"authorizedTTL"`
	CacheAuthorizedRequests   *bool           `json:"cacheAuthorizedRequests,omitempty"`
	UnauthorizedTTL           metav1.Duration `json:"unauthorizedTTL"`
	CacheUnauthorizedRequests *bool           `json:"cacheUnauthorizedRequests,omitempty"`
	Timeout                   metav1.Duration `json:"timeout"`
	// SubjectAccessReviewVersion is v1; MatchConditionSubjectAccessReviewVersion counts with MatchConditions only.
	SubjectAccessReviewVersion               string `json:"subjectAccessReviewVersion"`
	MatchConditionSubjectAccessReviewVersion string `json:"matchConditionSubjectAccessReviewVersion,omitempty"`
	// FailurePolicy is NoOpinion or Deny.
	FailurePolicy   string         `json:"failurePolicy"`
	ConnectionInfo  ConnectionInfo `json:"connectionInfo"`
	MatchConditions []any          `json:"matchConditions,omitempty"`
}

// ConnectionInfo is a kubeconfig file that names the webhook.
type ConnectionInfo struct {
	Type           string  `json:"type"`
	KubeConfigFile *string `json:"kubeConfigFile"`
}

// LoadConfiguration reads and checks the file.
func LoadConfiguration(file string) (*Configuration, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("authorization configuration: %w", err)
	}
	c := &Configuration{}
	if err := yaml.UnmarshalStrict(text, c); err != nil {
		return nil, fmt.Errorf("authorization configuration in %s: %w", file, err)
	}
	if err := c.validate().ToAggregate(); err != nil {
		return nil, fmt.Errorf("authorization configuration in %s: %w", file, err)
	}
	return c, nil
}

func (c *Configuration) validate() (errs field.ErrorList) {
	if c.APIVersion != "apiserver.config.k8s.io/v1" && c.APIVersion != "apiserver.config.k8s.io/v1beta1" {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), c.APIVersion, []string{"apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1"}))
	}
	if c.Kind != "AuthorizationConfiguration" {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), c.Kind, []string{"AuthorizationConfiguration"}))
	}
	if len(c.Authorizers) == 0 {
		errs = append(errs, field.Required(field.NewPath("authorizers"), "at least one authorization mode must be defined"))
	}
	types, names := map[string]bool{}, map[string]bool{}
	for i, a := range c.Authorizers {
		at := field.NewPath("authorizers").Index(i)
		switch a.Type {
		case "Webhook":
			errs = append(errs, a.Webhook.validate(at.Child("webhook"))...)
		case "Node", "RBAC", "AlwaysAllow", "AlwaysDeny":
			if types[a.Type] {
				errs = append(errs, field.Duplicate(at.Child("type"), a.Type))
			}
			if a.Webhook != nil {
				errs = append(errs, field.Invalid(at.Child("webhook"), "non-null", "may only be specified when type=Webhook"))
			}
		case "":
			errs = append(errs, field.Required(at.Child("type"), ""))
		default:
			errs = append(errs, field.NotSupported(at.Child("type"), a.Type, []string{"AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"}))
		}
		types[a.Type] = true
		if a.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else if names[a.Name] {
			errs = append(errs, field.Duplicate(at.Child("name"), a.Name))
		}
		names[a.Name] = true
	}
	return errs
}

func (w *WebhookConfig) validate(at *field.Path) (errs field.ErrorList) {
	if w == nil {
		return field.ErrorList{field.Required(at, "required when type=Webhook")}
	}
	if t := w.Timeout.Duration; t <= 0 || t > 30*time.Second {
		errs = append(errs, field.Invalid(at.Child("timeout"), t.String(), "must be > 0s and <= 30s"))
	}
	if w.AuthorizedTTL.Duration <= 0 {
		errs = append(errs, field.Invalid(at.Child("authorizedTTL"), w.AuthorizedTTL.Duration.String(), "must be > 0s"))
	}
	if w.UnauthorizedTTL.Duration <= 0 {
		errs = append(errs, field.Invalid(at.Child("unauthorizedTTL"), w.UnauthorizedTTL.Duration.String(), "must be > 0s"))
	}
	if v := w.SubjectAccessReviewVersion; v != "v1" {
		errs = append(errs, field.NotSupported(at.Child("subjectAccessReviewVersion"), v, []string{"v1"}))
	}
	if p := w.FailurePolicy; p != "NoOpinion" && p != "Deny" {
		errs = append(errs, field.NotSupported(at.Child("failurePolicy"), p, []string{"NoOpinion", "Deny"}))
	}
	if len(w.MatchConditions) > 0 {
		errs = append(errs, field.Forbidden(at.Child("matchConditions"), "CEL expressions are not supported by this release"))
	}
	if c := w.ConnectionInfo; c.Type != "KubeConfigFile" {
		errs = append(errs, field.NotSupported(at.Child("connectionInfo", "type"), c.Type, []string{"KubeConfigFile"}))
	} else if c.KubeConfigFile == nil || *c.KubeConfigFile == "" {
		errs = append(errs, field.Required(at.Child("connectionInfo", "kubeConfigFile"), ""))
	}
	return errs
}

// Configured returns the authorizer of c, which asks node and rbac where c says so.
func Configured(c *Configuration, node, rbac Authorizer) (Authorizer, error) {
	var all []Authorizer
	for _, a := range c.Authorizers {
		switch a.Type {
		case "Node":
			all = append(all, node)
		case "RBAC":
			all = append(all, rbac)
		case "AlwaysAllow":
			all = append(all, always{true, ""})
		case "AlwaysDeny":
			all = append(all, always{false, "Everything is forbidden."})
		case "Webhook":
			w, err := newWebhook(a.Webhook)
			if err != nil {
				return nil, err
			}
			all = append(all, w)
		}
	}
	return Union(all...), nil
}

type always struct {
	allowed bool
	reason  string
}

func (a always) Authorize(context.Context, *Attributes) (bool, string, error) {
	return a.allowed, a.reason, nil
}

// webhook asks a service elsewhere, by a SubjectAccessReview.
type webhook struct {
	config *WebhookConfig
	post   func(ctx context.Context, review any) error

	mu   sync.Mutex
	seen map[string]answer
}

type answer struct {
	allowed bool
	denied  bool
	reason  string
	err     error
	until   time.Time
}

func newWebhook(c *WebhookConfig) (*webhook, error) {
	hook, err := authn.NewWebhook(*c.ConnectionInfo.KubeConfigFile, c.Timeout.Duration)
	if err != nil {
		return nil, err
	}
	return &webhook{config: c, post: hook.Post, seen: map[string]answer{}}, nil
}

// Authorize implements Authorizer.
func (w *webhook) Authorize(ctx context.Context, a *Attributes) (bool, string, error) {
	q := reviewOf(a)
	key := q.Spec.String()
	w.mu.Lock()
	known, ok := w.seen[key]
	w.mu.Unlock()
	if !ok || time.Now().After(known.until) {
		if err := w.post(ctx, q); err != nil {
			if w.config.FailurePolicy == "Deny" {
				return false, "", errors.Join(ErrDenied, err)
			}
			return false, "", err
		}
		known = w.keep(key, &q.Status)
	}
	err := known.err
	if known.denied && !known.allowed {
		err = errors.Join(ErrDenied, err)
	}
	return known.allowed, known.reason, err
}

func (w *webhook) keep(key string, s *authorizationv1.SubjectAccessReviewStatus) answer {
	k := answer{allowed: s.Allowed, denied: s.Denied, reason: s.Reason}
	if s.EvaluationError != "" {
		k.err = errors.New(s.EvaluationError)
	}
	ttl, cache := w.config.UnauthorizedTTL.Duration, w.config.CacheUnauthorizedRequests
	if s.Allowed {
		ttl, cache = w.config.AuthorizedTTL.Duration, w.config.CacheAuthorizedRequests
	}
	if cache != nil && !*cache {
		return k
	}
	k.until = time.Now().Add(ttl)
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.seen) >= answersKept {
		clear(w.seen)
	}
	w.seen[key] = k
	return k
}

func reviewOf(a *Attributes) *authorizationv1.SubjectAccessReview {
	q := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: a.User.Name, Groups: a.User.Groups, UID: a.User.UID}}
	q.APIVersion, q.Kind = "authorization.k8s.io/v1", "SubjectAccessReview"
	for k, v := range a.User.Extra {
		if q.Spec.Extra == nil {
			q.Spec.Extra = map[string]authorizationv1.ExtraValue{}
		}
		q.Spec.Extra[k] = v
	}
	if a.Path != "" {
		q.Spec.NonResourceAttributes = &authorizationv1.NonResourceAttributes{Path: a.Path, Verb: a.Verb}
		return q
	}
	q.Spec.ResourceAttributes = &authorizationv1.ResourceAttributes{Namespace: a.Namespace, Verb: a.Verb, Group: a.Group, Version: a.Version,
		Resource: a.Resource, Subresource: a.Subresource, Name: a.Name}
	if a.Fields != nil && !a.Fields.Empty() {
		q.Spec.ResourceAttributes.FieldSelector = fieldsOf(a)
	}
	return q
}

func fieldsOf(a *Attributes) *authorizationv1.FieldSelectorAttributes {
	s := &authorizationv1.FieldSelectorAttributes{}
	for _, r := range a.Fields.Requirements() {
		op := metav1.FieldSelectorOpIn
		if r.Operator == "!=" {
			op = metav1.FieldSelectorOpNotIn
		}
		s.Requirements = append(s.Requirements, metav1.FieldSelectorRequirement{Key: r.Field, Operator: op, Values: []string{r.Value}})
	}
	return s
}
