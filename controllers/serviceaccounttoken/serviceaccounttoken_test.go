package serviceaccounttoken_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/controllers/serviceaccounttoken"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func secret(name, account, uid string) *corev1.Secret {
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: account}},
		Type: corev1.SecretTypeServiceAccountToken}
	if uid != "" {
		s.Annotations[corev1.ServiceAccountUIDKey] = uid
	}
	return s
}

func account(name string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
}

// Secrets are filled once, mended, and go with their accounts; others are left alone.
func TestSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		robot := rt.Create(t, c, account("robot"))
		rt.Create(t, c, secret("early", "robot", ""))
		opaque := secret("opaque", "robot", "")
		opaque.Type = corev1.SecretTypeOpaque
		rt.Create(t, c, opaque)
		var signed atomic.Int64 // several workers sign
		d := rt.Deps(t, c)
		rt.Start(t, d, serviceaccounttoken.New(d, []byte("CA"), func(s *corev1.Secret, a *corev1.ServiceAccount) (string, error) {
			signed.Add(1)
			return fmt.Sprintf("%s of %s %s", s.Name, a.Name, a.UID), nil
		}))
		own := secret("own", "robot", string(robot.UID))
		own.Data = map[string][]byte{"namespace": []byte("elsewhere"), "ca.crt": []byte("old"), "more": []byte("x")}
		rt.Create(t, c, own)
		rt.Create(t, c, secret("nobody", "ghost", ""))
		rt.Create(t, c, secret("former", "robot", "another"))
		expect := func(want ...string) {
			t.Helper()
			synctest.Wait()
			got := []string{}
			for _, s := range rt.List[*corev1.Secret](t, c) {
				got = append(got, fmt.Sprintf("%s %s %s %d", s.Name, s.Data["ca.crt"], s.Data["namespace"], len(s.Data)))
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("secrets %q, want %q", got, want)
			}
		}
		expect("early CA ns 3", "opaque   0", "own CA elsewhere 4")
		early := rt.Get[*corev1.Secret](t, c, "ns", "early")
		if got, want := string(early.Data["token"]), fmt.Sprintf("early of robot %s", robot.UID); got != want || early.Annotations[corev1.ServiceAccountUIDKey] != string(robot.UID) {
			t.Errorf("token %q, want %q; %v", got, want, early.Annotations)
		}
		rt.Mutate(t, c, early, "", func(s *corev1.Secret) { delete(s.Data, "ca.crt") })
		expect("early CA ns 3", "opaque   0", "own CA elsewhere 4")
		if n := signed.Load(); n != 2 {
			t.Errorf("%d tokens were made", n)
		}
		rt.Mutate(t, c, rt.Get[*corev1.Secret](t, c, "ns", "early"), "", func(s *corev1.Secret) { delete(s.Data, "token") })
		expect("early CA ns 3", "opaque   0", "own CA elsewhere 4")
		rt.Delete(t, c, robot, client.DeleteOptions{})
		expect("opaque   0")
	})
}
