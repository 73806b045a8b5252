package admission

import (
	"context"
	"maps"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
)

// nodeRestriction holds kubelets to writes about their own node and its pods. What they may read is authz.Node's.
func nodeRestriction(get authn.Getter, access authz.Authorizer) rest.Admission {
	return onValidate("NodeRestriction", func(ctx context.Context, a *rest.Admitting) error {
		node, ok := authz.NodeName(a.User)
		if !ok {
			if a.User.In(authn.Nodes) {
				return forbidden(a, "could not determine node from user %q", a.User.Name)
			}
			return nil
		}
		switch a.Kind {
		case api.PodKind:
			return nodePod(ctx, get, a, node)
		case api.NodeKind:
			return nodeNode(a, node)
		case api.LeaseKind:
			return nodeLease(a, node)
		case api.ServiceAccountKind:
			if a.Sub == "token" {
				return nodeToken(ctx, get, access, a, node)
			}
		case api.PersistentVolumeClaimKind:
			return nodeClaim(a, node)
		case api.PersistentVolumeKind:
			return nodeVolume(a, node)
		case api.CSINodeKind:
			return nodeCSI(a, node)
		case api.ResourceSliceKind:
			return nodeSlice(a, node)
		case api.CertificateSigningRequestKind:
			return nodeCertificate(a, node)
		case api.PodCertificateRequestKind:
			return nodePodCertificate(ctx, get, access, a, node)
		}
		return nil
	})
}

func nodePod(ctx context.Context, get authn.Getter, a *rest.Admitting, node string) error {
	switch {
	case a.Operation == rest.OpCreate && a.Sub == "":
		return mirrorPod(ctx, get, a, a.Object.(*corev1.Pod), node)
	case a.Operation == rest.OpDelete:
		if p := a.Old.(*corev1.Pod); p.Spec.NodeName != node {
			return forbidden(a, "node %q can only delete pods with spec.nodeName set to itself", node)
		}
	case a.Operation == rest.OpUpdate && a.Sub == "status":
		old, now := a.Old.(*corev1.Pod), a.Object.(*corev1.Pod)
		if old.Spec.NodeName != node {
			return forbidden(a, "node %q can only update pod status for pods with spec.nodeName set to itself", node)
		}
		switch was, is := &old.Status, &now.Status; {
		case !maps.Equal(old.Labels, now.Labels):
			return forbidden(a, "node %q cannot update labels through pod status", node)
		case !equality.Semantic.DeepEqual(was.ResourceClaimStatuses, is.ResourceClaimStatuses):
			return forbidden(a, "node %q cannot update resource claim statues", node)
		case !equality.Semantic.DeepEqual(was.ExtendedResourceClaimStatus, is.ExtendedResourceClaimStatus):
			return forbidden(a, "node %q cannot update extended resource claim status", node)
		case !equality.Semantic.DeepEqual(was.NodeAllocatableResourceClaimStatuses, is.NodeAllocatableResourceClaimStatuses):
			return forbidden(a, "node %q cannot update node allocatable resource claim statuses", node)
		}
	case a.Operation == rest.OpCreate && a.Sub == "eviction":
		o, err := get.Get(ctx, api.PodKind, a.Key)
		if err != nil {
			return err
		}
		if o.(*corev1.Pod).Spec.NodeName != node {
			return forbidden(a, "node %s can only evict pods with spec.nodeName set to itself", node)
		}
	case a.Sub == "":
		return forbidden(a, "unexpected operation %q, node %q can only create and delete mirror pods", a.Operation, node)
	case a.Sub != "status" && a.Sub != "eviction":
		return forbidden(a, "unexpected pod subresource %q, only 'status' and 'eviction' are allowed", a.Sub)
	default:
		return forbidden(a, "unexpected operation %q", a.Operation)
	}
	return nil
}

// mirrorPod checks a pod that shows what the kubelet runs from a file.
func mirrorPod(ctx context.Context, get authn.Getter, a *rest.Admitting, p *corev1.Pod, node string) error {
	if _, ok := p.Annotations[corev1.MirrorPodAnnotationKey]; !ok {
		return forbidden(a, "pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node)
	}
	if p.Spec.NodeName != node {
		return forbidden(a, "node %q can only create pods with spec.nodeName set to itself", node)
	}
	if err := ownedByNode(ctx, get, a, p, node); err != nil {
		return err
	}
	if uses := referred(p); uses != "" {
		return forbidden(a, "node %q can not create pods that reference %s", node, uses)
	}
	return nil
}

// ownedByNode checks that a mirror pod goes with its node.
func ownedByNode(ctx context.Context, get authn.Getter, a *rest.Admitting, p *corev1.Pod, node string) error {
	switch n := len(p.OwnerReferences); {
	case n > 1:
		return forbidden(a, "node %q can only create pods with a single owner reference set to itself", node)
	case n == 0:
		return forbidden(a, "node %q can only create pods with an owner reference set to itself", node)
	}
	ref := &p.OwnerReferences[0]
	switch {
	case ref.APIVersion != "v1" || ref.Kind != "Node" || ref.Name != node:
		return forbidden(a, "node %q can only create pods with an owner reference set to itself", node)
	case ref.Controller == nil || !*ref.Controller:
		return forbidden(a, "node %q can only create pods with a controller owner reference set to itself", node)
	case ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion:
		return forbidden(a, "node %q must not set blockOwnerDeletion on an owner reference", node)
	}
	o, err := get.Get(ctx, api.NodeKind, api.Key{Name: node})
	if err != nil {
		return err
	}
	if o.GetUID() != ref.UID {
		return forbidden(a, "node %s UID mismatch: expected %s got %s", node, ref.UID, o.GetUID())
	}
	return nil
}

// referred is the sort of API object that a pod needs, empty where it needs none.
func referred(p *corev1.Pod) (what string) {
	if p.Spec.ServiceAccountName != "" {
		return "serviceaccounts"
	}
	authz.SecretsOf(p, func(string) { what = "secrets" })
	if what == "" {
		authz.ConfigMapsOf(p, func(string) { what = "configmaps" })
	}
	if what == "" && len(p.Spec.ResourceClaims) > 0 {
		what = "resourceclaims"
	}
	for i := 0; i < len(p.Spec.Volumes) && what == ""; i++ {
		switch v := &p.Spec.Volumes[i]; {
		case v.CSI != nil:
			what = "csidrivers (via CSI volumes)"
		case v.Glusterfs != nil:
			what = "endpoints (via glusterFS volumes)"
		case v.PersistentVolumeClaim != nil:
			what = "persistentvolumeclaims"
		case v.Ephemeral != nil:
			what = "persistentvolumeclaims (via ephemeral volumes)"
		case v.Projected != nil:
			for _, s := range v.Projected.Sources {
				switch {
				case s.ServiceAccountToken != nil:
					what = "serviceaccounts (via projected volumes)"
				case s.ClusterTrustBundle != nil:
					what = "clustertrustbundles"
				case s.PodCertificate != nil:
					what = "podcertificates"
				}
			}
		}
	}
	return what
}

func nodeNode(a *rest.Admitting, node string) error {
	if a.Object == nil || a.Object.GetName() != node {
		return forbidden(a, "node %q is not allowed to modify node %q", node, a.Key.Name)
	}
	now, ok := a.Object.(*corev1.Node)
	if !ok {
		return nil
	}
	if c := now.Spec.ConfigSource; c != nil { // names a ConfigMap, which the node could read then
		if a.Operation == rest.OpCreate {
			return forbidden(a, "node %q is not allowed to create pods with a non-nil configSource", node)
		}
		if old, ok := a.Old.(*corev1.Node); ok && !equality.Semantic.DeepEqual(old.Spec.ConfigSource, c) {
			return forbidden(a, "node %q is not allowed to update configSource to a new non-nil configSource", node)
		}
	}
	var had map[string]string
	if old, ok := a.Old.(*corev1.Node); ok {
		had = old.Labels
		if !equality.Semantic.DeepEqual(old.Spec.Taints, now.Spec.Taints) {
			return forbidden(a, "node %q is not allowed to modify taints", node)
		}
		if !equality.Semantic.DeepEqual(old.OwnerReferences, now.OwnerReferences) {
			return forbidden(a, "node %q is not allowed to modify ownerReferences", node)
		}
	}
	bad := changedLabels(had, now.Labels)
	if len(bad) > 0 && a.Operation == rest.OpCreate {
		return forbidden(a, "node %q is not allowed to set the following labels: %s", node, strings.Join(bad, ", "))
	}
	if len(bad) > 0 {
		return forbidden(a, "is not allowed to modify labels: %s", strings.Join(bad, ", "))
	}
	return nil
}

// changedLabels are those that differ and that a kubelet may not set.
func changedLabels(old, now map[string]string) (bad []string) {
	check := func(k string) {
		was, had := old[k]
		is, has := now[k]
		if (was != is || had != has) && !mayLabel(k) && !slices.Contains(bad, k) {
			bad = append(bad, k)
		}
	}
	for k := range now {
		check(k)
	}
	for k := range old {
		check(k)
	}
	slices.Sort(bad)
	return bad
}

// mayLabel says whether a kubelet may set a label of its node: those of other domains, and of Kubernetes' own those that it
// knows best. Labels below node-restriction.kubernetes.io are for administrators, who send pods by them.
func mayLabel(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	if !ok {
		return true
	}
	of := func(d string) bool { return domain == d || strings.HasSuffix(domain, "."+d) }
	if of("node-restriction.kubernetes.io") {
		return false
	}
	if !of("kubernetes.io") && !of("k8s.io") {
		return true
	}
	switch key {
	case corev1.LabelHostname, corev1.LabelOSStable, corev1.LabelArchStable, corev1.LabelTopologyZone, corev1.LabelTopologyRegion,
		corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion, corev1.LabelInstanceType, corev1.LabelInstanceTypeStable,
		"beta.kubernetes.io/os", "beta.kubernetes.io/arch":
		return true
	}
	return of("kubelet.kubernetes.io") || of("node.kubernetes.io")
}

func nodeLease(a *rest.Admitting, node string) error {
	name := a.Key.Name
	if l, ok := a.Object.(*coordinationv1.Lease); ok {
		name = l.Name
	}
	if a.Key.Namespace != corev1.NamespaceNodeLease {
		return forbidden(a, "can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
	}
	if name != node {
		return forbidden(a, "can only access node lease with the same name as the requesting node")
	}
	return nil
}

// nodeToken lets a kubelet have tokens only for pods that it runs.
func nodeToken(ctx context.Context, get authn.Getter, access authz.Authorizer, a *rest.Admitting, node string) error {
	req, ok := a.Object.(*authenticationv1.TokenRequest)
	if !ok || a.Operation != rest.OpCreate {
		return nil
	}
	ref := req.Spec.BoundObjectRef
	if ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "" {
		return forbidden(a, "node requested token not bound to a pod")
	}
	if ref.UID == "" {
		return forbidden(a, "node requested token with a pod binding without a uid")
	}
	o, err := get.Get(ctx, api.PodKind, api.Key{Namespace: a.Key.Namespace, Name: ref.Name})
	if err != nil {
		return err
	}
	if o.GetUID() != ref.UID {
		return forbidden(a, "the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	}
	pod := o.(*corev1.Pod)
	if pod.Spec.NodeName != node {
		return forbidden(a, "node requested token bound to a pod scheduled on a different node")
	}
	return nodeAudience(ctx, get, access, a, req, pod)
}
