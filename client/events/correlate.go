package events

import (
	"container/list"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Upstream's figures.
const (
	cacheSize      = 4096
	burst          = 25
	refill         = 5 * time.Minute // one Event more each
	similarMax     = 10
	similarWithin  = 10 * time.Minute
	combinedPrefix = "(combined from similar events): "
)

// group is what similar occurrences have in common; the message is not part of it.
type group struct {
	source corev1.EventSource
	ref    corev1.ObjectReference // of the whole object, without resourceVersion
	kind   string
	reason string
}

// about is who spams about what.
type about struct {
	source corev1.EventSource
	ref    corev1.ObjectReference
}

// same is an Event's identity: the group with the object's part and its message, or the group alone (combined).
type same struct {
	group
	fieldPath, message string
}

// bucket is a token bucket.
type bucket struct {
	tokens float64
	at     time.Time
}

// similar notes the different messages of one group.
type similar struct {
	messages map[string]struct{}
	last     time.Time
}

// decision is what to write: a new Event, or one that exists again.
type decision struct {
	key   same
	event *corev1.Event
	again bool
}

// correlator decides. It is used by one goroutine.
type correlator struct {
	buckets *lru[about, bucket]
	similar *lru[group, similar]
	events  *lru[same, *corev1.Event]
	stamp   int64 // the last name's time: names are unique within a source even if time stands still
}

func newCorrelator() *correlator {
	return &correlator{
		buckets: newLRU[about, bucket](cacheSize),
		similar: newLRU[group, similar](cacheSize),
		events:  newLRU[same, *corev1.Event](cacheSize),
	}
}

// admit returns what to write for one, or nil when its source talks too much about its object.
func (c *correlator) admit(one occurrence) *decision {
	ref := one.ref
	ref.ResourceVersion, ref.FieldPath = "", ""
	if !c.take(about{one.source, ref}, one.at) {
		return nil
	}
	g := group{source: one.source, ref: ref, kind: one.kind, reason: one.reason}
	key, message := same{group: g, fieldPath: one.ref.FieldPath, message: one.message}, one.message
	if c.combined(g, one.message, one.at) {
		key.fieldPath, key.message, message = "", "", combinedPrefix+one.message
	}
	d := &decision{key: key}
	if before, ok := c.events.get(key); ok {
		d.again = true
		d.event = before.DeepCopy()
		d.event.ResourceVersion = "" // for the create, should it have expired
		d.event.Count++
		d.event.LastTimestamp = metav1.NewTime(one.at)
		d.event.Message = message
		return d
	}
	d.event = c.newEvent(one, message)
	return d
}

// wrote remembers what the API server made of d.
func (c *correlator) wrote(d *decision, stored *corev1.Event) { c.events.put(d.key, stored) }

// take takes a token.
func (c *correlator) take(k about, now time.Time) bool {
	b, ok := c.buckets.get(k)
	if !ok {
		b = bucket{tokens: burst, at: now}
	}
	if past := now.Sub(b.at); past > 0 {
		b.tokens = min(burst, b.tokens+float64(past)/float64(refill))
		b.at = now
	}
	allowed := b.tokens >= 1
	if allowed {
		b.tokens--
	}
	c.buckets.put(k, b)
	return allowed
}

// combined says whether a message is one too many of its group.
func (c *correlator) combined(g group, message string, now time.Time) bool {
	s, ok := c.similar.get(g)
	if !ok || now.Sub(s.last) > similarWithin {
		s = similar{messages: map[string]struct{}{}}
	}
	s.last = now
	if len(s.messages) < similarMax {
		s.messages[message] = struct{}{}
	}
	_, known := s.messages[message]
	c.similar.put(g, s)
	return !known
}

func (c *correlator) newEvent(one occurrence, message string) *corev1.Event {
	c.stamp = max(one.at.UnixNano(), c.stamp+1)
	at := metav1.NewTime(one.at)
	return &corev1.Event{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace(one.ref),
			Name:      fmt.Sprintf("%s.%x", one.ref.Name, c.stamp), Annotations: one.annotations,
		},
		InvolvedObject: one.ref, Source: one.source, Type: one.kind, Reason: one.reason, Message: message,
		FirstTimestamp: at, LastTimestamp: at, Count: 1,
		ReportingController: one.source.Component, ReportingInstance: one.source.Host,
	}
}

// lru is a map that forgets what was used longest ago.
type lru[K comparable, V any] struct {
	size  int
	order *list.List // of K, most recent first
	at    map[K]*lruEntry[V]
}

type lruEntry[V any] struct {
	value V
	where *list.Element
}

func newLRU[K comparable, V any](size int) *lru[K, V] {
	return &lru[K, V]{size: size, order: list.New(), at: map[K]*lruEntry[V]{}}
}

func (l *lru[K, V]) get(k K) (V, bool) {
	e, ok := l.at[k]
	if !ok {
		var none V
		return none, false
	}
	l.order.MoveToFront(e.where)
	return e.value, true
}

func (l *lru[K, V]) put(k K, v V) {
	if e, ok := l.at[k]; ok {
		e.value = v
		l.order.MoveToFront(e.where)
		return
	}
	l.at[k] = &lruEntry[V]{value: v, where: l.order.PushFront(k)}
	if l.order.Len() > l.size {
		oldest := l.order.Back()
		delete(l.at, l.order.Remove(oldest).(K))
	}
}
