package authz

import (
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/apiserver/authn"
)

const (
	bootstrapping = "kubernetes.io/bootstrapping"
	defaults      = "rbac-defaults"
	aggregateTo   = "rbac.authorization.k8s.io/aggregate-to-"
	controller    = "system:controller:"
	metricsReader = "system:aggregated-metrics-reader" // metrics-server's: who may see pods may see what they use
)

// namespaceRoleTable are the Roles that every cluster has; each name follows its namespace.
const namespaceRoleTable = `
kube-public system:controller:bootstrap-signer
	get,list,watch - configmaps
	update - configmaps cluster-info
	create,patch,update -,events.k8s.io events
kube-system extension-apiserver-authentication-reader
	get,list,watch - configmaps extension-apiserver-authentication
kube-system system::leader-locking-kube-controller-manager
	create,get,list,update,watch coordination.k8s.io leases
	create,get,list,update,watch coordination.k8s.io leasecandidates
kube-system system::leader-locking-kube-scheduler
	create,get,list,update,watch coordination.k8s.io leases
	create,get,list,update,watch coordination.k8s.io leasecandidates
kube-system system:controller:bootstrap-signer
	get,list,watch - secrets
kube-system system:controller:cloud-provider
	create,get,list,watch - configmaps
kube-system system:controller:token-cleaner
	delete,get,list,watch - secrets
	create,patch,update -,events.k8s.io events
`

// role is one entry of a table.
type role struct {
	name  string
	rules []rbacv1.PolicyRule
}

// parseRoles reads a table: the name of a role, then its rules, a line each and indented:
//
//	VERBS GROUPS RESOURCES [NAMES]    "-" is the core group
//	VERBS PATHS
//
// Lists are separated by commas.
func parseRoles(table string) (roles []role) {
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0:
		case !strings.HasPrefix(line, "\t"):
			roles = append(roles, role{name: strings.TrimSpace(line)})
		default:
			r := &roles[len(roles)-1]
			r.rules = append(r.rules, parseRule(fields))
		}
	}
	return roles
}

func parseRule(fields []string) rbacv1.PolicyRule {
	list := func(i int) []string {
		if i >= len(fields) {
			return nil
		}
		all := strings.Split(fields[i], ",")
		for j := range all {
			if all[j] == "-" {
				all[j] = ""
			}
		}
		return all
	}
	if len(fields) == 2 {
		return rbacv1.PolicyRule{Verbs: list(0), NonResourceURLs: list(1)}
	}
	return rbacv1.PolicyRule{Verbs: list(0), APIGroups: list(1), Resources: list(2), ResourceNames: list(3)}
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name,
		Labels:      map[string]string{bootstrapping: defaults},
		Annotations: map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}}
}

// whole is a role that is put together of those with the label of its name; it is itself a part of into.
func whole(name, into string) *rbacv1.ClusterRole {
	r := &rbacv1.ClusterRole{ObjectMeta: meta("", name), AggregationRule: &rbacv1.AggregationRule{
		ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{aggregateTo + name: "true"}}}}}
	if into != "" {
		r.Labels[aggregateTo+into] = "true"
	}
	return r
}

// ClusterRoles returns the cluster roles that every cluster has.
func ClusterRoles() []*rbacv1.ClusterRole {
	roles := []*rbacv1.ClusterRole{whole("admin", ""), whole("edit", "admin"), whole("view", "edit")}
	for _, r := range parseRoles(clusterRoleTable) {
		c := &rbacv1.ClusterRole{ObjectMeta: meta("", r.name), Rules: r.rules}
		if of, part := strings.CutPrefix(r.name, "system:aggregate-to-"); part {
			c.Labels[aggregateTo+of] = "true"
		}
		if r.name == metricsReader {
			for _, of := range []string{"view", "edit", "admin"} {
				c.Labels[aggregateTo+of] = "true"
			}
		}
		roles = append(roles, c)
	}
	for _, r := range parseRoles(controllerRoleTable) {
		roles = append(roles, &rbacv1.ClusterRole{ObjectMeta: meta("", controller+r.name), Rules: r.rules})
	}
	return roles
}

func to(kind string, names ...string) (ss []rbacv1.Subject) {
	for _, n := range names {
		ss = append(ss, rbacv1.Subject{Kind: kind, APIGroup: rbacv1.GroupName, Name: n})
	}
	return ss
}

func account(name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: name}
}

func clusterBinding(role string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", role), Subjects: subjects,
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}}
}

// ClusterRoleBindings returns the bindings of ClusterRoles that every cluster has.
func ClusterRoleBindings() []*rbacv1.ClusterRoleBinding {
	bindings := []*rbacv1.ClusterRoleBinding{
		clusterBinding("cluster-admin", to(rbacv1.GroupKind, authn.Masters)...),
		clusterBinding("system:monitoring", to(rbacv1.GroupKind, "system:monitoring")...),
		clusterBinding("system:discovery", to(rbacv1.GroupKind, authn.Authenticated)...),
		clusterBinding("system:basic-user", to(rbacv1.GroupKind, authn.Authenticated)...),
		clusterBinding("system:public-info-viewer", to(rbacv1.GroupKind, authn.Authenticated, authn.Unauthenticated)...),
		clusterBinding("system:service-account-issuer-discovery", to(rbacv1.GroupKind, authn.ServiceAccounts)...),
		clusterBinding("system:cluster-trust-bundle-discovery", to(rbacv1.GroupKind, authn.ServiceAccounts)...),
		clusterBinding("system:node-proxier", to(rbacv1.UserKind, "system:kube-proxy")...),
		clusterBinding("yare:network-policies", to(rbacv1.UserKind, "system:kube-proxy")...), // a node's rules have one identity
		clusterBinding("system:kube-controller-manager", to(rbacv1.UserKind, "system:kube-controller-manager")...),
		clusterBinding("system:kube-scheduler", to(rbacv1.UserKind, "system:kube-scheduler")...),
		clusterBinding("system:volume-scheduler", to(rbacv1.UserKind, "system:kube-scheduler")...),
		clusterBinding("system:kube-dns", account("kube-dns")),
		clusterBinding("system:node"),
	}
	for _, r := range parseRoles(controllerRoleTable) {
		bindings = append(bindings, clusterBinding(controller+r.name, account(r.name)))
	}
	return bindings
}

// Roles returns the Roles that every cluster has.
func Roles() (roles []*rbacv1.Role) {
	for _, r := range parseRoles(namespaceRoleTable) {
		namespace, name, _ := strings.Cut(r.name, " ")
		roles = append(roles, &rbacv1.Role{ObjectMeta: meta(namespace, name), Rules: r.rules})
	}
	return roles
}

// RoleBindings returns the RoleBindings that every cluster has.
func RoleBindings() []*rbacv1.RoleBinding {
	bind := func(namespace, name, role string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: meta(namespace, name), Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role}}
	}
	of := func(namespace, name string) *rbacv1.RoleBinding {
		return bind(namespace, controller+name, controller+name, account(name))
	}
	leader := func(program string, more ...rbacv1.Subject) *rbacv1.RoleBinding {
		name := "system::leader-locking-" + program
		subjects := append(to(rbacv1.UserKind, "system:"+program), account(program))
		return bind(metav1.NamespaceSystem, name, name, append(subjects, more...)...)
	}
	return []*rbacv1.RoleBinding{
		leader("kube-scheduler"), leader("kube-controller-manager", account("leader-election-controller")),
		bind(metav1.NamespaceSystem, "system::extension-apiserver-authentication-reader", "extension-apiserver-authentication-reader",
			to(rbacv1.UserKind, "system:kube-controller-manager", "system:kube-scheduler")...),
		of(metav1.NamespacePublic, "bootstrap-signer"), of(metav1.NamespaceSystem, "bootstrap-signer"),
		of(metav1.NamespaceSystem, "cloud-provider"), of(metav1.NamespaceSystem, "token-cleaner"),
	}
}
