package bootstrap

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/apiserver/builtin"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/run"
)

// defaultCIDR is the name of the ServiceCIDR of the configured ranges.
const defaultCIDR = "kubernetes"

// serviceCIDR ensures the ServiceCIDR of the configured ranges, which is ready as long as nobody says otherwise.
func (b *Bootstrap) serviceCIDR(ctx context.Context) error {
	if len(b.config.Services) == 0 {
		return nil
	}
	var cidrs []string
	for _, p := range b.config.Services {
		cidrs = append(cidrs, p.Masked().String())
	}
	err := ensure(ctx, b.client, &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: defaultCIDR}, Spec: networkingv1.ServiceCIDRSpec{CIDRs: cidrs}}, nil)
	if err != nil {
		return err
	}
	c, err := client.Get[*networkingv1.ServiceCIDR](ctx, b.client, api.Key{Name: defaultCIDR})
	if err != nil {
		return err
	}
	said := meta.FindStatusCondition(c.Status.Conditions, networkingv1.ServiceCIDRConditionReady)
	if c.DeletionTimestamp != nil || !slices.Equal(c.Spec.CIDRs, cidrs) || said != nil && said.Status != metav1.ConditionUnknown {
		return nil
	}
	_, err = client.Mutate(ctx, b.client, c, "status", func(c *networkingv1.ServiceCIDR) {
		meta.SetStatusCondition(&c.Status.Conditions, metav1.Condition{Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue,
			Message: "Kubernetes default Service CIDR is ready"})
	})
	return err
}

// addresses follows with one of the functions below: together they keep an IPAddress for each address of a Service, and no other of that sort, until ctx ends. They follow the Services,
// which are the truth, so that no crash leaves the two apart for longer than it takes to start.
func (b *Bootstrap) addresses(ctx context.Context, follow func(context.Context) error) {
	for ctx.Err() == nil {
		if err := follow(ctx); err != nil && ctx.Err() == nil {
			b.log.Warn("addresses of Services are not written down", "err", err)
		}
		_ = run.Pause(ctx, time.Second)
	}
}

// restore writes again what somebody else removes while a Service has the address.
func (b *Bootstrap) restore(ctx context.Context) error {
	for e, err := range b.client.Watch(ctx, api.IPAddressKind, client.Query{}, 0) {
		if err != nil {
			return err
		}
		if e.Op != client.Deleted {
			continue
		}
		gone := e.Object.(*networkingv1.IPAddress)
		p := gone.Spec.ParentRef
		if p == nil || gone.Labels[networkingv1.LabelManagedBy] != builtin.AddressManager {
			continue
		}
		s, err := client.Get[*corev1.Service](ctx, b.client, api.Key{Namespace: p.Namespace, Name: p.Name})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err == nil && slices.Contains(clusterIPs(s), gone.Name) {
			err = b.note(ctx, s, gone.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// followServices returns when something goes wrong; it then begins anew, with all Services.
func (b *Bootstrap) followServices(ctx context.Context) error {
	synced := false
	for e, err := range b.client.Watch(ctx, api.ServiceKind, client.Query{}, 0) {
		switch {
		case err != nil:
			return err
		case e.Op == client.Synced:
			synced = true
			err = b.allAddresses(ctx)
		case !synced:
		case e.Op == client.Deleted:
			err = b.release(ctx, e.Object.(*corev1.Service), nil)
		default:
			now := e.Object.(*corev1.Service)
			if old, ok := e.Old.(*corev1.Service); ok {
				err = b.release(ctx, old, clusterIPs(now))
			}
			for _, ip := range clusterIPs(now) {
				err = errors.Join(err, b.note(ctx, now, ip))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// allAddresses writes what is missing and removes what stands for no Service's address any more.
func (b *Bootstrap) allAddresses(ctx context.Context) error {
	services, err := client.List[*corev1.Service](ctx, b.client, client.Query{})
	if err != nil {
		return err
	}
	used := map[string]bool{}
	for _, s := range services {
		for _, ip := range clusterIPs(s) {
			used[ip] = true
			if err := b.note(ctx, s, ip); err != nil {
				return err
			}
		}
	}
	noted, err := client.List[*networkingv1.IPAddress](ctx, b.client, client.Query{})
	if err != nil {
		return err
	}
	for _, a := range noted {
		if a.Labels[networkingv1.LabelManagedBy] != builtin.AddressManager || used[a.Name] {
			continue
		}
		if err := b.client.Delete(ctx, a, client.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// clusterIPs are the addresses that s has of the cluster's.
func clusterIPs(s *corev1.Service) []string {
	return slices.DeleteFunc(slices.Clone(s.Spec.ClusterIPs), func(ip string) bool { return ip == "" || ip == corev1.ClusterIPNone })
}

// note ensures the IPAddress that says that s has ip. The parent of one cannot change: it is made anew.
func (b *Bootstrap) note(ctx context.Context, s *corev1.Service, ip string) error {
	family := string(corev1.IPv4Protocol)
	if a, err := netip.ParseAddr(ip); err == nil && a.Is6() {
		family = string(corev1.IPv6Protocol)
	}
	want := &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{Name: ip, Labels: map[string]string{networkingv1.LabelIPAddressFamily: family, networkingv1.LabelManagedBy: builtin.AddressManager}},
		Spec:       networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: s.Namespace, Name: s.Name}},
	}
	for {
		got, err := client.Get[*networkingv1.IPAddress](ctx, b.client, api.Key{Name: ip})
		switch {
		case apierrors.IsNotFound(err):
			if _, err = client.Create(ctx, b.client, want.DeepCopy()); apierrors.IsAlreadyExists(err) {
				continue
			}
			return err
		case err != nil:
			return err
		case got.Spec.ParentRef != nil && *got.Spec.ParentRef == *want.Spec.ParentRef:
			return nil
		}
		if err := b.client.Delete(ctx, got, client.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
}

// release removes the IPAddresses of s, but for those that are kept. One that is another Service's meanwhile stays.
func (b *Bootstrap) release(ctx context.Context, s *corev1.Service, kept []string) error {
	for _, ip := range clusterIPs(s) {
		if slices.Contains(kept, ip) {
			continue
		}
		a, err := client.Get[*networkingv1.IPAddress](ctx, b.client, api.Key{Name: ip})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		if p := a.Spec.ParentRef; p == nil || p.Namespace != s.Namespace || p.Name != s.Name {
			continue
		}
		if err := b.client.Delete(ctx, a, client.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}
