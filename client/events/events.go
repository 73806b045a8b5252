// Package events records core/v1 Events about objects. It replaces client-go's event broadcaster, recorder
// and correlator.
//
// A Recorder is handed around freely; Event never blocks and never fails. What it is given goes through a
// bounded queue to one writer, which correlates as upstream does, so that a fault that repeats costs one object and
// not one per repetition:
//
//	Event() ── queue (1,000) ──> limit: 25 per source and object, then one each five minutes
//	                             aggregate: from the 11th message of one object and reason within ten minutes
//	                             on, they share one Event, "(combined from similar events): ..."
//	                             count: the same Event again is a patch of count and lastTimestamp
//	                             write ──> API
//
// Invariant: the correlation state belongs to the goroutine of Run alone; only the queue is shared.
package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

const (
	queueLength = 1000
	tries       = 12
	pause       = 10 * time.Second
	// maxMessage is how much of a message is kept, in bytes. It is more than upstream's components say: 10 KiB of a probe's output, and
	// what it is. Upstream itself cuts no message of a core Event, but what is remembered here must not grow with what a container prints.
	maxMessage = 12 << 10
)

// cut ends a message that was longer.
const cut = " ..."

// Recorder records Events as one source. The nil Recorder drops everything.
type Recorder struct {
	*sink
	source corev1.EventSource
}

// sink is what the recorders of a process share.
type sink struct {
	writer  client.Writer
	log     *slog.Logger
	queue   chan occurrence
	dropped atomic.Int64 // since the last one that fitted
}

// occurrence is one call of Event.
type occurrence struct {
	ref     corev1.ObjectReference
	source  corev1.EventSource
	kind    string // Normal or Warning
	reason  string
	message string
	at      time.Time

	annotations map[string]string // of a new Event
}

// New returns a Recorder that writes through w once it runs. Component is the reporting controller
// ("kubelet"), host the machine it runs on, or empty.
func New(w client.Writer, component, host string, log *slog.Logger) *Recorder {
	return &Recorder{
		sink:   &sink{writer: w, log: log, queue: make(chan occurrence, queueLength)},
		source: corev1.EventSource{Component: component, Host: host},
	}
}

// As returns a Recorder with another component as source, which shares r's queue and writer. Only one
// of them runs.
func (r *Recorder) As(component string) *Recorder {
	if r == nil {
		return nil
	}
	return &Recorder{sink: r.sink, source: corev1.EventSource{Component: component, Host: r.source.Host}}
}

// Name is "events".
func (r *Recorder) Name() string { return "events" }

// Event records that something happened to o, which is only read. The type is "Normal" or "Warning". It
// does not block: an Event that finds the queue full is dropped and counted.
func (r *Recorder) Event(o api.Object, type_, reason, message string) {
	r.EventAt(o, "", type_, reason, message)
}

// EventAt is Event about a part of o, which fieldPath names: spec.containers{name}; empty is all of o.
func (r *Recorder) EventAt(o api.Object, fieldPath, type_, reason, message string) {
	r.record(occurrence{ref: reference(o, fieldPath), kind: type_, reason: reason, message: message})
}

// Annotated is Event with annotations, which belong to it from then on.
func (r *Recorder) Annotated(o api.Object, annotations map[string]string, type_, reason, message string) {
	r.record(occurrence{ref: reference(o, ""), annotations: annotations, kind: type_, reason: reason, message: message})
}

func (r *Recorder) record(one occurrence) {
	if r == nil {
		return
	}
	one.source, one.at = r.source, time.Now()
	if len(one.message) > maxMessage {
		one.message = strings.ToValidUTF8(one.message[:maxMessage-len(cut)], "") + cut
	}
	select {
	case r.queue <- one:
		if n := r.dropped.Swap(0); n > 0 {
			r.log.Warn("events were dropped, the queue was full", "count", n)
		}
	default:
		r.dropped.Add(1)
	}
}

// reference names o as events do.
func reference(o api.Object, fieldPath string) corev1.ObjectReference {
	ref := corev1.ObjectReference{
		Namespace: o.GetNamespace(), Name: o.GetName(), UID: o.GetUID(), ResourceVersion: o.GetResourceVersion(),
		FieldPath: fieldPath,
	}
	if k := api.KindOf(o); k != nil {
		ref.APIVersion, ref.Kind = k.APIVersion(), k.Kind
	} else {
		ref.APIVersion, ref.Kind = o.GetObjectKind().GroupVersionKind().ToAPIVersionAndKind()
	}
	return ref
}

// Run writes until ctx ends. What is in the queue then is lost.
func (r *Recorder) Run(ctx context.Context, ready func()) error {
	ready()
	c := newCorrelator()
	for {
		select {
		case <-ctx.Done():
			return nil
		case one := <-r.queue:
			if d := c.admit(one); d != nil {
				r.write(ctx, c, d)
			}
		}
	}
}

// write writes d, waiting for an API server that is away.
func (s *sink) write(ctx context.Context, c *correlator, d *decision) {
	for i := range tries {
		stored, err := s.send(ctx, d)
		switch {
		case err == nil:
			c.wrote(d, stored)
			return
		case ctx.Err() != nil:
			return
		case final(err):
			s.log.Debug("event refused", "reason", d.event.Reason, "kind", d.event.InvolvedObject.Kind,
				"key", d.event.InvolvedObject.Name, "err", err)
			return
		case i == tries-1:
			s.log.Warn("event given up", "reason", d.event.Reason, "key", d.event.InvolvedObject.Name, "err", err)
			return
		}
		if run.Pause(ctx, pause) != nil {
			return
		}
	}
}

// final says that repeating the request is in vain.
func final(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := status.Status().Code
	return code >= 400 && code < 500 && code != 429
}

// send patches the Event that d repeats, or creates it where there is none (any more).
func (s *sink) send(ctx context.Context, d *decision) (*corev1.Event, error) {
	if d.again {
		patch, err := json.Marshal(map[string]any{
			"count": d.event.Count, "lastTimestamp": d.event.LastTimestamp, "message": d.event.Message,
		})
		if err != nil {
			return nil, fmt.Errorf("encode event patch: %w", err)
		}
		o, err := s.writer.Patch(ctx, api.EventKind, api.KeyOf(d.event),
			client.Patch{Type: types.MergePatchType, Data: patch})
		if err == nil {
			return o.(*corev1.Event), nil
		}
		if !apierrors.IsNotFound(err) {
			return nil, err
		}
	}
	return client.Create(ctx, s.writer, d.event.DeepCopy())
}

// namespace is where the Event about ref lives: cluster-scoped objects' Events are in default.
func namespace(ref corev1.ObjectReference) string {
	if ref.Namespace == "" {
		return metav1.NamespaceDefault
	}
	return ref.Namespace
}
