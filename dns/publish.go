package dns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// The Service's names are those that every cluster has and tools look for.
const (
	serviceNamespace = "kube-system"
	serviceName      = "kube-dns"
)

// ManagedBy is the label's value of the slices that servers publish, one for each node and family: whether the node is up is for others to say.
const ManagedBy = "dns.yare.dev"

// publish makes the Service and this node's EndpointSlices, trying again until they are
// there: the namespace may be younger than the server. It makes them anew when somebody deletes one.
func (s *Server) publish(ctx context.Context) {
	if len(s.c.ServiceIPs) == 0 {
		return
	}
	for {
		for wait := 100 * time.Millisecond; ; wait = min(2*wait, 10*time.Second) {
			err := s.publishOnce(ctx)
			if err == nil || ctx.Err() != nil {
				break
			}
			s.d.Log.Warn("dns service not published, trying again", "err", err)
			if run.Pause(ctx, wait) != nil {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-s.unpublished:
		}
	}
}

// republish has publish look again.
func (s *Server) republish() {
	select {
	case s.unpublished <- struct{}{}:
	default:
	}
}

// published reports whether an object is one that publish makes.
func (s *Server) published(o api.Object) bool {
	if len(s.c.ServiceIPs) == 0 || o.GetNamespace() != serviceNamespace {
		return false
	}
	if _, ok := o.(*corev1.Service); ok {
		return o.GetName() == serviceName
	}
	for i, ip := range s.c.ServiceIPs {
		if o.GetName() == s.slice(ip, i > 0).Name {
			return true
		}
	}
	return false
}

func (s *Server) publishOnce(ctx context.Context) error {
	ctx = client.Live(ctx) // what is remembered may lag behind a deletion
	// Look first: where the Service exists its address is taken, and a create would be refused for that.
	_, err := client.Get[*corev1.Service](ctx, s.d.Client, api.Key{Namespace: serviceNamespace, Name: serviceName})
	if apierrors.IsNotFound(err) {
		_, err = client.Create(ctx, s.d.Client, s.service())
	}
	if err != nil {
		return fmt.Errorf("ensure service %s: %w", serviceName, err)
	}
	for i, ip := range s.c.ServiceIPs {
		if err := s.publishSlice(ctx, s.slice(ip, i > 0)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) publishSlice(ctx context.Context, want *discoveryv1.EndpointSlice) error {
	old, err := client.Get[*discoveryv1.EndpointSlice](ctx, s.d.Client, api.Key{Namespace: want.Namespace, Name: want.Name})
	if apierrors.IsNotFound(err) {
		_, err = client.Create(ctx, s.d.Client, want)
	} else if err == nil {
		_, err = client.Mutate(ctx, s.d.Client, old, "", func(o *discoveryv1.EndpointSlice) {
			o.Labels, o.Endpoints, o.Ports = want.Labels, want.Endpoints, want.Ports
		})
	}
	if err != nil {
		return fmt.Errorf("write endpoint slice %s: %w", want.Name, err)
	}
	return nil
}

func (s *Server) service() *corev1.Service {
	var ips []string
	policy := corev1.IPFamilyPolicySingleStack
	for _, ip := range s.c.ServiceIPs {
		ips = append(ips, ip.String())
	}
	if len(ips) > 1 {
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: serviceNamespace, Name: serviceName, Labels: map[string]string{
			"k8s-app": serviceName, "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
		Spec: corev1.ServiceSpec{
			ClusterIP: ips[0], ClusterIPs: ips, IPFamilyPolicy: &policy,
			Ports: []corev1.ServicePort{
				{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53, TargetPort: intstr.FromInt32(53)},
				{Name: "dns-tcp", Protocol: corev1.ProtocolTCP, Port: 53, TargetPort: intstr.FromInt32(53)},
			},
		},
	}
}

// slice names the first listener of the family of a Service's address; that of a second one has the family in its name.
func (s *Server) slice(ip netip.Addr, second bool) *discoveryv1.EndpointSlice {
	addr := s.addrs[slices.IndexFunc(s.addrs, func(a netip.AddrPort) bool { return a.Addr().Is4() == ip.Is4() })]
	typ := discoveryv1.AddressTypeIPv6
	if addr.Addr().Is4() {
		typ = discoveryv1.AddressTypeIPv4
	}
	name, labels := serviceName, map[string]string{discoveryv1.LabelServiceName: serviceName, discoveryv1.LabelManagedBy: ManagedBy}
	e := discoveryv1.Endpoint{Addresses: []string{addr.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: new(true)}}
	if s.c.NodeName != "" {
		name += "-" + s.c.NodeName
		e.NodeName = &s.c.NodeName
	}
	if second {
		name += "-" + strings.ToLower(string(typ))
	}
	port := func(name string, p corev1.Protocol) discoveryv1.EndpointPort {
		number := int32(addr.Port())
		return discoveryv1.EndpointPort{Name: &name, Protocol: &p, Port: &number}
	}
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: serviceNamespace, Name: name, Labels: labels}, AddressType: typ,
		Endpoints: []discoveryv1.Endpoint{e},
		Ports:     []discoveryv1.EndpointPort{port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP)},
	}
}
