package authz_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/apiserver"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/client"
)

func user(name string, groups ...string) *authn.User { return &authn.User{Name: name, Groups: groups} }

func meta(ns, name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: ns, Name: name} }

// ask reads "verb [group/]resource[/sub] [namespace/]name", or "verb /path".
func ask(u *authn.User, text string) *authz.Attributes {
	f := strings.Fields(text)
	a := &authz.Attributes{User: u, Verb: f[0], Version: "v1"}
	if strings.HasPrefix(f[1], "/") {
		a.Path = f[1]
		return a
	}
	a.Resource = f[1]
	if group, rest, ok := strings.Cut(a.Resource, ":"); ok {
		a.Group, a.Resource = group, rest
	}
	a.Resource, a.Subresource, _ = strings.Cut(a.Resource, "/")
	if len(f) > 2 {
		k := api.ParseKey(f[2])
		a.Namespace, a.Name = k.Namespace, k.Name
	}
	for _, extra := range f[min(3, len(f)):] {
		a.Fields = fields.ParseSelectorOrDie(extra)
	}
	return a
}

func decide(t *testing.T, x authz.Authorizer, u *authn.User, text string) bool {
	t.Helper()
	ok, reason, err := x.Authorize(t.Context(), ask(u, text))
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if ok && x != nil && reason == "" && !u.In(authn.Masters) && !u.In(authn.Nodes) {
		t.Errorf("%s: allowed without a reason", text)
	}
	return ok
}

func TestRules(t *testing.T) {
	t.Parallel()
	s := servertest.Store(t)
	role := func(rules ...rbacv1.PolicyRule) []rbacv1.PolicyRule { return rules }
	rule := func(verbs, groups, resources string, names ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{Verbs: strings.Split(verbs, ","), APIGroups: strings.Split(groups, ","), Resources: strings.Split(resources, ","), ResourceNames: names}
	}
	servertest.Put(t, s,
		&rbacv1.ClusterRole{ObjectMeta: meta("", "reader"), Rules: role(rule("get,list", "", "pods,*/scale"), rule("*", "apps", "deployments", "web"))},
		&rbacv1.ClusterRole{ObjectMeta: meta("", "paths"), Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/logs/*"}}}},
		&rbacv1.Role{ObjectMeta: meta("a", "r"), Rules: role(rule("create", "", "pods/exec,secrets"))},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "b1"), RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "reader"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "all"}, {Kind: "Group", Name: "team"}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "b2"), RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "paths"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "all"}}},
		&rbacv1.RoleBinding{ObjectMeta: meta("a", "b3"), RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "reader"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "some"}, {Kind: "ServiceAccount", Name: "sa"}}},
		&rbacv1.RoleBinding{ObjectMeta: meta("a", "b4"), RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "r"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "some"}}},
		&rbacv1.RoleBinding{ObjectMeta: meta("b", "b5"), RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "r"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "some"}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "b6"), RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "paths"}, Subjects: []rbacv1.Subject{{Kind: "ServiceAccount", Namespace: "a", Name: "sa"}}},
	)
	r := authz.NewRBAC(s)
	all, some, nobody := user("all"), user("some"), user("nobody")
	sa := authn.ServiceAccount("a", "sa", "")
	for _, tc := range []struct {
		who  *authn.User
		what string
		want bool
	}{
		{all, "get pods x/y", true}, {all, "get pods", true}, {all, "watch pods x/y", false}, {all, "get pods/log x/y", false},
		{all, "get pods/scale x/y", true}, {all, "get apps:deployments/scale x/y", false}, {all, "delete apps:deployments x/web", true},
		{all, "delete apps:deployments x/other", false}, {all, "list apps:deployments", false}, {all, "delete apps:deployments/status x/web", false},
		{all, "get /healthz", true}, {all, "get /healthz/etcd", false}, {all, "get /logs/a/b", true}, {all, "post /healthz", false},
		{user("x", "team"), "list pods a/z", true}, {user("team"), "list pods", false},
		{some, "get pods a/z", true}, {some, "get pods b/z", false}, {some, "get pods", false}, {some, "get /healthz", false},
		{some, "create pods/exec a/z", true}, {some, "create pods a/z", false}, {some, "create secrets b/z", false},
		{sa, "get pods a/z", true}, {sa, "get pods b/z", false}, {sa, "get /healthz", true}, {authn.ServiceAccount("b", "sa", ""), "get pods a/z", false},
		{nobody, "get pods a/z", false}, {user("root", authn.Masters), "delete anything:at/all x/y", true}, {user("root", authn.Masters), "get /x", true},
	} {
		if got := decide(t, r, tc.who, tc.what); got != tc.want {
			t.Errorf("%s: %s: got %v", tc.who.Name, tc.what, got)
		}
	}
	// Changes count at once, in every direction.
	step := func(what string, want bool) {
		t.Helper()
		if got := decide(t, r, some, what); got != want {
			t.Errorf("after a change: %s: got %v", what, got)
		}
	}
	servertest.Put(t, s, &rbacv1.Role{ObjectMeta: meta("b", "r"), Rules: role(rule("create", "", "secrets"))})
	step("create secrets b/z", true)
	servertest.Put(t, s, &rbacv1.RoleBinding{ObjectMeta: meta("a", "b4"), RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "r"}, Subjects: []rbacv1.Subject{{Kind: "User", Name: "other"}}})
	step("create pods/exec a/z", false)
	servertest.Remove(t, s, &rbacv1.RoleBinding{ObjectMeta: meta("a", "b3")})
	step("get pods a/z", false)
	servertest.Remove(t, s, &rbacv1.Role{ObjectMeta: meta("b", "r")})
	step("create secrets b/z", false)
	rules, err := r.RulesFor(user("x", "team"), "a")
	if err != nil || len(rules) != 2 {
		t.Errorf("rules %v %v", rules, err)
	}
}

// TestKubelets asks what the kubelet of node n1 may do, which has one of two pods.
func TestKubelets(t *testing.T) {
	t.Parallel()
	s := servertest.Store(t, api.ResourceSliceKind)
	env := func(secret, config string) []corev1.EnvVar {
		return []corev1.EnvVar{
			{Name: "a", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}},
			{Name: "b", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: config}}}},
		}
	}
	pod := func(name, node, suffix string) *corev1.Pod {
		local := func(n string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: n + suffix} }
		return &corev1.Pod{ObjectMeta: meta("a", name), Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: "sa" + suffix, ImagePullSecrets: []corev1.LocalObjectReference{local("pull")},
			InitContainers: []corev1.Container{{Env: env("init"+suffix, "initc"+suffix)}},
			Containers: []corev1.Container{{Env: env("env"+suffix, "envc"+suffix), EnvFrom: []corev1.EnvFromSource{
				{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: local("from")}}, {ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: local("fromc")}}}}},
			Volumes: []corev1.Volume{
				{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vol" + suffix}}},
				{VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: local("volc")}}},
				{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
					{Secret: &corev1.SecretProjection{LocalObjectReference: local("proj")}}, {ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: local("projc")}}}}}},
			}}}
	}
	servertest.Put(t, s, pod("mine", "n1", "1"), pod("theirs", "n2", "2"))
	done := pod("done", "n1", "3")
	done.Status.Phase = corev1.PodSucceeded
	servertest.Put(t, s, done)
	storage := pod("storage", "n1", "4")
	claimed := "claimed"
	storage.Spec.Volumes = append(storage.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "claim"}}},
		corev1.Volume{Name: "e", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}})
	storage.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "x", ResourceClaimName: &claimed}}
	volume := func(name, claim string) *corev1.PersistentVolume {
		v := &corev1.PersistentVolume{ObjectMeta: meta("", name)}
		v.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "a", Name: claim}
		v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: "d", NodeStageSecretRef: &corev1.SecretReference{Namespace: "storage", Name: name}}
		return v
	}
	n1, n2 := "n1", "n2"
	servertest.Put(t, s, storage)
	servertest.PutAs(t, s, api.PersistentVolumeKind, volume("pv", "claim"), volume("pv2", "other"))
	servertest.PutAs(t, s, api.VolumeAttachmentKind, &storagev1.VolumeAttachment{ObjectMeta: meta("", "va1"), Spec: storagev1.VolumeAttachmentSpec{NodeName: n1}}, &storagev1.VolumeAttachment{ObjectMeta: meta("", "va2"), Spec: storagev1.VolumeAttachmentSpec{NodeName: n2}})
	servertest.PutAs(t, s, api.ResourceSliceKind, &resourcev1.ResourceSlice{ObjectMeta: meta("", "s1"), Spec: resourcev1.ResourceSliceSpec{NodeName: &n1}}, &resourcev1.ResourceSlice{ObjectMeta: meta("", "s2"), Spec: resourcev1.ResourceSliceSpec{NodeName: &n2}})
	servertest.PutAs(t, s, api.PodCertificateRequestKind, &certificatesv1.PodCertificateRequest{ObjectMeta: meta("a", "r1"), Spec: certificatesv1.PodCertificateRequestSpec{NodeName: "n1"}})
	n := authz.NewNode(s)
	kubelet := user("system:node:n1", authn.Nodes)
	for _, name := range []string{"pull", "init", "env", "from", "vol", "proj"} {
		for suffix, want := range map[string]bool{"1": true, "2": false, "3": false} {
			if got := decide(t, n, kubelet, "get secrets a/"+name+suffix); got != want {
				t.Errorf("secret %s%s: got %v", name, suffix, got)
			}
		}
	}
	for _, name := range []string{"initc", "envc", "fromc", "volc", "projc"} {
		for suffix, want := range map[string]bool{"1": true, "2": false} {
			if got := decide(t, n, kubelet, "watch configmaps a/"+name+suffix); got != want {
				t.Errorf("config map %s%s: got %v", name, suffix, got)
			}
		}
	}
	for what, want := range map[string]bool{
		"get secrets b/vol1": false, "list secrets": false, "update secrets a/vol1": false, "delete configmaps a/volc1": false,
		"create serviceaccounts/token a/sa1": true, "create serviceaccounts/token a/sa2": false, "list serviceaccounts": false,
		"get nodes n1": true, "update nodes/status n1": true, "patch nodes n1": true, "create nodes": true, "get nodes n2": false, "list nodes": false, "delete nodes n1": false,
		"get pods a/mine": true, "get pods a/theirs": false, "get pods a/absent": true, "delete pods a/mine": true, "delete pods a/theirs": false,
		"update pods/status a/mine": true, "update pods/status a/theirs": false, "update pods a/mine": false, "create pods/exec a/mine": false, "create pods a/": true,
		"list pods": false, "list pods a/ spec.nodeName=n1": true, "watch pods a/ spec.nodeName=n2": false, "deletecollection pods a/": false,
		"get coordination.k8s.io:leases kube-node-lease/n1": true, "get coordination.k8s.io:leases kube-node-lease/n2": false, "get coordination.k8s.io:leases a/n1": false,
		"create events a/": true, "list events": false, "list services": true, "create services a/": false, "get /metrics": false,
		"get persistentvolumeclaims a/claim": true, "get persistentvolumeclaims a/storage-e": true, "get persistentvolumeclaims a/other": false, "list persistentvolumeclaims a/": false,
		"patch persistentvolumeclaims/status a/claim": true, "update persistentvolumeclaims a/claim": false, "patch persistentvolumeclaims/status a/other": false,
		"get persistentvolumes pv": true, "get persistentvolumes pv2": false, "get secrets storage/pv": true, "get secrets storage/pv2": false, "update secrets storage/pv": false,
		"get storage.k8s.io:volumeattachments va1": true, "get storage.k8s.io:volumeattachments va2": false, "list storage.k8s.io:volumeattachments": false,
		"create storage.k8s.io:csinodes": true, "patch storage.k8s.io:csinodes n1": true, "patch storage.k8s.io:csinodes n2": false, "list storage.k8s.io:csinodes": false,
		"get resource.k8s.io:resourceclaims a/claimed": true, "get resource.k8s.io:resourceclaims a/x": false,
		"create resource.k8s.io:resourceslices": true, "delete resource.k8s.io:resourceslices s1": true, "delete resource.k8s.io:resourceslices s2": false, "list resource.k8s.io:resourceslices": false,
		"get certificates.k8s.io:podcertificaterequests a/r1": true, "get certificates.k8s.io:podcertificaterequests a/r2": false, "delete certificates.k8s.io:podcertificaterequests a/r1": false,
		"list node.k8s.io:runtimeclasses": true, "watch storage.k8s.io:csidrivers": true, "create certificates.k8s.io:certificatesigningrequests": true, "update node.k8s.io:runtimeclasses x": false,
		"create authentication.k8s.io:tokenreviews": true, "get rbac.authorization.k8s.io:clusterroles x": false,
	} {
		if got := decide(t, n, kubelet, what); got != want {
			t.Errorf("%s: got %v", what, got)
		}
	}
	if decide(t, n, user("system:node:n1"), "get nodes n1") || decide(t, n, user("n1", authn.Nodes), "get nodes n1") {
		t.Error("a user who is no kubelet")
	}
}

// A kubelet sees the volumes of its node's local storage, and may write them, no others'.
func TestLocalVolumes(t *testing.T) {
	t.Parallel()
	s := servertest.Store(t)
	for name, node := range map[string]string{"mine": "n1", "theirs": "n2"} {
		v := &corev1.PersistentVolume{ObjectMeta: meta("", name)}
		v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: claim.LocalDriver, VolumeAttributes: map[string]string{claim.LocalNode: node}}
		other := v.DeepCopy()
		other.Name, other.Spec.CSI.Driver = "other-"+name, "disk"
		servertest.PutAs(t, s, api.PersistentVolumeKind, v, other)
	}
	n, kubelet := authz.NewNode(s), user("system:node:n1", authn.Nodes)
	for what, want := range map[string]bool{
		"get persistentvolumes mine": true, "get persistentvolumes theirs": false, "get persistentvolumes other-mine": false,
		"update persistentvolumes mine": true, "update persistentvolumes theirs": false, "update persistentvolumes other-mine": false, "update persistentvolumes gone": false,
		"update persistentvolumes/status mine": false, "patch persistentvolumes mine": false, "delete persistentvolumes mine": false, "create persistentvolumes": false,
	} {
		if got := decide(t, n, kubelet, what); got != want {
			t.Errorf("%s: got %v", what, got)
		}
	}
	for selector, want := range map[string]bool{
		claim.LocalNode + "=n1": true, claim.LocalNode + "=n1,a=b": true, claim.LocalNode + "=n2": false, claim.LocalNode + " in (n1, n2)": false,
		claim.LocalNode + "!=n2": false, claim.LocalNode: false, "": false, "x=n1": false,
	} {
		sel, err := labels.Parse(selector)
		if err != nil {
			t.Fatal(err)
		}
		for _, verb := range []string{"list", "watch"} {
			a := ask(kubelet, verb+" persistentvolumes")
			a.Labels = sel
			if got, _, err := n.Authorize(t.Context(), a); err != nil || got != want {
				t.Errorf("%s of %q: got %v %v", verb, selector, got, err)
			}
		}
		a := ask(kubelet, "deletecollection persistentvolumes")
		if a.Labels = sel; selector == claim.LocalNode+"=n1" {
			if got, _, _ := n.Authorize(t.Context(), a); got {
				t.Error("may delete them all")
			}
		}
	}
}

// admin is a client of a whole API server.
func admin(t *testing.T) (client.Client, *authz.RBAC) {
	t.Helper()
	s := servertest.Store(t)
	r := authz.NewRBAC(s)
	srv, err := apiserver.New(apiserver.Config{}, apiserver.Deps{Store: s, Authorizer: r, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Resources: builtin.All(builtin.Deps{Store: s, Authorizer: r})})
	if err != nil {
		t.Fatal(err)
	}
	return srv.ClientAs(user("root", authn.Masters)), r
}

// TestBootstrap makes the roles, finds nothing to do the second time, mends what was taken away, and leaves alone what its
// owner marked.
func TestBootstrap(t *testing.T) {
	t.Parallel()
	c, r := admin(t)
	if err := authz.Bootstrap(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	_, first, err := c.List(t.Context(), api.ClusterRoleKind, client.Query{})
	if err != nil {
		t.Fatal(err)
	}
	if err := authz.Bootstrap(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, second, _ := c.List(t.Context(), api.ClusterRoleKind, client.Query{}); second != first {
		t.Error("a second Bootstrap wrote")
	}
	change := func(name string, f func(*rbacv1.ClusterRole)) {
		t.Helper()
		o, err := client.Get[*rbacv1.ClusterRole](t.Context(), c, api.Key{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Mutate(t.Context(), c, o, "", f); err != nil {
			t.Fatal(err)
		}
	}
	change("system:discovery", func(r *rbacv1.ClusterRole) { r.Rules = nil })
	change("system:basic-user", func(r *rbacv1.ClusterRole) {
		r.Rules = nil
		r.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false"
	})
	change("system:monitoring", func(r *rbacv1.ClusterRole) {
		r.Rules = append(r.Rules, rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/mine"}})
	})
	if err := authz.Bootstrap(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	anyone := user("anyone", authn.Authenticated)
	for what, want := range map[string]bool{
		"get /api": true, "get /apis/apps": true, "get /version": true, "get /metrics": false,
		"create authentication.k8s.io:selfsubjectreviews": false, "list pods": false,
	} {
		if got := decide(t, r, anyone, what); got != want {
			t.Errorf("%s: got %v", what, got)
		}
	}
	if !decide(t, r, user("x", "system:monitoring"), "get /mine") {
		t.Error("a rule that was added is gone")
	}
	for who, what := range map[*authn.User]string{
		user("system:kube-scheduler"):                             "create pods/binding a/p",
		user("system:kube-proxy"):                                 "watch discovery.k8s.io:endpointslices",
		user("system:kube-proxy", authn.Authenticated):            "watch networking.k8s.io:networkpolicies",
		user("system:kube-controller-manager"):                    "list anything:things",
		authn.ServiceAccount("kube-system", "kube-dns", ""):       "list services",
		authn.ServiceAccount("kube-system", "job-controller", ""): "create pods a/p",
		user(authn.Anonymous, authn.Unauthenticated):              "get /healthz",
		authn.ServiceAccount("a", "b", ""):                        "get /openid/v1/jwks",
	} {
		if !decide(t, r, who, what) {
			t.Errorf("%s may not %s", who.Name, what)
		}
	}
}

// TestRolesAreSound checks the built-in roles as the API would.
func TestRolesAreSound(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, r := range authz.ClusterRoles() {
		if names[r.Name] {
			t.Errorf("%s is there twice", r.Name)
		}
		names[r.Name] = true
		if len(r.Rules) == 0 && r.AggregationRule == nil {
			t.Errorf("%s is empty", r.Name)
		}
	}
	for _, b := range authz.ClusterRoleBindings() {
		if !names[b.RoleRef.Name] {
			t.Errorf("%s binds %s, which does not exist", b.Name, b.RoleRef.Name)
		}
	}
	for _, name := range []string{"cluster-admin", "admin", "edit", "view", "system:discovery", "system:basic-user", "system:public-info-viewer",
		"system:node", "system:kube-scheduler", "system:kube-controller-manager", "system:kube-dns", "system:node-proxier", "system:auth-delegator"} {
		if !names[name] {
			t.Errorf("no role %s", name)
		}
	}
}

func FuzzRules(f *testing.F) {
	f.Add("get", "pods", "log", "/x")
	f.Add("*", "*", "*", "*")
	s := servertest.Store(f)
	r := authz.NewRBAC(s)
	f.Fuzz(func(t *testing.T, verb, resource, sub, path string) {
		// Who has no binding may do nothing, whatever is asked.
		for _, a := range []*authz.Attributes{{User: user("u"), Verb: verb, Resource: resource, Subresource: sub}, {User: user("u"), Verb: verb, Path: path}} {
			if ok, _, err := r.Authorize(context.Background(), a); ok || err != nil {
				t.Errorf("%+v: %v %v", a, ok, err)
			}
		}
	})
}

func BenchmarkAuthorize(b *testing.B) {
	s := servertest.Store(b)
	servertest.Put(b, s, &rbacv1.ClusterRole{ObjectMeta: meta("", "r"), Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, APIGroups: []string{""}, Resources: []string{"pods"}}}})
	for n := range 1000 {
		servertest.Put(b, s, &rbacv1.RoleBinding{ObjectMeta: meta("a", fmt.Sprint("b", n)), RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "r"},
			Subjects: []rbacv1.Subject{{Kind: "User", Name: fmt.Sprint("u", n)}}})
	}
	r := authz.NewRBAC(s)
	a := ask(user("u500", authn.Authenticated), "get pods a/z")
	b.ReportAllocs()
	for b.Loop() {
		if ok, _, err := r.Authorize(b.Context(), a); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
