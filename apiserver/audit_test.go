package apiserver_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/audit"
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
	} {
		for _, w := range want {
			if i >= len(lines) || !strings.Contains(lines[i], w) {
				t.Errorf("%d has no %s: %s", i, w, lines[min(i, len(lines)-1)])
			}
		}
	}
	if len(lines) != 6 {
		t.Errorf("%d events", len(lines))
	}
}
