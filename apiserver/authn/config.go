package authn

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"

	"k8s.io/apimachinery/pkg/util/validation/field"
	config "k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	"k8s.io/apiserver/pkg/authentication/cel"

	"github.com/yare-dev/yare/apiserver/settings"
	"github.com/yare-dev/yare/run"
)

// compiler makes programs of the expressions in the file.
var compiler = sync.OnceValue(cel.NewDefaultCompiler)

// Configuration is what an AuthenticationConfiguration of apiserver.config.k8s.io says: who issues tokens beside us, and which
// paths need none. It may change while requests are served.
type Configuration struct {
	file string
	text []byte
	now  atomic.Pointer[configured]
}

type configured struct {
	anonymous *config.AnonymousAuthConfig // nil: all paths
	oidc      *OIDC
}

// LoadConfiguration reads and checks the file.
func LoadConfiguration(file string) (*Configuration, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("authentication configuration: %w", err)
	}
	c := &Configuration{file: file, text: text}
	return c, c.take(text)
}

// Follow returns the Component that reads the file anew when it has changed.
func (c *Configuration) Follow(log *slog.Logger) run.Component {
	return run.Follow(c.file, c.text, log, func(_ context.Context, text []byte) error { return c.take(text) })
}

func (c *Configuration) take(text []byte) error {
	got, err := settings.Decode[*config.AuthenticationConfiguration](text)
	if err == nil {
		errs := validation.ValidateAuthenticationConfiguration(compiler(), got, []string{Issuer})
		for i := range got.JWT {
			if got.JWT[i].Issuer.EgressSelectorType != "" {
				errs = append(errs, field.Forbidden(field.NewPath("jwt").Index(i).Child("issuer", "egressSelectorType"), "not supported by this release"))
			}
		}
		err = errs.ToAggregate()
	}
	next := &configured{}
	if err == nil {
		next.anonymous = got.Anonymous
		next.oidc, err = NewOIDC(got.JWT)
	}
	if err != nil {
		return fmt.Errorf("authentication configuration in %s: %w", c.file, err)
	}
	c.now.Store(next)
	return nil
}

// Verify returns the user of a token, nil where it is of no configured issuer.
func (c *Configuration) Verify(ctx context.Context, token string) (*User, error) {
	return c.now.Load().oidc.Verify(ctx, token)
}

// AnonymousOn says whether a request without credentials may be about path.
func (c *Configuration) AnonymousOn(path string) bool {
	a := c.now.Load().anonymous
	if a == nil {
		return true
	}
	if !a.Enabled {
		return false
	}
	for _, one := range a.Conditions {
		if one.Path == path {
			return true
		}
	}
	return len(a.Conditions) == 0
}
