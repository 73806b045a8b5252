package authz

import (
	rbacv1 "k8s.io/api/rbac/v1"
)

// controllerRoles are the roles of the controllers of this release, each bound to the service account in kube-system that
// bears its name, for controllers that run by themselves with upstream's credentials per controller.
func controllerRoles() []*rbacv1.ClusterRole {
	role := func(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
		return clusterRole(controller+name, rules...)
	}
	return []*rbacv1.ClusterRole{
		role("clusterrole-aggregation-controller", on(verbs("escalate", "get", "list", "patch", "update", "watch"), rbacv1.GroupName, "clusterroles")),
		role("cronjob-controller",
			on(verbs("get", "list", "update", "watch"), "batch", "cronjobs"), on(verbs("update"), "batch", "cronjobs/status", "cronjobs/finalizers"),
			on(verbs("create", "delete", "get", "list", "patch", "update", "watch"), "batch", "jobs"),
			on(verbs("delete", "list", "watch"), "", "pods"), recordEvents()),
		role("daemon-set-controller",
			on(read, "apps", "daemonsets"), on(verbs("update"), "apps", "daemonsets/status", "daemonsets/finalizers"),
			on(verbs("list", "watch"), "", "nodes"), on(verbs("create", "delete", "list", "patch", "watch"), "", "pods"),
			on(verbs("create"), "", "pods/binding"),
			on(verbs("create", "delete", "get", "list", "patch", "update", "watch"), "apps", "controllerrevisions"), recordEvents()),
		role("deployment-controller",
			on(verbs("get", "list", "update", "watch"), "apps", "deployments"), on(verbs("update"), "apps", "deployments/status", "deployments/finalizers"),
			on(verbs("create", "delete", "get", "list", "patch", "update", "watch"), "apps", "replicasets"),
			on(verbs("get", "list", "update", "watch"), "", "pods"), recordEvents()),
		role("disruption-controller",
			on(read, "apps", "deployments", "replicasets", "statefulsets"), on(read, "", "replicationcontrollers"),
			on(read, "policy", "poddisruptionbudgets"), on(verbs("update"), "policy", "poddisruptionbudgets/status"),
			on(verbs("patch", "update"), "", "pods/status"), on(verbs("get"), "*", "*/scale"), recordEvents()),
		role("endpoint-controller",
			on(read, "", "pods", "services"), on(verbs("create", "delete", "get", "list", "update"), "", "endpoints"),
			on(verbs("create"), "", "endpoints/restricted"), recordEvents()),
		role("endpointslice-controller",
			on(read, "", "nodes", "pods", "services"), on(verbs("update"), "", "services/finalizers"),
			on(verbs("create", "delete", "get", "list", "update"), "discovery.k8s.io", "endpointslices"),
			on(verbs("create"), "discovery.k8s.io", "endpointslices/restricted"), recordEvents()),
		role("generic-garbage-collector", on(verbs("delete", "get", "list", "patch", "update", "watch"), "*", "*"), recordEvents()),
		role("job-controller",
			on(verbs("get", "list", "patch", "update", "watch"), "batch", "jobs"), on(verbs("patch", "update"), "batch", "jobs/status"),
			on(verbs("update"), "batch", "jobs/finalizers"), on(verbs("create", "delete", "list", "patch", "watch"), "", "pods"), recordEvents()),
		role("namespace-controller",
			on(verbs("delete", "get", "list", "watch"), "", "namespaces"), on(verbs("update"), "", "namespaces/finalize", "namespaces/status"),
			on(verbs("delete", "deletecollection", "get", "list"), "*", "*")),
		role("node-controller",
			on(verbs("delete", "get", "list", "patch", "update"), "", "nodes"), on(verbs("patch", "update"), "", "nodes/status"),
			on(verbs("patch", "update"), "", "pods/status"), on(verbs("delete", "list"), "", "pods"), on(verbs("get"), "", "pods"), recordEvents()),
		role("pod-garbage-collector", on(verbs("delete", "list", "watch"), "", "pods"), on(verbs("get", "list"), "", "nodes"), on(verbs("patch"), "", "pods/status")),
		role("replicaset-controller",
			on(verbs("get", "list", "update", "watch"), "apps", "replicasets"), on(verbs("update"), "apps", "replicasets/status", "replicasets/finalizers"),
			on(verbs("create", "delete", "list", "patch", "watch"), "", "pods"), recordEvents()),
		role("replication-controller",
			on(verbs("get", "list", "update", "watch"), "", "replicationcontrollers"),
			on(verbs("update"), "", "replicationcontrollers/status", "replicationcontrollers/finalizers"),
			on(verbs("create", "delete", "list", "patch", "watch"), "", "pods"), recordEvents()),
		role("root-ca-cert-publisher", on(verbs("create", "update"), "", "configmaps"), recordEvents()),
		role("service-account-controller", on(verbs("create"), "", "serviceaccounts"), recordEvents()),
		role("statefulset-controller",
			on(verbs("create", "delete", "get", "list", "patch", "update", "watch"), "", "pods"), on(read, "apps", "statefulsets"),
			on(verbs("update"), "apps", "statefulsets/status", "statefulsets/finalizers"), on(verbs("update"), "", "pods/finalizers"),
			on(verbs("create", "delete", "get", "list", "patch", "update", "watch"), "apps", "controllerrevisions"),
			on(verbs("create", "delete", "get", "list", "update", "watch"), "", "persistentvolumeclaims"), recordEvents()),
		role("ttl-after-finished-controller", on(verbs("delete", "get", "list", "watch"), "batch", "jobs"), recordEvents()),
	}
}
