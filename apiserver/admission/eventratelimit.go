package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/util/flowcontrol"
	"k8s.io/utils/lru"
	"sigs.k8s.io/yaml"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/rest"
)

const eventRateLimitName = "EventRateLimit"

// EventRateLimits is upstream's configuration of the plug-in, eventratelimit.admission.k8s.io/v1alpha1.
type EventRateLimits struct {
	metav1.TypeMeta `json:",inline"`
	Limits          []EventRateLimit `json:"limits"`
}

// EventRateLimit lets QPS writes of Events a second through for each bucket, and Burst at once.
type EventRateLimit struct {
	// Type says what has a bucket of its own: Server, Namespace, User or SourceAndObject.
	Type  string `json:"type"`
	QPS   int32  `json:"qps"`
	Burst int32  `json:"burst"`
	// CacheSize is how many buckets are remembered. Default: 4096.
	CacheSize int32 `json:"cacheSize,omitempty"`
}

const defaultBuckets = 4096

// bucketOf names the bucket that a write is counted in, by the type of the limit.
var bucketOf = map[string]func(a *rest.Admitting) string{
	"Server":    func(*rest.Admitting) string { return "" },
	"Namespace": func(a *rest.Admitting) string { return a.Key.Namespace },
	"User":      func(a *rest.Admitting) string { return a.User.Name },
	"SourceAndObject": func(a *rest.Admitting) string {
		e, ok := a.Object.(*corev1.Event)
		if !ok {
			return ""
		}
		o := &e.InvolvedObject
		return strings.Join([]string{e.Source.Component, e.Source.Host, o.Kind, o.Namespace, o.Name, string(o.UID), o.APIVersion}, "")
	},
}

func (c *EventRateLimits) validate() (errs field.ErrorList) {
	if c.APIVersion != "eventratelimit.admission.k8s.io/v1alpha1" {
		errs = append(errs, field.NotSupported(field.NewPath("apiVersion"), c.APIVersion, []string{"eventratelimit.admission.k8s.io/v1alpha1"}))
	}
	if c.Kind != "Configuration" {
		errs = append(errs, field.NotSupported(field.NewPath("kind"), c.Kind, []string{"Configuration"}))
	}
	limits := field.NewPath("limits")
	if len(c.Limits) == 0 {
		errs = append(errs, field.Invalid(limits, c.Limits, "must not be empty"))
	}
	for i, l := range c.Limits {
		at := limits.Index(i)
		if bucketOf[l.Type] == nil {
			errs = append(errs, field.NotSupported(at.Child("type"), l.Type, []string{"Namespace", "Server", "SourceAndObject", "User"}))
		}
		if l.Burst <= 0 {
			errs = append(errs, field.Invalid(at.Child("burst"), l.Burst, "must be positive"))
		}
		if l.QPS <= 0 {
			errs = append(errs, field.Invalid(at.Child("qps"), l.QPS, "must be positive"))
		}
		if l.CacheSize < 0 && l.Type != "Server" {
			errs = append(errs, field.Invalid(at.Child("cacheSize"), l.CacheSize, "must not be negative"))
		}
	}
	return errs
}

// buckets are those of one limit.
type buckets struct {
	EventRateLimit
	name func(a *rest.Admitting) string

	mu    sync.Mutex
	known *lru.Cache // flowcontrol.RateLimiter by name
}

// full is an error when the write's bucket gives no more.
func (b *buckets) full(a *rest.Admitting) error {
	name := b.name(a)
	b.mu.Lock()
	limiter, ok := b.known.Get(name)
	if !ok {
		limiter = flowcontrol.NewTokenBucketRateLimiter(float32(b.QPS), int(b.Burst))
		b.known.Add(name, limiter)
	}
	b.mu.Unlock()
	if !limiter.(flowcontrol.RateLimiter).TryAccept() {
		return fmt.Errorf("limit reached on type %s for key %s", b.Type, name)
	}
	return nil
}

// eventRateLimit refuses Events beyond the limits, with the status that tells clients to come again. Events of events.k8s.io are not
// counted, as upstream.
func eventRateLimit(text []byte) (rest.Admission, error) {
	c := &EventRateLimits{}
	if err := yaml.UnmarshalStrict(text, c); err != nil {
		return rest.Admission{}, err
	}
	if err := c.validate().ToAggregate(); err != nil {
		return rest.Admission{}, err
	}
	var limits []*buckets
	for _, l := range c.Limits {
		size := int(l.CacheSize)
		if size == 0 {
			size = defaultBuckets
		}
		limits = append(limits, &buckets{EventRateLimit: l, name: bucketOf[l.Type], known: lru.New(size)})
	}
	return onValidate(eventRateLimitName, func(_ context.Context, a *rest.Admitting) error {
		if a.Kind != api.EventKind || a.DryRun || a.Operation != rest.OpCreate && a.Operation != rest.OpUpdate {
			return nil
		}
		var errs []error
		for _, b := range limits { // each counts what comes, also when another refuses it
			errs = append(errs, b.full(a))
		}
		if err := errors.Join(errs...); err != nil {
			return apierrors.NewTooManyRequestsError(err.Error())
		}
		return nil
	}), nil
}
