package admission_test

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/apiserver/admission"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/servertest"
	"github.com/yare-dev/yare/store"
)

// chain asks every plug-in, as the pipeline does.
type chain struct {
	t     *testing.T
	store *store.Store
	all   []rest.Admission
	warns []string
}

func newChain(t *testing.T) *chain {
	t.Helper()
	s := servertest.Store(t, api.LimitRangeKind, api.ResourceQuotaKind, api.PriorityClassKind, api.RuntimeClassKind, api.StorageClassKind, api.IngressClassKind)
	servertest.Put(t, s,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}},
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-node-lease"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "default"}})
	return &chain{t: t, store: s, all: admission.All(admission.Deps{Store: s})}
}

func (c *chain) ask(a *rest.Admitting) error {
	c.warns = nil
	if a.User == nil {
		a.User = &authn.User{Name: "u"}
	}
	if o := a.Object; o != nil && a.Kind == nil {
		a.Kind = api.KindOf(o)
	}
	if a.Key.Name == "" && a.Object != nil {
		a.Key = api.KeyOf(a.Object)
	}
	a.Warn = func(s string) { c.warns = append(c.warns, s) }
	for _, p := range c.all {
		if p.Mutate != nil {
			if err := p.Mutate(c.t.Context(), a); err != nil {
				return err
			}
		}
	}
	for _, p := range c.all {
		if p.Validate != nil {
			if err := p.Validate(c.t.Context(), a); err != nil {
				return err
			}
		}
	}
	return nil
}

// refused checks for a Forbidden with this text; an empty text means that nothing may be refused.
func refused(t *testing.T, what string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("%s: %v", what, err)
	case want != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), want)):
		t.Errorf("%s: got %v, want %q", what, err, want)
	}
}

func pod(change func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "i"}}, Containers: []corev1.Container{{Name: "a"}, {Name: "b"}}}}
	if change != nil {
		change(p)
	}
	return p
}

func TestServiceAccount(t *testing.T) {
	t.Parallel()
	no := false
	secrets := []corev1.LocalObjectReference{{Name: "pull"}}
	for name, tc := range map[string]struct {
		account *corev1.ServiceAccount
		pod     func(*corev1.Pod)
		mounts  int // containers with the token
		volume  bool
		pull    string
	}{
		"plain":                  {mounts: 3, volume: true},
		"pod says no":            {pod: func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = &no }},
		"account says no":        {account: &corev1.ServiceAccount{AutomountServiceAccountToken: &no}},
		"pod says yes":           {account: &corev1.ServiceAccount{AutomountServiceAccountToken: &no}, pod: func(p *corev1.Pod) { yes := true; p.Spec.AutomountServiceAccountToken = &yes }, mounts: 3, volume: true},
		"secrets of the account": {account: &corev1.ServiceAccount{ImagePullSecrets: secrets}, mounts: 3, volume: true, pull: "pull"},
		"secrets of the pod": {account: &corev1.ServiceAccount{ImagePullSecrets: secrets}, pod: func(p *corev1.Pod) {
			p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "own"}}
		}, mounts: 3, volume: true, pull: "own"},
		"one has its own": {pod: func(p *corev1.Pod) {
			p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "x", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}}
		}, mounts: 2, volume: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChain(t)
			if tc.account != nil {
				tc.account.Namespace, tc.account.Name = "default", "default"
				servertest.Put(t, c.store, tc.account)
			}
			p := pod(tc.pod)
			if err := c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: p}); err != nil {
				t.Fatal(err)
			}
			mounts, volume := 0, ""
			for _, v := range p.Spec.Volumes {
				if v.Projected != nil && strings.HasPrefix(v.Name, "kube-api-access-") && len(v.Name) == len("kube-api-access-")+5 {
					volume = v.Name
				}
			}
			for _, k := range append(p.Spec.InitContainers, p.Spec.Containers...) {
				for _, m := range k.VolumeMounts {
					if m.Name == volume && m.ReadOnly && m.MountPath == "/var/run/secrets/kubernetes.io/serviceaccount" {
						mounts++
					}
				}
			}
			pull := ""
			if len(p.Spec.ImagePullSecrets) > 0 {
				pull = p.Spec.ImagePullSecrets[0].Name
			}
			if mounts != tc.mounts || (volume != "") != tc.volume || pull != tc.pull || p.Spec.ServiceAccountName != "default" || p.Spec.DeprecatedServiceAccount != "default" {
				t.Errorf("mounts %d, volume %q, pull %q, account %q", mounts, volume, pull, p.Spec.ServiceAccountName)
			}
		})
	}
}

// TestNewNamespace creates a pod before its namespace's default account is there.
func TestNewNamespace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newChain(t)
		servertest.Put(t, c.store, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "new"}})
		begin := time.Now()
		p := pod(func(p *corev1.Pod) { p.Namespace = "new" })
		refused(t, "no account", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: p}), `serviceaccount "default" not found`)
		if waited := time.Since(begin); waited < time.Second || waited > 5*time.Second {
			t.Errorf("waited %v", waited)
		}
		done := make(chan error)
		go func() {
			done <- c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: pod(func(p *corev1.Pod) { p.Namespace = "new" })})
		}()
		time.Sleep(100 * time.Millisecond)
		servertest.Put(t, c.store, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "new", Name: "other"}})
		servertest.Put(t, c.store, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "new", Name: "default"}})
		begin = time.Now()
		refused(t, "the account arrives", <-done, "")
		if waited := time.Since(begin); waited > time.Millisecond {
			t.Errorf("waited %v after the account was there", waited)
		}
	})
}

func TestNamespaces(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	now := metav1.Now()
	servertest.Put(t, c.store, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ending", DeletionTimestamp: &now}})
	in := func(ns string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "c"}}
	}
	refused(t, "exists", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: in("default")}), "")
	if err := c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: in("absent")}); !apierrors.IsNotFound(err) || err.Error() != `namespaces "absent" not found` {
		t.Errorf("absent: %v", err)
	}
	err := c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: in("ending")})
	refused(t, "ending", err, "unable to create new content in namespace ending because it is being terminated")
	if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("ending: no cause in %v", err)
	}
	refused(t, "update in an ending one", c.ask(&rest.Admitting{Operation: rest.OpUpdate, Object: in("ending"), Old: in("ending")}), "")
	refused(t, "delete in an ending one", c.ask(&rest.Admitting{Operation: rest.OpDelete, Kind: api.ConfigMapKind, Key: api.Key{Namespace: "ending", Name: "c"}, Old: in("ending")}), "")
	for name, want := range map[string]string{"default": "this namespace may not be deleted", "kube-system": "this namespace may not be deleted", "mine": ""} {
		refused(t, "delete "+name, c.ask(&rest.Admitting{Operation: rest.OpDelete, Kind: api.NamespaceKind, Key: api.Key{Name: name}}), want)
	}
}

func TestPriorityAndTolerations(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	p := pod(func(p *corev1.Pod) {
		p.Spec.PriorityClassName = "system-node-critical"
		p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists}}
	})
	if err := c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: p}); err != nil {
		t.Fatal(err)
	}
	if *p.Spec.Priority != 2000001000 || len(p.Spec.Tolerations) != 2 || p.Spec.Tolerations[1].Key != corev1.TaintNodeUnreachable || *p.Spec.Tolerations[1].TolerationSeconds != 300 {
		t.Errorf("priority %d, tolerations %v", *p.Spec.Priority, p.Spec.Tolerations)
	}
	all := pod(func(p *corev1.Pod) { p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}} })
	if err := c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: all}); err != nil || len(all.Spec.Tolerations) != 1 {
		t.Errorf("tolerations %v %v", all.Spec.Tolerations, err)
	}
	old := p.DeepCopy()
	p = p.DeepCopy()
	p.Spec.Priority, p.Spec.PreemptionPolicy = nil, nil
	if err := c.ask(&rest.Admitting{Operation: rest.OpUpdate, Object: p, Old: old}); err != nil || *p.Spec.Priority != 2000001000 {
		t.Errorf("an update lost the priority: %v", err)
	}
}

func TestPodSecurity(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	level := func(labels map[string]string) {
		servertest.Put(t, c.store, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default", Labels: labels}})
	}
	yes := true
	privileged := func() *rest.Admitting {
		return &rest.Admitting{Operation: rest.OpCreate, Object: pod(func(p *corev1.Pod) {
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
		})}
	}
	refused(t, "no level", c.ask(privileged()), "")
	level(map[string]string{"pod-security.kubernetes.io/enforce": "baseline"})
	refused(t, "baseline", c.ask(privileged()), `violates PodSecurity "baseline:latest": privileged (container "a" must not set securityContext.privileged=true)`)
	refused(t, "baseline", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: pod(nil)}), "")
	level(map[string]string{"pod-security.kubernetes.io/warn": "restricted"})
	refused(t, "warn", c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: pod(nil)}), "")
	if len(c.warns) != 1 || !strings.HasPrefix(c.warns[0], `would violate PodSecurity "restricted:latest": `) {
		t.Errorf("warnings %q", c.warns)
	}
	bad := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "x", Labels: map[string]string{"pod-security.kubernetes.io/enforce": "odd"}}}
	if err := c.ask(&rest.Admitting{Operation: rest.OpCreate, Object: bad}); !apierrors.IsInvalid(err) {
		t.Errorf("an unknown level: %v", err)
	}
}

func TestEscalation(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	rule := func(verb, resource string) rbacv1.PolicyRule {
		group := ""
		if strings.HasPrefix(resource, "role") || strings.HasPrefix(resource, "clusterrole") {
			group = rbacv1.GroupName
		}
		return rbacv1.PolicyRule{Verbs: []string{verb}, APIGroups: []string{group}, Resources: []string{resource}}
	}
	grant := func(name string, rules ...rbacv1.PolicyRule) {
		servertest.Put(t, c.store, &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "r-" + name}, Rules: rules},
			&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "b-" + name}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: "r-" + name},
				Subjects: []rbacv1.Subject{{Kind: "User", Name: name}}})
	}
	grant("reader", rule("get", "pods"))
	grant("escalator", rule("escalate", "roles"))
	grant("binder", rule("bind", "roles"))
	role := func(rules ...rbacv1.PolicyRule) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "new"}, Rules: rules}
	}
	binding := func(name string) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "new"}, RoleRef: rbacv1.RoleRef{Kind: "Role", Name: name}}
	}
	const text = "is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
	for _, tc := range []struct {
		what, who string
		now, old  api.Object
		want      string
	}{
		{"own rule", "reader", role(rule("get", "pods")), nil, ""},
		{"another rule", "reader", role(rule("delete", "pods")), nil, text},
		{"escalate", "escalator", role(rule("delete", "pods")), nil, ""},
		{"only labels", "reader", role(rule("delete", "pods")), role(rule("delete", "pods")), ""},
		{"bind own", "reader", binding("r-reader"), nil, ""},
		{"bind another", "reader", binding("r-escalator"), nil, "not currently held"},
		{"bind by verb", "binder", binding("r-escalator"), nil, ""},
		{"bind nothing", "reader", binding("absent"), nil, "not found"},
		{"aggregate", "reader", &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "x"}, AggregationRule: &rbacv1.AggregationRule{}}, nil, "must have cluster-admin privileges to use an aggregationRule"},
	} {
		op := rest.OpCreate
		if tc.old != nil {
			op = rest.OpUpdate
		}
		refused(t, tc.what, c.ask(&rest.Admitting{User: &authn.User{Name: tc.who}, Operation: op, Object: tc.now, Old: tc.old}), tc.want)
	}
	master := &authn.User{Name: "root", Groups: []string{authn.Masters}}
	refused(t, "masters", c.ask(&rest.Admitting{User: master, Operation: rest.OpCreate, Object: role(rule("*", "*"))}), "")
}

func TestNodeRestriction(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	kubelet := &authn.User{Name: "system:node:n1", Groups: []string{authn.Nodes}}
	on := func(name, node string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "uid-p"}, Spec: corev1.PodSpec{NodeName: node}}
	}
	mine := on("mine", "n1")
	mine.Spec.Volumes = []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "t"}}}}}}}
	servertest.Put(t, c.store, mine, on("theirs", "n2"), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "uid-n"}})
	mirror := func(node string, change func(*corev1.Pod)) *corev1.Pod {
		p := on("m", node)
		p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
		if change != nil {
			change(p)
		}
		return p
	}
	yes := true
	owner := func(uid string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n1", Controller: &yes}}
			p.OwnerReferences[0].UID = types.UID("uid-" + uid)
		}
	}
	node := func(name string, labels map[string]string, taints ...corev1.Taint) *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}, Spec: corev1.NodeSpec{Taints: taints}}
	}
	token := func(pod, uid string) *authenticationv1.TokenRequest {
		r := &authenticationv1.TokenRequest{}
		if pod != "" {
			r.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod}
			r.Spec.BoundObjectRef.UID = types.UID(uid)
		}
		return r
	}
	sa := api.Key{Namespace: "default", Name: "default"}
	lease := func(ns, name string) *coordinationv1.Lease {
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}}
	}
	for _, tc := range []struct {
		what string
		a    rest.Admitting
		want string
	}{
		{"mirror pod", rest.Admitting{Operation: rest.OpCreate, Object: mirror("n1", nil)}, "with an owner reference set to itself"},
		{"mirror pod with owner", rest.Admitting{Operation: rest.OpCreate, Object: mirror("n1", owner("n"))}, ""},
		{"mirror pod with another owner", rest.Admitting{Operation: rest.OpCreate, Object: mirror("n1", owner("x"))}, "UID mismatch"},
		{"mirror pod elsewhere", rest.Admitting{Operation: rest.OpCreate, Object: mirror("n2", owner("n"))}, "spec.nodeName set to itself"},
		{"mirror pod with a secret", rest.Admitting{Operation: rest.OpCreate, Object: mirror("n1", func(p *corev1.Pod) {
			owner("n")(p)
			p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "s"}}}}
		})}, "a mirror pod may not reference secrets"},
		{"mirror pod with an account", rest.Admitting{Operation: rest.OpCreate, Object: mirror("n1", func(p *corev1.Pod) { p.Spec.ServiceAccountName = "x" })}, "a mirror pod may not reference service accounts"},
		{"plain pod", rest.Admitting{Operation: rest.OpCreate, Object: on("p", "n1")}, "can only create mirror pods"},
		{"delete own", rest.Admitting{Operation: rest.OpDelete, Kind: api.PodKind, Old: on("mine", "n1")}, ""},
		{"delete another", rest.Admitting{Operation: rest.OpDelete, Kind: api.PodKind, Old: on("theirs", "n2")}, "can only delete pods"},
		{"status of own", rest.Admitting{Operation: rest.OpUpdate, Sub: "status", Object: on("mine", "n1"), Old: on("mine", "n1")}, ""},
		{"status of another", rest.Admitting{Operation: rest.OpUpdate, Sub: "status", Object: on("theirs", "n2"), Old: on("theirs", "n2")}, "can only update pod status"},
		{"update own", rest.Admitting{Operation: rest.OpUpdate, Object: on("mine", "n1"), Old: on("mine", "n1")}, "can only create and delete mirror pods"},
		{"own node", rest.Admitting{Operation: rest.OpCreate, Object: node("n1", map[string]string{"kubernetes.io/hostname": "x", "example.org/a": "b", "node.kubernetes.io/b": "c"})}, ""},
		{"another node", rest.Admitting{Operation: rest.OpCreate, Object: node("n2", nil)}, "is not allowed to modify node"},
		{"restricted label", rest.Admitting{Operation: rest.OpCreate, Object: node("n1", map[string]string{"node-restriction.kubernetes.io/a": "b"})}, "is not allowed to set the following labels: node-restriction.kubernetes.io/a"},
		{"role label", rest.Admitting{Operation: rest.OpUpdate, Object: node("n1", map[string]string{"node-role.kubernetes.io/x": ""}), Old: node("n1", nil)}, "is not allowed to modify labels"},
		{"label that was there", rest.Admitting{Operation: rest.OpUpdate, Object: node("n1", map[string]string{"node-role.kubernetes.io/x": ""}), Old: node("n1", map[string]string{"node-role.kubernetes.io/x": ""})}, ""},
		{"taints", rest.Admitting{Operation: rest.OpUpdate, Object: node("n1", nil), Old: node("n1", nil, corev1.Taint{Key: "a"})}, "is not allowed to modify taints"},
		{"own lease", rest.Admitting{Operation: rest.OpCreate, Object: lease("kube-node-lease", "n1")}, ""},
		{"another lease", rest.Admitting{Operation: rest.OpCreate, Object: lease("kube-node-lease", "n2")}, "same name as the requesting node"},
		{"lease elsewhere", rest.Admitting{Operation: rest.OpCreate, Object: lease("default", "n1")}, "can only access leases"},
		{"token of own pod", rest.Admitting{Operation: rest.OpCreate, Kind: api.ServiceAccountKind, Sub: "token", Key: sa, Object: token("mine", "uid-p")}, ""},
		{"token for an audience", rest.Admitting{Operation: rest.OpCreate, Kind: api.ServiceAccountKind, Sub: "token", Key: sa, Object: func() api.Object {
			r := token("mine", "uid-p")
			r.Spec.Audiences = []string{"vault"}
			return r
		}()}, `system:node:n1 is not authorized to request tokens for audience "vault"`},
		{"token of another pod", rest.Admitting{Operation: rest.OpCreate, Kind: api.ServiceAccountKind, Sub: "token", Key: sa, Object: token("theirs", "uid-p")}, "on a different node"},
		{"token of nothing", rest.Admitting{Operation: rest.OpCreate, Kind: api.ServiceAccountKind, Sub: "token", Key: sa, Object: token("", "")}, "not bound to a pod"},
		{"token of an old pod", rest.Admitting{Operation: rest.OpCreate, Kind: api.ServiceAccountKind, Sub: "token", Key: sa, Object: token("mine", "uid-q")}, "does not match the UID"},
	} {
		tc.a.User = kubelet
		if tc.a.Key.Name == "" && tc.a.Old != nil {
			tc.a.Key = api.KeyOf(tc.a.Old)
		}
		refused(t, tc.what, c.ask(&tc.a), tc.want)
	}
}

// A kubelet notes that it has made a volume of its local storage, lets go of a deleted one, and changes nothing else of it.
func TestNodeVolume(t *testing.T) {
	t.Parallel()
	c := newChain(t)
	volume := func(node, driver string, deleted bool) *corev1.PersistentVolume {
		v := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v", ResourceVersion: "7", Finalizers: []string{"a/b", claim.LocalData}}}
		v.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeAttributes: map[string]string{claim.LocalNode: node}}
		if deleted {
			v.DeletionTimestamp = &metav1.Time{Time: time.Unix(1, 0)}
		}
		return v
	}
	goes := func(v *corev1.PersistentVolume) { v.Finalizers = []string{"a/b"} }
	made := func(v *corev1.PersistentVolume) { v.Annotations = map[string]string{claim.LocalMade: "true"} }
	for _, tc := range []struct {
		what   string
		old    *corev1.PersistentVolume
		change func(*corev1.PersistentVolume)
		want   string
	}{
		{"its own", volume("n1", claim.LocalDriver, true), goes, ""},
		{"another node's", volume("n2", claim.LocalDriver, true), goes, "its own local storage"},
		{"another driver's", volume("n1", "disk", true), goes, "its own local storage"},
		{"one that lives", volume("n1", claim.LocalDriver, false), goes, "may only make the annotation"},
		{"it has made it", volume("n1", claim.LocalDriver, false), made, ""},
		{"it has made one that is deleted", volume("n1", claim.LocalDriver, true), made, ""},
		{"another node's is made", volume("n2", claim.LocalDriver, false), made, "its own local storage"},
		{"another annotation", volume("n1", claim.LocalDriver, false), func(v *corev1.PersistentVolume) {
			v.Annotations = map[string]string{claim.LocalMade: "true", "a": "b"}
		}, "may only make the annotation"},
		{"another value", volume("n1", claim.LocalDriver, false), func(v *corev1.PersistentVolume) {
			v.Annotations = map[string]string{claim.LocalMade: "false"}
		}, "may only make the annotation"},
		{"it was never made", func() *corev1.PersistentVolume {
			v := volume("n1", claim.LocalDriver, false)
			made(v)
			return v
		}(), func(v *corev1.PersistentVolume) { v.Annotations = nil }, "may only make the annotation"},
		{"another finalizer", volume("n1", claim.LocalDriver, true), func(v *corev1.PersistentVolume) { v.Finalizers = nil }, "may only make the annotation"},
		{"the policy too", volume("n1", claim.LocalDriver, true), func(v *corev1.PersistentVolume) {
			goes(v)
			v.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
		}, "may only make the annotation"},
		{"a label too", volume("n1", claim.LocalDriver, true), func(v *corev1.PersistentVolume) {
			goes(v)
			v.Labels = map[string]string{"a": "b"}
		}, "may only make the annotation"},
	} {
		now := tc.old.DeepCopy()
		tc.change(now)
		refused(t, tc.what, c.ask(&rest.Admitting{User: &authn.User{Name: "system:node:n1", Groups: []string{authn.Nodes}}, Operation: rest.OpUpdate,
			Key: api.KeyOf(now), Object: now, Old: tc.old}), tc.want)
	}
}

// What the operator configures comes before what objects do, and quotas come last.
func TestOrder(t *testing.T) {
	all := admission.All(admission.Deps{Store: servertest.Store(t), Configured: []rest.Admission{{Name: "configured"}}, Dynamic: []rest.Admission{{Name: "dynamic"}}})
	var last []string
	for _, p := range all[len(all)-3:] {
		last = append(last, p.Name)
	}
	if want := []string{"configured", "dynamic", "ResourceQuota"}; !slices.Equal(last, want) {
		t.Errorf("the last are %q, want %q", last, want)
	}
}
