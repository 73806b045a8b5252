package podcertcleaner_test

import (
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/controllers/podcertcleaner"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

// Requests go when their time is over, whatever became of them, and not before.
func TestClean(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		request := func(name string) *certificatesv1.PodCertificateRequest {
			return rt.Create(t, c, &certificatesv1.PodCertificateRequest{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}})
		}
		request("old") // before anybody looks
		time.Sleep(10 * time.Minute)
		d := rt.Deps(t, c)
		rt.Start(t, d, podcertcleaner.New(d))
		request("pending")
		for _, kind := range []string{certificatesv1.PodCertificateRequestConditionTypeIssued, certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed} {
			rt.Mutate(t, c, request(kind), "status", func(r *certificatesv1.PodCertificateRequest) {
				r.Status.Conditions = []metav1.Condition{{Type: kind, Status: metav1.ConditionTrue, Reason: "R"}}
			})
		}
		expect := func(n int) {
			t.Helper()
			synctest.Wait()
			if got := len(rt.List[*certificatesv1.PodCertificateRequest](t, c)); got != n {
				t.Errorf("%d requests, not %d", got, n)
			}
		}
		time.Sleep(5*time.Minute - time.Second)
		expect(5)
		time.Sleep(2 * time.Second)
		expect(4)
		time.Sleep(10*time.Minute - 3*time.Second)
		expect(4)
		time.Sleep(3 * time.Second)
		expect(0)
	})
}
