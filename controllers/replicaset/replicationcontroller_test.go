package replicaset

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// A ReplicationController owns its pods itself, tells that they are refused, and has them when they are not.
func TestReplicationController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		var full atomic.Bool
		full.Store(true)
		c.Refuse = func(verb string, k *api.Kind, _ api.Key) error {
			if full.Load() && verb == "create" && k == api.PodKind {
				return errors.New("quota")
			}
			return nil
		}
		n, app := int32(3), map[string]string{"app": "web"}
		rc := rt.Create(t, c, &corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
			Spec: corev1.ReplicationControllerSpec{Replicas: &n, Selector: app, Template: &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: app}}}})
		rt.Start(t, d, NewReplicationController(d), rt.Kubelet(c))
		synctest.Wait()
		if s := rt.Get[*corev1.ReplicationController](t, c, "ns", "web").Status; len(s.Conditions) != 1 ||
			s.Conditions[0].Type != corev1.ReplicationControllerReplicaFailure || s.Conditions[0].Reason != "FailedCreate" {
			t.Errorf("refused: %+v", s)
		}
		full.Store(false)
		time.Sleep(time.Minute)
		s := rt.Get[*corev1.ReplicationController](t, c, "ns", "web").Status
		if s.Replicas != 3 || s.AvailableReplicas != 3 || s.FullyLabeledReplicas != 3 || s.ObservedGeneration != 1 || len(s.Conditions) != 0 {
			t.Errorf("running: %+v", s)
		}
		for _, p := range rt.List[*corev1.Pod](t, c) {
			if ref := metav1.GetControllerOf(p); ref == nil || ref.Kind != "ReplicationController" || ref.APIVersion != "v1" || ref.UID != rc.UID {
				t.Errorf("owner %+v", ref)
			}
		}
		rt.Mutate(t, c, rc, "", func(rc *corev1.ReplicationController) { rc.Spec.Replicas = new(int32) })
		synctest.Wait()
		if n := len(rt.List[*corev1.Pod](t, c)); n != 0 {
			t.Errorf("%d pods are left", n)
		}
	})
}
