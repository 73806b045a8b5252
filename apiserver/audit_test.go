package apiserver_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/audit"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/client"
)

// TestAudit sends requests and reads what was recorded of them.
func TestAudit(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	policy, file := filepath.Join(dir, "policy.yaml"), filepath.Join(dir, "audit.log")
	if err := os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: None, nonResourceURLs: [/readyz]}, {level: RequestResponse}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := audit.New(audit.Config{PolicyFile: policy, File: audit.FileConfig{Path: file}}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, func(_ *apiserver.Config, d *apiserver.Deps) {
		d.Audit = log
		d.Anonymous = func(path string) bool { return path == "/readyz" }
	})
	const maps = "/api/v1/namespaces/default/configmaps"
	do(t, s, "POST", maps, `{"metadata":{"name":"m"}}`, "X-User", "jane", "Content-Type", "application/json")
	do(t, s, "PATCH", maps+"/m", `{"data":{"a":"b"}}`, "X-User", "jane", "Content-Type", "application/merge-patch+json")
	do(t, s, "GET", maps, "", "X-User", "jane", "Accept", "application/vnd.kubernetes.protobuf")
	do(t, s, "DELETE", maps+"/m", "", "X-User", "reader")
	do(t, s, "GET", maps, "", "X-User", "broken")
	if code := do(t, s, "GET", maps, "").Code; code != 401 {
		t.Errorf("anonymous: %d", code)
	}
	if code := do(t, s, "GET", "/readyz", "").Code; code != 200 {
		t.Errorf("anonymous health: %d", code)
	}
	local := s.ClientAs(&authn.User{Name: "system:serviceaccount:kube-system:job-controller"})
	if _, err := local.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", GenerateName: "l-"}}); err != nil {
		t.Error(err)
	}
	if _, err := local.Get(t.Context(), api.ConfigMapKind, api.Key{Namespace: "default", Name: "none"}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := local.Patch(t.Context(), api.ConfigMapKind, api.Key{Namespace: "default", Name: "none"}, client.Patch{Type: types.MergePatchType, Data: []byte(`{"data":{"c":"d"}}`)}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i, want := range [][]string{
		{`"verb":"create"`, `"name":"m"`, `"requestObject":{"kind":"ConfigMap"`, `"responseObject":{`, `"code":201`, `"authorization.k8s.io/decision":"allow"`},
		{`"verb":"patch"`, `"requestObject":{"data":{"a":"b"}}`, `"data":{"a":"b"}`, `"code":200`},
		{`"verb":"list"`, `"responseObject":{"kind":"ConfigMapList"`},
		{`"verb":"delete"`, `"code":403`, `"reason":"Forbidden"`, `"authorization.k8s.io/decision":"forbid"`},
		{`"verb":"list"`, `"code":401`, `"user":{}`},
		{`"verb":"list"`, `"code":401`},
		{`"verb":"create"`, `"requestURI":"/api/v1/namespaces/default/configmaps"`, `"username":"system:serviceaccount:kube-system:job-controller"`, `"userAgent":"kube-controller-manager"`,
			`"requestObject":{"kind":"ConfigMap"`, `"responseObject":{"kind":"ConfigMap"`, `"code":201`, `"authorization.k8s.io/decision":"allow"`},
		{`"verb":"patch"`, `"requestURI":"/api/v1/namespaces/default/configmaps/none"`, `"requestObject":{"data":{"c":"d"}}`, `"code":404`, `"reason":"NotFound"`},
	} {
		for _, w := range want {
			if i >= len(lines) || !strings.Contains(lines[i], w) {
				t.Errorf("%d has no %s: %s", i, w, lines[min(i, len(lines)-1)])
			}
		}
	}
	if len(lines) != 8 {
		t.Errorf("%d events", len(lines))
	}
}
