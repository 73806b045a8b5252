package authz

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/apiserver/authn"
)

// The roles that every cluster has, by upstream's names, so that what is written for Kubernetes finds them. They hold
// rules for kinds that this release does not serve as well: manifests bind them in the hope of later ones.

const (
	bootstrapping = "kubernetes.io/bootstrapping"
	defaults      = "rbac-defaults"
	aggregateTo   = "rbac.authorization.k8s.io/aggregate-to-"
	controller    = "system:controller:"
)

var (
	read  = []string{"get", "list", "watch"}
	write = []string{"create", "delete", "deletecollection", "patch", "update"}
	all   = []string{"*"}
)

// on is a rule for resources of one group.
func on(verbs []string, group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: verbs, APIGroups: []string{group}, Resources: resources}
}

// paths is a rule for requests outside the API.
func paths(verb string, urls ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: []string{verb}, NonResourceURLs: urls}
}

func verbs(vs ...string) []string { return vs }

// named restricts a rule to objects.
func named(r rbacv1.PolicyRule, names ...string) rbacv1.PolicyRule {
	r.ResourceNames = names
	return r
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name,
		Labels:      map[string]string{bootstrapping: defaults},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}}
}

func clusterRole(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: meta("", name), Rules: rules}
}

// part is a role whose rules go into another by the aggregation controller.
func part(of string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	r := clusterRole("system:aggregate-to-"+of, rules...)
	r.Labels[aggregateTo+of] = "true"
	return r
}

// whole is a role that is put together of those with the label of one of names; it is itself a part of into.
func whole(name, into string, of ...string) *rbacv1.ClusterRole {
	r := clusterRole(name)
	if into != "" {
		r.Labels[aggregateTo+into] = "true"
	}
	r.AggregationRule = &rbacv1.AggregationRule{}
	for _, n := range of {
		r.AggregationRule.ClusterRoleSelectors = append(r.AggregationRule.ClusterRoleSelectors,
			metav1.LabelSelector{MatchLabels: map[string]string{aggregateTo + n: "true"}})
	}
	return r
}

// ClusterRoles returns the cluster roles that every cluster has.
func ClusterRoles() []*rbacv1.ClusterRole {
	roles := []*rbacv1.ClusterRole{
		clusterRole("cluster-admin", on(all, "*", "*"), paths("*", "*")),
		clusterRole("system:discovery", paths("get", "/livez", "/readyz", "/healthz", "/version", "/version/", "/openapi", "/openapi/*", "/api", "/api/*", "/apis", "/apis/*")),
		clusterRole("system:basic-user",
			on(verbs("create"), "authorization.k8s.io", "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
			on(verbs("create"), "authentication.k8s.io", "selfsubjectreviews")),
		clusterRole("system:public-info-viewer", paths("get", "/livez", "/readyz", "/healthz", "/version", "/version/")),
		clusterRole("system:monitoring", paths("get", "/metrics", "/metrics/slis", "/livez", "/readyz", "/healthz", "/livez/*", "/readyz/*", "/healthz/*")),
		clusterRole("system:service-account-issuer-discovery", paths("get", "/.well-known/openid-configuration", "/openid/v1/jwks")),
		clusterRole("system:auth-delegator",
			on(verbs("create"), "authentication.k8s.io", "tokenreviews"), on(verbs("create"), "authorization.k8s.io", "subjectaccessreviews")),
		clusterRole("system:kubelet-api-admin",
			on(verbs("get", "list", "watch", "proxy"), "", "nodes"),
			on(all, "", "nodes/proxy", "nodes/log", "nodes/stats", "nodes/metrics", "nodes/configz", "nodes/healthz", "nodes/pods")),
		whole("admin", "", "admin", "edit", "view"),
		whole("edit", "admin", "edit", "view"),
		whole("view", "edit", "view"),
		part("admin",
			on(verbs("create"), "authorization.k8s.io", "localsubjectaccessreviews"),
			on(append(verbs("get", "list", "watch"), write...), rbacv1.GroupName, "roles", "rolebindings")),
		editRules(),
		viewRules(),
		nodeRole(),
		clusterRole("system:node-proxier",
			on(verbs("list", "watch"), "", "services", "endpoints"), on(verbs("get", "list", "watch"), "", "nodes"),
			on(verbs("list", "watch"), "discovery.k8s.io", "endpointslices"), recordEvents(), recordNewEvents(),
			on(verbs("list", "watch"), "networking.k8s.io", "servicecidrs")),
		clusterRole("system:kube-dns",
			on(verbs("list", "watch"), "", "endpoints", "services", "namespaces", "pods"),
			on(verbs("list", "watch"), "discovery.k8s.io", "endpointslices")),
		schedulerRole(),
		managerRole(),
	}
	return append(roles, controllerRoles()...)
}

func recordEvents() rbacv1.PolicyRule { return on(verbs("create", "patch", "update"), "", "events") }

func recordNewEvents() rbacv1.PolicyRule {
	return on(verbs("create", "patch", "update"), "events.k8s.io", "events")
}

// editRules lets a user work with everything in a namespace but roles.
func editRules() *rbacv1.ClusterRole {
	return part("edit",
		on(read, "", "pods/attach", "pods/proxy", "pods/exec", "pods/portforward", "secrets", "services/proxy"),
		on(verbs("impersonate"), "", "serviceaccounts"),
		on(write, "", "pods", "pods/attach", "pods/proxy", "pods/exec", "pods/portforward"),
		on(verbs("create"), "", "pods/eviction"),
		on(write, "", "replicationcontrollers", "replicationcontrollers/scale", "serviceaccounts", "services", "services/proxy",
			"persistentvolumeclaims", "configmaps", "secrets", "events"),
		on(verbs("create"), "", "serviceaccounts/token"),
		on(write, "apps", "statefulsets", "statefulsets/scale", "daemonsets", "deployments", "deployments/scale", "deployments/rollback", "replicasets", "replicasets/scale"),
		on(write, "autoscaling", "horizontalpodautoscalers"),
		on(write, "batch", "jobs", "cronjobs"),
		on(write, "policy", "poddisruptionbudgets"),
		on(write, "networking.k8s.io", "networkpolicies", "ingresses"),
		on(append(verbs("get", "list", "watch"), write...), "coordination.k8s.io", "leases"))
}

// viewRules lets a user see what is in a namespace, Secrets and roles excepted.
func viewRules() *rbacv1.ClusterRole {
	return part("view",
		on(read, "", "pods", "replicationcontrollers", "replicationcontrollers/scale", "serviceaccounts", "services", "services/status",
			"endpoints", "persistentvolumeclaims", "persistentvolumeclaims/status", "configmaps"),
		on(read, "", "limitranges", "resourcequotas", "bindings", "events", "pods/status", "resourcequotas/status", "namespaces/status",
			"replicationcontrollers/status", "pods/log"),
		on(read, "", "namespaces"),
		on(read, "discovery.k8s.io", "endpointslices"),
		on(read, "apps", "controllerrevisions", "statefulsets", "statefulsets/status", "statefulsets/scale", "daemonsets", "daemonsets/status",
			"deployments", "deployments/status", "deployments/scale", "replicasets", "replicasets/status", "replicasets/scale"),
		on(read, "autoscaling", "horizontalpodautoscalers", "horizontalpodautoscalers/status"),
		on(read, "batch", "jobs", "cronjobs", "cronjobs/status", "jobs/status"),
		on(read, "policy", "poddisruptionbudgets", "poddisruptionbudgets/status"),
		on(read, "networking.k8s.io", "networkpolicies", "ingresses", "ingresses/status"))
}

// nodeRole is bound to nobody: kubelets are authorized by Node. It is for clusters whose kubelets are foreign to it.
func nodeRole() *rbacv1.ClusterRole {
	return clusterRole("system:node",
		on(verbs("create"), "authentication.k8s.io", "tokenreviews"),
		on(verbs("create"), "authorization.k8s.io", "localsubjectaccessreviews", "subjectaccessreviews"),
		on(read, "", "services"),
		on(verbs("create", "get", "list", "watch"), "", "nodes"),
		on(verbs("patch", "update"), "", "nodes/status", "nodes"),
		recordEvents(),
		on(read, "", "pods"),
		on(verbs("create", "delete"), "", "pods"),
		on(verbs("patch", "update"), "", "pods/status"),
		on(verbs("create"), "", "pods/eviction"),
		on(read, "", "configmaps", "secrets"),
		on(verbs("get"), "", "persistentvolumeclaims", "persistentvolumes"),
		on(verbs("create"), "", "serviceaccounts/token"),
		on(verbs("create", "delete", "get", "patch", "update"), "coordination.k8s.io", "leases"))
}

func schedulerRole() *rbacv1.ClusterRole {
	return clusterRole("system:kube-scheduler",
		recordNewEvents(), recordEvents(),
		on(verbs("create"), "coordination.k8s.io", "leases"),
		named(on(verbs("get", "list", "update", "watch"), "coordination.k8s.io", "leases"), "kube-scheduler"),
		on(read, "", "nodes"),
		on(verbs("delete", "get", "list", "watch"), "", "pods"),
		on(verbs("create"), "", "bindings", "pods/binding"),
		on(verbs("patch", "update"), "", "pods/status"),
		on(read, "", "replicationcontrollers", "services", "namespaces", "persistentvolumes"),
		on(read, "apps", "replicasets", "statefulsets"),
		on(read, "policy", "poddisruptionbudgets"),
		on(verbs("get", "list", "watch", "update", "patch"), "", "persistentvolumeclaims"),
		on(verbs("create"), "authentication.k8s.io", "tokenreviews"),
		on(verbs("create"), "authorization.k8s.io", "subjectaccessreviews"),
		on(read, "storage.k8s.io", "csinodes", "csidrivers", "csistoragecapacities", "storageclasses", "volumeattachments"))
}

func managerRole() *rbacv1.ClusterRole {
	return clusterRole("system:kube-controller-manager",
		recordNewEvents(), recordEvents(),
		on(verbs("create"), "coordination.k8s.io", "leases"),
		named(on(verbs("get", "list", "update", "watch"), "coordination.k8s.io", "leases"), "kube-controller-manager"),
		on(verbs("create"), "", "secrets", "serviceaccounts"),
		on(verbs("delete"), "", "secrets"),
		on(verbs("get"), "", "namespaces", "secrets", "serviceaccounts", "configmaps"),
		on(verbs("update"), "", "secrets", "serviceaccounts"),
		on(verbs("create"), "authentication.k8s.io", "tokenreviews"),
		on(verbs("create"), "authorization.k8s.io", "subjectaccessreviews"),
		on(verbs("list", "watch"), "*", "*"),
		on(verbs("create"), "", "serviceaccounts/token"))
}

func to(kind string, names ...string) (ss []rbacv1.Subject) {
	for _, n := range names {
		ss = append(ss, rbacv1.Subject{Kind: kind, APIGroup: rbacv1.GroupName, Name: n})
	}
	return ss
}

func account(namespace, name string) []rbacv1.Subject {
	return []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}}
}

func clusterBinding(role string, subjects []rbacv1.Subject) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", role), Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}}
}

// ClusterRoleBindings returns the bindings of ClusterRoles that every cluster has.
func ClusterRoleBindings() []*rbacv1.ClusterRoleBinding {
	bindings := []*rbacv1.ClusterRoleBinding{
		clusterBinding("cluster-admin", to(rbacv1.GroupKind, authn.Masters)),
		clusterBinding("system:monitoring", to(rbacv1.GroupKind, "system:monitoring")),
		clusterBinding("system:discovery", to(rbacv1.GroupKind, authn.Authenticated)),
		clusterBinding("system:basic-user", to(rbacv1.GroupKind, authn.Authenticated)),
		clusterBinding("system:public-info-viewer", to(rbacv1.GroupKind, authn.Authenticated, authn.Unauthenticated)),
		clusterBinding("system:service-account-issuer-discovery", to(rbacv1.GroupKind, authn.ServiceAccounts)),
		clusterBinding("system:node-proxier", to(rbacv1.UserKind, "system:kube-proxy")),
		clusterBinding("system:kube-controller-manager", to(rbacv1.UserKind, "system:kube-controller-manager")),
		clusterBinding("system:kube-scheduler", to(rbacv1.UserKind, "system:kube-scheduler")),
		clusterBinding("system:kube-dns", account(metav1.NamespaceSystem, "kube-dns")),
		clusterBinding("system:node", nil),
	}
	for _, r := range controllerRoles() {
		bindings = append(bindings, clusterBinding(r.Name, account(metav1.NamespaceSystem, r.Name[len(controller):])))
	}
	return bindings
}

// Roles returns the Roles that every cluster has.
func Roles() []*rbacv1.Role {
	leader := func(name string) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: meta(metav1.NamespaceSystem, "system::leader-locking-"+name), Rules: []rbacv1.PolicyRule{
			on(verbs("watch"), "", "configmaps"),
			named(on(verbs("get", "update"), "", "configmaps"), name)}}
	}
	return []*rbacv1.Role{
		leader("kube-scheduler"), leader("kube-controller-manager"),
		{ObjectMeta: meta(metav1.NamespaceSystem, "extension-apiserver-authentication-reader"), Rules: []rbacv1.PolicyRule{
			named(on(read, "", "configmaps"), "extension-apiserver-authentication")}},
	}
}

// RoleBindings returns the RoleBindings that every cluster has.
func RoleBindings() []*rbacv1.RoleBinding {
	bind := func(name, role string, subjects []rbacv1.Subject) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: meta(metav1.NamespaceSystem, name), Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role}}
	}
	return []*rbacv1.RoleBinding{
		bind("system::leader-locking-kube-scheduler", "system::leader-locking-kube-scheduler",
			append(to(rbacv1.UserKind, "system:kube-scheduler"), account(metav1.NamespaceSystem, "kube-scheduler")...)),
		bind("system::leader-locking-kube-controller-manager", "system::leader-locking-kube-controller-manager",
			append(to(rbacv1.UserKind, "system:kube-controller-manager"), account(metav1.NamespaceSystem, "kube-controller-manager")...)),
		bind("system::extension-apiserver-authentication-reader", "extension-apiserver-authentication-reader",
			to(rbacv1.UserKind, "system:kube-controller-manager", "system:kube-scheduler")),
	}
}
