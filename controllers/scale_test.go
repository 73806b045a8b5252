package controllers_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"

	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// A budget over pods of a controller of somebody else's goes by its scale.
func TestBudgetOfCustomController(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := cluster(t)
		k := define(t, c, func(v *apiextensionsv1.CustomResourceDefinitionVersion) {
			v.Schema.OpenAPIV3Schema.XPreserveUnknownFields = ptr(true)
			v.Subresources = &apiextensionsv1.CustomResourceSubresources{
				Scale: &apiextensionsv1.CustomResourceSubresourceScale{SpecReplicasPath: ".spec.replicas", StatusReplicasPath: ".status.replicas"}}
		})
		o := k.New()
		o.SetNamespace("ns")
		o.SetName("owner")
		o.(*unstructured.Unstructured).Object["spec"] = map[string]any{"replicas": int64(4)}
		refs := owned(made(t, c, o))
		refs[0].Controller = ptr(true)
		app := map[string]string{"app": "web"}
		for i := range 3 {
			p := template(app, corev1.RestartPolicyAlways)
			p.ObjectMeta = metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprint("p", i), Labels: app, OwnerReferences: refs}
			rt.Create(t, c, &corev1.Pod{ObjectMeta: p.ObjectMeta, Spec: p.Spec})
		}
		rt.Create(t, c, &policyv1.PodDisruptionBudget{ObjectMeta: meta("b"), Spec: policyv1.PodDisruptionBudgetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: app}, MaxUnavailable: ptr(intstr.FromString("50%"))}})
		time.Sleep(time.Minute)
		if s := rt.Get[*policyv1.PodDisruptionBudget](t, c, "ns", "b").Status; s.ExpectedPods != 4 || s.DesiredHealthy != 2 || s.DisruptionsAllowed != 1 {
			t.Errorf("status %+v", s)
		}
	})
}
