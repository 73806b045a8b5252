package openapi_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	openapi_v3 "github.com/google/gnostic-models/openapiv3"

	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/openapi"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
)

var refs = regexp.MustCompile(`"\$ref":"#/([^"]*)"`)

// TestDocuments makes the documents of all built-in kinds: clients' parsers read them, and what they refer to is there.
func TestDocuments(t *testing.T) {
	st := servertest.Store(t)
	kinds := builtin.All(builtin.Deps{Store: st, Authorizer: authz.NewRBAC(st)})
	byVersion := map[string][]rest.Any{}
	for _, a := range kinds {
		byVersion[a.Kind.APIVersion()] = append(byVersion[a.Kind.APIVersion()], a)
	}
	check := func(name string, d openapi.Doc, parse func([]byte) error) {
		t.Helper()
		data, err := json.Marshal(d)
		if err != nil {
			t.Fatal(name, err)
		}
		if err := parse(data); err != nil {
			t.Error(name, err)
		}
		if missing := missing(d, data); len(missing) > 0 {
			t.Errorf("%s refers to what is not there: %v", name, missing)
		}
	}
	check("v2", openapi.Document(openapi.V2, kinds, "v1"), func(b []byte) error {
		_, err := openapi_v2.ParseDocument(b)
		return err
	})
	for version, of := range byVersion {
		check(version, openapi.Document(openapi.V3, of, "v1"), func(b []byte) error {
			_, err := openapi_v3.ParseDocument(b)
			return err
		})
	}
}

// missing are the references in the text of d to what d does not have.
func missing(d openapi.Doc, text []byte) (all []string) {
	for _, m := range refs.FindAllStringSubmatch(string(text), -1) {
		at := map[string]any(d)
		for step := range strings.SplitSeq(m[1], "/") {
			next, ok := at[step].(openapi.Doc)
			if !ok {
				all = append(all, m[1])
				break
			}
			at = next
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
