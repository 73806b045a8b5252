// Package builtin is the behaviour of Kubernetes' own kinds: one short declarative file each, with defaults,
// validation, print columns, selectable fields and special subresources. It replaces upstream's
// pkg/apis/*/{defaults,validation}, pkg/registry/* and pkg/printers.
//
// What a kind leaves out is done by package rest as Kubernetes does it. All is the list.
package builtin

import (
	"net/netip"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
	"github.com/yare-dev/yare/apiserver/usage"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
	"github.com/yare-dev/yare/store"
)

// Deps is what the kinds need from the rest of the server.
type Deps struct {
	Store *store.Store
	// Client writes through the whole pipeline as the server itself (system:masters); it is used while requests are served.
	Client client.Client
	// Tokens issues what serviceaccounts/token answers.
	Tokens *authn.Tokens
	// Verifier knows the tokens that TokenReview asks about; Tokens when nil.
	Verifier authn.Verifier
	// Authorizer answers access reviews and guards role writes against escalation.
	Authorizer *authz.RBAC
	// Access decides everything that requests are decided by; access reviews ask it. RBAC alone when nil.
	Access authz.Authorizer

	// CheckTypes says what does not fit the types in the expressions of a policy. nil: nobody does, or a controller elsewhere.
	CheckTypes func(*admissionv1.ValidatingAdmissionPolicy) []admissionv1.ExpressionWarning

	// Health is what ComponentStatus answers from. It may be nil.
	Health *run.Health

	// Services are the ranges of cluster addresses, one or one of each family, of which the first is what Services have that do not say.
	// The network address is never given out.
	Services []netip.Prefix
	// Pods are the ranges of pods' addresses, where they are known: warnings tell of what overlaps them.
	Pods []netip.Prefix
	// Reserved addresses of Services are given only to those that ask for them by name (kube-dns, kubernetes).
	Reserved []netip.Addr
	// NodePorts is the first and last node port; 30000-32767 when zero.
	NodePorts [2]int32
	// ServerName tells this API server from others over the same database.
	ServerName string

	// Usage says what nodes and pods use, for metrics.k8s.io. Nil: the group is not served.
	Usage *usage.Reader

	// Streams and proxies to kubelets, by kind: exec, attach, log, portforward, proxy.
	PodStreams, NodeStreams, ServiceStreams map[string]*rest.Subresource
}

// All returns every built-in kind.
func All(d Deps) []rest.Any {
	if d.Access == nil {
		d.Access = d.Authorizer
	}
	event := rest.Register(api.EventKind, events())
	hpa := rest.Register(api.HorizontalPodAutoscalerKind, horizontalPodAutoscalers())
	cel := &expressions{}
	return append(slices.Concat(reviews(d), metrics(d.Usage)),
		rest.Register(api.NamespaceKind, namespaces()),
		rest.Register(api.NodeKind, nodes(d)),
		rest.Register(api.PodKind, pods(d)),
		rest.Register(api.ServiceKind, services(d)),
		rest.Register(api.EndpointsKind, endpoints()),
		rest.Register(api.ConfigMapKind, configMaps()),
		rest.Register(api.SecretKind, secrets()),
		rest.Register(api.ServiceAccountKind, serviceAccounts(d)),
		event,
		rest.Register(api.ComponentStatusKind, componentStatuses(d.Health)),
		rest.Register(api.ReplicationControllerKind, replicationControllers()),
		rest.Register(api.PodTemplateKind, podTemplates()),
		rest.Register(api.LimitRangeKind, limitRanges()),
		rest.Register(api.ResourceQuotaKind, resourceQuotas()),
		rest.Register(api.PersistentVolumeKind, persistentVolumes()),
		rest.Register(api.PersistentVolumeClaimKind, persistentVolumeClaims()),
		rest.Register(api.DeploymentKind, deployments()),
		rest.Register(api.ReplicaSetKind, replicaSets()),
		rest.Register(api.DaemonSetKind, daemonSets()),
		rest.Register(api.StatefulSetKind, statefulSets()),
		rest.Register(api.ControllerRevisionKind, controllerRevisions()),
		rest.Register(api.JobKind, jobs()),
		rest.Register(api.CronJobKind, cronJobs()),
		hpa,
		rest.RegisterView(api.HorizontalPodAutoscalerV1Kind, hpa, &rest.View[*autoscalingv2.HorizontalPodAutoscaler]{}),
		rest.RegisterView(api.EventsEventKind, event, eventsView()),
		rest.Register(api.LeaseKind, leases()),
		rest.Register(api.IngressKind, ingresses()),
		rest.Register(api.IngressClassKind, ingressClasses()),
		rest.Register(api.NetworkPolicyKind, networkPolicies()),
		rest.Register(api.IPAddressKind, ipAddresses()),
		rest.Register(api.ServiceCIDRKind, serviceCIDRs(d)),
		rest.Register(api.EndpointSliceKind, endpointSlices()),
		rest.Register(api.PodDisruptionBudgetKind, podDisruptionBudgets()),
		rest.Register(api.RoleKind, roles(d)),
		rest.Register(api.RoleBindingKind, roleBindings(d)),
		rest.Register(api.ClusterRoleKind, clusterRoles(d)),
		rest.Register(api.ClusterRoleBindingKind, clusterRoleBindings(d)),
		rest.Register(api.PriorityClassKind, priorityClasses()),
		rest.Register(api.RuntimeClassKind, runtimeClasses()),
		rest.Register(api.StorageClassKind, storageClasses()),
		rest.Register(api.CSIDriverKind, csiDrivers()),
		rest.Register(api.CSINodeKind, csiNodes()),
		rest.Register(api.CSIStorageCapacityKind, csiStorageCapacities()),
		rest.Register(api.VolumeAttachmentKind, volumeAttachments()),
		rest.Register(api.VolumeAttributesClassKind, volumeAttributesClasses()),
		rest.Register(api.CertificateSigningRequestKind, certificateSigningRequests()),
		rest.Register(api.ClusterTrustBundleKind, clusterTrustBundles()),
		rest.Register(api.PodCertificateRequestKind, podCertificateRequests(d)),
		rest.Register(api.FlowSchemaKind, flowSchemas()),
		rest.Register(api.PriorityLevelConfigurationKind, priorityLevelConfigurations()),
		rest.Register(api.MutatingWebhookConfigurationKind, mutatingWebhookConfigurations(cel)),
		rest.Register(api.ValidatingWebhookConfigurationKind, validatingWebhookConfigurations(cel)),
		rest.Register(api.ValidatingAdmissionPolicyKind, validatingAdmissionPolicies(d, cel)),
		rest.Register(api.ValidatingAdmissionPolicyBindingKind, validatingAdmissionPolicyBindings(d)),
		rest.Register(api.MutatingAdmissionPolicyKind, mutatingAdmissionPolicies(d, cel)),
		rest.Register(api.MutatingAdmissionPolicyBindingKind, mutatingAdmissionPolicyBindings(d)),
		rest.Register(api.DeviceClassKind, deviceClasses()),
		rest.Register(api.DeviceTaintRuleKind, deviceTaintRules()),
		rest.Register(api.ResourceClaimKind, resourceClaims(d)),
		rest.Register(api.ResourceClaimTemplateKind, resourceClaimTemplates(d)),
		rest.Register(api.ResourceSliceKind, resourceSlices()),
		rest.Register(api.StorageVersionMigrationKind, storageVersionMigrations()),
		rest.Register(api.APIServiceKind, apiServices()),
		rest.Register(api.CustomResourceDefinitionKind, customResourceDefinitions(d)),
	)
}

// reviews are the kinds that are answered and not stored.
func reviews(d Deps) []rest.Any {
	return []rest.Any{
		rest.Register(api.BindingKind, bindings(d)),
		rest.Register(api.TokenReviewKind, tokenReviews(d)),
		rest.Register(api.SelfSubjectReviewKind, selfSubjectReviews()),
		rest.Register(api.SubjectAccessReviewKind, subjectAccessReviews(d)),
		rest.Register(api.LocalSubjectAccessReviewKind, localSubjectAccessReviews(d)),
		rest.Register(api.SelfSubjectAccessReviewKind, selfSubjectAccessReviews(d)),
		rest.Register(api.SelfSubjectRulesReviewKind, selfSubjectRulesReviews(d)),
	}
}
