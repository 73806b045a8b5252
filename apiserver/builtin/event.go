package builtin

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
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
		AnyFinalizer:   true,
		Ungathered:     true,
		Name:           func(string, bool) []string { return nil }, // whatever can stand in a path
		CreateOnUpdate: true,
		TTL:            eventLife,
		Validate:       func(e event) field.ErrorList { return checkEvent(e, "reportingComponent") },
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
			{Name: "Subobject", Wide: true, Description: corev1.ObjectReference{}.SwaggerDoc()["fieldPath"], Cell: func(e event) any { return e.InvolvedObject.FieldPath }},
			{Name: "Source", Wide: true, Description: doc["source"], Cell: func(e event) any { return eventSource(e) }},
			{Name: "Message", Description: doc["message"], Cell: func(e event) any { return strings.TrimSpace(e.Message) }},
			{Name: "First Seen", Wide: true, Description: doc["firstTimestamp"], Cell: func(e event) any { return ago(firstSeen(e)) }},
			{Name: "Count", Wide: true, Description: doc["count"], Cell: func(e event) any { return eventCount(e) }},
			{Name: "Name", Format: "name", Wide: true, Description: metav1.ObjectMeta{}.SwaggerDoc()["name"], Cell: func(e event) any { return e.Name }},
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

// eventLimit bounds the short texts of an Event, noteLimit the long one.
const (
	eventLimit = 128
	noteLimit  = 1024
)

// checkEvent checks what holds for Events of both groups. Controller is the name of reportingController in the client's form.
func checkEvent(e *corev1.Event, controller string) (errs field.ErrorList) {
	mismatch := func(bad bool) {
		if bad {
			errs = append(errs, field.Invalid(field.NewPath("involvedObject", "namespace"), e.InvolvedObject.Namespace, "does not match event.namespace"))
		}
	}
	if e.EventTime.IsZero() {
		if involved := e.InvolvedObject.Namespace; involved != "" {
			mismatch(involved != e.Namespace)
		} else {
			mismatch(e.Namespace != "" && e.Namespace != metav1.NamespaceDefault)
		}
		return errs
	}
	// Events of the newer sort say more, and must.
	mismatch(e.InvolvedObject.Namespace == "" && e.Namespace != metav1.NamespaceDefault && e.Namespace != metav1.NamespaceSystem)
	long := func(name, value string, most int) {
		if len(value) > most {
			errs = append(errs, field.Invalid(field.NewPath(name), "", fmt.Sprintf("can have at most %v characters", most)))
		}
	}
	need := func(name, value string) {
		if value == "" {
			errs = append(errs, field.Required(field.NewPath(name), ""))
		}
	}
	need(controller, e.ReportingController)
	errs = append(errs, texts(field.NewPath(controller), e.ReportingController, validation.IsQualifiedName(e.ReportingController))...)
	need("reportingInstance", e.ReportingInstance)
	long("reportingInstance", e.ReportingInstance, eventLimit)
	need("action", e.Action)
	long("action", e.Action, eventLimit)
	need("reason", e.Reason)
	long("reason", e.Reason, eventLimit)
	long("message", e.Message, noteLimit)
	return errs
}

// eventsView is events.k8s.io/v1, which is stricter about what it lets in. Errors name the fields of the core form.
func eventsView() *rest.View[*corev1.Event] {
	return &rest.View[*corev1.Event]{
		Validate:       func(e *corev1.Event) field.ErrorList { return checkEvent(e, "reportingController") },
		ValidateCreate: createStrictEvent,
		ValidateUpdate: updateStrictEvent,
		Name:           apivalidation.NameIsDNSSubdomain, StandardFinalizers: true,
		Fields: func(e *corev1.Event) fields.Set {
			o := &e.InvolvedObject
			return fields.Set{"regarding.kind": o.Kind, "regarding.namespace": o.Namespace, "regarding.name": o.Name, "regarding.uid": string(o.UID),
				"regarding.apiVersion": o.APIVersion, "regarding.resourceVersion": o.ResourceVersion, "regarding.fieldPath": o.FieldPath,
				"reason": e.Reason, "reportingController": e.ReportingController, "type": e.Type}
		},
	}
}

func createStrictEvent(e *corev1.Event) field.ErrorList {
	errs := series(e)
	if e.EventTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("eventTime"), ""))
	}
	if e.Type != corev1.EventTypeNormal && e.Type != corev1.EventTypeWarning {
		errs = append(errs, field.Invalid(field.NewPath("type"), "", "has invalid value: "+e.Type))
	}
	unset := func(name string, ok bool) {
		if !ok {
			errs = append(errs, field.Invalid(field.NewPath(name), "", "needs to be unset"))
		}
	}
	unset("firstTimestamp", e.FirstTimestamp.IsZero())
	unset("lastTimestamp", e.LastTimestamp.IsZero())
	unset("count", e.Count == 0)
	unset("source", e.Source == corev1.EventSource{})
	return errs
}

func series(e *corev1.Event) (errs field.ErrorList) {
	if e.Series == nil {
		return nil
	}
	if e.Series.Count < 2 {
		errs = append(errs, field.Invalid(field.NewPath("series.count"), "", "should be at least 2"))
	}
	if e.Series.LastObservedTime.IsZero() {
		errs = append(errs, field.Required(field.NewPath("series.lastObservedTime"), ""))
	}
	return errs
}

// updateStrictEvent lets nothing but the series change.
func updateStrictEvent(now, old *corev1.Event) (errs field.ErrorList) {
	if !equality.Semantic.DeepEqual(now.Series, old.Series) {
		errs = series(now)
	}
	same := func(now, old any, name string) { errs = append(errs, immutable(now, old, field.NewPath(name))...) }
	same(now.InvolvedObject, old.InvolvedObject, "involvedObject")
	same(now.Reason, old.Reason, "reason")
	same(now.Message, old.Message, "message")
	same(now.Source, old.Source, "source")
	same(now.FirstTimestamp, old.FirstTimestamp, "firstTimestamp")
	same(now.LastTimestamp, old.LastTimestamp, "lastTimestamp")
	same(now.Count, old.Count, "count")
	same(now.Type, old.Type, "type")
	// Clients keep microseconds.
	if !now.EventTime.Truncate(time.Microsecond).Equal(old.EventTime.Truncate(time.Microsecond)) {
		same(now.EventTime, old.EventTime, "eventTime")
	}
	same(now.Action, old.Action, "action")
	same(now.Related, old.Related, "related")
	same(now.ReportingController, old.ReportingController, "reportingController")
	same(now.ReportingInstance, old.ReportingInstance, "reportingInstance")
	return errs
}
