package resourceclaim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/dynamic-resource-allocation/resourceclaim"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

// runPod makes the claims that the pod wants, and reserves those that it has when it has a node: whoever placed it without the scheduler
// (spec.nodeName, a DaemonSet of old) did not.
func (c controller) runPod(ctx context.Context, log *slog.Logger, key api.Key) error {
	p, err := client.Get[*corev1.Pod](ctx, c.Client, key)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("get pod: %w", err)
	}
	if err != nil || p.DeletionTimestamp != nil || done(p) {
		c.waiting.set(podOf(key.Namespace, key.Name))
		return nil
	}
	c.waiting.set(podOf(key.Namespace, key.Name), dependsOn(p)...)
	p, err = c.generate(ctx, log, p)
	if err != nil || p.Spec.NodeName == "" {
		return err
	}
	c.waiting.set(podOf(key.Namespace, key.Name), dependsOn(p)...) // the new claims too
	var errs []error
	for i := range p.Spec.ResourceClaims {
		if err := c.reserve(ctx, log, p, &p.Spec.ResourceClaims[i]); err != nil {
			errs = append(errs, fmt.Errorf("claim %s: %w", p.Spec.ResourceClaims[i].Name, err))
		}
	}
	return errors.Join(errs...)
}

// dependsOn returns the things by whose changes p is woken: templates to make claims of and, when nobody will reserve them for it any more,
// its claims.
func dependsOn(p *corev1.Pod) (things []thing) {
	for i := range p.Spec.ResourceClaims {
		entry := &p.Spec.ResourceClaims[i]
		if t := entry.ResourceClaimTemplateName; t != nil {
			things = append(things, thing{api.ResourceClaimTemplateKind, api.Key{Namespace: p.Namespace, Name: *t}})
		}
		if name, _, err := resourceclaim.Name(p, entry); err == nil && name != nil && p.Spec.NodeName != "" {
			things = append(things, thing{api.ResourceClaimKind, api.Key{Namespace: p.Namespace, Name: *name}})
		}
	}
	return things
}

// generate makes the claims that p's templates stand for, and records them in p's status.
func (c controller) generate(ctx context.Context, log *slog.Logger, p *corev1.Pod) (*corev1.Pod, error) {
	made := map[string]string{} // by entry
	var errs []error
	for i := range p.Spec.ResourceClaims {
		entry := &p.Spec.ResourceClaims[i]
		if entry.ResourceClaimTemplateName == nil {
			continue
		}
		name, err := c.claimFor(ctx, p, entry)
		if err == nil {
			if name != "" {
				log.Debug("claim for pod", "entry", entry.Name, "claim", name)
				made[entry.Name] = name
			}
			continue
		}
		if !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			c.Events.Event(p, corev1.EventTypeWarning, "FailedResourceClaimCreation", fmt.Sprintf("PodResourceClaim %s: %v", entry.Name, err))
		}
		if _, waits := errors.AsType[noTemplate](err); !waits {
			errs = append(errs, fmt.Errorf("claim %s: %w", entry.Name, err))
		}
	}
	if len(made) > 0 {
		got, err := c.record(ctx, p, made)
		if err != nil {
			return p, errors.Join(append(errs, err)...)
		}
		p = got
	}
	return p, errors.Join(errs...)
}

// noTemplate is the lack of a template. It is not tried again: the pod is woken when the template comes.
type noTemplate struct{ error }

// claimFor makes the claim of an entry. It returns its name if the pod's status does not have it yet.
func (c controller) claimFor(ctx context.Context, p *corev1.Pod, entry *corev1.PodResourceClaim) (string, error) {
	name, _, err := resourceclaim.Name(p, entry)
	switch {
	case err == nil && name == nil:
		return "", nil // somebody decided that none is needed
	case err == nil:
		claim, err := client.Get[*resourcev1.ResourceClaim](ctx, c.Client, api.Key{Namespace: p.Namespace, Name: *name})
		if err != nil && !apierrors.IsNotFound(err) {
			return "", fmt.Errorf("get resource claim %s: %w", *name, err)
		}
		if err == nil && resourceclaim.IsForPod(p, claim, false) == nil {
			return "", nil
		}
	case !errors.Is(err, resourceclaim.ErrClaimNotFound):
		return "", err
	}
	owned, err := client.List[*resourcev1.ResourceClaim](ctx, c.Client, client.Query{Namespace: p.Namespace, Owner: p.UID})
	if err != nil {
		return "", fmt.Errorf("list claims of the pod: %w", err)
	}
	for _, claim := range owned {
		if claim.DeletionTimestamp == nil && metav1.IsControlledBy(claim, p) && claim.Annotations[resourcev1.PodResourceClaimAnnotation] == entry.Name {
			return claim.Name, nil // made by a run that was interrupted before it recorded it
		}
	}
	template := *entry.ResourceClaimTemplateName
	t, err := client.Get[*resourcev1.ResourceClaimTemplate](ctx, c.Client, api.Key{Namespace: p.Namespace, Name: template})
	if err != nil {
		err = fmt.Errorf("resource claim template %q: %w", template, err)
		if apierrors.IsNotFound(err) {
			err = noTemplate{err}
		}
		return "", err
	}
	claim, err := client.Create(ctx, c.Client, newClaim(p, entry, t))
	if err != nil {
		return "", fmt.Errorf("create resource claim: %w", err)
	}
	return claim.Name, nil
}

// newClaim returns the claim of an entry of p with the template t.
func newClaim(p *corev1.Pod, entry *corev1.PodResourceClaim, t *resourcev1.ResourceClaimTemplate) *resourcev1.ResourceClaim {
	annotations := maps.Clone(t.Spec.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[resourcev1.PodResourceClaimAnnotation] = entry.Name
	// A pod that is deleted in the foreground does not wait for its claims, which wait for its end.
	owner := reconcile.ControllerRef(p)
	owner.BlockOwnerDeletion = nil
	return &resourcev1.ResourceClaim{
		TypeMeta: metav1.TypeMeta{APIVersion: resourcev1.SchemeGroupVersion.String(), Kind: "ResourceClaim"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, GenerateName: prefix(p.Name, entry.Name), Labels: maps.Clone(t.Spec.Labels), Annotations: annotations,
			OwnerReferences: []metav1.OwnerReference{*owner},
		},
		Spec: *t.Spec.Spec.DeepCopy(),
	}
}

// longest leaves room, in a name of 63 characters, for a dash and five that are generated.
const longest = 57

// prefix returns what the name of a claim begins with. The API server cuts what is too long at its end, which would leave nothing of the
// entry's name: hence both are cut here, each by its share. What is left of the pod's name is not empty and does not end in a dot, either of which would
// make a name that is refused.
func prefix(pod, entry string) string {
	s := pod + "-" + entry + "-"
	if n := len(s); n > longest {
		pod = strings.TrimRight(pod[:max(1, len(pod)*longest/n)], ".-")
		s = pod + "-" + entry[:len(entry)*longest/n] + "-"
	}
	return s
}

// record writes names of claims, by entry, into the pod's status. It is a patch of these entries alone, since the scheduler and the kubelet write
// the status at the same time.
func (c controller) record(ctx context.Context, p *corev1.Pod, made map[string]string) (*corev1.Pod, error) {
	var statuses []corev1.PodResourceClaimStatus
	for i := range p.Spec.ResourceClaims {
		entry := p.Spec.ResourceClaims[i].Name
		if name, ok := made[entry]; ok {
			statuses = append(statuses, corev1.PodResourceClaimStatus{Name: entry, ResourceClaimName: &name})
		}
	}
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID}, "status": map[string]any{"resourceClaimStatuses": statuses}})
	if err != nil {
		return nil, fmt.Errorf("encode patch: %w", err)
	}
	o, err := c.Client.Patch(ctx, api.PodKind, api.KeyOf(p), client.Patch{Type: types.StrategicMergePatchType, Data: data, Sub: "status"})
	if err != nil {
		return nil, fmt.Errorf("record resource claims in the pod's status: %w", err)
	}
	return o.(*corev1.Pod), nil
}

// reserve adds p to the consumers of the claim of an entry, if it is allocated.
func (c controller) reserve(ctx context.Context, log *slog.Logger, p *corev1.Pod, entry *corev1.PodResourceClaim) error {
	name, generated, err := resourceclaim.Name(p, entry)
	if err != nil || name == nil {
		return err
	}
	claim, err := client.Get[*resourcev1.ResourceClaim](ctx, c.Client, api.Key{Namespace: p.Namespace, Name: *name})
	if apierrors.IsNotFound(err) {
		return nil // its creation wakes the pod
	}
	if err != nil {
		return fmt.Errorf("get resource claim %s: %w", *name, err)
	}
	if generated {
		if err := resourceclaim.IsForPod(p, claim, false); err != nil {
			return err
		}
	}
	// One that is going takes no new consumers.
	if claim.Status.Allocation == nil || claim.DeletionTimestamp != nil || resourceclaim.IsReservedForPod(p, claim, false) ||
		len(claim.Status.ReservedFor) >= resourcev1.ResourceClaimReservedForMaxSize {
		return nil
	}
	log.Debug("reserving for a pod that the scheduler did not place", "claim", *name)
	_, err = client.Mutate(ctx, c.Client, claim, "status", func(claim *resourcev1.ResourceClaim) {
		claim.Status.ReservedFor = append(claim.Status.ReservedFor, resourcev1.ResourceClaimConsumerReference{
			Resource: "pods", Name: p.Name, UID: p.UID,
		})
	})
	if err != nil {
		return fmt.Errorf("reserve claim for pod: %w", err)
	}
	return nil
}
