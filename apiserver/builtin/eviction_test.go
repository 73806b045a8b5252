package builtin_test

import (
	"log/slog"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/client"
)

// late is the server's own client, which is there when the server is.
type late struct{ client.Client }

// TestEviction evicts a pod through a whole server, as `kubectl drain` does: gracefully, and only the pod that was meant.
func TestEviction(t *testing.T) {
	t.Parallel()
	s := servertest.Store(t)
	rbac, self := authz.NewRBAC(s), &late{}
	srv, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: s, Authorizer: rbac, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Resources: builtin.All(builtin.Deps{Store: s, Client: self, Authorizer: rbac})})
	if err != nil {
		t.Fatal(err)
	}
	self.Client = srv.ClientAs(&authn.User{Name: "root", Groups: []string{authn.Masters}})
	p := pod("web")
	p.Spec.NodeName = "n1"
	if _, err := client.Create(t.Context(), self, p); err != nil {
		t.Fatal(err)
	}
	key := api.Key{Namespace: "default", Name: "web"}
	seconds := int64(7)
	got, err := self.Post(t.Context(), api.PodKind, key, "eviction", &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		DeleteOptions: &metav1.DeleteOptions{GracePeriodSeconds: &seconds}})
	if err != nil {
		t.Fatalf("%v %v", got, err)
	}
	now, err := client.Get[*corev1.Pod](t.Context(), self, key)
	if err != nil {
		t.Fatal(err)
	}
	if now.DeletionTimestamp == nil || *now.DeletionGracePeriodSeconds != seconds {
		t.Errorf("after the eviction: %v %v", now.DeletionTimestamp, now.DeletionGracePeriodSeconds)
	}
	if i := slices.IndexFunc(now.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == "EvictionByEvictionAPI"
	}); i < 0 {
		t.Errorf("the pod does not say that it is evicted: %v", now.Status.Conditions)
	}
}
