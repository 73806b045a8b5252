package builtin

import (
	"context"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin/podspec"
	"github.com/yare-dev/yare/apiserver/rest"
)

// pods are deleted in two steps: a grace period in which the kubelet stops them, then for good. A pod that runs
// nowhere goes at once.
func pods(d Deps) *rest.Resource[*corev1.Pod] {
	sub := map[string]*rest.Subresource{
		"binding":             {Body: api.BindingKind, Create: d.bindPod},
		"eviction":            {Body: api.EvictionKind, Create: d.evictPod},
		"ephemeralcontainers": {Update: ephemeralContainers},
		"resize":              {Update: resizePod},
	}
	maps.Copy(sub, d.PodStreams)
	return &rest.Resource[*corev1.Pod]{
		Default: func(p *corev1.Pod) { podspec.DefaultPod(&p.Spec) },
		Prepare: func(p *corev1.Pod) {
			api.CompleteResources(&p.Spec) // with the containers that admission has added
			p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: api.QOS(&p.Spec)}
			podspec.AppArmorFields(p)
			if len(p.Spec.SchedulingGates) > 0 {
				p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now(),
					Reason: corev1.PodReasonSchedulingGated, Message: "Scheduling is blocked due to non-empty scheduling gates"}}
			}
		},
		PrepareUpdate:  podspec.KeepResources,
		Validate:       validatePod,
		ValidateCreate: createPod,
		ValidateUpdate: updatePod,
		ValidateStatus: podspec.Status,
		PrepareStatus: func(now, old *corev1.Pod) {
			// The class follows from the spec; a kubelet that leaves it out does not mean to clear it.
			if now.Status.QOSClass == "" {
				now.Status.QOSClass = old.Status.QOSClass
			}
			// Nor does one that does not know claims of devices. An empty list clears them.
			if now.Status.ResourceClaimStatuses == nil {
				now.Status.ResourceClaimStatuses = old.Status.ResourceClaimStatuses
			}
			if now.Status.ExtendedResourceClaimStatus == nil {
				now.Status.ExtendedResourceClaimStatus = old.Status.ExtendedResourceClaimStatus
			}
			now.Status.NodeAllocatableResourceClaimStatuses = old.Status.NodeAllocatableResourceClaimStatuses // an alpha feature of upstream, off by default there
		},
		Warn:    podWarnings,
		Fields:  podFields,
		Grace:   podGrace,
		Columns: podColumns(),
		// kubectl shows what was deleted.
		AnswerDeleted: true,
		Sub:           sub,
	}
}

// podWarnings speaks of annotations about AppArmor as well, although the fields have been filled in from them by now.
func podWarnings(p, old *corev1.Pod) (warnings []string) {
	if old == nil {
		warnings = podspec.AppArmorWarnings(p.Annotations, &p.Spec, field.NewPath("metadata", "annotations"), true)
	}
	return append(warnings, podspec.Warnings(&p.Spec, field.NewPath("spec"))...)
}

func validatePod(p *corev1.Pod) field.ErrorList {
	errs := podspec.Spec(&p.Spec, field.NewPath("spec"))
	if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; mirror && p.Spec.NodeName == "" {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "annotations").Key(corev1.MirrorPodAnnotationKey), "", "must set spec.nodeName if mirror pod annotation is set"))
	}
	errs = append(errs, podspec.AppArmorAnnotations(p.Annotations, &p.Spec, field.NewPath("metadata", "annotations"))...)
	if _, mirror := p.Annotations[corev1.MirrorPodAnnotationKey]; mirror && len(p.Spec.ResourceClaims) > 0 {
		errs = append(errs, field.Forbidden(field.NewPath(""), "static pods do not support resource claims"))
	}
	return errs
}

func createPod(p *corev1.Pod) (errs field.ErrorList) {
	spec := field.NewPath("spec")
	errs = append(errs, podspec.AppArmorAgrees(p.Annotations, &p.Spec, spec)...)
	if len(p.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(spec.Child("ephemeralContainers"), "cannot be set on create"))
	}
	if len(p.Spec.SchedulingGates) > 0 && p.Spec.NodeName != "" {
		errs = append(errs, field.Forbidden(spec.Child("nodeName"), "cannot be set until all schedulingGates have been cleared"))
	}
	return errs
}

func updatePod(now, old *corev1.Pod) field.ErrorList {
	errs := podspec.Update(now, old)
	errs = append(errs, podspec.AppArmorUnchanged(&now.ObjectMeta, &old.ObjectMeta, field.NewPath("metadata", "annotations"))...)
	was, is := old.Annotations[corev1.MirrorPodAnnotationKey], now.Annotations[corev1.MirrorPodAnnotationKey]
	if was != is {
		errs = append(errs, field.Forbidden(field.NewPath("metadata", "annotations").Key(corev1.MirrorPodAnnotationKey), "may not remove or update mirror pod annotation"))
	}
	return errs
}

func podFields(p *corev1.Pod) fields.Set {
	ip := p.Status.PodIP
	return fields.Set{
		"spec.nodeName":            p.Spec.NodeName,
		"spec.restartPolicy":       string(p.Spec.RestartPolicy),
		"spec.schedulerName":       p.Spec.SchedulerName,
		"spec.serviceAccountName":  p.Spec.ServiceAccountName,
		"spec.hostNetwork":         boolText(p.Spec.HostNetwork),
		"status.phase":             string(p.Status.Phase),
		"status.podIP":             ip,
		"status.nominatedNodeName": p.Status.NominatedNodeName,
	}
}

func boolText(b bool) string {
	if b {
		return "true"
	}
	return "false"
}

// podGrace is the period asked for, else the pod's own. Pods that no kubelet has, or that have ended, wait for nobody.
func podGrace(p *corev1.Pod, opts *metav1.DeleteOptions) int64 {
	var period int64 = 30
	switch {
	case opts.GracePeriodSeconds != nil:
		period = *opts.GracePeriodSeconds
	case p.Spec.TerminationGracePeriodSeconds != nil:
		period = *p.Spec.TerminationGracePeriodSeconds
	}
	if p.Spec.NodeName == "" || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
		return 0
	}
	if period < 0 {
		period = 1
	}
	return period
}

// ephemeralContainers lets spec.ephemeralContainers grow and nothing else change.
func ephemeralContainers(_ context.Context, now, old api.Object) field.ErrorList {
	n, o := now.(*corev1.Pod), old.(*corev1.Pod)
	added := n.Spec.EphemeralContainers
	managed := n.ManagedFields
	n.ObjectMeta = *o.ObjectMeta.DeepCopy()
	n.ManagedFields = managed
	n.Spec = *o.Spec.DeepCopy()
	n.Spec.EphemeralContainers = added
	podspec.Default(&n.Spec)
	n.Status = *o.Status.DeepCopy()
	return podspec.Ephemeral(n, o)
}

// resizePod lets the resources of containers and of the whole change and nothing else.
func resizePod(_ context.Context, now, old api.Object) field.ErrorList {
	n, o := now.(*corev1.Pod), old.(*corev1.Pod)
	podspec.KeepButResources(n, o)
	podspec.DefaultPod(&n.Spec)
	api.CompleteResources(&n.Spec)
	return podspec.Resize(n, o)
}

func podColumns() []rest.Column[*corev1.Pod] {
	type pod = *corev1.Pod
	doc := corev1.PodStatus{}.SwaggerDoc()
	return []rest.Column[pod]{
		{Name: "Ready", Description: "The aggregate readiness state of this pod for accepting traffic.", Cell: func(p pod) any { return podReady(p) }},
		{Name: "Status", Description: "The aggregate status of the containers in this pod.", Cell: func(p pod) any { return podReason(p) }},
		{Name: "Restarts", Description: "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.", Cell: func(p pod) any { return podRestarts(p) }},
		{Name: "Age"},
		{Name: "IP", Wide: true, Description: doc["podIP"], Cell: func(p pod) any {
			if len(p.Status.PodIPs) > 0 {
				return p.Status.PodIPs[0].IP
			}
			return or(p.Status.PodIP, none)
		}},
		{Name: "Node", Wide: true, Description: corev1.PodSpec{}.SwaggerDoc()["nodeName"], Cell: func(p pod) any { return or(p.Spec.NodeName, none) }},
		{Name: "Nominated Node", Wide: true, Description: doc["nominatedNodeName"], Cell: func(p pod) any { return or(p.Status.NominatedNodeName, none) }},
		{Name: "Readiness Gates", Wide: true, Description: corev1.PodSpec{}.SwaggerDoc()["readinessGates"], Cell: func(p pod) any { return podGates(p) }},
	}
}

func podGates(p *corev1.Pod) string {
	if len(p.Spec.ReadinessGates) == 0 {
		return none
	}
	met := 0
	for _, g := range p.Spec.ReadinessGates {
		if c := api.PodCondition(p, g.ConditionType); c != nil && c.Status == corev1.ConditionTrue {
			met++
		}
	}
	return fraction(met, len(p.Spec.ReadinessGates))
}
