package builtin

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/rest"
)

const (
	systemPriorityPrefix = "system-"
	// highestUserPriority leaves what lies above to the system's own classes.
	highestUserPriority int32 = 1000000000
)

// SystemPriorityClasses are the classes that every cluster has, the only ones whose names may start with "system-".
func SystemPriorityClasses() []*schedulingv1.PriorityClass {
	policy := corev1.PreemptLowerPriority
	class := func(name string, value int32, text string) *schedulingv1.PriorityClass {
		return &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, Description: text, PreemptionPolicy: &policy}
	}
	return []*schedulingv1.PriorityClass{
		class("system-node-critical", 2*highestUserPriority+1000, "Used for system critical pods that must not be moved from their current node."),
		class("system-cluster-critical", 2*highestUserPriority, "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
	}
}

func priorityClasses() *rest.Resource[*schedulingv1.PriorityClass] {
	type class = *schedulingv1.PriorityClass
	doc := schedulingv1.PriorityClass{}.SwaggerDoc()
	return &rest.Resource[class]{
		Default:        func(c class) { setPtr(&c.PreemptionPolicy, corev1.PreemptLowerPriority) },
		Prepare:        func(c class) { c.Generation = 1 },
		ValidateCreate: validatePriorityClass,
		ValidateUpdate: func(now, old class) (errs field.ErrorList) {
			if now.Value != old.Value {
				errs = append(errs, field.Forbidden(field.NewPath("value"), "may not be changed in an update."))
			}
			return append(errs, immutable(now.PreemptionPolicy, old.PreemptionPolicy, field.NewPath("preemptionPolicy"))...)
		},
		Columns: []rest.Column[class]{
			{Name: "Value", Type: "integer", Description: doc["value"], Cell: func(c class) any { return int64(c.Value) }},
			{Name: "Global-Default", Type: "boolean", Description: doc["globalDefault"], Cell: func(c class) any { return c.GlobalDefault }},
			{Name: "Age"},
			{Name: "PreemptionPolicy", Description: doc["preemptionPolicy"], Cell: func(c class) any { return string(deref(c.PreemptionPolicy)) }},
		},
	}
}

func validatePriorityClass(c *schedulingv1.PriorityClass) (errs field.ErrorList) {
	if strings.HasPrefix(c.Name, systemPriorityPrefix) {
		if why := unlikeSystem(c); why != "" {
			errs = append(errs, field.Forbidden(field.NewPath("metadata", "name"),
				"priority class names with '"+systemPriorityPrefix+"' prefix are reserved for system use only. error: "+why))
		}
	} else if c.Value > highestUserPriority {
		errs = append(errs, field.Forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %v", highestUserPriority)))
	}
	switch policy, at := deref(c.PreemptionPolicy), field.NewPath("preemptionPolicy"); policy {
	case corev1.PreemptLowerPriority, corev1.PreemptNever:
	case "":
		errs = append(errs, field.Required(at, ""))
	default:
		errs = append(errs, field.NotSupported(at, policy, []corev1.PreemptionPolicy{corev1.PreemptLowerPriority, corev1.PreemptNever}))
	}
	return errs
}

// unlikeSystem says what makes c differ from the system's class of that name; it is empty when nothing does.
func unlikeSystem(c *schedulingv1.PriorityClass) string {
	for _, s := range SystemPriorityClasses() {
		switch {
		case s.Name != c.Name:
		case s.Value != c.Value:
			return fmt.Sprintf("value of %v PriorityClass must be %v", s.Name, s.Value)
		case c.GlobalDefault:
			return fmt.Sprintf("globalDefault of %v PriorityClass must be false", s.Name)
		default:
			return ""
		}
	}
	return c.Name + " is not a known system priority class"
}
