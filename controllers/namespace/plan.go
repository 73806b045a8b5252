package namespace

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// conditions returns the conditions of a namespace that is being deleted, in upstream's words.
func conditions(old []corev1.NamespaceCondition, left remaining, failure error, now time.Time) []corev1.NamespaceCondition {
	good := func(t corev1.NamespaceConditionType, reason, message string) corev1.NamespaceCondition {
		return corev1.NamespaceCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message}
	}
	bad := func(t corev1.NamespaceConditionType, reason, message string) corev1.NamespaceCondition {
		return corev1.NamespaceCondition{Type: t, Status: corev1.ConditionTrue, Reason: reason, Message: message}
	}
	out := []corev1.NamespaceCondition{
		good(corev1.NamespaceDeletionDiscoveryFailure, "ResourcesDiscovered", "All resources successfully discovered"),
		good(corev1.NamespaceDeletionGVParsingFailure, "ParsedGroupVersions", "All legacy kube types successfully parsed"),
		good(corev1.NamespaceDeletionContentFailure, "ContentDeleted",
			"All content successfully deleted, may be waiting on finalization"),
		good(corev1.NamespaceContentRemaining, "ContentRemoved", "All content successfully removed"),
		good(corev1.NamespaceFinalizersRemaining, "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
	}
	if failure != nil {
		out[2] = bad(corev1.NamespaceDeletionContentFailure, "ContentDeletionFailed",
			"Failed to delete all resource types, 1 remaining: "+failure.Error())
	}
	if len(left.objects) > 0 {
		out[3] = bad(corev1.NamespaceContentRemaining, "SomeResourcesRemain",
			"Some resources are remaining: "+list(left.objects, "%s has %d resource instances"))
	}
	if len(left.finalizers) > 0 {
		out[4] = bad(corev1.NamespaceFinalizersRemaining, "SomeFinalizersRemain",
			"Some content in the namespace has finalizers remaining: "+list(left.finalizers, "%s in %d resource instances"))
	}
	for i := range out {
		out[i].LastTransitionTime = metav1.NewTime(now)
		for _, o := range old {
			if o.Type == out[i].Type && o.Status == out[i].Status {
				out[i].LastTransitionTime = o.LastTransitionTime
			}
		}
	}
	return out
}

func list(counts map[string]int, format string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf(format, k, counts[k]))
	}
	return strings.Join(parts, ", ")
}
