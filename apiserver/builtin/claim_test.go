package builtin_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/apiserver/authn"
)

// TestClaimStatus writes the status of a claim as a scheduler, which binds, and as a driver, which speaks for its devices.
func TestClaimStatus(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	as := func(name string, rule rbacv1.PolicyRule) *cluster {
		rule.APIGroups = []string{resourcev1.GroupName}
		c.must(c.create(&rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{rule}}))
		c.must(c.create(&rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name},
			RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: name}}}))
		other := *c
		other.ctx = authn.WithUser(t.Context(), &authn.User{Name: name, Extra: map[string][]string{"authentication.kubernetes.io/node-name": {"n1"}}})
		return &other
	}
	scheduler := as("scheduler", rbacv1.PolicyRule{Verbs: []string{"update"}, Resources: []string{"resourceclaims/binding"}})
	driver := as("driver", rbacv1.PolicyRule{Verbs: []string{"associated-node:update"}, Resources: []string{"resourceclaims/driver"}, ResourceNames: []string{"gpu.example.com"}})
	allocate := func(name, node string) *resourcev1.ResourceClaim {
		o, err := c.create(&resourcev1.ResourceClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
			Spec: resourcev1.ResourceClaimSpec{Devices: resourcev1.DeviceClaim{Requests: []resourcev1.DeviceRequest{{Name: "gpu", Exactly: &resourcev1.ExactDeviceRequest{DeviceClassName: "gpu"}}}}}})
		if err != nil {
			t.Fatal(err)
		}
		claim := o.DeepCopyObject().(*resourcev1.ResourceClaim)
		claim.Status.Allocation = &resourcev1.AllocationResult{
			NodeSelector: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
				{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}},
			Devices: resourcev1.DeviceAllocationResult{Results: []resourcev1.DeviceRequestAllocationResult{{Request: "gpu", Driver: "gpu.example.com", Pool: "p", Device: "d"}}}}
		return claim
	}
	report := func(claim *resourcev1.ResourceClaim) *resourcev1.ResourceClaim {
		claim = claim.DeepCopy()
		claim.ResourceVersion = ""
		claim.Status.Devices = []resourcev1.AllocatedDeviceStatus{{Driver: "gpu.example.com", Pool: "p", Device: "d"}}
		return claim
	}
	refused := func(_ any, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(problems(err), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	here, there := allocate("here", "n1"), allocate("there", "n2")
	o, err := driver.update(here.DeepCopy(), "status")
	refused(o, err, `status.allocation: Forbidden: changing status.allocation or status.reservedFor requires resource="resourceclaims/binding"`)
	for _, claim := range []*resourcev1.ResourceClaim{here, there} {
		c.must(scheduler.update(claim.DeepCopy(), "status"))
		o, err = scheduler.update(report(claim), "status")
		refused(o, err, `status.devices: Forbidden: changing status.devices requires resource="resourceclaims/driver"`)
	}
	c.must(driver.update(report(here), "status"))
	o, err = driver.update(report(there), "status")
	refused(o, err, `verb="[arbitrary-node:update]" permission`)
	// In a namespace for administrators, a claim may share devices with their users.
	c.must(c.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "admin", Labels: map[string]string{"resource.kubernetes.io/admin-access": "true"}}}))
	admin := allocate("admin", "n1")
	admin.ObjectMeta = metav1.ObjectMeta{Namespace: "admin", Name: "a"}
	yes := true
	admin.Spec.Devices.Requests[0].Exactly.AdminAccess = &yes
	c.must(c.create(admin))
}
