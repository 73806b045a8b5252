package builtin_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/servertest"
)

// wire is a server of all kinds to which everybody is an administrator.
func wire(t *testing.T) *apiserver.Server {
	s := servertest.Store(t)
	rbac := authz.NewRBAC(s)
	srv, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: s, Authorizer: rbac, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Resources:      builtin.All(builtin.Deps{Store: s, Client: &late{}, Authorizer: rbac, Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/24")}}),
		Authenticators: []authn.Authenticator{master{}}})
	if err != nil {
		t.Fatal(err)
	}
	return srv
}

// within puts inner into n messages of protobuf, one in the other, each in the fields given in turn from the innermost.
func within(inner []byte, n int, fields ...uint64) []byte {
	turned := make([]byte, 0, len(inner)+8*n) // back to front
	for i := len(inner) - 1; i >= 0; i-- {
		turned = append(turned, inner[i])
	}
	for i := range n {
		head := binary.AppendUvarint(binary.AppendUvarint(nil, fields[i%len(fields)]<<3|2), uint64(len(turned)))
		slices.Reverse(head)
		turned = append(turned, head...)
	}
	slices.Reverse(turned)
	return turned
}

// proto is raw in the envelope of an object.
func proto(apiVersion, kind string, raw []byte) string {
	u := runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}, Raw: raw}
	b, err := u.Marshal()
	if err != nil {
		panic(err)
	}
	return "k8s\x00" + string(b)
}

// TestHostile sends what is made to overflow the stack or to take all memory to each decoder: it is refused, and memory is bounded.
func TestHostile(t *testing.T) {
	crd := func(schema string) string {
		return `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"foos.example.com"},"spec":{"group":"example.com","scope":"Namespaced",` +
			`"names":{"plural":"foos","kind":"Foo"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":` + schema + `}}]}}`
	}
	deep := func(n int, open, inner, end string) string {
		return strings.Repeat(open, n) + inner + strings.Repeat(end, n)
	}
	crdProto := func(n int, fields ...uint64) string { // versions 7 of spec 2, their schema 4, its openAPIV3Schema 1
		return proto("apiextensions.k8s.io/v1", "CustomResourceDefinition", within(within(nil, n, fields...), 4, 1, 4, 7, 2))
	}
	const (
		crds, pods, maps = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", "/api/v1/namespaces/default/pods", "/api/v1/namespaces/default/configmaps"
		inJSON, inYAML   = "application/json", "application/yaml"
		inProto, inCBOR  = "application/vnd.kubernetes.protobuf", "application/cbor"
		one              = crds + "/good.example.com"
		million          = 1_000_000
	)
	s := wire(t)
	good := strings.ReplaceAll(crd(`{"type":"object","x-kubernetes-preserve-unknown-fields":true}`), "foos", "good")
	padded := `{"description":"` + strings.Repeat("x", 200_000) + `"}`
	applied := `{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{"name":"good.example.com"}`
	for _, tt := range []struct {
		name, method, path, media, body string
		code                            int
		text                            string // of the answer
	}{
		{"JSON", "POST", maps, inJSON, `{"x":` + deep(million, "[", "1", "]") + "}", 400, "exceeded max depth"},
		{"JSON without end", "POST", maps, inJSON, strings.Repeat(`{"a":`, million/2), 400, "exceeded max depth"},
		{"large JSON", "POST", maps, inJSON, deep(million, `{"a":`, "1", "}"), 413, "limit is 3145728"},
		{"YAML in flow", "POST", maps, inYAML, deep(million, "[", "1", "]"), 400, "exceeded max depth"},
		{"YAML in blocks", "POST", maps, inYAML, strings.Repeat("- ", million), 400, "exceeded max depth"},
		{"YAML of many aliases", "POST", maps, inYAML, "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n" +
			"e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n", 400, "excessive aliasing"},
		{"YAML of aliases of a text", "POST", maps, inYAML, "x: &a " + strings.Repeat("x", million) + "\ny: [" + strings.Repeat("*a,", 300_000) + "]\n", 400, "excessive aliasing"},
		{"CBOR", "POST", maps, inCBOR, "\xd9\xd9\xf7" + strings.Repeat("\x81", million) + "\x01", 400, "exceeded max nested level"},
		{"CBOR of endless length", "POST", maps, inCBOR, "\xd9\xd9\xf7\xbb\x7f\xff\xff\xff\xff\xff\xff\xff", 400, "unrecognized"},
		{"protobuf of endless length", "POST", maps, inProto, "k8s\x00\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 400, "unrecognized"},
		{"protobuf with groups", "POST", maps, inProto, proto("v1", "ConfigMap", bytes.Repeat([]byte{0x7b}, million)), 400, "cannot be handled"},
		{"envelope in an envelope", "POST", maps, inProto, proto("v1", "ConfigMap", []byte(proto("v1", "ConfigMap", within(nil, 100_000, 2)))), 400, "cannot be handled"},
		{"raw JSON in protobuf", "POST", "/apis/apps/v1/namespaces/default/controllerrevisions", inProto, proto("apps/v1", "ControllerRevision",
			append(within([]byte("a"), 2, 1, 1), within([]byte(strings.Repeat("[", million)), 2, 1, 2)...)), 400, "RawExtension"},
		{"ownership in protobuf", "POST", maps, inProto, proto("v1", "ConfigMap", within(append(within([]byte("deep"), 1, 1), within(bytes.Repeat([]byte(`{"f:a":`), 300_000), 3, 1, 7, 17)...), 1, 1)), 201, "deep"},

		{"a number that is none", "POST", "/apis/apps/v1/namespaces/default/controllerrevisions", inJSON, `{"metadata":{"name":"a"},"revision":1,"data":{"a":1e400}}`, 400, "cannot be read as JSON"},
		{"a default that is none", "POST", crds, inJSON, crd(`{"type":"object","properties":{"a":{"type":"object","x-kubernetes-preserve-unknown-fields":true,"default":{"b":1e400}}}}`), 400, "cannot be read as JSON"},

		{"schema in JSON", "POST", crds, inJSON, crd(deep(9900, `{"not":`, padded, "}")), 400, "nested deeper than 256 levels"},
		{"schema in JSON, in lists", "POST", crds, inJSON, crd(deep(2000, `{"items":`, "{}", "}")), 400, "nested deeper than 256 levels"},
		{"schema in JSON, nearly", "POST", crds, inJSON, crd(deep(240, `{"items":`, "{}", "}")), 422, "must not be empty for specified array items"},
		{"schema in YAML", "POST", crds, inYAML, crd(deep(4000, `{"items":`, "{}", "}")), 400, "nested deeper than 256 levels"},
		{"schema in CBOR", "POST", crds, inCBOR, cborOf(t, crd(deep(9000, `{"items":`, padded, "}"))), 400, "nested deeper than 256 levels"},
		{"schema in protobuf", "POST", crds, inProto, crdProto(500_000, 28), 400, "nested deeper than 256 levels"},
		{"schema in protobuf, in lists", "POST", crds, inProto, crdProto(300_000, 1, 24), 400, "nested deeper than 256 levels"},
		{"schema in protobuf, in maps", "POST", crds, inProto, crdProto(300_000, 2, 29), 400, "nested deeper than 256 levels"},
		{"schema with an end that is none", "POST", crds, inProto, crdProto(500_000, 28) + "\xff", 400, ""},
		{"wide schema", "POST", crds, inJSON, crd(`{"allOf":[` + strings.Repeat("{},", 90_000) + `{}]}`), 422, "more than 50000 schemas"},
		{"many versions", "POST", crds, inJSON, `{"metadata":{"name":"a"},"spec":{"versions":[` + strings.Repeat("{},", 90_000) + `{}]}}`, 422, "more than 1000 versions"},

		{"a good one", "POST", crds, inJSON, good, 201, ""},
		{"merge patch", "PATCH", one, "application/merge-patch+json", `{"spec":{"versions":[{"name":"v1","schema":{"openAPIV3Schema":` + deep(9000, `{"not":`, padded, "}") + `}}]}}`, 400, "nested deeper"},
		{"JSON patch", "PATCH", one, "application/json-patch+json", `[{"op":"add","path":"/spec/versions/0/schema/openAPIV3Schema/not","value":` + deep(9000, `{"not":`, "{}", "}") + `}]`, 422, "nested deeper"},
		{"deep JSON patch", "PATCH", one, "application/json-patch+json", deep(million, "[", "", "]"), 400, ""},
		{"strategic patch", "PATCH", one, "application/strategic-merge-patch+json", `{"spec":{"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":` + deep(5000, `{"items":`, padded, "}") + `}}]}}`, 400, "nested deeper"},
		{"apply", "PATCH", one + "?force=true&fieldManager=a", "application/apply-patch+yaml", applied + `,"spec":{"versions":[{"name":"v1","schema":{"openAPIV3Schema":` + deep(5000, `{"items":`, padded, "}") + `}}]}}`, 400, "nested deeper"},
		{"apply of aliases", "PATCH", one + "?fieldManager=a", "application/apply-patch+yaml", "x: &a " + strings.Repeat("x", million) + "\ny: [" + strings.Repeat("*a,", 300_000) + "]\n", 400, "excessive aliasing"},
		{"apply in CBOR", "PATCH", one + "?fieldManager=a", "application/apply-patch+cbor", "\xd9\xd9\xf7" + strings.Repeat("\x81", million) + "\x01", 400, "exceeded max nested level"},
		{"options in JSON", "DELETE", maps + "/none", inJSON, deep(million, "[", "", "]"), 400, "exceeded max depth"},
		{"options in YAML", "DELETE", maps + "/none", inYAML, "x: &a " + strings.Repeat("x", million) + "\ny: [" + strings.Repeat("*a,", 300_000) + "]\n", 400, "excessive aliasing"},
		{"options in protobuf", "DELETE", maps + "/none", inProto, proto("v1", "DeleteOptions", within(nil, 300_000, 2)), 404, ""},
		{"options in CBOR", "DELETE", maps + "/none", inCBOR, "\xd9\xd9\xf7" + strings.Repeat("\x81", million) + "\x01", 400, "exceeded max nested level"},

		{"many objects in JSON", "POST", pods, inJSON, `{"metadata":{"name":"a"},"spec":{"containers":[` + strings.Repeat("{},", million-1) + `{}]}}`, 400, "more than 100000 objects"},
		{"many objects that are null", "POST", pods, inJSON, `{"metadata":{"name":"a"},"spec":{"containers":[` + strings.Repeat("null,", million/2) + `{}]}}`, 400, "more than 100000 objects"},
		{"many objects in YAML", "POST", pods, inYAML, `{"metadata":{"name":"a"},"spec":{"containers":[` + strings.Repeat("{},", million/5) + `{}]}}`, 400, "more than 100000 objects"},
		{"many objects in protobuf", "POST", pods, inProto, proto("v1", "Pod", within(bytes.Repeat([]byte("\x12\x00"), million), 1, 2)), 400, "more than 100000 objects"},
		{"many objects in CBOR", "POST", pods, inCBOR, cborOf(t, `{"metadata":{"name":"a"},"spec":{"containers":[`+strings.Repeat("{},", million/5)+`{}]}}`), 400, "more than 100000 objects"},
		{"many objects in a patch", "PATCH", one, "application/strategic-merge-patch+json", `{"spec":{"versions":[` + strings.Repeat("{},", million/5) + `{}]}}`, 400, "more than 100000 objects"},
		{"many objects in an apply", "PATCH", one + "?force=true&fieldManager=a", "application/apply-patch+yaml", applied + `,"spec":{"versions":[` + strings.Repeat("{},", million/5) + `{}]}}`, 400, "more than 100000 objects"},
		{"one large text", "POST", maps, inProto, proto("v1", "ConfigMap", append(within([]byte("large"), 2, 1, 1), within(append([]byte("\x0a\x01k\x12\xc0\x84\x3d"), bytes.Repeat([]byte("\x12\x00"), million/2)...), 1, 3)...)), 201, ""},
		{"many problems in JSON", "POST", pods, inJSON, `{"metadata":{"name":"a"},"spec":{"containers":[` + strings.Repeat("{},", 30_000) + `{}]}}`, 422, "more problems begin here"},
		{"many problems in protobuf", "POST", pods, inProto, proto("v1", "Pod", within(bytes.Repeat([]byte("\x12\x00"), 30_000), 1, 2)), 422, "more problems begin here"},
	} {
		var before, after goruntime.MemStats
		goruntime.ReadMemStats(&before)
		w := ask(s, tt.method, tt.path, tt.media, tt.body)
		goruntime.ReadMemStats(&after)
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.text) {
			t.Errorf("%s: %d %.300s", tt.name, w.Code, w.Body)
		}
		if n := (after.TotalAlloc - before.TotalAlloc) >> 20; n > 512 {
			t.Errorf("%s: took %d MB", tt.name, n)
		}
		if n := w.Body.Len(); n > million && w.Code >= 400 {
			t.Errorf("%s: answered %d bytes", tt.name, n)
		}
	}
	// Nothing of it spoils what others read.
	for _, path := range []string{crds, maps, pods, "/apis/apps/v1/controllerrevisions"} {
		if w := ask(s, "GET", path, inJSON, ""); w.Code != 200 || !json.Valid(w.Body.Bytes()) {
			t.Errorf("%s: %d %.300s", path, w.Code, w.Body)
		}
	}
}

func ask(s http.Handler, method, path, media, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.Header.Set("Content-Type", media)
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// cborOf is JSON in CBOR.
func cborOf(t *testing.T, text string) string {
	var m map[string]any
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	b, err := api.EncodeCBOR(&unstructured.Unstructured{Object: m})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
