package apiserver_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// TestManyObjects sends few bytes that are much when they are read, in every format and way.
func TestManyObjects(t *testing.T) {
	t.Parallel()
	const most = 100_000
	s := serve(t)
	path := "/api/v1/namespaces/default/pods"
	if w := do(t, s, "POST", path, `{"metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}]}}`); w.Code != 201 {
		t.Fatal(w.Body)
	}
	proto, err := api.EncodeProto(&corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, Spec: corev1.PodSpec{Containers: make([]corev1.Container, most)}})
	if err != nil {
		t.Fatal(err)
	}
	items := strings.Repeat("{},", most)
	json := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[` + items + `{}]}}`
	cbor := "\xd9\xd9\xf7\xa4\x4aapiVersion\x42v1\x44kind\x43Pod\x48metadata\xa1\x44name\x41p\x44spec\xa1\x4acontainers\x9f" + strings.Repeat("\xa0", most) + "\xff"
	copies := `[{"op":"add","path":"/metadata/annotations","value":[` + strings.Repeat("{},", most/2) + `{}]}` +
		strings.Repeat(`,{"op":"copy","from":"/metadata/annotations","path":"/metadata/annotations/0"}`, 2) + `]`
	for _, tt := range []struct {
		verb, media, body string
		code              int
	}{
		{"POST", "application/json", json, 400},
		{"POST", "application/yaml", json, 400},
		{"POST", "application/yaml", "spec:\n  containers:\n" + strings.Repeat("  - {}\n", most), 400},
		{"POST", "application/cbor", cbor, 400},
		{"POST", "application/vnd.kubernetes.protobuf", string(proto), 400},
		{"PUT", "application/json", json, 400},
		{"PATCH", "application/merge-patch+json", json, 400},
		{"PATCH", "application/strategic-merge-patch+json", json, 400},
		{"PATCH", "application/json-patch+json", `[{"op":"add","path":"/spec/containers","value":[` + items + `{}]}]`, 422},
		{"PATCH", "application/json-patch+json", copies, 422},
		{"PATCH", "application/apply-patch+yaml", json, 400},
		{"PATCH", "application/apply-patch+cbor", cbor, 400},
	} {
		on := path
		if tt.verb != "POST" {
			on += "/p"
		}
		w := do(t, s, tt.verb, on+"?fieldManager=m", tt.body, "Content-Type", tt.media)
		if w.Code != tt.code || w.Code == 400 && !strings.Contains(w.Body.String(), "more than 100000 objects") {
			t.Errorf("%s of %s: %d %.300s", tt.verb, tt.media, w.Code, w.Body)
		}
	}
}

// TestWarningsAreShort gives cause for long warnings: no header is longer than clients take, and short ones are whole.
func TestWarningsAreShort(t *testing.T) {
	t.Parallel()
	s := serve(t)
	fields := func(n int) (text string) {
		for i := range n {
			text += fmt.Sprintf(`,"%s%d":1`, strings.Repeat("x", 1000), i)
		}
		return text
	}
	for _, n := range []int{1, 3, 30} {
		w := do(t, s, "POST", "/api/v1/namespaces/default/configmaps", `{"metadata":{"generateName":"c"}`+fields(n)+`}`)
		all := w.Header()["Warning"]
		if w.Code != 201 || len(all) == 0 || len(strings.Join(all, "")) > 5000 {
			t.Errorf("%d fields: %d, %d warnings of %d bytes", n, w.Code, len(all), len(strings.Join(all, "")))
		}
		if whole := len(all) > 0 && len(all[0]) > 1000; whole != (n <= 3) {
			t.Errorf("%d fields: %q", n, all)
		}
	}
}
