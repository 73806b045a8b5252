package horizontalpodautoscaler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"time"

	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// Metrics are where figures come from. All values are in thousandths; samples are the caller's.
type Metrics interface {
	// Resource returns what pods use of a resource, or a container of each where one is named.
	Resource(ctx context.Context, name corev1.ResourceName, namespace string, pods labels.Selector, container string) (samples, error)
	// Pods returns a custom metric of pods.
	Pods(ctx context.Context, name, namespace string, pods, metric labels.Selector) (samples, error)
	// Object returns a custom metric of one object in the namespace, or of the namespace.
	Object(ctx context.Context, name, namespace string, of *autoscalingv2.CrossVersionObjectReference, metric labels.Selector) (int64, error)
	// External returns all values of an external metric.
	External(ctx context.Context, name, namespace string, metric labels.Selector) ([]int64, error)
}

// Aggregated gets a document below the path of an API that another server serves: /apis/GROUP/VERSION/PATH. It is not served where no
// server is registered for the version.
type Aggregated func(ctx context.Context, gv schema.GroupVersion, path string, query url.Values) (body []byte, served bool, err error)

const (
	customGroup   = "custom.metrics.k8s.io"
	externalGroup = "external.metrics.k8s.io"
	// customWindow is that of a custom metric that does not say its own.
	customWindow = time.Minute
)

// source is the Metrics that the API has: pods' resources as it serves them itself, others by aggregated servers.
type source struct {
	client.Reader
	aggregated Aggregated // nil: none is registered
	kind       func(ctx context.Context, apiVersion, kind string) (*api.Kind, error)
}

func (s source) Resource(ctx context.Context, name corev1.ResourceName, namespace string, pods labels.Selector, container string) (samples, error) {
	list, err := s.usage(ctx, namespace, pods)
	if err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from resource metrics API: %w", err)
	}
	if len(list) == 0 {
		return nil, errors.New("no metrics returned from resource metrics API")
	}
	all := make(samples, len(list))
	for _, m := range list {
		if v, ok := used(m, name, container); ok {
			all[m.Name] = sample{m.Timestamp.Time, m.Window.Duration, v}
		}
	}
	return all, nil
}

// usage asks the server that has taken the group over, else this one.
func (s source) usage(ctx context.Context, namespace string, pods labels.Selector) ([]*metricsv1beta1.PodMetrics, error) {
	if s.aggregated != nil {
		query := selecting("labelSelector", pods, url.Values{})
		body, served, err := s.aggregated(ctx, api.PodMetricsKind.GroupVersion(), fmt.Sprintf("namespaces/%s/pods", namespace), query)
		if err != nil {
			return nil, err
		}
		if served {
			var list struct{ Items []*metricsv1beta1.PodMetrics }
			err := json.Unmarshal(body, &list)
			return list.Items, err
		}
	}
	return client.List[*metricsv1beta1.PodMetrics](ctx, s.Reader, client.Query{Namespace: namespace, Labels: pods})
}

// used is what a pod, or its container where one is named, uses; not ok where a part of it is not known.
func used(m *metricsv1beta1.PodMetrics, name corev1.ResourceName, container string) (total int64, ok bool) {
	for _, c := range m.Containers {
		if container != "" && c.Name != container {
			continue
		}
		q, known := c.Usage[name]
		if !known {
			return 0, false
		}
		total, ok = total+q.MilliValue(), true
	}
	return total, ok
}

// values is a list of the custom or external metrics API, as far as it is read, in each of its versions.
type values struct {
	Items []struct {
		DescribedObject corev1.ObjectReference `json:"describedObject"`
		Timestamp       metav1.Time            `json:"timestamp"`
		Window          *int64                 `json:"window"` // seconds, as v1beta1 calls it
		WindowSeconds   *int64                 `json:"windowSeconds"`
		Value           resource.Quantity      `json:"value"`
	} `json:"items"`
}

// list asks the first version that is served.
func (s source) list(ctx context.Context, group string, versions []string, at string, query url.Values) (*values, error) {
	for _, v := range versions {
		if s.aggregated == nil {
			break
		}
		body, served, err := s.aggregated(ctx, schema.GroupVersion{Group: group, Version: v}, at, query)
		if err != nil {
			return nil, err
		}
		if !served {
			continue
		}
		var list values
		if err := json.Unmarshal(body, &list); err != nil {
			return nil, fmt.Errorf("the answer of the server for %s/%s: %w", group, v, err)
		}
		return &list, nil
	}
	if group == customGroup {
		return nil, fmt.Errorf("no custom metrics API (%s) registered", group)
	}
	return nil, apierrors.NewGenericServerResponse(http.StatusNotFound, "get", schema.GroupResource{Group: group, Resource: path.Base(at)}, "", "", 0, true)
}

func (s source) custom(ctx context.Context, at string, query url.Values) (*values, error) {
	list, err := s.list(ctx, customGroup, []string{"v1beta2", "v1beta1"}, at, query)
	if err != nil {
		return nil, fmt.Errorf("unable to fetch metrics from custom metrics API: %w", err)
	}
	if len(list.Items) == 0 {
		return nil, errors.New("no metrics returned from custom metrics API")
	}
	return list, nil
}

func selecting(name string, s labels.Selector, query url.Values) url.Values {
	if s != nil && s.String() != "" { // that of a metric without one selects nothing, and means all
		query.Set(name, s.String())
	}
	return query
}

func (s source) Pods(ctx context.Context, name, namespace string, pods, metric labels.Selector) (samples, error) {
	query := selecting("metricLabelSelector", metric, selecting("labelSelector", pods, url.Values{}))
	list, err := s.custom(ctx, fmt.Sprintf("namespaces/%s/pods/*/%s", namespace, name), query)
	if err != nil {
		return nil, err
	}
	all := make(samples, len(list.Items))
	for _, m := range list.Items {
		window := customWindow
		if m.Window != nil {
			window = time.Duration(*m.Window) * time.Second
		}
		if m.WindowSeconds != nil {
			window = time.Duration(*m.WindowSeconds) * time.Second
		}
		all[m.DescribedObject.Name] = sample{m.Timestamp.Time, window, m.Value.MilliValue()}
	}
	return all, nil
}

func (s source) Object(ctx context.Context, name, namespace string, of *autoscalingv2.CrossVersionObjectReference, metric labels.Selector) (int64, error) {
	k, err := s.kind(ctx, of.APIVersion, of.Kind)
	if err != nil {
		return 0, err
	}
	at := fmt.Sprintf("namespaces/%s/%s/%s/%s", namespace, k, of.Name, name)
	if k == api.NamespaceKind { // its own, whatever name is given
		at = fmt.Sprintf("namespaces/%s/metrics/%s", namespace, name)
	}
	list, err := s.custom(ctx, at, selecting("metricLabelSelector", metric, url.Values{}))
	if err != nil {
		return 0, err
	}
	return list.Items[0].Value.MilliValue(), nil
}

func (s source) External(ctx context.Context, name, namespace string, metric labels.Selector) ([]int64, error) {
	list, err := s.list(ctx, externalGroup, []string{"v1beta1"}, fmt.Sprintf("namespaces/%s/%s", namespace, name), selecting("labelSelector", metric, url.Values{}))
	switch {
	case err != nil:
		return nil, fmt.Errorf("unable to fetch metrics from external metrics API: %w", err)
	case len(list.Items) == 0:
		return nil, errors.New("no metrics returned from external metrics API")
	}
	all := make([]int64, 0, len(list.Items))
	for _, m := range list.Items {
		all = append(all, m.Value.MilliValue())
	}
	return all, nil
}
