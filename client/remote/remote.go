// Package remote is client.Client over HTTPS, for components that run apart from the API server. It replaces client-go's
// REST clients, reflectors and informers; transport, certificates and kubeconfigs stay client-go's.
//
//	Get, List ──> table of a watched kind ── else ──> GET
//	writes ─────> POST, PUT, PATCH, DELETE ──> what was answered is laid over the table until the watch has caught up
//	Watch ──────> table of a watched kind ── else ──> list, then watch, resumed for ever (watch.go)
//
// Objects travel as protobuf where their type has it, else as JSON.
//
// Invariants:
//   - A write is sent once, but for answers that say that it was not looked at (429).
//   - Errors of the server are *errors.StatusError. Others are of the connection, and a write's outcome is unknown then.
//   - Locks: table.mu is never held while calling out.
package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// Options adjusts a Client.
type Options struct {
	// Watched are kept in memory while Run runs; reads that they cover cost nothing then.
	Watched []Watched
	// Agent is the User-Agent, of which the server takes the field manager up to the slash: "kubelet/v1.37.2".
	Agent string
	Log   *slog.Logger
}

// Watched is the objects of a kind that a query selects.
type Watched struct {
	Kind  *api.Kind
	Query client.Query
}

// Client is a client.Client, and a run.Component that keeps the watched kinds.
type Client struct {
	http   *http.Client
	base   *url.URL
	log    *slog.Logger
	tables []*table
	custom sync.Map // GroupVersionKind -> *api.Kind: those of the custom resources that were read
}

// Dial returns a Client of the server that cfg names. It connects when it is first used.
func Dial(cfg *rest.Config, o Options) (*Client, error) {
	if o.Log == nil {
		return nil, errors.New("remote: no logger given")
	}
	cfg = rest.CopyConfig(cfg)
	if o.Agent != "" {
		cfg.UserAgent = o.Agent
	}
	base, _, err := rest.DefaultServerUrlFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("address of the API server: %w", err)
	}
	h, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("credentials for the API server: %w", err)
	}
	h.Timeout = 0 // contexts bound requests; watches last
	c := &Client{http: h, base: base, log: o.Log}
	for _, w := range o.Watched {
		c.tables = append(c.tables, newTable(c, w))
	}
	return c, nil
}

// target is what a request is about.
type target struct {
	kind *api.Kind
	key  api.Key
	sub  string
}

func (t target) String() string {
	s := t.kind.String()
	if t.sub != "" {
		s += "/" + t.sub
	}
	if t.key != (api.Key{}) {
		s += " " + t.key.String()
	}
	return s
}

// url returns the URL. Without a name it is the collection's.
func (c *Client) url(t target, q url.Values) string {
	if t.kind.Custom() {
		c.custom.Store(t.kind.GVK(), t.kind)
	}
	parts := []string{"api", t.kind.Version}
	if t.kind.Group != "" {
		parts = []string{"apis", t.kind.Group, t.kind.Version}
	}
	if t.kind.Namespaced && t.key.Namespace != "" {
		parts = append(parts, "namespaces", t.key.Namespace)
	}
	parts = append(parts, t.kind.Plural)
	if t.key.Name != "" {
		parts = append(parts, t.key.Name)
	}
	if t.sub != "" {
		parts = append(parts, t.sub)
	}
	u := c.base.JoinPath(parts...)
	u.RawQuery = q.Encode()
	return u.String()
}

// maxTries bounds how often a request is sent that the server has no time for.
const maxTries = 10

// call sends a request and returns the answer's body, which was successful.
func (c *Client) call(ctx context.Context, verb string, t target, q url.Values, contentType string, body []byte) (string, []byte, error) {
	for try := 1; ; try++ {
		r, err := c.send(ctx, verb, t, q, contentType, body, accept(t.kind, ""))
		if err != nil {
			return "", nil, err
		}
		data, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			return "", nil, fmt.Errorf("%s %v: read the answer: %w", verb, t, err)
		}
		if r.StatusCode < 300 {
			return r.Header.Get("Content-Type"), data, nil
		}
		err = status(r, data, verb, t)
		if r.StatusCode != http.StatusTooManyRequests || try == maxTries {
			return "", nil, err
		}
		if err := run.Pause(ctx, retryAfter(r)); err != nil {
			return "", nil, err
		}
	}
}

func (c *Client) send(ctx context.Context, verb string, t target, q url.Values, contentType string, body []byte, accept string) (*http.Response, error) {
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	r, err := http.NewRequestWithContext(ctx, verb, c.url(t, q), rd)
	if err != nil {
		return nil, fmt.Errorf("%s %v: %w", verb, t, err)
	}
	r.Header.Set("Accept", accept)
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("%s %v: %w", verb, t, err)
	}
	return resp, nil
}

// status returns the error that an answer tells.
func status(r *http.Response, data []byte, verb string, t target) error {
	s := &metav1.Status{}
	if err := decode(r.Header.Get("Content-Type"), data, s); err == nil && s.Status == metav1.StatusFailure {
		return &apierrors.StatusError{ErrStatus: *s}
	}
	// Not the API server's words: a proxy's, perhaps.
	text := string(data[:min(len(data), 200)])
	return apierrors.NewGenericServerResponse(r.StatusCode, verb, t.kind.GroupResource(), t.key.Name, text, int(retryAfter(r)/time.Second), true)
}

func retryAfter(r *http.Response) time.Duration {
	if s, err := strconv.Atoi(r.Header.Get("Retry-After")); err == nil && s > 0 && s < 60 {
		return time.Duration(s) * time.Second
	}
	return time.Second
}

// one sends a request that is answered by an object of kind k.
func (c *Client) one(ctx context.Context, verb string, t target, k *api.Kind, q url.Values, contentType string, body []byte) (api.Object, error) {
	ct, data, err := c.call(ctx, verb, t, q, contentType, body)
	if err != nil {
		return nil, err
	}
	o := k.New()
	if err := decode(ct, data, o); err != nil {
		return nil, fmt.Errorf("%s %v: %w", verb, t, err)
	}
	o.GetObjectKind().SetGroupVersionKind(k.GVK())
	return o, nil
}

// Get is part of client.Reader.
func (c *Client) Get(ctx context.Context, k *api.Kind, key api.Key) (api.Object, error) {
	if t := c.table(k); t != nil && !client.IsLive(ctx) {
		if o, known := t.get(key); o != nil {
			return o, nil
		} else if known {
			return nil, apierrors.NewNotFound(k.GroupResource(), key.Name)
		}
	}
	return c.one(ctx, http.MethodGet, target{k, key, ""}, k, nil, "", nil)
}

// GetScale is part of client.Reader.
func (c *Client) GetScale(ctx context.Context, k *api.Kind, key api.Key) (*autoscalingv1.Scale, error) {
	o, err := c.one(ctx, http.MethodGet, target{k, key, "scale"}, api.ScaleKind, nil, "", nil)
	if err != nil {
		return nil, err
	}
	return o.(*autoscalingv1.Scale), nil
}

// List is part of client.Reader.
func (c *Client) List(ctx context.Context, k *api.Kind, q client.Query) ([]api.Object, api.Revision, error) {
	if t := c.table(k); t != nil && !client.IsLive(ctx) && t.covers(q) {
		if os, rev, ok := t.list(q); ok {
			return os, rev, nil
		}
	}
	return c.list(ctx, k, q)
}

func (c *Client) list(ctx context.Context, k *api.Kind, q client.Query) ([]api.Object, api.Revision, error) {
	t := target{k, api.Key{Namespace: q.Namespace}, ""}
	ct, data, err := c.call(ctx, http.MethodGet, t, values(q), "", nil)
	if err != nil {
		return nil, 0, err
	}
	l := k.NewList()
	if err := decode(ct, data, l); err != nil {
		return nil, 0, fmt.Errorf("list %v: %w", t, err)
	}
	m, err := meta.ListAccessor(l)
	if err != nil {
		return nil, 0, err
	}
	rev, err := api.ParseRevision(m.GetResourceVersion())
	if err != nil {
		return nil, 0, err
	}
	os := make([]api.Object, 0, meta.LenList(l))
	err = meta.EachListItem(l, func(item runtime.Object) error {
		o := item.(api.Object)
		o.GetObjectKind().SetGroupVersionKind(k.GVK())
		if owned(o, q.Owner) {
			os = append(os, o)
		}
		return nil
	})
	return os, rev, err
}

// values are the parameters that select. Owners are not selectable by HTTP; see owned.
func values(q client.Query) url.Values {
	v := url.Values{}
	if q.Labels != nil && !q.Labels.Empty() {
		v.Set("labelSelector", q.Labels.String())
	}
	if q.Fields != nil && !q.Fields.Empty() {
		v.Set("fieldSelector", q.Fields.String())
	}
	return v
}

// owned says whether uid is an owner of o, or empty.
func owned(o api.Object, uid types.UID) bool {
	if uid == "" {
		return true
	}
	for _, r := range o.GetOwnerReferences() {
		if r.UID == uid {
			return true
		}
	}
	return false
}

// Watch is part of client.Reader.
func (c *Client) Watch(ctx context.Context, k *api.Kind, q client.Query, from api.Revision) iter.Seq2[client.Event, error] {
	if t := c.table(k); t != nil && from == 0 && t.covers(q) && t.running() {
		return t.subscribe(ctx, q)
	}
	return c.watch(ctx, k, q, from)
}
