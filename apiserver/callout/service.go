package callout

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/store"
)

// Endpoint picks one, as host:port, of the endpoints of a Service's port that are ready. The port is given by number or by name;
// it may be empty where there is only one.
func Endpoint(s *store.Store, svc *corev1.Service, port string) (string, error) {
	for _, p := range svc.Spec.Ports {
		if port == p.Name && port != "" || port == strconv.Itoa(int(p.Port)) || port == "" && len(svc.Spec.Ports) == 1 {
			hosts := endpoints(s, svc, p.Name)
			if len(hosts) == 0 {
				return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", svc.Name))
			}
			return hosts[rand.IntN(len(hosts))], nil
		}
	}
	return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %q found for service %q", port, svc.Name))
}

// endpoints returns the ready endpoints of a service's port, as host:port.
func endpoints(s *store.Store, svc *corev1.Service, port string) (hosts []string) {
	for e := range s.Snapshot(api.EndpointSliceKind).All(svc.Namespace, api.Key{}) {
		slice := e.Object.(*discoveryv1.EndpointSlice)
		if slice.Labels[discoveryv1.LabelServiceName] != svc.Name {
			continue
		}
		for _, p := range slice.Ports {
			if p.Port == nil || p.Name != nil && *p.Name != port || p.Name == nil && port != "" {
				continue
			}
			for _, ep := range slice.Endpoints {
				if len(ep.Addresses) > 0 && (ep.Conditions.Ready == nil || *ep.Conditions.Ready) {
					hosts = append(hosts, net.JoinHostPort(ep.Addresses[0], strconv.Itoa(int(*p.Port))))
				}
			}
		}
	}
	return hosts
}

// toEndpoint sends requests for a Service to one of its endpoints.
type toEndpoint struct {
	store           *store.Store
	namespace, name string
	port            int32
	to              *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *toEndpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	host, err := t.resolve()
	if err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	out := r.Clone(r.Context())
	if out.Host == "" {
		out.Host = r.URL.Host
	}
	out.URL.Host = host
	return t.to.RoundTrip(out)
}

func (t *toEndpoint) resolve() (string, error) {
	e := t.store.Snapshot(api.ServiceKind).Get(api.Key{Namespace: t.namespace, Name: t.name})
	if e == nil || e.Err() != nil {
		return "", apierrors.NewNotFound(schema.GroupResource{Resource: "service"}, t.name)
	}
	svc := e.Object.(*corev1.Service)
	port := strconv.Itoa(int(t.port))
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return net.JoinHostPort(svc.Spec.ExternalName, port), nil
	}
	return Endpoint(t.store, svc, port)
}
