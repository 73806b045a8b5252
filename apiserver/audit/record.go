package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
)

// Event is audit.k8s.io/v1 Event: one stage of one request.
type Event struct {
	metav1.TypeMeta          `json:",inline"`
	Level                    Level                      `json:"level"`
	AuditID                  types.UID                  `json:"auditID"`
	Stage                    Stage                      `json:"stage"`
	RequestURI               string                     `json:"requestURI"`
	Verb                     string                     `json:"verb"`
	User                     authenticationv1.UserInfo  `json:"user"`
	ImpersonatedUser         *authenticationv1.UserInfo `json:"impersonatedUser,omitempty"`
	SourceIPs                []string                   `json:"sourceIPs,omitempty"`
	UserAgent                string                     `json:"userAgent,omitempty"`
	ObjectRef                *ObjectReference           `json:"objectRef,omitempty"`
	ResponseStatus           *metav1.Status             `json:"responseStatus,omitempty"`
	RequestObject            json.RawMessage            `json:"requestObject,omitempty"`
	ResponseObject           json.RawMessage            `json:"responseObject,omitempty"`
	RequestReceivedTimestamp metav1.MicroTime           `json:"requestReceivedTimestamp"`
	StageTimestamp           metav1.MicroTime           `json:"stageTimestamp"`
	Annotations              map[string]string          `json:"annotations,omitempty"`
}

// ObjectReference names what a request is about.
type ObjectReference struct {
	Resource        string    `json:"resource,omitempty"`
	Namespace       string    `json:"namespace,omitempty"`
	Name            string    `json:"name,omitempty"`
	UID             types.UID `json:"uid,omitempty"`
	APIGroup        string    `json:"apiGroup,omitempty"`
	APIVersion      string    `json:"apiVersion,omitempty"`
	ResourceVersion string    `json:"resourceVersion,omitempty"`
	Subresource     string    `json:"subresource,omitempty"`
}

// Record is one request as it is being recorded. A nil Record takes everything and keeps nothing.
type Record struct {
	log    *Log
	extent extent

	mu    sync.Mutex // notes may come from several goroutines of a request
	event Event
	done  bool
}

// idHeader is the header by which a client names its request and is told the name.
const idHeader = "Audit-Id"

// Begin starts the record of a request that came at that time, nil where the policy wants none. The user is who sent it.
func (l *Log) Begin(w http.ResponseWriter, r *http.Request, a *authz.Attributes, at time.Time) *Record {
	if l == nil {
		return nil
	}
	id := types.UID(r.Header.Get(idHeader))
	if id == "" {
		id = uuid.NewUUID()
	}
	w.Header().Set(idHeader, string(id))
	return l.begin(a, at, Event{AuditID: id, RequestURI: r.URL.RequestURI(), SourceIPs: sources(r), UserAgent: r.UserAgent()})
}

// BeginLocal starts the record of a request that the program agent makes in this process, nil where the policy wants none.
func (l *Log) BeginLocal(agent string, a *authz.Attributes, at time.Time) *Record {
	if l == nil {
		return nil
	}
	return l.begin(a, at, Event{AuditID: uuid.NewUUID(), RequestURI: uri(a), SourceIPs: []string{"::1"}, UserAgent: agent})
}

// uri is how a request for an object would come over HTTP.
func uri(a *authz.Attributes) string {
	parts := []string{"", "api", a.Version}
	if a.Group != "" {
		parts = []string{"", "apis", a.Group, a.Version}
	}
	if a.Namespace != "" && a.Resource != "namespaces" {
		parts = append(parts, "namespaces", a.Namespace)
	}
	for _, p := range []string{a.Resource, a.Name, a.Subresource} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "/")
}

// begin completes the first event of a record and emits it.
func (l *Log) begin(a *authz.Attributes, at time.Time, e Event) *Record {
	x := l.policy.decide(a)
	l.meter.levels.WithLabelValues(string(x.level)).Inc()
	if x.level == None {
		return nil
	}
	e.TypeMeta = metav1.TypeMeta{Kind: "Event", APIVersion: "audit.k8s.io/v1"}
	e.Level, e.Verb, e.User, e.RequestReceivedTimestamp = x.level, a.Verb, info(a.User), metav1.NewMicroTime(at)
	rec := &Record{log: l, extent: x, event: e}
	if a.Path == "" {
		rec.event.ObjectRef = &ObjectReference{Resource: a.Resource, Namespace: a.Namespace, Name: a.Name, APIGroup: a.Group, APIVersion: a.Version, Subresource: a.Subresource}
	}
	rec.emit(RequestReceived, at)
	return rec
}

func info(u *authn.User) authenticationv1.UserInfo {
	i := authenticationv1.UserInfo{Username: u.Name, UID: u.UID, Groups: u.Groups}
	for k, v := range u.Extra {
		if i.Extra == nil {
			i.Extra = map[string]authenticationv1.ExtraValue{}
		}
		i.Extra[k] = v
	}
	return i
}

// sources are the addresses that a request came through, as far as headers tell; the last is the peer's.
func sources(r *http.Request) (ips []string) {
	add := func(text string) {
		if ip := net.ParseIP(strings.TrimSpace(text)); ip != nil && !slices.Contains(ips, ip.String()) {
			ips = append(ips, ip.String())
		}
	}
	for _, h := range r.Header.Values("X-Forwarded-For") {
		for part := range strings.SplitSeq(h, ",") {
			add(part)
		}
	}
	add(r.Header.Get("X-Real-Ip"))
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	add(host)
	return ips
}

// note runs f with the event unless it is complete.
func (r *Record) note(f func(e *Event)) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.done {
		f(&r.event)
	}
}

// emit hands a copy of the event to the backends.
func (r *Record) emit(s Stage, at time.Time) {
	if slices.Contains(r.extent.omit, s) {
		return
	}
	e := r.event
	e.Stage, e.StageTimestamp = s, metav1.NewMicroTime(at)
	if len(e.Annotations) > 0 {
		e.Annotations = make(map[string]string, len(r.event.Annotations))
		for k, v := range r.event.Annotations {
			e.Annotations[k] = v
		}
	}
	r.log.meter.events.Inc()
	for _, b := range r.log.backends {
		if err := b.Write(&e); err != nil {
			r.log.meter.lost.WithLabelValues(b.Name()).Inc()
			r.log.slog.Error("audit event lost", "backend", b.Name(), "audit_id", string(e.AuditID), "err", err)
		}
	}
}

// patches begin the names of annotations that show what a request has become, hence count where the log has requests.
const patches = "patch.webhook.admission.k8s.io/"

// Annotate adds an annotation. The first of a name stays.
func (r *Record) Annotate(key, value string) {
	if r != nil && strings.HasPrefix(key, patches) && !r.extent.level.has(Request) {
		return
	}
	r.note(func(e *Event) {
		if _, there := e.Annotations[key]; there {
			return
		}
		if e.Annotations == nil {
			e.Annotations = map[string]string{}
		}
		e.Annotations[key] = value
	})
}

// Impersonate notes whose part the user takes.
func (r *Record) Impersonate(u *authn.User) {
	r.note(func(e *Event) {
		i := info(u)
		e.ImpersonatedUser = &i
	})
}

// Sent notes the object that the client sent; it is not kept.
func (r *Record) Sent(o runtime.Object) {
	if r == nil {
		return
	}
	if m, ok := o.(metav1.Object); ok {
		r.note(func(e *Event) { e.refer(m) })
	}
	if r.extent.level.has(Request) {
		if text, err := api.EncodeJSON(o); err == nil {
			r.SentText(text)
		}
	}
}

// refer completes the reference by what the object says.
func (e *Event) refer(m metav1.Object) {
	if e.ObjectRef == nil {
		return
	}
	if e.ObjectRef.Name == "" {
		e.ObjectRef.Name = m.GetName()
	}
	if e.ObjectRef.UID == "" {
		e.ObjectRef.UID = m.GetUID()
	}
	if e.ObjectRef.ResourceVersion == "" {
		e.ObjectRef.ResourceVersion = m.GetResourceVersion()
	}
}

// SentText notes the JSON that the client sent, such as a patch.
func (r *Record) SentText(text []byte) {
	if r == nil || !r.extent.level.has(Request) {
		return
	}
	text = r.trim(text)
	r.note(func(e *Event) { e.RequestObject = text })
}

// Answers says whether the answer is wanted.
func (r *Record) Answers() bool { return r != nil && r.extent.level.has(RequestResponse) }

// Answered notes the JSON that the client got.
func (r *Record) Answered(text []byte) {
	if !r.Answers() {
		return
	}
	text = r.trim(text)
	r.note(func(e *Event) { e.ResponseObject = text })
}

// Failed notes the Status that the client got.
func (r *Record) Failed(s *metav1.Status) {
	if r == nil {
		return
	}
	s = s.DeepCopy()
	r.note(func(e *Event) {
		e.ResponseStatus = &metav1.Status{Status: s.Status, Message: s.Message, Reason: s.Reason, Details: s.Details, Code: s.Code}
	})
	if text, err := api.EncodeJSON(s); err == nil {
		r.Answered(text)
	}
}

// trim returns text without managedFields, where these are not wanted. What is no JSON becomes a string.
func (r *Record) trim(text []byte) json.RawMessage {
	text = bytes.TrimSpace(text)
	if !json.Valid(text) {
		quoted, err := json.Marshal(string(text))
		if err != nil {
			return nil
		}
		return quoted
	}
	if r.extent.managed || !bytes.Contains(text, []byte(`"managedFields"`)) {
		return bytes.Clone(text)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var o any
	if d.Decode(&o) != nil {
		return nil
	}
	drop(o)
	out, err := json.Marshal(o)
	if err != nil {
		return nil
	}
	return out
}

// drop removes the managedFields of an object, and of a list's.
func drop(o any) {
	m, ok := o.(map[string]any)
	if !ok {
		return
	}
	if meta, ok := m["metadata"].(map[string]any); ok {
		delete(meta, "managedFields")
	}
	if items, ok := m["items"].([]any); ok {
		for _, i := range items {
			drop(i)
		}
	}
}

// Started records that a long answer has begun.
func (r *Record) Started(code int) {
	r.note(func(e *Event) {
		e.ResponseStatus = &metav1.Status{Code: int32(code)}
		r.emit(ResponseStarted, time.Now())
	})
}

// Complete records the end of the request. Text says how it panicked, if it did.
func (r *Record) Complete(code int, panicked any) {
	r.note(func(e *Event) {
		r.done = true
		if panicked != nil {
			e.ResponseStatus = &metav1.Status{Code: http.StatusInternalServerError, Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError,
				Message: fmt.Sprintf("APIServer panic'd: %v", panicked)}
			r.emit(Panic, time.Now())
			return
		}
		if e.ResponseStatus == nil {
			e.ResponseStatus = &metav1.Status{}
		}
		e.ResponseStatus.Code = int32(code)
		r.emit(ResponseComplete, time.Now())
	})
}

// Log records requests. A nil Log records none.
type Log struct {
	policy   *Policy
	backends []Backend
	slog     *slog.Logger
	meter    *meter
}

// Backend keeps events.
type Backend interface {
	Name() string
	// Write keeps e, which it may not change.
	Write(e *Event) error
}
