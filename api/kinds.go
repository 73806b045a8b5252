package api

import (
	"slices"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	storagemigrationv1 "k8s.io/api/storagemigration/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

const (
	admissionregistration = "admissionregistration.k8s.io"
	apps                  = "apps"
	authentication        = "authentication.k8s.io"
	authorization         = "authorization.k8s.io"
	certificates          = "certificates.k8s.io"
	dra                   = "resource.k8s.io"
	flowcontrol           = "flowcontrol.apiserver.k8s.io"
	networking            = "networking.k8s.io"
	rbac                  = "rbac.authorization.k8s.io"
	resourceMetrics       = "metrics.k8s.io"
	storage               = "storage.k8s.io"
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
	ReplicationControllerKind = define[corev1.ReplicationController, corev1.ReplicationControllerList](Kind{
		Version: "v1", Kind: "ReplicationController", Plural: "replicationcontrollers", Short: []string{"rc"}, Categories: []string{"all"}, Namespaced: true, Prefix: "controllers"})
	PodTemplateKind = define[corev1.PodTemplate, corev1.PodTemplateList](Kind{
		Version: "v1", Kind: "PodTemplate", Plural: "podtemplates", Namespaced: true})
	LimitRangeKind = define[corev1.LimitRange, corev1.LimitRangeList](Kind{
		Version: "v1", Kind: "LimitRange", Plural: "limitranges", Short: []string{"limits"}, Namespaced: true})
	ResourceQuotaKind = define[corev1.ResourceQuota, corev1.ResourceQuotaList](Kind{
		Version: "v1", Kind: "ResourceQuota", Plural: "resourcequotas", Short: []string{"quota"}, Namespaced: true})
	PersistentVolumeKind = define[corev1.PersistentVolume, corev1.PersistentVolumeList](Kind{
		Version: "v1", Kind: "PersistentVolume", Plural: "persistentvolumes", Short: []string{"pv"}})
	PersistentVolumeClaimKind = define[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](Kind{
		Version: "v1", Kind: "PersistentVolumeClaim", Plural: "persistentvolumeclaims", Short: []string{"pvc"}, Namespaced: true})
	StatefulSetKind = define[appsv1.StatefulSet, appsv1.StatefulSetList](Kind{
		Group: apps, Version: "v1", Kind: "StatefulSet", Plural: "statefulsets", Short: []string{"sts"}, Categories: []string{"all"}, Namespaced: true})
	CronJobKind = define[batchv1.CronJob, batchv1.CronJobList](Kind{
		Group: "batch", Version: "v1", Kind: "CronJob", Plural: "cronjobs", Short: []string{"cj"}, Categories: []string{"all"}, Namespaced: true})
	HorizontalPodAutoscalerKind = define[autoscalingv2.HorizontalPodAutoscaler, autoscalingv2.HorizontalPodAutoscalerList](Kind{
		Group: "autoscaling", Version: "v2", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers", Short: []string{"hpa"}, Categories: []string{"all"}, Namespaced: true})
	PodDisruptionBudgetKind = define[policyv1.PodDisruptionBudget, policyv1.PodDisruptionBudgetList](Kind{
		Group: "policy", Version: "v1", Kind: "PodDisruptionBudget", Plural: "poddisruptionbudgets", Short: []string{"pdb"}, Namespaced: true})
	IngressKind = define[networkingv1.Ingress, networkingv1.IngressList](Kind{
		Group: networking, Version: "v1", Kind: "Ingress", Plural: "ingresses", Short: []string{"ing"}, Namespaced: true, Prefix: "ingress"})
	IngressClassKind = define[networkingv1.IngressClass, networkingv1.IngressClassList](Kind{
		Group: networking, Version: "v1", Kind: "IngressClass", Plural: "ingressclasses"})
	NetworkPolicyKind = define[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](Kind{
		Group: networking, Version: "v1", Kind: "NetworkPolicy", Plural: "networkpolicies", Short: []string{"netpol"}, Namespaced: true})
	IPAddressKind = define[networkingv1.IPAddress, networkingv1.IPAddressList](Kind{
		Group: networking, Version: "v1", Kind: "IPAddress", Plural: "ipaddresses", Short: []string{"ip"}})
	ServiceCIDRKind = define[networkingv1.ServiceCIDR, networkingv1.ServiceCIDRList](Kind{
		Group: networking, Version: "v1", Kind: "ServiceCIDR", Plural: "servicecidrs"})
	PriorityClassKind = define[schedulingv1.PriorityClass, schedulingv1.PriorityClassList](Kind{
		Group: "scheduling.k8s.io", Version: "v1", Kind: "PriorityClass", Plural: "priorityclasses", Short: []string{"pc"}})
	RuntimeClassKind = define[nodev1.RuntimeClass, nodev1.RuntimeClassList](Kind{
		Group: "node.k8s.io", Version: "v1", Kind: "RuntimeClass", Plural: "runtimeclasses"})
	StorageClassKind = define[storagev1.StorageClass, storagev1.StorageClassList](Kind{
		Group: storage, Version: "v1", Kind: "StorageClass", Plural: "storageclasses", Short: []string{"sc"}})
	CSIDriverKind = define[storagev1.CSIDriver, storagev1.CSIDriverList](Kind{
		Group: storage, Version: "v1", Kind: "CSIDriver", Plural: "csidrivers"})
	CSINodeKind = define[storagev1.CSINode, storagev1.CSINodeList](Kind{
		Group: storage, Version: "v1", Kind: "CSINode", Plural: "csinodes"})
	CSIStorageCapacityKind = define[storagev1.CSIStorageCapacity, storagev1.CSIStorageCapacityList](Kind{
		Group: storage, Version: "v1", Kind: "CSIStorageCapacity", Plural: "csistoragecapacities", Namespaced: true})
	VolumeAttachmentKind = define[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList](Kind{
		Group: storage, Version: "v1", Kind: "VolumeAttachment", Plural: "volumeattachments"})
	VolumeAttributesClassKind = define[storagev1.VolumeAttributesClass, storagev1.VolumeAttributesClassList](Kind{
		Group: storage, Version: "v1", Kind: "VolumeAttributesClass", Plural: "volumeattributesclasses", Short: []string{"vac"}})
	CertificateSigningRequestKind = define[certificatesv1.CertificateSigningRequest, certificatesv1.CertificateSigningRequestList](Kind{
		Group: certificates, Version: "v1", Kind: "CertificateSigningRequest", Plural: "certificatesigningrequests", Short: []string{"csr"}})
	ClusterTrustBundleKind = define[certificatesv1.ClusterTrustBundle, certificatesv1.ClusterTrustBundleList](Kind{
		Group: certificates, Version: "v1", Kind: "ClusterTrustBundle", Plural: "clustertrustbundles"})
	PodCertificateRequestKind = define[certificatesv1.PodCertificateRequest, certificatesv1.PodCertificateRequestList](Kind{
		Group: certificates, Version: "v1", Kind: "PodCertificateRequest", Plural: "podcertificaterequests", Namespaced: true})
	MutatingWebhookConfigurationKind = define[admissionregistrationv1.MutatingWebhookConfiguration, admissionregistrationv1.MutatingWebhookConfigurationList](Kind{
		Group: admissionregistration, Version: "v1", Kind: "MutatingWebhookConfiguration", Plural: "mutatingwebhookconfigurations", Categories: []string{"api-extensions"}})
	ValidatingWebhookConfigurationKind = define[admissionregistrationv1.ValidatingWebhookConfiguration, admissionregistrationv1.ValidatingWebhookConfigurationList](Kind{
		Group: admissionregistration, Version: "v1", Kind: "ValidatingWebhookConfiguration", Plural: "validatingwebhookconfigurations", Categories: []string{"api-extensions"}})
	MutatingAdmissionPolicyKind = define[admissionregistrationv1.MutatingAdmissionPolicy, admissionregistrationv1.MutatingAdmissionPolicyList](Kind{
		Group: admissionregistration, Version: "v1", Kind: "MutatingAdmissionPolicy", Plural: "mutatingadmissionpolicies", Categories: []string{"api-extensions"}})
	MutatingAdmissionPolicyBindingKind = define[admissionregistrationv1.MutatingAdmissionPolicyBinding, admissionregistrationv1.MutatingAdmissionPolicyBindingList](Kind{
		Group: admissionregistration, Version: "v1", Kind: "MutatingAdmissionPolicyBinding", Plural: "mutatingadmissionpolicybindings", Categories: []string{"api-extensions"}})
	ValidatingAdmissionPolicyKind = define[admissionregistrationv1.ValidatingAdmissionPolicy, admissionregistrationv1.ValidatingAdmissionPolicyList](Kind{
		Group: admissionregistration, Version: "v1", Kind: "ValidatingAdmissionPolicy", Plural: "validatingadmissionpolicies", Categories: []string{"api-extensions"}})
	ValidatingAdmissionPolicyBindingKind = define[admissionregistrationv1.ValidatingAdmissionPolicyBinding, admissionregistrationv1.ValidatingAdmissionPolicyBindingList](Kind{
		Group: admissionregistration, Version: "v1", Kind: "ValidatingAdmissionPolicyBinding", Plural: "validatingadmissionpolicybindings", Categories: []string{"api-extensions"}})
	FlowSchemaKind = define[flowcontrolv1.FlowSchema, flowcontrolv1.FlowSchemaList](Kind{
		Group: flowcontrol, Version: "v1", Kind: "FlowSchema", Plural: "flowschemas"})
	PriorityLevelConfigurationKind = define[flowcontrolv1.PriorityLevelConfiguration, flowcontrolv1.PriorityLevelConfigurationList](Kind{
		Group: flowcontrol, Version: "v1", Kind: "PriorityLevelConfiguration", Plural: "prioritylevelconfigurations"})
	DeviceClassKind = define[resourcev1.DeviceClass, resourcev1.DeviceClassList](Kind{
		Group: dra, Version: "v1", Kind: "DeviceClass", Plural: "deviceclasses"})
	DeviceTaintRuleKind = define[resourcev1.DeviceTaintRule, resourcev1.DeviceTaintRuleList](Kind{
		Group: dra, Version: "v1", Kind: "DeviceTaintRule", Plural: "devicetaintrules"})
	ResourceClaimKind = define[resourcev1.ResourceClaim, resourcev1.ResourceClaimList](Kind{
		Group: dra, Version: "v1", Kind: "ResourceClaim", Plural: "resourceclaims", Namespaced: true})
	ResourceClaimTemplateKind = define[resourcev1.ResourceClaimTemplate, resourcev1.ResourceClaimTemplateList](Kind{
		Group: dra, Version: "v1", Kind: "ResourceClaimTemplate", Plural: "resourceclaimtemplates", Namespaced: true})
	ResourceSliceKind = define[resourcev1.ResourceSlice, resourcev1.ResourceSliceList](Kind{
		Group: dra, Version: "v1", Kind: "ResourceSlice", Plural: "resourceslices"})
	StorageVersionMigrationKind = define[storagemigrationv1.StorageVersionMigration, storagemigrationv1.StorageVersionMigrationList](Kind{
		Group: "storagemigration.k8s.io", Version: "v1", Kind: "StorageVersionMigration", Plural: "storageversionmigrations"})
	APIServiceKind = define[apiregistrationv1.APIService, apiregistrationv1.APIServiceList](Kind{
		Group: "apiregistration.k8s.io", Version: "v1", Kind: "APIService", Plural: "apiservices", Categories: []string{"api-extensions"},
		Prefix: "apiregistration.k8s.io/apiservices", StoredJSON: true})
	CustomResourceDefinitionKind = define[apiextensionsv1.CustomResourceDefinition, apiextensionsv1.CustomResourceDefinitionList](Kind{
		Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition", Plural: "customresourcedefinitions", Short: []string{"crd", "crds"},
		Categories: []string{"api-extensions"}, Prefix: "apiextensions.k8s.io/customresourcedefinitions", StoredJSON: true})
)

// The kinds that are only sent: subresource bodies, reviews and what is made when somebody asks.
var (
	ComponentStatusKind = define[corev1.ComponentStatus, corev1.ComponentStatusList](Kind{
		Version: "v1", Kind: "ComponentStatus", Plural: "componentstatuses", Short: []string{"cs"}})
	NodeMetricsKind = define[metricsv1beta1.NodeMetrics, metricsv1beta1.NodeMetricsList](Kind{
		Group: resourceMetrics, Version: "v1beta1", Kind: "NodeMetrics", Plural: "nodes"})
	PodMetricsKind = define[metricsv1beta1.PodMetrics, metricsv1beta1.PodMetricsList](Kind{
		Group: resourceMetrics, Version: "v1beta1", Kind: "PodMetrics", Plural: "pods", Namespaced: true})
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
		ServiceAccountKind, EventKind,
		ReplicationControllerKind, PodTemplateKind, LimitRangeKind, ResourceQuotaKind, PersistentVolumeKind, PersistentVolumeClaimKind,
		DeploymentKind, ReplicaSetKind, DaemonSetKind, StatefulSetKind, ControllerRevisionKind,
		JobKind, CronJobKind,
		HorizontalPodAutoscalerKind,
		IngressKind, IngressClassKind, NetworkPolicyKind, IPAddressKind, ServiceCIDRKind,
		PodDisruptionBudgetKind,
		LeaseKind,
		EndpointSliceKind,
		RoleKind, RoleBindingKind, ClusterRoleKind, ClusterRoleBindingKind,
		PriorityClassKind, RuntimeClassKind,
		StorageClassKind, CSIDriverKind, CSINodeKind, CSIStorageCapacityKind, VolumeAttachmentKind, VolumeAttributesClassKind,
		CertificateSigningRequestKind, ClusterTrustBundleKind, PodCertificateRequestKind,
		FlowSchemaKind, PriorityLevelConfigurationKind,
		MutatingWebhookConfigurationKind, ValidatingWebhookConfigurationKind, ValidatingAdmissionPolicyKind,
		ValidatingAdmissionPolicyBindingKind, MutatingAdmissionPolicyKind, MutatingAdmissionPolicyBindingKind,
		DeviceClassKind, DeviceTaintRuleKind, ResourceClaimKind, ResourceClaimTemplateKind, ResourceSliceKind,
		StorageVersionMigrationKind, APIServiceKind, CustomResourceDefinitionKind,
	}
	sent = []*Kind{
		ComponentStatusKind, NodeMetricsKind, PodMetricsKind,
		BindingKind, EvictionKind, ScaleKind, TokenRequestKind, TokenReviewKind, SelfSubjectReviewKind,
		SubjectAccessReviewKind, LocalSubjectAccessReviewKind, SelfSubjectAccessReviewKind,
		SelfSubjectRulesReviewKind,
	}
	byType = index(slices.Concat(stored, sent, viewed))
)

// Stored returns the built-in kinds that live in etcd.
func Stored() []*Kind { return append([]*Kind(nil), stored...) }
