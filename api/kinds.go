package api

import (
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	batchv1 "k8s.io/api/batch/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
)

const (
	apps           = "apps"
	authentication = "authentication.k8s.io"
	authorization  = "authorization.k8s.io"
	rbac           = "rbac.authorization.k8s.io"
)

// The stored kinds. Adding one: doc/checklists/kind.md.
var (
	NamespaceKind = define[corev1.Namespace, corev1.NamespaceList](Kind{
		Version: "v1", Kind: "Namespace", Plural: "namespaces", Short: []string{"ns"}})
	NodeKind = define[corev1.Node, corev1.NodeList](Kind{
		Version: "v1", Kind: "Node", Plural: "nodes", Short: []string{"no"}, Prefix: "minions"})
	PodKind = define[corev1.Pod, corev1.PodList](Kind{
		Version: "v1", Kind: "Pod", Plural: "pods", Short: []string{"po"}, Categories: []string{"all"}, Namespaced: true})
	ServiceKind = define[corev1.Service, corev1.ServiceList](Kind{
		Version: "v1", Kind: "Service", Plural: "services", Short: []string{"svc"}, Categories: []string{"all"}, Namespaced: true, Prefix: "services/specs"})
	EndpointsKind = define[corev1.Endpoints, corev1.EndpointsList](Kind{
		Version: "v1", Kind: "Endpoints", Plural: "endpoints", Short: []string{"ep"}, Namespaced: true, Prefix: "services/endpoints"})
	ConfigMapKind = define[corev1.ConfigMap, corev1.ConfigMapList](Kind{
		Version: "v1", Kind: "ConfigMap", Plural: "configmaps", Short: []string{"cm"}, Namespaced: true})
	SecretKind = define[corev1.Secret, corev1.SecretList](Kind{
		Version: "v1", Kind: "Secret", Plural: "secrets", Namespaced: true})
	ServiceAccountKind = define[corev1.ServiceAccount, corev1.ServiceAccountList](Kind{
		Version: "v1", Kind: "ServiceAccount", Plural: "serviceaccounts", Short: []string{"sa"}, Namespaced: true})
	EventKind = define[corev1.Event, corev1.EventList](Kind{
		Version: "v1", Kind: "Event", Plural: "events", Short: []string{"ev"}, Namespaced: true})
	DeploymentKind = define[appsv1.Deployment, appsv1.DeploymentList](Kind{
		Group: apps, Version: "v1", Kind: "Deployment", Plural: "deployments", Short: []string{"deploy"}, Categories: []string{"all"}, Namespaced: true})
	ReplicaSetKind = define[appsv1.ReplicaSet, appsv1.ReplicaSetList](Kind{
		Group: apps, Version: "v1", Kind: "ReplicaSet", Plural: "replicasets", Short: []string{"rs"}, Categories: []string{"all"}, Namespaced: true})
	DaemonSetKind = define[appsv1.DaemonSet, appsv1.DaemonSetList](Kind{
		Group: apps, Version: "v1", Kind: "DaemonSet", Plural: "daemonsets", Short: []string{"ds"}, Categories: []string{"all"}, Namespaced: true})
	ControllerRevisionKind = define[appsv1.ControllerRevision, appsv1.ControllerRevisionList](Kind{
		Group: apps, Version: "v1", Kind: "ControllerRevision", Plural: "controllerrevisions", Namespaced: true})
	JobKind = define[batchv1.Job, batchv1.JobList](Kind{
		Group: "batch", Version: "v1", Kind: "Job", Plural: "jobs", Categories: []string{"all"}, Namespaced: true})
	LeaseKind = define[coordinationv1.Lease, coordinationv1.LeaseList](Kind{
		Group: "coordination.k8s.io", Version: "v1", Kind: "Lease", Plural: "leases", Namespaced: true})
	EndpointSliceKind = define[discoveryv1.EndpointSlice, discoveryv1.EndpointSliceList](Kind{
		Group: "discovery.k8s.io", Version: "v1", Kind: "EndpointSlice", Plural: "endpointslices", Namespaced: true})
	RoleKind = define[rbacv1.Role, rbacv1.RoleList](Kind{
		Group: rbac, Version: "v1", Kind: "Role", Plural: "roles", Namespaced: true})
	RoleBindingKind = define[rbacv1.RoleBinding, rbacv1.RoleBindingList](Kind{
		Group: rbac, Version: "v1", Kind: "RoleBinding", Plural: "rolebindings", Namespaced: true})
	ClusterRoleKind = define[rbacv1.ClusterRole, rbacv1.ClusterRoleList](Kind{
		Group: rbac, Version: "v1", Kind: "ClusterRole", Plural: "clusterroles"})
	ClusterRoleBindingKind = define[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](Kind{
		Group: rbac, Version: "v1", Kind: "ClusterRoleBinding", Plural: "clusterrolebindings"})
)

// The kinds that are only sent: subresource bodies and reviews.
var (
	BindingKind = virtual[corev1.Binding](Kind{
		Version: "v1", Kind: "Binding", Plural: "bindings", Namespaced: true})
	EvictionKind = virtual[policyv1.Eviction](Kind{
		Group: "policy", Version: "v1", Kind: "Eviction", Plural: "evictions", Namespaced: true})
	ScaleKind = virtual[autoscalingv1.Scale](Kind{
		Group: "autoscaling", Version: "v1", Kind: "Scale", Plural: "scales", Namespaced: true})
	TokenRequestKind = virtual[authenticationv1.TokenRequest](Kind{
		Group: authentication, Version: "v1", Kind: "TokenRequest", Plural: "tokenrequests", Namespaced: true})
	TokenReviewKind = virtual[authenticationv1.TokenReview](Kind{
		Group: authentication, Version: "v1", Kind: "TokenReview", Plural: "tokenreviews"})
	SelfSubjectReviewKind = virtual[authenticationv1.SelfSubjectReview](Kind{
		Group: authentication, Version: "v1", Kind: "SelfSubjectReview", Plural: "selfsubjectreviews"})
	SubjectAccessReviewKind = virtual[authorizationv1.SubjectAccessReview](Kind{
		Group: authorization, Version: "v1", Kind: "SubjectAccessReview", Plural: "subjectaccessreviews"})
	LocalSubjectAccessReviewKind = virtual[authorizationv1.LocalSubjectAccessReview](Kind{
		Group: authorization, Version: "v1", Kind: "LocalSubjectAccessReview", Plural: "localsubjectaccessreviews", Namespaced: true})
	SelfSubjectAccessReviewKind = virtual[authorizationv1.SelfSubjectAccessReview](Kind{
		Group: authorization, Version: "v1", Kind: "SelfSubjectAccessReview", Plural: "selfsubjectaccessreviews"})
	SelfSubjectRulesReviewKind = virtual[authorizationv1.SelfSubjectRulesReview](Kind{
		Group: authorization, Version: "v1", Kind: "SelfSubjectRulesReview", Plural: "selfsubjectrulesreviews"})
)

// stored and sent are read-only after program start.
var (
	stored = []*Kind{
		NamespaceKind, NodeKind, PodKind, ServiceKind, EndpointsKind, ConfigMapKind, SecretKind,
		ServiceAccountKind, EventKind, DeploymentKind, ReplicaSetKind, DaemonSetKind,
		ControllerRevisionKind, JobKind, LeaseKind, EndpointSliceKind, RoleKind, RoleBindingKind,
		ClusterRoleKind, ClusterRoleBindingKind,
	}
	sent = []*Kind{
		BindingKind, EvictionKind, ScaleKind, TokenRequestKind, TokenReviewKind, SelfSubjectReviewKind,
		SubjectAccessReviewKind, LocalSubjectAccessReviewKind, SelfSubjectAccessReviewKind,
		SelfSubjectRulesReviewKind,
	}
	byType = index(append(append([]*Kind(nil), stored...), sent...))
)

// Stored returns the built-in kinds that live in etcd.
func Stored() []*Kind { return append([]*Kind(nil), stored...) }
