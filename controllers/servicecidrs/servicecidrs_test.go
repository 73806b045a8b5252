package servicecidrs

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func TestRangeStaysWhileItsAddressesHaveNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		make := func(name string, cidrs ...string) *networkingv1.ServiceCIDR {
			return rt.Create(t, c, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}})
		}
		// want are names with the status of Ready.
		want := func(names ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for _, s := range rt.List[*networkingv1.ServiceCIDR](t, c) {
				if !slices.Contains(s.Finalizers, finalizer) {
					t.Error(s.Name, "has not the finalizer")
				}
				ready := meta.FindStatusCondition(s.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
				got = append(got, s.Name+" "+string(ready.Status)+ready.Reason)
			}
			if slices.Sort(got); !slices.Equal(got, names) {
				t.Errorf("%q, want %q", got, names)
			}
		}
		free, a, b := make("free", "10.2.0.0/24"), make("a", "10.1.0.0/24", "fd00::/112"), make("b", "10.1.0.0/16")
		v4 := rt.Create(t, c, &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "10.1.0.7"}})
		v6 := rt.Create(t, c, &networkingv1.IPAddress{ObjectMeta: metav1.ObjectMeta{Name: "fd00::7"}})
		want("a True", "b True", "free True")
		rt.Delete(t, c, free, client.DeleteOptions{})
		rt.Delete(t, c, a, client.DeleteOptions{})
		want("a FalseTerminating", "b True", "free True")
		time.Sleep(grace)
		want("a FalseTerminating", "b True")
		rt.Delete(t, c, v6, client.DeleteOptions{}) // the other address is b's too
		want("b True")
		rt.Delete(t, c, b, client.DeleteOptions{})
		time.Sleep(grace)
		want("b FalseTerminating")
		make("again", "10.1.0.0/28")
		want("again True")
		rt.Delete(t, c, v4, client.DeleteOptions{})
	})
}
