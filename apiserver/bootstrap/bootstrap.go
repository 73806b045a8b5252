// Package bootstrap puts into an empty API server what every cluster has: the system namespaces, the Service by
// which pods reach the API server, and the Service of the cluster's DNS. It replaces kube-apiserver's post-start hooks and the
// DNS add-on's manifests.
//
// Fields are given whole, defaults included, so that nothing is written when nothing differs.
// Everything is level-triggered and idempotent: what is missing is created, what differs is mended, at each start and every time
// somebody changes it.
package bootstrap

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// Config says what to ensure.
type Config struct {
	// APIServer is where this API server is reached from pods; ServicePort is the port of the Service (443).
	APIServer  netip.AddrPort
	APIService netip.Addr
	// DNS is where DNS is served on the host, DNSService its Service address. Invalid: no DNS Service.
	DNS        netip.AddrPort
	DNSService netip.Addr
}

// Bootstrap is the component.
type Bootstrap struct {
	config Config
	client client.Client
	log    *slog.Logger
}

// New returns the component, which writes through c as a user who may do everything.
func New(config Config, c client.Client, log *slog.Logger) *Bootstrap {
	return &Bootstrap{config, c, log}
}

// Name is "bootstrap".
func (*Bootstrap) Name() string { return "bootstrap" }

// Namespaces are those that always exist.
func Namespaces() []string {
	return []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease}
}

// Run ensures everything, is ready, and mends what is changed later until ctx ends.
func (b *Bootstrap) Run(ctx context.Context, ready func()) error {
	for _, ns := range Namespaces() {
		if err := ensure(ctx, b.client, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, nil); err != nil {
			return err
		}
	}
	if err := b.services(ctx); err != nil {
		return err
	}
	ready()
	for ctx.Err() == nil {
		b.watch(ctx)
	}
	return nil
}

// watch mends the Services when somebody touches them; it ends with ctx or when the watch breaks.
func (b *Bootstrap) watch(ctx context.Context) {
	synced := false
	for e, err := range b.client.Watch(ctx, api.ServiceKind, client.Query{}, 0) {
		if err != nil {
			b.log.Warn("watch of services ended", "err", err)
			break
		}
		switch e.Op {
		case client.Synced:
			synced = true
			continue
		case client.Added:
			continue
		}
		if k := api.KeyOf(e.Object); synced && (k == apiService || k == dnsService) {
			if err := b.services(ctx); err != nil && ctx.Err() == nil {
				b.log.Warn("a system service could not be mended", "key", k, "err", err)
			}
		}
	}
	select {
	case <-time.After(time.Second):
	case <-ctx.Done():
	}
}

var (
	apiService = api.Key{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}
	dnsService = api.Key{Namespace: metav1.NamespaceSystem, Name: "kube-dns"}
)

func (b *Bootstrap) services(ctx context.Context) error {
	https := corev1.ServicePort{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(int32(b.config.APIServer.Port()))}
	if err := b.service(ctx, apiService, b.config.APIService, b.config.APIServer,
		map[string]string{"component": "apiserver", "provider": "kubernetes"}, https); err != nil {
		return err
	}
	if !b.config.DNS.IsValid() {
		return nil
	}
	port := func(name string, proto corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: 53, Protocol: proto, TargetPort: intstr.FromInt32(int32(b.config.DNS.Port()))}
	}
	return b.service(ctx, dnsService, b.config.DNSService, b.config.DNS,
		map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
		port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP))
}

// service ensures a Service without selector at a fixed address, and the Endpoints and EndpointSlice that name to.
func (b *Bootstrap) service(ctx context.Context, key api.Key, at netip.Addr, to netip.AddrPort, labels map[string]string, ports ...corev1.ServicePort) error {
	meta := metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: labels}
	err := ensure(ctx, b.client, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: at.String(), Ports: ports,
	}}, func(now, want *corev1.Service) {
		now.Spec.Ports = want.Spec.Ports
		now.Spec.Selector = nil
	})
	if err != nil {
		return err
	}
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name, Labels: map[string]string{discoveryv1.LabelServiceName: key.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   []discoveryv1.Endpoint{{Addresses: []string{to.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr(true)}}},
	}
	subset := corev1.EndpointSubset{Addresses: []corev1.EndpointAddress{{IP: to.Addr().String()}}}
	for _, p := range ports {
		slice.Ports = append(slice.Ports, discoveryv1.EndpointPort{Name: &p.Name, Protocol: &p.Protocol, Port: ptr(int32(to.Port()))})
		subset.Ports = append(subset.Ports, corev1.EndpointPort{Name: p.Name, Protocol: p.Protocol, Port: int32(to.Port())})
	}
	if err := ensure(ctx, b.client, slice, func(now, want *discoveryv1.EndpointSlice) {
		now.Labels, now.Endpoints, now.Ports = want.Labels, want.Endpoints, want.Ports
	}); err != nil {
		return err
	}
	// The Endpoints of a Service without selector would be mirrored into a second slice but for this label.
	meta.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"}
	return ensure(ctx, b.client, &corev1.Endpoints{ObjectMeta: meta, Subsets: []corev1.EndpointSubset{subset}}, func(now, want *corev1.Endpoints) {
		now.Labels, now.Subsets = want.Labels, want.Subsets
	})
}

// ensure creates want where it does not exist; where it does, mend brings its fields to those of want. A nil mend leaves
// what exists alone.
func ensure[T api.Object](ctx context.Context, c client.Client, want T, mend func(now, want T)) error {
	for {
		got, err := client.Get[T](ctx, c, api.KeyOf(want))
		if apierrors.IsNotFound(err) {
			if _, err = client.Create(ctx, c, want.DeepCopyObject().(T)); apierrors.IsAlreadyExists(err) {
				continue
			}
			return err
		}
		if err != nil || mend == nil {
			return err
		}
		_, err = client.Mutate(ctx, c, got, "", func(o T) { mend(o, want) })
		if !apierrors.IsConflict(err) {
			return err
		}
	}
}

func ptr[T any](v T) *T { return &v }
