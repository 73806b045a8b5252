// Package bootstrap puts into an empty API server what every cluster has: the system namespaces and priority
// classes, upstream's roles and levels of fairness, the Service by which pods reach the API server, and the ConfigMap by which
// other servers know its clients. It replaces kube-apiserver's post-start hooks.
//
// Fields are given whole, defaults included, so that nothing is written when nothing differs.
// Everything is level-triggered and idempotent: what is missing is created, what differs is mended, at each start and every time
// somebody changes it.
package bootstrap

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/authn"
	"github.com/yare-dev/yare/apiserver/authz"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// Config says what to ensure.
type Config struct {
	// APIServer is where this API server is reached from pods.
	APIServer netip.AddrPort
	// Shared says that there may be other servers: then whoever leads calls Endpoints with all of them, and nobody else says where they are. May be nil: never.
	Shared func() bool
	// Decide returns the context of writes that must not be overtaken by another server's, of what is read after the call. May be nil.
	Decide func(ctx context.Context, what string) context.Context
	// APIService is the Service's address.
	APIService netip.Addr
	// Services are the ranges of Services' addresses, the first of the family of APIServer and APIService.
	Services []netip.Prefix
	// ClientCA are the authorities whose client certificates this API server accepts, in PEM.
	ClientCA []byte
	// FrontProxy, where it has authorities (PEM), is whose word for other users this server takes.
	FrontProxy            authn.FrontProxy
	FrontProxyAuthorities []byte
	// ProxyClientCA are the authorities (PEM) of ProxyClientName, as whom this server speaks for its users to aggregated API servers.
	ProxyClientCA   []byte
	ProxyClientName string
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
	if err := b.namespaces(ctx); err != nil {
		return err
	}
	if err := authz.Bootstrap(ctx, b.client); err != nil {
		return err
	}
	if err := errors.Join(b.classes(ctx), b.flow(ctx), b.services(ctx), b.configMaps(ctx)); err != nil {
		return err
	}
	if err := errors.Join(b.serviceCIDR(ctx), b.service(ctx), b.allAddresses(ctx)); err != nil {
		return err
	}
	ready()
	var wg sync.WaitGroup
	mine := func(o api.Object) bool { return api.KeyOf(o) == apiService }
	wg.Go(func() { b.keep(ctx, api.ServiceKind, mine, b.service) })
	wg.Go(func() { b.addresses(ctx, b.followServices) })
	wg.Go(func() { b.addresses(ctx, b.restore) })
	isDefault := func(o api.Object) bool { return o.GetName() == defaultCIDR }
	wg.Go(func() { b.keep(ctx, api.ServiceCIDRKind, isDefault, b.serviceCIDR) })
	system := func(o api.Object) bool { return slices.Contains(Namespaces(), o.GetName()) }
	wg.Go(func() { b.keep(ctx, api.NamespaceKind, system, b.namespaces) })
	maps := func(o api.Object) bool { return api.KeyOf(o) == trusted || api.KeyOf(o) == tracking }
	wg.Go(func() { b.keep(ctx, api.ConfigMapKind, maps, b.configMaps) })
	any := func(api.Object) bool { return true }
	wg.Go(func() { b.keep(ctx, api.FlowSchemaKind, any, b.tend) })
	wg.Go(func() { b.keep(ctx, api.PriorityLevelConfigurationKind, any, b.tend) })
	wg.Go(func() { b.keep(ctx, api.CustomResourceDefinitionKind, any, b.names) })
	wg.Wait()
	return nil
}

// namespaces ensures the namespaces that always exist.
func (b *Bootstrap) namespaces(ctx context.Context) error {
	for _, ns := range Namespaces() {
		if err := ensure(ctx, b.client, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, nil); err != nil {
			return err
		}
	}
	return nil
}

// configMaps ensures those by which others learn about this server.
func (b *Bootstrap) configMaps(ctx context.Context) error {
	return errors.Join(b.trust(ctx), b.track(ctx))
}

// names gives the names of definitions to those that wait for them.
func (b *Bootstrap) names(ctx context.Context) error {
	if b.config.Decide != nil {
		ctx = b.config.Decide(ctx, "definitions")
	}
	all, err := client.List[*apiextensionsv1.CustomResourceDefinition](ctx, b.client, client.Query{})
	if err != nil {
		return err
	}
	for _, c := range builtin.SettleNames(all) {
		_, err := b.client.Update(ctx, c, "status")
		if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
			return nil // its change comes as well
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keep mends what somebody changes of kind, until ctx ends. A watch that breaks is begun anew.
func (b *Bootstrap) keep(ctx context.Context, kind *api.Kind, mine func(api.Object) bool, mend func(context.Context) error) {
	for ctx.Err() == nil {
		synced := false
		for e, err := range b.client.Watch(ctx, kind, client.Query{}, 0) {
			if err != nil {
				b.log.Warn("watch ended", "kind", kind.String(), "err", err)
				break
			}
			synced = synced || e.Op == client.Synced
			// When the watch has caught up, something may have changed since the last look.
			if e.Op != client.Synced && (!synced || !mine(e.Object)) {
				continue
			}
			if err := mend(ctx); err != nil && ctx.Err() == nil {
				b.log.Warn("what every cluster has could not be mended", "kind", kind.String(), "err", err)
			}
		}
		_ = run.Pause(ctx, time.Second)
	}
}

// services ensures the APIServices of what this server serves.
func (b *Bootstrap) services(ctx context.Context) error {
	all := builtin.LocalAPIServices()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, s := range all {
		wg.Go(func() {
			errs[i] = ensure(ctx, b.client, s, func(now, want *apiregistrationv1.APIService) { now.Labels, now.Spec = want.Labels, want.Spec })
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// classes ensures the priority classes of the system's pods.
func (b *Bootstrap) classes(ctx context.Context) error {
	var errs []error
	for _, c := range builtin.SystemPriorityClasses() {
		errs = append(errs, ensure(ctx, b.client, c, nil))
	}
	return errors.Join(errs...)
}

var apiService = api.Key{Namespace: metav1.NamespaceDefault, Name: "kubernetes"}

// service ensures the Service without selector, and where this server is the only one, that it leads here.
func (b *Bootstrap) service(ctx context.Context) error {
	port := int32(b.config.APIServer.Port())
	meta := metav1.ObjectMeta{Namespace: apiService.Namespace, Name: apiService.Name, Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"}}
	err := ensure(ctx, b.client, &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeClusterIP, ClusterIP: b.config.APIService.String(),
		Ports: []corev1.ServicePort{{Name: portName, Port: 443, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(port)}},
	}}, func(now, want *corev1.Service) {
		now.Spec.Ports, now.Spec.Selector = want.Spec.Ports, nil
	})
	if err != nil || b.config.Shared != nil && b.config.Shared() {
		return err
	}
	return Endpoints(ctx, b.client, b.config.APIServer)
}

const portName = "https"

// Endpoints ensures the Endpoints and the EndpointSlice that name the API servers. All have the port of the first.
func Endpoints(ctx context.Context, c client.Client, servers ...netip.AddrPort) error {
	port, proto, name := int32(servers[0].Port()), corev1.ProtocolTCP, portName
	meta := metav1.ObjectMeta{Namespace: apiService.Namespace, Name: apiService.Name, Labels: map[string]string{discoveryv1.LabelServiceName: apiService.Name}}
	family := discoveryv1.AddressTypeIPv4
	if servers[0].Addr().Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	var slice []discoveryv1.Endpoint
	var addresses []corev1.EndpointAddress
	for _, s := range servers {
		slice = append(slice, discoveryv1.Endpoint{Addresses: []string{s.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}})
		addresses = append(addresses, corev1.EndpointAddress{IP: s.Addr().String()})
	}
	err := ensure(ctx, c, &discoveryv1.EndpointSlice{
		ObjectMeta: meta, AddressType: family, Endpoints: slice,
		Ports: []discoveryv1.EndpointPort{{Name: &name, Protocol: &proto, Port: &port}},
	}, func(now, want *discoveryv1.EndpointSlice) {
		now.Labels, now.Endpoints, now.Ports = want.Labels, want.Endpoints, want.Ports
	})
	if err != nil {
		return err
	}
	// The Endpoints of a Service without selector would be mirrored into a second slice but for this label.
	meta.Labels = map[string]string{discoveryv1.LabelSkipMirror: "true"}
	return ensure(ctx, c, &corev1.Endpoints{ObjectMeta: meta, Subsets: []corev1.EndpointSubset{{
		Addresses: addresses,
		Ports:     []corev1.EndpointPort{{Name: name, Protocol: proto, Port: port}},
	}}}, func(now, want *corev1.Endpoints) {
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
