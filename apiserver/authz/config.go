package authz

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
	config "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	"k8s.io/apiserver/pkg/authorization/cel"

	"github.com/yare-dev/yare/apiserver/settings"
	"github.com/yare-dev/yare/run"
)

// compiler makes programs of webhooks' match conditions.
var compiler = sync.OnceValue(cel.NewDefaultCompiler)

// modes are the authorizers that there are. A webhook may be there several times.
var modes = []string{"AlwaysAllow", "AlwaysDeny", "Node", "RBAC", string(config.TypeWebhook)}

// Configuration is what an AuthorizationConfiguration of apiserver.config.k8s.io says: who is asked, in order. It may change
// while requests are served.
type Configuration struct {
	file       string
	text       []byte
	node, rbac Authorizer
	needed     []string // modes that may not go while the server runs
	now        atomic.Pointer[Authorizer]
}

// LoadConfiguration reads and checks the file, which names node and rbac by their modes.
func LoadConfiguration(file string, node, rbac Authorizer) (*Configuration, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("authorization configuration: %w", err)
	}
	c := &Configuration{file: file, text: text, node: node, rbac: rbac}
	return c, c.take(text)
}

// Follow returns the Component that reads the file anew when it has changed.
func (c *Configuration) Follow(log *slog.Logger) run.Component {
	return run.Follow(c.file, c.text, log, func(_ context.Context, text []byte) error { return c.take(text) })
}

// Authorize implements Authorizer.
func (c *Configuration) Authorize(ctx context.Context, a *Attributes) (bool, string, error) {
	return (*c.now.Load()).Authorize(ctx, a)
}

func (c *Configuration) take(text []byte) error {
	got, err := settings.Decode[*config.AuthorizationConfiguration](text)
	if err == nil {
		err = c.check(got).ToAggregate()
	}
	var next Authorizer
	if err == nil {
		next, err = c.make(got)
	}
	if err != nil {
		return fmt.Errorf("authorization configuration in %s: %w", c.file, err)
	}
	c.now.Store(&next)
	c.needed = nil
	for _, a := range got.Authorizers {
		if a.Type != config.TypeWebhook {
			c.needed = append(c.needed, string(a.Type))
		}
	}
	return nil
}

func (c *Configuration) check(got *config.AuthorizationConfiguration) field.ErrorList {
	errs := validation.ValidateAuthorizationConfiguration(compiler(), nil, got, sets.New(modes...), sets.New(string(config.TypeWebhook)))
	here := field.NewPath("authorizers")
	missing := sets.New(c.needed...)
	for i, a := range got.Authorizers {
		at := here.Index(i)
		missing.Delete(string(a.Type))
		switch {
		case a.Type != config.TypeWebhook:
			if want := strings.ToLower(string(a.Type)); slices.Contains(modes, string(a.Type)) && a.Name != want {
				errs = append(errs, field.Invalid(at.Child("name"), a.Name, fmt.Sprintf("expected name %s for authorizer %s", want, a.Type)))
			}
		case a.Webhook != nil:
			if a.Webhook.SubjectAccessReviewVersion == "v1beta1" {
				errs = append(errs, field.Forbidden(at.Child("webhook", "subjectAccessReviewVersion"), "v1beta1 is not supported by this release"))
			}
			if a.Webhook.ConnectionInfo.Type == config.AuthorizationWebhookConnectionInfoTypeInCluster {
				errs = append(errs, field.Forbidden(at.Child("webhook", "connectionInfo", "type"), "InClusterConfig is not supported by this release"))
			}
		}
	}
	if missing.Len() > 0 {
		errs = append(errs, field.Required(here, fmt.Sprintf("missing required types: %v", sets.List(missing))))
	}
	return errs
}

// make returns the authorizer that asks all in order.
func (c *Configuration) make(got *config.AuthorizationConfiguration) (Authorizer, error) {
	var all []Authorizer
	for _, a := range got.Authorizers {
		switch a.Type {
		case "Node":
			all = append(all, c.node)
		case "RBAC":
			all = append(all, c.rbac)
		case "AlwaysAllow":
			all = append(all, always{true, ""})
		case "AlwaysDeny":
			all = append(all, always{false, "Everything is forbidden."})
		case config.TypeWebhook:
			w, err := newWebhook(a.Webhook)
			if err != nil {
				return nil, err
			}
			all = append(all, w)
		}
	}
	return Union(all...), nil
}
