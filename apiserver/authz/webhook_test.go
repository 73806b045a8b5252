package authz

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	config "k8s.io/apiserver/pkg/apis/apiserver"

	"github.com/yare-dev/yare/apiserver/authn"
)

func TestWebhook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		w := &webhook{config: &config.WebhookConfiguration{CacheAuthorizedRequests: true, CacheUnauthorizedRequests: true,
			AuthorizedTTL: metav1.Duration{Duration: time.Minute}, UnauthorizedTTL: metav1.Duration{Duration: time.Second}, FailurePolicy: "Deny"}}
		w.post = func(_ context.Context, o any) error {
			asked++
			q := o.(*authorizationv1.SubjectAccessReview)
			switch q.Spec.User {
			case "jane":
				q.Status.Allowed = q.Spec.ResourceAttributes.Resource == "pods" && len(q.Spec.ResourceAttributes.FieldSelector.Requirements) == 1
			case "mallory":
				q.Status = authorizationv1.SubjectAccessReviewStatus{Denied: true, Reason: "no"}
			case "broken":
				return errors.New("unreachable")
			}
			return nil
		}
		all := Union(w, always{true, "anyway"})
		ask := func(user string) (bool, string) {
			ok, reason, err := all.Authorize(t.Context(), &Attributes{User: &authn.User{Name: user}, Verb: "list", Resource: "pods", Fields: fields.OneTermEqualSelector("a", "b")})
			if err != nil && ok {
				t.Error(err)
			}
			return ok, reason
		}
		for user, want := range map[string]bool{"jane": true, "nobody": true, "mallory": false, "broken": false} {
			if ok, reason := ask(user); ok != want {
				t.Errorf("%s: %v %s", user, ok, reason)
			}
		}
		asked = 0
		ask("jane")
		ask("mallory")
		if asked != 0 {
			t.Errorf("asked %d times for what is known", asked)
		}
		time.Sleep(2 * time.Second)
		ask("jane")
		ask("mallory")
		if asked != 1 {
			t.Errorf("asked %d times after the refusal's time", asked)
		}
	})
}

// A webhook is asked about the requests that it is for, and about no others.
func TestMatchConditions(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policy     string
		conditions []string
		namespace  string
		asked      bool
		denied     bool
	}{
		{"NoOpinion", []string{"has(request.resourceAttributes)", "request.resourceAttributes.namespace == 'a'"}, "a", true, false},
		{"NoOpinion", []string{"request.resourceAttributes.namespace == 'a'"}, "b", false, false},
		{"Deny", []string{"request.resourceAttributes.namespace == 'a'"}, "b", false, false},
		{"Deny", []string{"'jane' in request.groups", "request.extra['k'][0] == 'v'"}, "a", false, false},
		{"Deny", []string{"request.extra['k'][0] == 'v'"}, "a", false, true},
		{"NoOpinion", []string{"request.extra['k'][0] == 'v'"}, "a", false, false},
		{"NoOpinion", []string{"request.resourceAttributes.fieldSelector.requirements.exists(r, r.key == 'a')"}, "a", true, false},
	} {
		k := &config.WebhookConfiguration{FailurePolicy: c.policy, ConnectionInfo: config.WebhookConnectionInfo{KubeConfigFile: new(emptyKubeconfig(t))}}
		for _, e := range c.conditions {
			k.MatchConditions = append(k.MatchConditions, config.WebhookMatchCondition{Expression: e})
		}
		w, err := newWebhook(k)
		if err != nil {
			t.Fatal(err)
		}
		asked := false
		w.post = func(_ context.Context, o any) error {
			asked = true
			o.(*authorizationv1.SubjectAccessReview).Status.Allowed = true
			return nil
		}
		ok, _, err := w.Authorize(t.Context(), &Attributes{User: &authn.User{Name: "jane"}, Verb: "list", Resource: "pods", Namespace: c.namespace, Fields: fields.OneTermEqualSelector("a", "b")})
		if asked != c.asked || ok != c.asked || errors.Is(err, ErrDenied) != c.denied {
			t.Errorf("%v in %s: asked %v, answer %v %v", c.conditions, c.namespace, asked, ok, err)
		}
	}
}
