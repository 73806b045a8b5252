package authz

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/yare-dev/yare/apiserver/authn"
)

func TestWebhook(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		w := &webhook{seen: map[string]answer{}, config: &WebhookConfig{AuthorizedTTL: metav1.Duration{Duration: time.Minute}, UnauthorizedTTL: metav1.Duration{Duration: time.Second}, FailurePolicy: "Deny"}}
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

func TestAuthorizationConfiguration(t *testing.T) {
	t.Parallel()
	load := func(text string) error {
		file := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(file, []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := LoadConfiguration(file)
		return err
	}
	if err := load("authorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}]"); err != nil {
		t.Error(err)
	}
	err := load("authorizers: [{type: Node, name: a}, {type: Node, name: a}, {type: Webhook, name: c, webhook: {timeout: 1m, matchConditions: [{expression: x}]}}, {type: ABAC, name: d}]")
	for _, want := range []string{`authorizers[1].type: Duplicate value: "Node"`, `authorizers[1].name: Duplicate value: "a"`, "authorizers[2].webhook.timeout: Invalid value", "authorizers[2].webhook.matchConditions: Forbidden",
		"authorizers[2].webhook.connectionInfo.type: Unsupported value", "authorizers[3].type: Unsupported value"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
}
