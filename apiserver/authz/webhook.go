package authz

import (
	"context"
	"errors"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	config "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	"k8s.io/apiserver/pkg/authorization/cel"

	"github.com/yare-dev/yare/apiserver/authn"
)

// ErrDenied is an answer that no authorizer after the one that gave it may change.
var ErrDenied = errors.New("denied")

type always struct {
	allowed bool
	reason  string
}

func (a always) Authorize(context.Context, *Attributes) (bool, string, error) {
	return a.allowed, a.reason, nil
}

// webhook asks a service elsewhere, by a SubjectAccessReview.
type webhook struct {
	config *config.WebhookConfiguration
	match  *cel.CELMatcher // which requests it is asked about; nil: all
	post   func(ctx context.Context, review any) error
	seen   authn.Remembered[string, answer]
}

type answer struct {
	allowed bool
	denied  bool
	reason  string
	err     error
}

func newWebhook(c *config.WebhookConfiguration) (*webhook, error) {
	match, errs := validation.ValidateAndCompileMatchConditions(compiler(), c.MatchConditions)
	if len(errs) > 0 {
		return nil, errs.ToAggregate()
	}
	hook, err := authn.NewWebhook(*c.ConnectionInfo.KubeConfigFile, c.Timeout.Duration)
	if err != nil {
		return nil, err
	}
	return &webhook{config: c, match: match, post: hook.Post}, nil
}

// Authorize implements Authorizer.
func (w *webhook) Authorize(ctx context.Context, a *Attributes) (bool, string, error) {
	q := reviewOf(a)
	if w.match != nil {
		if ok, err := w.match.Eval(ctx, q); err != nil {
			return w.silent(err)
		} else if !ok {
			return false, "", nil
		}
	}
	key := q.Spec.String()
	known, ok := w.seen.Get(key)
	if !ok {
		if err := w.post(ctx, q); err != nil {
			return w.silent(err)
		}
		known = w.keep(key, &q.Status)
	}
	err := known.err
	if known.denied && !known.allowed {
		err = errors.Join(ErrDenied, err)
	}
	return known.allowed, known.reason, err
}

// silent is what it means that there is no answer.
func (w *webhook) silent(err error) (bool, string, error) {
	if w.config.FailurePolicy == config.FailurePolicyDeny {
		err = errors.Join(ErrDenied, err)
	}
	return false, "", err
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
	if cache {
		w.seen.Put(key, k, time.Now().Add(ttl))
	}
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
