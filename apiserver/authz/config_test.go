package authz

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/yare-dev/yare/apiserver/authn"
)

func emptyKubeconfig(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "kubeconfig")
	const text = "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// writeConfiguration writes a file and returns its name; an empty name makes one.
func writeConfiguration(t *testing.T, file, text string) string {
	t.Helper()
	if file == "" {
		file = filepath.Join(t.TempDir(), "c.yaml")
	}
	if err := os.WriteFile(file, []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n"+text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAuthorizationConfiguration(t *testing.T) {
	t.Parallel()
	load := func(text string) error {
		_, err := LoadConfiguration(writeConfiguration(t, "", text), always{}, always{})
		return err
	}
	kubeconfig := emptyKubeconfig(t)
	if err := load(fmt.Sprintf(`authorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}, {type: Webhook, name: hook, webhook: {
  timeout: 3s, authorizedTTL: 1m, unauthorizedTTL: 1m, subjectAccessReviewVersion: v1, matchConditionSubjectAccessReviewVersion: v1, failurePolicy: Deny,
  connectionInfo: {type: KubeConfigFile, kubeConfigFile: %s}, matchConditions: [{expression: "request.user != 'a'"}]}}]`, kubeconfig)); err != nil {
		t.Error(err)
	}
	err := load(`authorizers: [{type: Node, name: a}, {type: Node, name: a}, {type: Webhook, name: c, webhook: {timeout: 1m, matchConditions: [{expression: x}], connectionInfo: {type: InClusterConfig}}}, {type: ABAC, name: d}]`)
	for _, want := range []string{`authorizers[0].name: Invalid value: "a": expected name node`, `authorizers[1].type: Duplicate value: "Node"`, "authorizers[2].timeout: Invalid value", "authorizers[2].matchConditions[0].expression: Invalid value",
		"authorizers[2].webhook.connectionInfo.type: Forbidden", "authorizers[3].type: Unsupported value"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
}

// What is good in a changed file counts within its time; what is bad changes nothing.
func TestAuthorizationConfigurationChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		file := writeConfiguration(t, "", "authorizers: [{type: RBAC, name: rbac}]")
		c, err := LoadConfiguration(file, always{true, "node"}, always{true, "rbac"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- c.Follow(slog.New(slog.DiscardHandler)).Run(ctx, func() {}) }()
		time.Sleep(30 * time.Second) // between two looks
		for _, step := range []struct{ text, want string }{
			{"authorizers: [{type: RBAC, name: rbac}]", "rbac"},
			{"authorizers: [{type: Node, name: node}, {type: RBAC, name: rbac}]", "node"},
			{"authorizers: [{type: Odd, name: odd}]", "node"},
			{"authorizers: [{type: AlwaysAllow, name: alwaysallow}]", "node"}, // nothing may go
			{"authorizers: [{type: RBAC, name: rbac}, {type: Node, name: node}]", "rbac"},
		} {
			writeConfiguration(t, file, step.text)
			time.Sleep(2 * time.Minute)
			if ok, reason, err := c.Authorize(ctx, &Attributes{User: &authn.User{}}); !ok || reason != step.want || err != nil {
				t.Errorf("%s: %v %s %v, want %s", step.text, ok, reason, err, step.want)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
