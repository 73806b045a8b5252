package builtin

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/yare-dev/yare/apiserver/rest"
)

// eventLife is for how long Events are kept after their last write.
const eventLife = time.Hour

func events() *rest.Resource[*corev1.Event] {
	type event = *corev1.Event
	doc := corev1.Event{}.SwaggerDoc()
	return &rest.Resource[event]{
		CreateOnUpdate: true,
		TTL:            eventLife,
		Validate:       validateEvent,
		ValidateUpdate: updateEvent,
		Fields: func(e event) fields.Set {
			source := e.Source.Component
			if source == "" {
				source = e.ReportingController
			}
			return fields.Set{
				"involvedObject.kind": e.InvolvedObject.Kind, "involvedObject.namespace": e.InvolvedObject.Namespace,
				"involvedObject.name": e.InvolvedObject.Name, "involvedObject.uid": string(e.InvolvedObject.UID),
				"involvedObject.apiVersion": e.InvolvedObject.APIVersion, "involvedObject.resourceVersion": e.InvolvedObject.ResourceVersion,
				"involvedObject.fieldPath": e.InvolvedObject.FieldPath, "reason": e.Reason, "reportingComponent": e.ReportingController,
				"source": source, "type": e.Type,
			}
		},
		Columns: []rest.Column[event]{
			{Name: "Last Seen", Description: doc["lastTimestamp"], Cell: func(e event) any { return ago(lastSeen(e)) }},
			{Name: "Type", Description: doc["type"], Cell: func(e event) any { return e.Type }},
			{Name: "Reason", Description: doc["reason"], Cell: func(e event) any { return e.Reason }},
			{Name: "Object", Description: doc["involvedObject"], Cell: func(e event) any {
				target := strings.ToLower(e.InvolvedObject.Kind)
				if e.InvolvedObject.Name != "" {
					target += "/" + e.InvolvedObject.Name
				}
				return target
			}},
			{Name: "Subobject", Wide: true, Description: doc["involvedObject"], Cell: func(e event) any { return e.InvolvedObject.FieldPath }},
			{Name: "Source", Wide: true, Description: doc["source"], Cell: func(e event) any { return eventSource(e) }},
			{Name: "Message", Description: doc["message"], Cell: func(e event) any { return strings.TrimSpace(e.Message) }},
			{Name: "First Seen", Wide: true, Description: doc["firstTimestamp"], Cell: func(e event) any { return ago(firstSeen(e)) }},
			{Name: "Count", Type: "integer", Wide: true, Description: doc["count"], Cell: func(e event) any { return eventCount(e) }},
			{Name: "Name", Wide: true, Description: metav1.ObjectMeta{}.SwaggerDoc()["name"], Cell: func(e event) any { return e.Name }},
		},
	}
}

func eventSource(e *corev1.Event) string {
	component, host := or(e.Source.Component, e.ReportingController), or(e.Source.Host, e.ReportingInstance)
	if host == "" {
		return component
	}
	return component + ", " + host
}

func eventCount(e *corev1.Event) int64 {
	if e.Series != nil {
		return int64(e.Series.Count)
	}
	return int64(max(e.Count, 1))
}

func firstSeen(e *corev1.Event) time.Time {
	if e.FirstTimestamp.IsZero() {
		return e.EventTime.Time
	}
	return e.FirstTimestamp.Time
}

func lastSeen(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil:
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	}
	return firstSeen(e)
}

func ago(t time.Time) string {
	if t.IsZero() {
		return unknown
	}
	return duration.HumanDuration(time.Since(t))
}

func validateEvent(e *corev1.Event) (errs field.ErrorList) {
	involved := field.NewPath("involvedObject", "namespace")
	switch {
	case e.InvolvedObject.Namespace == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem:
		errs = append(errs, field.Invalid(involved, e.InvolvedObject.Namespace, "does not match event.namespace"))
	case e.InvolvedObject.Namespace != "" && e.InvolvedObject.Namespace != e.Namespace:
		errs = append(errs, field.Invalid(involved, e.InvolvedObject.Namespace, "does not match event.namespace"))
	}
	errs = append(errs, texts(field.NewPath("namespace"), e.Namespace, validation.IsDNS1123Subdomain(e.Namespace))...)
	if e.EventTime.IsZero() {
		return errs
	}
	// Events of the newer sort say more, and must.
	need := func(name, value string, most int) {
		at := field.NewPath(name)
		if value == "" {
			errs = append(errs, field.Required(at, ""))
		} else if len(value) > most {
			errs = append(errs, field.Invalid(at, value, fmt.Sprintf("can have at most %v characters", most)))
		}
	}
	need("reportingController", e.ReportingController, 128)
	if e.ReportingController != "" {
		errs = append(errs, texts(field.NewPath("reportingController"), e.ReportingController, validation.IsQualifiedName(e.ReportingController))...)
	}
	need("reportingInstance", e.ReportingInstance, 128)
	need("action", e.Action, 128)
	need("reason", e.Reason, 128)
	if len(e.Message) > 1024 {
		errs = append(errs, field.Invalid(field.NewPath("message"), "", fmt.Sprintf("can have at most %v characters", 1024)))
	}
	errs = append(errs, oneOf(field.NewPath("type"), e.Type, corev1.EventTypeNormal, corev1.EventTypeWarning)...)
	return errs
}

func updateEvent(now, old *corev1.Event) (errs field.ErrorList) {
	if now.EventTime.IsZero() && old.EventTime.IsZero() {
		return nil
	}
	same := func(now, old any, name string) { errs = append(errs, immutable(now, old, field.NewPath(name))...) }
	same(now.InvolvedObject, old.InvolvedObject, "involvedObject")
	same(now.Reason, old.Reason, "reason")
	same(now.Type, old.Type, "type")
	same(now.EventTime.UnixMicro(), old.EventTime.UnixMicro(), "eventTime")
	same(now.Action, old.Action, "action")
	same(now.Related, old.Related, "related")
	same(now.ReportingController, old.ReportingController, "reportingController")
	same(now.ReportingInstance, old.ReportingInstance, "reportingInstance")
	return errs
}
