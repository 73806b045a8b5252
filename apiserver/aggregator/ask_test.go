package aggregator_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/apiserver/authn"
)

// A component of this process is answered as who it is, and told where nobody is to answer.
func TestAsk(t *testing.T) {
	w := newWorld(t)
	gv := schema.GroupVersion{Group: "wardle.io", Version: "v1"}
	ask := func() ([]byte, bool, error) {
		return w.aggregator.Ask(t.Context(), &authn.User{Name: "autoscaler", Groups: []string{"g"}}, gv, "namespaces/x/pods/*/hits", url.Values{"labelSelector": {"a=b"}})
	}
	if _, served, err := ask(); served || err != nil {
		t.Error("nobody:", served, err)
	}
	w.register()
	if _, served, err := ask(); !served || !apierrors.IsServiceUnavailable(err) {
		t.Error("not there yet:", served, err)
	}
	w.behind(true)
	w.condition("True", "Passed")
	body, served, err := ask()
	var got struct {
		URI    string
		Header http.Header
	}
	if err := json.Unmarshal(body, &got); err != nil || !served {
		t.Fatal(string(body), served, err)
	}
	if err != nil || got.URI != "/apis/wardle.io/v1/namespaces/x/pods/%2A/hits?labelSelector=a%3Db" || !slices.Equal(got.Header["X-Remote-User"], []string{"autoscaler"}) {
		t.Errorf("%+v, %v", got, err)
	}
	w.broken.Store(true)
	if _, served, err := ask(); !served || !apierrors.IsInternalError(err) {
		t.Error("broken:", served, err)
	}
}
