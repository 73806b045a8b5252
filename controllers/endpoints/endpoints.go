// Package endpoints lists the pods behind each Service in an Endpoints object, for readers that do not know
// EndpointSlices. It replaces upstream's endpoints controller.
package endpoints

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/reconcile"
)

const (
	// capacity is how many addresses an Endpoints object lists.
	capacity     = 1000
	managedLabel = "endpoints.kubernetes.io/managed-by"
	manager      = "endpoint-controller"
)

type controller struct{ reconcile.Deps }

// New returns the endpoints controller.
func New(d reconcile.Deps) *reconcile.Controller {
	c := controller{d}
	return reconcile.New(d, reconcile.For[*corev1.Service]{
		Controller: "endpoints-controller",
		Also: []reconcile.Source{
			reconcile.ServicesOfPods(),
			reconcile.Mapped(func(e *corev1.Endpoints) []api.Key { return []api.Key{api.KeyOf(e)} }),
		},
		Write:     reconcile.Writes{api.EndpointsKind: {"create", "update", "delete"}},
		Reconcile: c.reconcile,
		Gone:      c.gone,
	})
}

// gone removes the Endpoints of a Service that was deleted. Those that others made (a leader election's) stay.
func (c controller) gone(ctx context.Context, _ *slog.Logger, key api.Key) (reconcile.Result, error) {
	e, err := client.Get[*corev1.Endpoints](ctx, c.Client, key)
	if apierrors.IsNotFound(err) || err == nil && e.Labels[managedLabel] != manager {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get endpoints: %w", err)
	}
	return reconcile.Result{}, c.Client.Delete(ctx, e, client.DeleteOptions{})
}

func (c controller) reconcile(ctx context.Context, _ *slog.Logger, svc *corev1.Service) (reconcile.Result, error) {
	if svc.DeletionTimestamp != nil || svc.Spec.Selector == nil || svc.Spec.Type == corev1.ServiceTypeExternalName {
		return reconcile.Result{}, nil
	}
	pods, err := client.List[*corev1.Pod](ctx, c.Client, client.Query{Namespace: svc.Namespace,
		Labels: labels.SelectorFromSet(svc.Spec.Selector)})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("list pods: %w", err)
	}
	want := desired(svc, pods)
	now, err := client.Get[*corev1.Endpoints](ctx, c.Client, api.KeyOf(svc))
	if apierrors.IsNotFound(err) {
		_, err = client.Create(ctx, c.Client, want)
		if err != nil {
			return reconcile.Result{}, fmt.Errorf("create endpoints: %w", err)
		}
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get endpoints: %w", err)
	}
	_, err = client.Mutate(ctx, c.Client, now, "", func(e *corev1.Endpoints) {
		e.Labels, e.Subsets = want.Labels, want.Subsets
		if over := want.Annotations[corev1.EndpointsOverCapacity]; over != "" {
			if e.Annotations == nil {
				e.Annotations = map[string]string{}
			}
			e.Annotations[corev1.EndpointsOverCapacity] = over
		} else {
			delete(e.Annotations, corev1.EndpointsOverCapacity)
		}
	})
	return reconcile.Result{}, err
}

// subset collects the addresses that have the same ports.
type subset struct {
	ports           []corev1.EndpointPort
	ready, notReady []corev1.EndpointAddress
}

// desired returns the Endpoints of svc.
func desired(svc *corev1.Service, pods []*corev1.Pod) *corev1.Endpoints {
	e := &corev1.Endpoints{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Endpoints"},
		ObjectMeta: metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name, Labels: map[string]string{}}}
	maps.Copy(e.Labels, svc.Labels)
	delete(e.Labels, corev1.IsHeadlessService)
	if svc.Spec.ClusterIP == "" || svc.Spec.ClusterIP == corev1.ClusterIPNone {
		e.Labels[corev1.IsHeadlessService] = ""
	}
	e.Labels[managedLabel] = manager
	subsets := map[string]*subset{}
	for _, p := range pods {
		ip := address(svc, p)
		if ip == "" || api.PodTerminal(p) || p.DeletionTimestamp != nil && !svc.Spec.PublishNotReadyAddresses {
			continue
		}
		ports, id := portsOf(svc, p)
		if len(ports) == 0 && len(svc.Spec.Ports) > 0 {
			continue // none of the named ports is this pod's
		}
		if subsets[id] == nil {
			subsets[id] = &subset{ports: ports}
		}
		a := corev1.EndpointAddress{IP: ip, Hostname: reconcile.PodHostname(p, svc),
			TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}}
		if p.Spec.NodeName != "" {
			a.NodeName = &p.Spec.NodeName
		}
		if s := subsets[id]; svc.Spec.PublishNotReadyAddresses || api.PodReady(p) {
			s.ready = append(s.ready, a)
		} else {
			s.notReady = append(s.notReady, a)
		}
	}
	var sorted []*subset
	for _, id := range slices.Sorted(maps.Keys(subsets)) {
		s := subsets[id]
		slices.SortFunc(s.ready, byIP)
		slices.SortFunc(s.notReady, byIP)
		sorted = append(sorted, s)
	}
	if truncate(sorted) {
		e.Annotations = map[string]string{corev1.EndpointsOverCapacity: "truncated"}
	}
	for _, s := range sorted {
		if len(s.ready)+len(s.notReady) > 0 {
			e.Subsets = append(e.Subsets, corev1.EndpointSubset{Addresses: s.ready, NotReadyAddresses: s.notReady, Ports: s.ports})
		}
	}
	return e
}

// truncate leaves no more addresses than there may be, and says whether any had to go: those that are not ready go first.
func truncate(subsets []*subset) (over bool) {
	room := capacity
	keep := func(as []corev1.EndpointAddress) []corev1.EndpointAddress {
		n := min(len(as), room)
		room -= n
		over = over || n < len(as)
		if n == 0 {
			return nil
		}
		return as[:n]
	}
	for _, s := range subsets {
		s.ready = keep(s.ready)
	}
	for _, s := range subsets {
		s.notReady = keep(s.notReady)
	}
	return over
}

func byIP(a, b corev1.EndpointAddress) int {
	return cmp.Or(cmp.Compare(a.IP, b.IP), cmp.Compare(a.TargetRef.UID, b.TargetRef.UID))
}

// address returns the pod's address of svc's first family.
func address(svc *corev1.Service, p *corev1.Pod) string {
	six := strings.Contains(svc.Spec.ClusterIP, ":")
	if len(svc.Spec.IPFamilies) > 0 {
		six = svc.Spec.IPFamilies[0] == corev1.IPv6Protocol
	}
	for _, ip := range p.Status.PodIPs {
		if strings.Contains(ip.IP, ":") == six {
			return ip.IP
		}
	}
	return ""
}

// portsOf returns p's ports behind svc, and a text that is equal for equal ports.
func portsOf(svc *corev1.Service, p *corev1.Pod) ([]corev1.EndpointPort, string) {
	var ports []corev1.EndpointPort
	var id []string
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		if n, ok := reconcile.TargetPort(p, sp); ok {
			ports = append(ports, corev1.EndpointPort{Name: sp.Name, Port: n, Protocol: sp.Protocol, AppProtocol: sp.AppProtocol})
			id = append(id, sp.Name+"|"+strconv.Itoa(int(n))+"|"+string(sp.Protocol))
		}
	}
	return ports, strings.Join(id, ",")
}
