package authz

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
)

// nodeRules are what every kubelet may do to objects of the kinds that are not divided among them.
var nodeRules = sync.OnceValue(func() []rbacv1.PolicyRule {
	for _, r := range parseRoles(clusterRoleTable) {
		if r.name == "system:node" {
			return r.rules
		}
	}
	return nil
})

// none is the reason for objects that a node has nothing to do with.
func none(node string) string {
	return fmt.Sprintf("no relationship found between node '%s' and this object", node)
}

// podsOn yields the pods of a node in a namespace, all where it is empty, that run or are to.
func (n *Node) podsOn(node, namespace string) iter.Seq[*corev1.Pod] {
	return func(yield func(*corev1.Pod) bool) {
		for e := range n.store.Snapshot(api.PodKind).All(namespace, api.Key{}) {
			if p := e.Object.(*corev1.Pod); p.Spec.NodeName == node && !api.PodTerminal(p) && !yield(p) {
				return
			}
		}
	}
}

// usesClaim says whether a pod of the node has a volume of the claim.
func (n *Node) usesClaim(node string, key api.Key) bool {
	for p := range n.podsOn(node, key.Namespace) {
		for i := range p.Spec.Volumes {
			if claim.Name(p, &p.Spec.Volumes[i]) == key.Name {
				return true
			}
		}
	}
	return false
}

// usesVolume says whether a pod of the node has a claim on the volume.
func (n *Node) usesVolume(node string, v *corev1.PersistentVolume) bool {
	r := v.Spec.ClaimRef
	return r != nil && n.usesClaim(node, api.Key{Namespace: r.Namespace, Name: r.Name})
}

// usesVolumeSecret says whether a volume that a pod of the node has needs the secret.
func (n *Node) usesVolumeSecret(node string, secret api.Key) bool {
	for e := range n.store.Snapshot(api.PersistentVolumeKind).All("", api.Key{}) {
		v := e.Object.(*corev1.PersistentVolume)
		c := v.Spec.CSI
		if c == nil {
			continue
		}
		for _, r := range []*corev1.SecretReference{c.NodePublishSecretRef, c.NodeStageSecretRef, c.NodeExpandSecretRef} {
			if r != nil && r.Name == secret.Name && r.Namespace == secret.Namespace && n.usesVolume(node, v) {
				return true
			}
		}
	}
	return false
}

// usesDevices says whether a pod of the node has the resource claim.
func (n *Node) usesDevices(node string, claim api.Key) bool {
	for p := range n.podsOn(node, claim.Namespace) {
		for _, c := range p.Spec.ResourceClaims {
			if c.ResourceClaimName != nil && *c.ResourceClaimName == claim.Name {
				return true
			}
		}
		for _, s := range p.Status.ResourceClaimStatuses {
			if s.ResourceClaimName != nil && *s.ResourceClaimName == claim.Name {
				return true
			}
		}
		if x := p.Status.ExtendedResourceClaimStatus; x != nil && x.ResourceClaimName == claim.Name {
			return true
		}
	}
	return false
}

// objects decides about storage, devices and certificates: those that the node's pods use, and those that are the node's.
func (n *Node) objects(ctx context.Context, a *Attributes, node string) (bool, string, error) {
	if err := n.store.Sync(ctx); err != nil {
		return false, "", fmt.Errorf("look up %s: %w", a.Resource, err)
	}
	key := api.Key{Namespace: a.Namespace, Name: a.Name}
	related := func(ok bool) (bool, string, error) {
		if a.Name == "" {
			return false, "No Object name found", nil
		}
		if !ok {
			return false, none(node), nil
		}
		return true, "", nil
	}
	if a.Resource == "persistentvolumes" && a.Subresource == "" && a.Verb != "get" {
		ok, reason := n.localVolumes(a, node)
		return ok, reason, nil
	}
	status := a.Resource == "persistentvolumeclaims" && a.Subresource == "status"
	switch {
	case status && a.Verb != "update" && a.Verb != "patch":
		return false, "can only get/update/patch this type", nil
	case !status && a.Verb != "get":
		return false, "can only get individual resources of this type", nil
	case !status && a.Subresource != "":
		return false, "cannot get subresource", nil
	}
	switch a.Resource {
	case "persistentvolumeclaims":
		return related(n.usesClaim(node, key))
	case "persistentvolumes":
		v, ok := lookup[*corev1.PersistentVolume](n, api.PersistentVolumeKind, key)
		return related(ok && (n.usesVolume(node, v) || claim.OfLocal(v) == node))
	case "volumeattachments":
		v, ok := lookup[*storagev1.VolumeAttachment](n, api.VolumeAttachmentKind, key)
		return related(ok && v.Spec.NodeName == node)
	default: // resourceclaims
		return related(n.usesDevices(node, key))
	}
}

// localVolumes lets a node see which volumes of the built-in local storage are on it, note that they are made, and let go of those that are deleted. Admission
// sees what it writes.
func (n *Node) localVolumes(a *Attributes, node string) (bool, string) {
	switch a.Verb {
	case "list", "watch":
		if a.Labels != nil {
			if on, ok := a.Labels.RequiresExactMatch(claim.LocalNode); ok && on == node {
				return true, ""
			}
		}
		return false, fmt.Sprintf("can only list/watch persistentvolumes with the label selector %s=%s", claim.LocalNode, node)
	case "update":
		v, ok := lookup[*corev1.PersistentVolume](n, api.PersistentVolumeKind, api.Key{Name: a.Name})
		if ok && claim.OfLocal(v) == node {
			return true, ""
		}
		return false, none(node)
	}
	return false, "can only get individual resources of this type"
}

func lookup[T api.Object](n *Node, k *api.Kind, key api.Key) (o T, ok bool) {
	e := n.store.Snapshot(k).Get(key)
	if e == nil || e.Err() != nil {
		return o, false
	}
	o, ok = e.Object.(T)
	return o, ok
}

// csiNode lets a kubelet keep the CSINode that is called as its node.
func csiNode(a *Attributes, node string) (bool, string, error) {
	switch {
	case a.Subresource != "":
		return false, "cannot authorize CSINode subresources", nil
	case !slices.Contains([]string{"get", "create", "update", "patch", "delete"}, a.Verb):
		return false, "can only get, create, update, patch, or delete a CSINode", nil
	case a.Verb != "create" && a.Name != node:
		return false, "can only access CSINode with the same name as the requesting node", nil
	}
	return true, "", nil
}

// selects says whether a list is one of objects of the node only.
func selects(a *Attributes, node string) bool {
	if a.Fields == nil {
		return false
	}
	on, ok := a.Fields.RequiresExactMatch("spec.nodeName")
	return ok && on == node
}

// slices lets a kubelet keep the ResourceSlices of its node. Admission sees what it creates.
func (n *Node) slices(ctx context.Context, a *Attributes, node string) (bool, string, error) {
	if a.Subresource != "" {
		return false, "cannot authorize ResourceSlice subresources", nil
	}
	switch a.Verb {
	case "create":
		return true, "", nil
	case "get", "update", "patch", "delete":
		if err := n.store.Sync(ctx); err != nil {
			return false, "", fmt.Errorf("look up %s: %w", a.Resource, err)
		}
		s, ok := lookup[*resourcev1.ResourceSlice](n, api.ResourceSliceKind, api.Key{Name: a.Name})
		if !ok || s.Spec.NodeName == nil || *s.Spec.NodeName != node {
			return false, none(node), nil
		}
		return true, "", nil
	case "list", "watch", "deletecollection":
		if selects(a, node) {
			return true, "", nil
		}
		return false, "can only list/watch/deletecollection resourceslices with nodeName field selector", nil
	}
	return false, "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection", nil
}

// podCertificates lets a kubelet ask for certificates of its pods. Admission sees what it creates.
func (n *Node) podCertificates(ctx context.Context, a *Attributes, node string) (bool, string, error) {
	if a.Subresource != "" {
		return false, "nodes may not access the status subresource of PodCertificateRequests", nil
	}
	switch a.Verb {
	case "create":
		return true, "", nil
	case "get":
		if err := n.store.Sync(ctx); err != nil {
			return false, "", fmt.Errorf("look up %s: %w", a.Resource, err)
		}
		r, ok := lookup[*certificatesv1.PodCertificateRequest](n, api.PodCertificateRequestKind, api.Key{Namespace: a.Namespace, Name: a.Name})
		if !ok || string(r.Spec.NodeName) != node {
			return false, none(node), nil
		}
		return true, "", nil
	case "list", "watch":
		if selects(a, node) {
			return true, "", nil
		}
		return false, "can only list/watch podcertificaterequests with nodeName field selector", nil
	}
	return false, fmt.Sprintf("nodes may not %s podcertificaterequests", a.Verb), nil
}
