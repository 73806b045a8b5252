package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/api/claim"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/rest"
)

// nodeClaim lets a kubelet say how large a claim's volume has become.
func nodeClaim(a *rest.Admitting, node string) error {
	if a.Sub != "status" {
		return forbidden(a, "may only update PVC status")
	}
	old, ok := a.Old.(*corev1.PersistentVolumeClaim)
	now, is := a.Object.(*corev1.PersistentVolumeClaim)
	if !ok || !is || a.Operation != rest.OpUpdate {
		return forbidden(a, "unexpected operation %q", a.Operation)
	}
	bare := func(c *corev1.PersistentVolumeClaim) *corev1.PersistentVolumeClaim {
		c = c.DeepCopy()
		c.ResourceVersion, c.ManagedFields = "", nil
		c.Status.Capacity, c.Status.Conditions, c.Status.AllocatedResourceStatuses, c.Status.AllocatedResources = nil, nil, nil, nil
		return c
	}
	if !equality.Semantic.DeepEqual(bare(old), bare(now)) {
		return forbidden(a, "node %q is not allowed to update fields other than status.quantity and status.conditions", node)
	}
	return nil
}

// nodeVolume lets a node say that the data of a volume of its local storage is made, by an annotation, and that that of a deleted one is gone:
// take the finalizer away. No more.
func nodeVolume(a *rest.Admitting, node string) error {
	old, ok := a.Old.(*corev1.PersistentVolume)
	now, is := a.Object.(*corev1.PersistentVolume)
	if !ok || !is || a.Operation != rest.OpUpdate || a.Sub != "" || claim.OfLocal(old) != node {
		return forbidden(a, "may only update volumes of its own local storage")
	}
	want := old.DeepCopy()
	if old.DeletionTimestamp != nil && !slices.Contains(now.Finalizers, claim.LocalData) {
		want.Finalizers = slices.DeleteFunc(want.Finalizers, func(f string) bool { return f == claim.LocalData })
	}
	if now.Annotations[claim.LocalMade] == "true" {
		metav1.SetMetaDataAnnotation(&want.ObjectMeta, claim.LocalMade, "true")
	}
	now = now.DeepCopy()
	for _, v := range []*corev1.PersistentVolume{want, now} {
		v.ResourceVersion, v.ManagedFields = "", nil
	}
	if !equality.Semantic.DeepEqual(want, now) {
		return forbidden(a, "node %q may only make the annotation %s true, and take the finalizer %s of deleted volumes away", node, claim.LocalMade, claim.LocalData)
	}
	return nil
}

func nodeCSI(a *rest.Admitting, node string) error {
	name := a.Key.Name
	if a.Operation == rest.OpCreate {
		name = a.Object.GetName()
	}
	if name != node {
		return forbidden(a, "can only access CSINode with the same name as the requesting node")
	}
	if a.Sub != "status" {
		return nil
	}
	old, ok := a.Old.(*storagev1.CSINode)
	if now, is := a.Object.(*storagev1.CSINode); ok && is && !equality.Semantic.DeepEqual(old.Spec, now.Spec) {
		return forbidden(a, "node %q is not allowed to modify CSINode spec via status", node)
	}
	return nil
}

func nodeSlice(a *rest.Admitting, node string) error {
	o, verb := a.Object, "create"
	switch a.Operation {
	case rest.OpCreate:
	case rest.OpDelete:
		o, verb = a.Old, "delete"
	default:
		return nil
	}
	if s, ok := o.(*resourcev1.ResourceSlice); !ok || s.Spec.NodeName == nil || *s.Spec.NodeName != node {
		return forbidden(a, "can only %s ResourceSlice with the same NodeName as the requesting node", verb)
	}
	return nil
}

// nodeCertificate lets a kubelet ask for certificates in its own name only.
func nodeCertificate(a *rest.Admitting, node string) error {
	c, ok := a.Object.(*certificatesv1.CertificateSigningRequest)
	if !ok || a.Operation != rest.OpCreate || c.Spec.SignerName != certificatesv1.KubeletServingSignerName && c.Spec.SignerName != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	r, err := certificateRequest(c.Spec.Request)
	if err != nil {
		return forbidden(a, "unable to parse csr: %w", err)
	}
	if r.Subject.CommonName != a.User.Name {
		return forbidden(a, "can only create a node CSR with CN=system:node:%s", node)
	}
	return nil
}

// nodeAudience lets a kubelet have tokens for those audiences only that the pod's volumes name, or the drivers of these.
func nodeAudience(ctx context.Context, get authn.Getter, access authz.Authorizer, a *rest.Admitting, r *authenticationv1.TokenRequest, pod *corev1.Pod) error {
	audience := ""
	switch len(r.Spec.Audiences) {
	case 0:
	case 1:
		audience = r.Spec.Audiences[0]
	default:
		return forbidden(a, "node may only request 0 or 1 audiences")
	}
	var errs []error
	for i := range pod.Spec.Volumes {
		ok, err := namesAudience(ctx, get, pod, &pod.Spec.Volumes[i], audience)
		if ok {
			return nil
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	if err := utilerrors.NewAggregate(errs); err != nil {
		return forbidden(a, "error validating audience %q: %w", audience, err)
	}
	if mayRequest(ctx, access, a, "request-serviceaccounts-token-audience", audience, a.Key.Name) {
		return nil
	}
	return forbidden(a, "%s is not authorized to request tokens for audience %q", a.User.Name, audience)
}

// mayRequest asks for the verb on a resource that is called as what is requested.
func mayRequest(ctx context.Context, access authz.Authorizer, a *rest.Admitting, verb, resource, account string) bool {
	ok, _, _ := access.Authorize(ctx, &authz.Attributes{User: a.User, Verb: verb, Group: a.Kind.Group, Version: a.Kind.Version,
		Resource: resource, Namespace: a.Key.Namespace, Name: account})
	return ok
}

func namesAudience(ctx context.Context, get authn.Getter, pod *corev1.Pod, v *corev1.Volume, audience string) (bool, error) {
	claim := ""
	driver := ""
	switch {
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience {
				return true, nil
			}
		}
		return false, nil
	case v.Ephemeral != nil:
		claim = pod.Name + "-" + v.Name
	case v.PersistentVolumeClaim != nil:
		claim = v.PersistentVolumeClaim.ClaimName
	case v.CSI != nil:
		driver = v.CSI.Driver
	}
	if claim != "" {
		o, err := get.Get(ctx, api.PersistentVolumeClaimKind, api.Key{Namespace: pod.Namespace, Name: claim})
		if err != nil {
			return false, err
		}
		if o, err = get.Get(ctx, api.PersistentVolumeKind, api.Key{Name: o.(*corev1.PersistentVolumeClaim).Spec.VolumeName}); err != nil {
			return false, err
		}
		if c := o.(*corev1.PersistentVolume).Spec.CSI; c != nil {
			driver = c.Driver
		}
	}
	if driver == "" {
		return false, nil
	}
	o, err := get.Get(ctx, api.CSIDriverKind, api.Key{Name: driver})
	if err != nil {
		return false, err
	}
	for _, t := range o.(*storagev1.CSIDriver).Spec.TokenRequests {
		if t.Audience == audience {
			return true, nil
		}
	}
	return false, nil
}

// nodePodCertificate lets a kubelet ask for certificates of pods that it runs.
func nodePodCertificate(ctx context.Context, get authn.Getter, access authz.Authorizer, a *rest.Admitting, node string) error {
	r, ok := a.Object.(*certificatesv1.PodCertificateRequest)
	switch {
	case !ok || a.Operation != rest.OpCreate:
		return forbidden(a, "unexpected operation %v", a.Operation)
	case a.Sub != "":
		return forbidden(a, "unexpected subresource %v", a.Sub)
	case string(r.Spec.NodeName) != node:
		return forbidden(a, "PodCertificateRequest.Spec.NodeName=%q, which is not the requesting node %q", r.Spec.NodeName, node)
	}
	name := a.Key.Namespace + "/" + r.Spec.PodName
	n, err := get.Get(ctx, api.NodeKind, api.Key{Name: node})
	if err != nil {
		return fmt.Errorf("while retrieving node %q named in the PodCertificateRequest: %w", node, err)
	}
	o, err := get.Get(ctx, api.PodKind, api.Key{Namespace: a.Key.Namespace, Name: r.Spec.PodName})
	if err != nil {
		return fmt.Errorf("while retrieving pod %q named in the PodCertificateRequest: %w", name, err)
	}
	pod := o.(*corev1.Pod)
	sa, err := get.Get(ctx, api.ServiceAccountKind, api.Key{Namespace: a.Key.Namespace, Name: r.Spec.ServiceAccountName})
	if err != nil {
		return fmt.Errorf("while retrieving service account %q named in the PodCertificateRequest: %w", a.Key.Namespace+"/"+r.Spec.ServiceAccountName, err)
	}
	_, isMirror := pod.Annotations[corev1.MirrorPodAnnotationKey]
	var problem error
	switch {
	case n.GetUID() != r.Spec.NodeUID:
		problem = fmt.Errorf("PodCertificateRequest for pod %q names node UID %q, inconsistent with the running node (%q)", name, r.Spec.NodeUID, n.GetUID())
	case pod.UID != r.Spec.PodUID:
		problem = fmt.Errorf("PodCertificateRequest for pod %q contains pod UID (%q) which differs from running pod %q", name, r.Spec.PodUID, pod.UID)
	case pod.Spec.NodeName != node:
		problem = fmt.Errorf("pod %q is not running on node %q named in the PodCertificateRequest", name, node)
	case isMirror:
		problem = fmt.Errorf("pod %q is a mirror pod", name)
	case pod.Spec.ServiceAccountName != r.Spec.ServiceAccountName:
		problem = fmt.Errorf("PodCertificateRequest for pod %q contains serviceAccountName (%q) that differs from running pod (%q)", name, r.Spec.ServiceAccountName, pod.Spec.ServiceAccountName)
	case sa.GetUID() != r.Spec.ServiceAccountUID:
		problem = fmt.Errorf("PodCertificateRequest for pod %q names service account UID %q, which differs from the running service account (%q)", name, r.Spec.ServiceAccountUID, sa.GetUID())
	case !mountsCertificate(pod, r.Spec.SignerName) &&
		!mayRequest(ctx, access, a, "request-serviceaccounts-podcertificate-signer", strings.ReplaceAll(r.Spec.SignerName, "/", ":"), r.Spec.ServiceAccountName):
		problem = fmt.Errorf("pod %q does not mount a podCertificate projected volume for signer %q", name, r.Spec.SignerName)
	}
	if problem != nil {
		return forbidden(a, "%w", problem)
	}
	return nil
}

func mountsCertificate(p *corev1.Pod, signer string) bool {
	for i := range p.Spec.Volumes {
		if v := p.Spec.Volumes[i].Projected; v != nil {
			for _, s := range v.Sources {
				if s.PodCertificate != nil && s.PodCertificate.SignerName == signer {
					return true
				}
			}
		}
	}
	return false
}
