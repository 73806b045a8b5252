package servicelb

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
)

// balanced returns a Service, the older the less its age is.
func balanced(name string, age int, ports ...int32) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name, CreationTimestamp: metav1.Unix(int64(age)*int64(time.Hour/time.Second), 0)}}
	s.Spec.Type, s.Spec.IPFamilies = corev1.ServiceTypeLoadBalancer, []corev1.IPFamily{corev1.IPv4Protocol}
	for _, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Protocol: corev1.ProtocolTCP, Port: p})
	}
	return s
}

func with(s *corev1.Service, fn func(*corev1.Service)) *corev1.Service {
	fn(s)
	return s
}

func has(s *corev1.Service, ips ...string) *corev1.Service {
	for _, ip := range ips {
		s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: ip})
	}
	return s
}

func node(name string, ips ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, ip := range ips {
		t := corev1.NodeInternalIP
		if out, ok := strings.CutPrefix(ip, "out:"); ok {
			t, ip = corev1.NodeExternalIP, out
		}
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: t, Address: ip})
	}
	return n
}

func pod(name, node, hostIP string, port int32, phase corev1.PodPhase) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Name: name}, Spec: corev1.PodSpec{NodeName: node}}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{HostIP: hostIP, HostPort: port, Protocol: corev1.ProtocolTCP}}}}
	p.Status.Phase = phase
	return p
}

func TestGive(t *testing.T) {
	a, b := node("a", "10.0.0.1", "fd00::1"), node("b", "10.0.0.2", "fd00::2")
	local := func(s *corev1.Service) { s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal }
	class := func(name string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.LoadBalancerClass = &name }
	}
	tests := []struct {
		name string
		w    world
		c    Config
		want string // name=addresses, or name!why
	}{
		{"all nodes", world{services: []*corev1.Service{balanced("s", 1, 80)}, nodes: []*corev1.Node{b, a}}, Config{}, "s=10.0.0.1,10.0.0.2"},
		{"both families", world{services: []*corev1.Service{with(balanced("s", 1, 80), func(s *corev1.Service) {
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}
		})}, nodes: []*corev1.Node{a, b}}, Config{}, "s=fd00::1,fd00::2,10.0.0.1,10.0.0.2"},
		{"a family that no node has", world{services: []*corev1.Service{with(balanced("s", 1, 80), func(s *corev1.Service) {
			s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv6Protocol}
		})}, nodes: []*corev1.Node{node("a", "10.0.0.1")}}, Config{}, "s!node a has no address of IPv6"},
		{"the outside's address", world{services: []*corev1.Service{balanced("s", 1, 80)}, nodes: []*corev1.Node{node("a", "out:1.2.3.4", "10.0.0.1")}}, Config{}, "s=1.2.3.4"},
		{"nodes that take nothing", world{services: []*corev1.Service{balanced("s", 1, 80)}, nodes: []*corev1.Node{
			func() *corev1.Node {
				n := node("a", "10.0.0.1")
				n.Status.Conditions[0].Status = corev1.ConditionUnknown
				return n
			}(),
			func() *corev1.Node {
				n := node("b", "10.0.0.2")
				n.Labels = map[string]string{corev1.LabelNodeExcludeBalancers: ""}
				return n
			}(),
		}}, Config{}, "s!no node is ready"},
		{"two of one port: the older", world{services: []*corev1.Service{balanced("new", 2, 80), balanced("old", 1, 80)}, nodes: []*corev1.Node{a}}, Config{},
			"old=10.0.0.1 new!port 80/TCP of node a is taken by Service d/old"},
		{"two of one port: who has it", world{services: []*corev1.Service{has(balanced("new", 2, 80), "10.0.0.1"), balanced("old", 1, 443, 80)}, nodes: []*corev1.Node{a}}, Config{},
			"new=10.0.0.1 old!port 80/TCP of node a is taken by Service d/new"},
		{"two protocols of one port", world{services: []*corev1.Service{balanced("s", 1, 53), with(balanced("u", 2, 53), func(s *corev1.Service) {
			s.Spec.Ports[0].Protocol = corev1.ProtocolUDP
		})}, nodes: []*corev1.Node{a}}, Config{}, "s=10.0.0.1 u=10.0.0.1"},
		{"a pod's hostPort", world{services: []*corev1.Service{balanced("s", 1, 80)}, nodes: []*corev1.Node{a, b}, pods: []*corev1.Pod{pod("p", "a", "", 80, "")}}, Config{}, "s=10.0.0.2"},
		{"hostPorts of another address, of a pod that is over", world{services: []*corev1.Service{balanced("s", 1, 80)}, nodes: []*corev1.Node{a},
			pods: []*corev1.Pod{pod("p", "a", "127.0.0.1", 80, ""), pod("q", "a", "", 80, corev1.PodFailed), pod("r", "", "", 80, "")}}, Config{}, "s=10.0.0.1"},
		{"a node port", world{services: []*corev1.Service{balanced("s", 1, 30001), with(balanced("n", 2, 90), func(s *corev1.Service) {
			s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30001
		})}, nodes: []*corev1.Node{a}}, Config{}, "s!port 30001/TCP of node a is taken by Service d/n"},
		{"its own node port", world{services: []*corev1.Service{with(balanced("s", 1, 30001), func(s *corev1.Service) { s.Spec.Ports[0].NodePort = 30001 })},
			nodes: []*corev1.Node{a}}, Config{}, "s=10.0.0.1"},
		{"externalIPs", world{services: []*corev1.Service{balanced("s", 1, 80), with(balanced("e", 2, 80), func(s *corev1.Service) {
			s.Spec.Type, s.Spec.ExternalIPs = corev1.ServiceTypeClusterIP, []string{"10.0.0.1"}
		})}, nodes: []*corev1.Node{a, b}}, Config{}, "s=10.0.0.2"},
		{"reserved", world{services: []*corev1.Service{balanced("s", 1, 80, 22)}, nodes: []*corev1.Node{a}}, Config{Reserved: []int32{22}},
			"s!port 22 is reserved for the nodes themselves (serviceLoadBalancer.reservedPorts of the settings)"},
		{"Local", world{services: []*corev1.Service{with(balanced("s", 1, 80), local)}, nodes: []*corev1.Node{a, b},
			endpoints: map[api.Key][]string{{Namespace: "d", Name: "s"}: {"b"}}}, Config{}, "s=10.0.0.2"},
		{"Local without endpoints", world{services: []*corev1.Service{with(balanced("s", 1, 80), local)}, nodes: []*corev1.Node{a}}, Config{},
			"s!no ready endpoint is on a node that takes traffic from outside, which externalTrafficPolicy: Local asks for"},
		{"loadBalancerIP", world{services: []*corev1.Service{with(balanced("s", 1, 80), func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.0.0.2" })},
			nodes: []*corev1.Node{a, b}}, Config{}, "s=10.0.0.2"},
		{"loadBalancerIP of nobody", world{services: []*corev1.Service{with(balanced("s", 1, 80), func(s *corev1.Service) { s.Spec.LoadBalancerIP = "10.0.0.9" })},
			nodes: []*corev1.Node{a, b}}, Config{}, "s!spec.loadBalancerIP 10.0.0.9 is not the address of a node that takes traffic from outside"},
		{"classes", world{services: []*corev1.Service{with(balanced("s", 1, 80), class("example.com/x")), with(balanced("t", 2, 80), class(Class)), balanced("u", 3, 81)},
			nodes: []*corev1.Node{a}}, Config{}, "t=10.0.0.1 u=10.0.0.1"},
		{"the class alone", world{services: []*corev1.Service{with(balanced("t", 2, 80), class(Class)), balanced("u", 3, 81)}, nodes: []*corev1.Node{a}},
			Config{OnlyClass: true}, "t=10.0.0.1"},
	}
	for _, tt := range tests {
		var got []string
		for _, g := range tt.w.give(tt.c) {
			var ips []string
			for _, in := range g.ingress {
				ips = append(ips, in.IP)
			}
			if len(ips) == 0 {
				got = append(got, g.service.Name+"!"+g.why)
			} else {
				got = append(got, fmt.Sprint(g.service.Name, "=", strings.Join(ips, ",")))
			}
		}
		if text := strings.Join(got, " "); text != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, text, tt.want)
		}
	}
}
