package apiserver_test

import (
	"context"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/client"
)

// witness allows everything, and remembers by which labels what was asked for.
type witness struct{ saw []string }

func (w *witness) Authorize(_ context.Context, a *authz.Attributes) (bool, string, error) {
	text := a.Verb + " " + a.Resource
	if a.Labels != nil {
		text += " " + a.Labels.String()
	}
	w.saw = append(w.saw, text)
	return true, "", nil
}

// The authorizer learns the label selectors of lists and watches, over HTTP and in this process, and of nothing else.
func TestSelectorsAreAuthorized(t *testing.T) {
	t.Parallel()
	w := &witness{}
	s := serve(t, func(_ *apiserver.Config, d *apiserver.Deps) { d.Authorizer = w })
	const path = "/api/v1/configmaps"
	do(t, s, "GET", path+"?labelSelector=a%3Db", "")
	do(t, s, "GET", path+"?labelSelector=%3D%3D%3D", "") // refused after it was authorized as if it had none
	do(t, s, "GET", "/api/v1/namespaces/default/configmaps/v?labelSelector=a%3Db", "")
	c := s.ClientAs(&authn.User{Name: "x"})
	if _, _, err := c.List(t.Context(), api.ConfigMapKind, client.Query{Labels: labels.SelectorFromSet(labels.Set{"c": "d"})}); err != nil {
		t.Error(err)
	}
	for range c.Watch(t.Context(), api.ConfigMapKind, client.Query{Labels: labels.SelectorFromSet(labels.Set{"e": "f"})}, 0) {
		break
	}
	want := []string{"list configmaps a=b", "list configmaps", "get configmaps", "list configmaps c=d", "watch configmaps e=f"}
	if !slices.Equal(w.saw, want) {
		t.Errorf("saw %q, want %q", w.saw, want)
	}
}
