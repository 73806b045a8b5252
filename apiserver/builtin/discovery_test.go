package builtin_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"

	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/connect"
	"github.com/yare-dev/yare/apiserver/servertest"
)

// absent are the kinds of upstream that are not served, with the reason. A key ends where the line may go on: what is served
// of a group is compared.
var absent = map[string]string{
	"apiregistration.k8s.io/v1 ":       "aggregation has an issue of its own",
	"apiextensions.k8s.io/v1 ":         "custom kinds have an issue of their own",
	"admissionregistration.k8s.io/v1 ": "webhooks and policies have an issue of their own",
	"resource.k8s.io/v1 ":              "devices have an issue of their own",
	"storagemigration.k8s.io/v1 ":      "migration has an issue of its own",
}

// master takes everybody for an administrator.
type master struct{}

func (master) Authenticate(*http.Request) (*authn.User, error) {
	return &authn.User{Name: "root", Groups: []string{authn.Masters}}, nil
}

// TestDiscovery compares what clients learn of the kinds with what upstream's 1.37 tells: testdata/discovery.txt holds its GA
// kinds, one line each, in its order.
func TestDiscovery(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/discovery.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(text)), "\n")
	got := discovered(t)
	want = slices.DeleteFunc(want, func(line string) bool {
		words := strings.Fields(line)
		kind, _, _ := strings.Cut(words[1], "/")
		served := slices.ContainsFunc(got, func(g string) bool { return strings.HasPrefix(g, words[0]+" "+kind+" ") })
		for key := range absent {
			if !served && strings.HasPrefix(line, key) {
				return true
			}
		}
		return false
	})
	for _, l := range want {
		if !slices.Contains(got, l) {
			t.Errorf("missing:    %s", l)
		}
	}
	for _, l := range got {
		if !slices.Contains(want, l) {
			t.Errorf("unexpected: %s", l)
		}
	}
	if !t.Failed() && !slices.Equal(got, want) {
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("the order differs: %s stands where %s should", got[i], want[i])
			}
		}
	}
}

// discovered is the aggregated discovery of all kinds, one line each.
func discovered(t *testing.T) (lines []string) {
	t.Helper()
	s := servertest.Store(t)
	streams := connect.Deps{Store: s}
	rbac := authz.NewRBAC(s)
	srv, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: s, Authorizer: rbac, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Resources: builtin.All(builtin.Deps{Store: s, Client: &late{}, Authorizer: rbac, Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/24")},
			PodStreams: connect.Pods(streams), NodeStreams: connect.Nodes(streams), ServiceStreams: connect.Services(streams)}),
		Authenticators: []authn.Authenticator{master{}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/api", "/apis"} {
		r := httptest.NewRequest("GET", path, nil)
		r.Header.Set("Accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
		w := httptest.NewRecorder()
		srv.ServeHTTP(w, r)
		var l apidiscoveryv2.APIGroupDiscoveryList
		if err := json.Unmarshal(w.Body.Bytes(), &l); err != nil {
			t.Fatal(err, w.Body)
		}
		for _, g := range l.Items {
			for _, v := range g.Versions {
				for _, k := range v.Resources {
					lines = append(lines, describe(g.Name, v.Version, k)...)
				}
			}
		}
	}
	return lines
}

func describe(group, version string, k apidiscoveryv2.APIResourceDiscovery) []string {
	if group == "" {
		group = "core"
	}
	at := group + "/" + version + " " + k.Resource
	kind := k.ResponseKind
	lines := []string{fmt.Sprintf("%s %s/%s.%s %s %s %s short=%s in=%s", at, kind.Group, kind.Version, kind.Kind, strings.Join(k.Verbs, ","), k.Scope,
		k.SingularResource, strings.Join(k.ShortNames, ","), strings.Join(k.Categories, ","))}
	for _, s := range k.Subresources {
		kind := s.ResponseKind
		lines = append(lines, fmt.Sprintf("%s/%s %s/%s.%s %s", at, s.Subresource, kind.Group, kind.Version, kind.Kind, strings.Join(s.Verbs, ",")))
	}
	return lines
}
