package api

import (
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// The kinds that are other forms of stored ones: what is written in one form can be read in the other. Conversions are
// pure and total; what they return may share memory with what they are given.
var (
	HorizontalPodAutoscalerV1Kind = view[autoscalingv1.HorizontalPodAutoscaler, autoscalingv1.HorizontalPodAutoscalerList](Kind{
		Group: "autoscaling", Version: "v1", Kind: "HorizontalPodAutoscaler", Plural: "horizontalpodautoscalers", Short: []string{"hpa"}, Categories: []string{"all"}, Namespaced: true},
		HorizontalPodAutoscalerKind, storeHPA, showHPA)
	EventsEventKind = view[eventsv1.Event, eventsv1.EventList](Kind{
		Group: "events.k8s.io", Version: "v1", Kind: "Event", Plural: "events", Short: []string{"ev"}, Namespaced: true},
		EventKind, storeEvent, showEvent)
)

// viewed is read-only after program start.
var viewed = []*Kind{HorizontalPodAutoscalerV1Kind, EventsEventKind}

// view builds a Kind whose objects are those of the kind of, seen through the type T.
func view[T, L, S any, PT interface {
	*T
	Object
}, PL interface {
	*L
	runtime.Object
}, PS interface {
	*S
	Object
}](k Kind, of *Kind, store func(*T) *S, show func(*S) *T) *Kind {
	k.newObject = func() Object { return PT(new(T)) }
	k.newList = func() runtime.Object { return PL(new(L)) }
	k.of = of
	k.store = func(o Object) Object { return PS(store(o.(PT))) }
	k.show = func(o Object) Object { return PT(show(o.(PS))) }
	return finish(k)
}

// Of returns the stored kind that k is another form of, nil for one of its own.
func (k *Kind) Of() *Kind { return k.of }

// Store returns o, an object of the form k, as the stored kind has it. It takes o over.
func (k *Kind) Store(o Object) Object {
	if k.of == nil {
		return o
	}
	out := k.store(o)
	out.GetObjectKind().SetGroupVersionKind(k.of.GVK())
	return out
}

// Show returns o, an object of the stored kind, in the form k. The two share memory: both are read-only.
func (k *Kind) Show(o Object) Object {
	if k.of == nil {
		return o
	}
	out := k.show(o)
	out.GetObjectKind().SetGroupVersionKind(k.GVK())
	return out
}

// Forms returns k, a stored kind, and the kinds that are other forms of it.
func (k *Kind) Forms() []*Kind {
	forms := []*Kind{k}
	for _, v := range viewed {
		if v.of == k {
			forms = append(forms, v)
		}
	}
	return forms
}

// Events are the same but for the names of their fields.

func storeEvent(e *eventsv1.Event) *corev1.Event {
	return &corev1.Event{
		ObjectMeta: e.ObjectMeta, InvolvedObject: e.Regarding, Reason: e.Reason, Message: e.Note, Source: e.DeprecatedSource,
		FirstTimestamp: e.DeprecatedFirstTimestamp, LastTimestamp: e.DeprecatedLastTimestamp, Count: e.DeprecatedCount, Type: e.Type,
		EventTime: e.EventTime, Series: (*corev1.EventSeries)(e.Series), Action: e.Action, Related: e.Related,
		ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance,
	}
}

func showEvent(e *corev1.Event) *eventsv1.Event {
	return &eventsv1.Event{
		ObjectMeta: e.ObjectMeta, Regarding: e.InvolvedObject, Reason: e.Reason, Note: e.Message, DeprecatedSource: e.Source,
		DeprecatedFirstTimestamp: e.FirstTimestamp, DeprecatedLastTimestamp: e.LastTimestamp, DeprecatedCount: e.Count, Type: e.Type,
		EventTime: e.EventTime, Series: (*eventsv1.EventSeries)(e.Series), Action: e.Action, Related: e.Related,
		ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance,
	}
}
