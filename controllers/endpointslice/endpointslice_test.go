package endpointslice

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/yare-dev/yare/client"
	"github.com/yare-dev/yare/controllers/endpoints"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

var app = map[string]string{"app": "web"}

func service(mods ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "s"},
		Spec: corev1.ServiceSpec{Selector: app, ClusterIP: "10.0.0.1", IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}}}
	for _, m := range mods {
		m(s)
	}
	return s
}

func pod(i int, mods ...func(*corev1.Pod)) *corev1.Pod {
	ip := fmt.Sprintf("10.42.%d.%d", i/250, i%250+1)
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: fmt.Sprintf("p%03d", i), UID: types.UID(fmt.Sprint("u", i)), Labels: app},
		Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c"}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}, {IP: fmt.Sprintf("fd00::%d", i+1)}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}}}
	for _, m := range mods {
		m(p)
	}
	return p
}

func traffic(distribution string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.TrafficDistribution = &distribution }
}

func mode(m string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Annotations = map[string]string{corev1.AnnotationTopologyMode: m} }
}

func on(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeName = node }
}

func notReady(p *corev1.Pod) { p.Status.Conditions = nil }
func deleting(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }
func port(name string, n int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: name, ContainerPort: n, Protocol: corev1.ProtocolTCP}}
	}
}

// show prints slices: family, ports, and per endpoint its address and what is true of it.
func show(ss []*discoveryv1.EndpointSlice) string {
	var lines []string
	for _, s := range ss {
		line := string(s.AddressType) + " " + portsID(s.Ports) + ":"
		for _, e := range s.Endpoints {
			line += " " + e.Addresses[0]
			for name, v := range map[string]*bool{"r": e.Conditions.Ready} {
				if *v {
					line += name
				}
			}
			if *e.Conditions.Serving {
				line += "s"
			}
			if *e.Conditions.Terminating {
				line += "t"
			}
			if e.Hostname != nil {
				line += "(" + *e.Hostname + ")"
			}
			if e.Zone != nil {
				line += "@" + *e.Zone
			}
			if h := e.Hints; h != nil {
				for _, z := range h.ForZones {
					line += ">" + z.Name
				}
				for _, n := range h.ForNodes {
					line += ">" + n.Name
				}
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func TestDesired(t *testing.T) {
	named := func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("web") }
	tests := []struct {
		name string
		svc  *corev1.Service
		pods []*corev1.Pod
		want string
	}{
		{"none", service(), nil, "IPv4 :"},
		{"conditions", service(), []*corev1.Pod{pod(0), pod(1, notReady), pod(2, deleting), pod(3, deleting, notReady)},
			"IPv4 http|8080|TCP|: 10.42.0.1rs@z 10.42.0.2@z 10.42.0.3st@z 10.42.0.4t@z"},
		{"not ready addresses published", service(func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true }),
			[]*corev1.Pod{pod(1, notReady), pod(2, deleting)}, "IPv4 http|8080|TCP|: 10.42.0.2r@z 10.42.0.3rst@z"},
		{"without address, ended", service(), []*corev1.Pod{
			pod(0, func(p *corev1.Pod) { p.Status.PodIPs = nil }), pod(1, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed })}, "IPv4 :"},
		{"for its zone", service(traffic("PreferSameZone")), []*corev1.Pod{pod(0), pod(1, notReady), pod(2, on("nowhere"))},
			"IPv4 http|8080|TCP|: 10.42.0.1rs@z>z 10.42.0.2@z 10.42.0.3rs"},
		{"for its zone, by the older name", service(traffic("PreferClose")), []*corev1.Pod{pod(0)}, "IPv4 http|8080|TCP|: 10.42.0.1rs@z>z"},
		{"for its node", service(traffic("PreferSameNode")), []*corev1.Pod{pod(0), pod(1, notReady), pod(2, on("nowhere"))},
			"IPv4 http|8080|TCP|: 10.42.0.1rs@z>z>n1 10.42.0.2@z 10.42.0.3rs>nowhere"},
		{"in another way", service(traffic("example.com/x")), []*corev1.Pod{pod(0)}, "IPv4 http|8080|TCP|: 10.42.0.1rs@z"},
		{"topology-aware", service(traffic("PreferSameZone"), mode("Auto")), []*corev1.Pod{pod(0)}, "IPv4 http|8080|TCP|: 10.42.0.1rs@z"},
		{"not topology-aware", service(traffic("PreferSameZone"), mode("Disabled")), []*corev1.Pod{pod(0)}, "IPv4 http|8080|TCP|: 10.42.0.1rs@z>z"},
		{"both families", service(func(s *corev1.Service) { s.Spec.IPFamilies = []corev1.IPFamily{"IPv6", "IPv4"} }), []*corev1.Pod{pod(0)},
			"IPv6 http|8080|TCP|: fd00::1rs@z\nIPv4 http|8080|TCP|: 10.42.0.1rs@z"},
		{"ports by name", service(named), []*corev1.Pod{pod(0, port("web", 1)), pod(1, port("web", 2)), pod(2, port("x", 3)), pod(3, port("web", 1))},
			"IPv4 : 10.42.0.3rs@z\nIPv4 http|1|TCP|: 10.42.0.1rs@z 10.42.0.4rs@z\nIPv4 http|2|TCP|: 10.42.0.2rs@z"},
		{"hostname", service(), []*corev1.Pod{pod(0, func(p *corev1.Pod) { p.Spec.Hostname, p.Spec.Subdomain = "h", "web" })},
			"IPv4 http|8080|TCP|: 10.42.0.1rs(h)@z"},
		{"external name", service(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }), []*corev1.Pod{pod(0)}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := arrange(tt.svc, desired(tt.svc, tt.pods, map[string]string{"n1": "z"}), nil)
			if d := cmp.Diff(tt.want, show(got.create)); d != "" {
				t.Error(d)
			}
		})
	}
}

// A change of one pod is a write of one slice; no slice holds too many.
func TestConverges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Create(t, c, service())
		for i := range 250 {
			rt.Create(t, c, pod(i))
		}
		rt.Start(t, d, New(d), endpoints.New(d))
		check := func(pods, slices int) {
			t.Helper()
			synctest.Wait()
			n, ss := 0, rt.List[*discoveryv1.EndpointSlice](t, c)
			for _, s := range ss {
				n += len(s.Endpoints)
				if len(s.Endpoints) > perSlice {
					t.Errorf("a slice of %d", len(s.Endpoints))
				}
			}
			if n != pods || len(ss) != slices {
				t.Errorf("%d endpoints in %d slices, want %d in %d", n, len(ss), pods, slices)
			}
			es := rt.Get[*corev1.Endpoints](t, c, "ns", "web").Subsets
			if pods > 0 && len(es[0].Addresses)+len(es[0].NotReadyAddresses) != pods || pods == 0 && len(es) != 0 {
				t.Errorf("the Endpoints differ: %v", es)
			}
		}
		check(250, 3)
		writes := func() int {
			return c.Writes("update endpointslices.discovery.k8s.io") + c.Writes("create endpointslices.discovery.k8s.io") +
				c.Writes("delete endpointslices.discovery.k8s.io")
		}
		before := writes()
		rt.Mutate(t, c, pod(7), "status", notReady)
		check(250, 3)
		if n := writes() - before; n != 1 {
			t.Errorf("%d writes for one change", n)
		}
		before = writes()
		rt.Mutate(t, c, pod(7), "", func(p *corev1.Pod) { p.Annotations = map[string]string{"x": "y"} })
		check(250, 3)
		if n := writes() - before; n != 0 {
			t.Errorf("%d writes for nothing", n)
		}
		rt.Create(t, c, pod(250))
		check(251, 3)
		zero := int64(0)
		for i := range 251 {
			rt.Delete(t, c, pod(i), client.DeleteOptions{Grace: &zero})
		}
		check(0, 1)
		rt.Delete(t, c, rt.List[*discoveryv1.EndpointSlice](t, c)[0], client.DeleteOptions{})
		check(0, 1)
		rt.Delete(t, c, service(), client.DeleteOptions{})
		synctest.Wait()
		if n := len(rt.List[*corev1.Endpoints](t, c)); n != 0 {
			t.Errorf("%d Endpoints of no Service", n)
		}
	})
}

func TestForeignSlicesStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		foreign := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "mine",
			Labels: map[string]string{discoveryv1.LabelServiceName: "web"}}, AddressType: "IPv4"}
		rt.Create(t, c, foreign)
		rt.Create(t, c, service())
		rt.Create(t, c, service(func(s *corev1.Service) { s.Name, s.UID, s.Spec.Selector = "manual", "m", nil }))
		rt.Start(t, d, New(d))
		synctest.Wait()
		var names []string
		for _, s := range rt.List[*discoveryv1.EndpointSlice](t, c) {
			names = append(names, strings.TrimRight(s.Name, "0123456789"))
		}
		if !slices.Equal(names, []string{"mine", "web-"}) {
			t.Error(names)
		}
	})
}

// A slice is written when only its hints change.
func TestHintsChange(t *testing.T) {
	zones := map[string]string{"n1": "z"}
	plain := slice(service(), desired(service(), []*corev1.Pod{pod(0)}, zones)[0], nil)
	plain.Endpoints = desired(service(), []*corev1.Pod{pod(0)}, zones)[0].endpoints
	hinted := service(traffic("PreferSameZone"))
	p := arrange(hinted, desired(hinted, []*corev1.Pod{pod(0)}, zones), []*discoveryv1.EndpointSlice{plain})
	if len(p.update) != 1 || p.update[0].next.Endpoints[0].Hints == nil {
		t.Errorf("%+v", p)
	}
	if p = arrange(hinted, desired(hinted, []*corev1.Pod{pod(0)}, zones), []*discoveryv1.EndpointSlice{p.update[0].next}); len(p.update) != 0 {
		t.Errorf("written again: %+v", p)
	}
}
