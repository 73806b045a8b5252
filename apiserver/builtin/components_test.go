package builtin_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// TestComponentStatus reads what is made when somebody asks, and cannot write it.
func TestComponentStatus(t *testing.T) {
	t.Parallel()
	c := wholeServer(t)
	all, err := client.List[*corev1.ComponentStatus](t.Context(), c, client.Query{})
	if err != nil || len(all) != 3 {
		t.Fatal(all, err)
	}
	one, err := client.Get[*corev1.ComponentStatus](t.Context(), c, api.Key{Name: "etcd-0"})
	if err != nil || one.Conditions[0].Status != corev1.ConditionUnknown {
		t.Errorf("%+v %v", one, err)
	}
	if _, err := c.Get(t.Context(), api.ComponentStatusKind, api.Key{Name: "other"}); !apierrors.IsNotFound(err) {
		t.Error(err)
	}
	if _, err := c.Create(t.Context(), one.DeepCopy()); !apierrors.IsMethodNotSupported(err) {
		t.Error(err)
	}
}
