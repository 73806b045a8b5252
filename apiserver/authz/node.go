package authz

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/store"
)

// nodeUser opens the user names of kubelets.
const nodeUser = "system:node:"

// NodeName returns the node whose kubelet u is.
func NodeName(u *authn.User) (name string, ok bool) {
	if !u.In(authn.Nodes) {
		return "", false
	}
	name, ok = strings.CutPrefix(u.Name, nodeUser)
	return name, ok && name != ""
}

// Node decides what kubelets may do: their own Node, Lease and pods, and the Secrets, ConfigMaps and service account
// tokens that these pods name. What a write may contain is checked in admission (NodeRestriction).
type Node struct{ store *store.Store }

// NewNode returns the authorizer of kubelets over the pods in s.
func NewNode(s *store.Store) *Node { return &Node{s} }

// Authorize implements Authorizer. It has no opinion of other users.
func (n *Node) Authorize(ctx context.Context, a *Attributes) (bool, string, error) {
	name, ok := NodeName(a.User)
	if !ok || a.Path != "" {
		return false, "", nil
	}
	switch a.Group + "/" + a.Resource {
	case "/secrets":
		ok, reason, err := n.referenced(ctx, a, name, "secret", SecretsOf)
		if !ok && err == nil && a.Name != "" && a.Subresource == "" && slices.Contains([]string{"get", "list", "watch"}, a.Verb) &&
			n.usesVolumeSecret(name, api.Key{Namespace: a.Namespace, Name: a.Name}) {
			return true, "", nil
		}
		return ok, reason, err
	case "/configmaps":
		return n.referenced(ctx, a, name, "configmap", ConfigMapsOf)
	case "/serviceaccounts":
		return n.tokens(ctx, a, name)
	case "/nodes":
		return own(a, name, []string{"create", "get", "list", "watch", "update", "patch"}, "", "status")
	case "/pods":
		return n.pods(ctx, a, name)
	case "coordination.k8s.io/leases":
		if a.Namespace != corev1.NamespaceNodeLease {
			return false, "can only access leases in the \"" + corev1.NamespaceNodeLease + "\" system namespace", nil
		}
		return own(a, name, []string{"create", "get", "update", "patch", "delete"}, "")
	case "/persistentvolumeclaims", "/persistentvolumes", "storage.k8s.io/volumeattachments", "resource.k8s.io/resourceclaims":
		return n.objects(ctx, a, name)
	case "storage.k8s.io/csinodes":
		return csiNode(a, name)
	case "resource.k8s.io/resourceslices":
		return n.slices(ctx, a, name)
	case "certificates.k8s.io/podcertificaterequests":
		return n.podCertificates(ctx, a, name)
	}
	for _, r := range nodeRules() {
		if allows(&r, a) {
			return true, "", nil
		}
	}
	return false, "", nil
}

// own allows verbs on the one object that is called as the node. Creates do not name what they create.
func own(a *Attributes, name string, verbs []string, subs ...string) (bool, string, error) {
	switch {
	case !slices.Contains(verbs, a.Verb) || !slices.Contains(subs, a.Subresource):
		return false, "", nil
	case a.Verb == "create" && a.Name == "":
		return true, "", nil
	case a.Name != name:
		return false, fmt.Sprintf("node '%s' cannot %s %s of other nodes, only its own", name, a.Verb, a.Resource), nil
	}
	return true, "", nil
}

// pods lets a kubelet see and serve the pods that are bound to its node.
func (n *Node) pods(ctx context.Context, a *Attributes, node string) (bool, string, error) {
	switch {
	case a.Subresource == "" && a.Verb == "create":
		return true, "", nil // mirror pods: admission sees what they are
	case a.Subresource == "" && a.Verb == "deletecollection":
		return false, "", nil
	case a.Subresource == "" && (a.Verb == "list" || a.Verb == "watch"):
		if selects(a, node) {
			return true, "", nil
		}
		if a.Name == "" {
			return false, fmt.Sprintf("can only list/watch pods with spec.nodeName field selector '%s'", node), nil
		}
	case a.Subresource == "" && a.Verb == "get", a.Subresource == "" && a.Verb == "delete":
	case a.Subresource == "status" && (a.Verb == "get" || a.Verb == "update" || a.Verb == "patch"):
	case a.Subresource == "eviction" && a.Verb == "create":
	default:
		return false, "", nil
	}
	p, err := n.pod(ctx, api.Key{Namespace: a.Namespace, Name: a.Name})
	if err != nil || p == nil {
		// Reading what does not exist tells that it does not.
		return err == nil, "", err
	}
	if p.Spec.NodeName != node {
		return false, none(node), nil
	}
	return true, "", nil
}

func (n *Node) pod(ctx context.Context, key api.Key) (*corev1.Pod, error) {
	if err := n.store.Sync(ctx); err != nil {
		return nil, fmt.Errorf("look up pod %s: %w", key, err)
	}
	e := n.store.Snapshot(api.PodKind).Get(key)
	if e == nil || e.Err() != nil {
		return nil, nil
	}
	return e.Object.(*corev1.Pod), nil
}

// tokens lets a kubelet ask for tokens of its pods' service accounts.
func (n *Node) tokens(ctx context.Context, a *Attributes, node string) (bool, string, error) {
	if a.Verb == "get" && a.Subresource == "" && a.Name != "" || a.Verb == "create" && a.Subresource == "token" {
		return n.reaches(ctx, a, node, "service account", func(p *corev1.Pod, name string) bool { return p.Spec.ServiceAccountName == name })
	}
	return false, "", nil
}

// referenced lets a kubelet read an object, by its name, that a pod of its node names.
func (n *Node) referenced(ctx context.Context, a *Attributes, node, what string, names func(*corev1.Pod, func(string))) (bool, string, error) {
	if a.Subresource != "" || !slices.Contains([]string{"get", "list", "watch"}, a.Verb) {
		return false, "can only read resources of this type", nil
	}
	if a.Name == "" {
		return false, "No Object name found", nil
	}
	return n.reaches(ctx, a, node, what, func(p *corev1.Pod, name string) (found bool) {
		names(p, func(s string) { found = found || s == name })
		return found
	})
}

// reaches says whether a pod of the node, in the object's namespace, uses it. Reads of this sort are rare: a kubelet
// watches what its pods use.
func (n *Node) reaches(ctx context.Context, a *Attributes, node, what string, uses func(*corev1.Pod, string) bool) (bool, string, error) {
	if err := n.store.Sync(ctx); err != nil {
		return false, "", fmt.Errorf("look up %s %s/%s: %w", what, a.Namespace, a.Name, err)
	}
	if a.Namespace != "" {
		for p := range n.podsOn(node, a.Namespace) {
			if uses(p, a.Name) {
				return true, "", nil
			}
		}
	}
	return false, none(node), nil
}

// SecretsOf visits the names of the Secrets that a pod needs.
func SecretsOf(p *corev1.Pod, visit func(string)) {
	for _, r := range p.Spec.ImagePullSecrets {
		visit(r.Name)
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.Secret != nil {
			visit(v.Secret.SecretName)
		}
		if v.AzureFile != nil {
			visit(v.AzureFile.SecretName)
		}
		for _, ref := range volumeSecrets(v) {
			if ref != nil {
				visit(ref.Name)
			}
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					visit(s.Secret.Name)
				}
			}
		}
	}
	eachEnv(p, func(e *corev1.EnvVar) {
		if f := e.ValueFrom; f != nil && f.SecretKeyRef != nil {
			visit(f.SecretKeyRef.Name)
		}
	}, func(e *corev1.EnvFromSource) {
		if e.SecretRef != nil {
			visit(e.SecretRef.Name)
		}
	})
}

// volumeSecrets are the references of v to Secrets with credentials; some are nil.
func volumeSecrets(v *corev1.Volume) []*corev1.LocalObjectReference {
	switch {
	case v.CSI != nil:
		return []*corev1.LocalObjectReference{v.CSI.NodePublishSecretRef}
	case v.CephFS != nil:
		return []*corev1.LocalObjectReference{v.CephFS.SecretRef}
	case v.Cinder != nil:
		return []*corev1.LocalObjectReference{v.Cinder.SecretRef}
	case v.FlexVolume != nil:
		return []*corev1.LocalObjectReference{v.FlexVolume.SecretRef}
	case v.RBD != nil:
		return []*corev1.LocalObjectReference{v.RBD.SecretRef}
	case v.ScaleIO != nil:
		return []*corev1.LocalObjectReference{v.ScaleIO.SecretRef}
	case v.ISCSI != nil:
		return []*corev1.LocalObjectReference{v.ISCSI.SecretRef}
	case v.StorageOS != nil:
		return []*corev1.LocalObjectReference{v.StorageOS.SecretRef}
	}
	return nil
}

// ConfigMapsOf visits the names of the ConfigMaps that a pod needs.
func ConfigMapsOf(p *corev1.Pod, visit func(string)) {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if v.ConfigMap != nil {
			visit(v.ConfigMap.Name)
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					visit(s.ConfigMap.Name)
				}
			}
		}
	}
	eachEnv(p, func(e *corev1.EnvVar) {
		if f := e.ValueFrom; f != nil && f.ConfigMapKeyRef != nil {
			visit(f.ConfigMapKeyRef.Name)
		}
	}, func(e *corev1.EnvFromSource) {
		if e.ConfigMapRef != nil {
			visit(e.ConfigMapRef.Name)
		}
	})
}

// eachEnv visits the environment of every container.
func eachEnv(p *corev1.Pod, one func(*corev1.EnvVar), from func(*corev1.EnvFromSource)) {
	visit := func(vars []corev1.EnvVar, sources []corev1.EnvFromSource) {
		for i := range vars {
			one(&vars[i])
		}
		for i := range sources {
			from(&sources[i])
		}
	}
	for i := range p.Spec.InitContainers {
		visit(p.Spec.InitContainers[i].Env, p.Spec.InitContainers[i].EnvFrom)
	}
	for i := range p.Spec.Containers {
		visit(p.Spec.Containers[i].Env, p.Spec.Containers[i].EnvFrom)
	}
	for i := range p.Spec.EphemeralContainers {
		visit(p.Spec.EphemeralContainers[i].Env, p.Spec.EphemeralContainers[i].EnvFrom)
	}
}
