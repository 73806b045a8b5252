package endpointslicemirroring

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/client"
	rt "github.com/yare-dev/yare/reconcile/reconciletest"
)

func meta() metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "ns", Name: "db"} }

// subset reads "10.0.0.1 !10.0.0.2 : web/80 dns/53"; an exclamation mark is for not ready.
func subset(text string) (s corev1.EndpointSubset) {
	as, ps, _ := strings.Cut(text, ":")
	if i := strings.Index(text, " : "); i >= 0 { // IPv6 has colons
		as, ps = text[:i], text[i+3:]
	}
	for _, a := range strings.Fields(as) {
		if ip, not := strings.CutPrefix(a, "!"); not {
			s.NotReadyAddresses = append(s.NotReadyAddresses, corev1.EndpointAddress{IP: ip})
		} else {
			s.Addresses = append(s.Addresses, corev1.EndpointAddress{IP: a})
		}
	}
	for _, p := range strings.Fields(ps) {
		name, n, _ := strings.Cut(p, "/")
		port := corev1.EndpointPort{Name: name, Protocol: corev1.ProtocolTCP}
		fmt.Sscan(n, &port.Port)
		s.Ports = append(s.Ports, port)
	}
	return s
}

func text(all []*discoveryv1.EndpointSlice) string {
	var out []string
	for _, s := range all {
		var parts []string
		for _, e := range s.Endpoints {
			mark := ""
			if !*e.Conditions.Ready {
				mark = "!"
			}
			parts = append(parts, mark+e.Addresses[0])
		}
		parts = append(parts, ":")
		for _, p := range s.Ports {
			parts = append(parts, fmt.Sprintf("%s/%d", *p.Name, *p.Port))
		}
		out = append(out, strings.Join(parts, " "))
	}
	slices.Sort(out)
	return strings.Join(out, " | ")
}

func TestMirrors(t *testing.T) {
	for _, tt := range []struct {
		name    string
		subsets []string
		want    string
	}{
		{"one", []string{"10.0.0.2 10.0.0.1 !10.0.0.3 : web/80"}, "10.0.0.1 10.0.0.2 !10.0.0.3 : web/80"},
		{"both families", []string{"10.0.0.1 fd00::1 : web/80 dns/53"}, "10.0.0.1 : dns/53 web/80 | fd00::1 : dns/53 web/80"},
		{"ports of the same addresses are put together", []string{"10.0.0.1 : web/80", "10.0.0.1 : dns/53"}, "10.0.0.1 : dns/53 web/80"},
		{"addresses of the same port are put together", []string{"10.0.0.1 : web/80", "10.0.0.2 : web/80"}, "10.0.0.1 10.0.0.2 : web/80"},
		{"different ones are not", []string{"10.0.0.1 : web/80", "10.0.0.2 : dns/53"}, "10.0.0.1 : web/80 | 10.0.0.2 : dns/53"},
		{"ready somewhere", []string{"10.0.0.1 : web/80", "!10.0.0.1 : web/80"}, "10.0.0.1 : web/80"},
		{"no ports", []string{"10.0.0.1 : "}, "10.0.0.1 :"},
		{"nothing", nil, ""},
	} {
		e := &corev1.Endpoints{ObjectMeta: meta()}
		for _, s := range tt.subsets {
			e.Subsets = append(e.Subsets, subset(s))
		}
		all, _, _ := mirrors(e)
		if got := text(all); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
	many := &corev1.Endpoints{ObjectMeta: meta(), Subsets: []corev1.EndpointSubset{{Ports: []corev1.EndpointPort{{Port: 80}}}}}
	for i := range perSubset + 5 {
		many.Subsets[0].Addresses = append(many.Subsets[0].Addresses, corev1.EndpointAddress{IP: fmt.Sprintf("10.0.%d.%d", i/250, i%250)})
	}
	many.Subsets[0].Addresses = append(many.Subsets[0].Addresses, corev1.EndpointAddress{IP: "nowhere"})
	if all, invalid, skipped := mirrors(many); len(all[0].Endpoints) != perSubset || invalid != 1 || skipped != 5 {
		t.Errorf("%d endpoints, %d invalid, %d skipped", len(all[0].Endpoints), invalid, skipped)
	}
}

func TestConverges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := rt.New(t)
		d := rt.Deps(t, c)
		rt.Start(t, d, New(d))
		expect := func(want string) {
			t.Helper()
			synctest.Wait()
			if got := text(rt.List[*discoveryv1.EndpointSlice](t, c)); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		m := meta()
		m.Labels, m.Annotations = map[string]string{"a": "b"}, map[string]string{corev1.EndpointsLastChangeTriggerTime: "now", "note": "x"}
		e := rt.Create(t, c, &corev1.Endpoints{ObjectMeta: m, Subsets: []corev1.EndpointSubset{subset("10.0.0.1 : web/80")}})
		expect("") // there is no Service
		svc := rt.Create(t, c, &corev1.Service{ObjectMeta: meta()})
		expect("10.0.0.1 : web/80")
		s := rt.List[*discoveryv1.EndpointSlice](t, c)[0]
		if s.Labels[discoveryv1.LabelServiceName] != "db" || s.Labels["a"] != "b" || len(s.Annotations) != 1 || !metav1.IsControlledBy(s, e) {
			t.Errorf("slice %+v", s.ObjectMeta)
		}
		rt.Mutate(t, c, e, "", func(e *corev1.Endpoints) { e.Subsets[0] = subset("10.0.0.2 : web/81") })
		expect("10.0.0.2 : web/81")
		if n := c.Writes("create endpointslices.discovery.k8s.io"); n != 1 {
			t.Errorf("%d slices were created", n)
		}
		rt.Delete(t, c, s, client.DeleteOptions{})
		expect("10.0.0.2 : web/81")
		rt.Mutate(t, c, svc, "", func(s *corev1.Service) { s.Spec.Selector = map[string]string{"app": "db"} })
		expect("")
		rt.Mutate(t, c, svc, "", func(s *corev1.Service) { s.Spec.Selector = nil })
		expect("10.0.0.2 : web/81")
		rt.Mutate(t, c, e, "", func(e *corev1.Endpoints) { e.Labels[discoveryv1.LabelSkipMirror] = "true" })
		expect("")
		rt.Mutate(t, c, e, "", func(e *corev1.Endpoints) { delete(e.Labels, discoveryv1.LabelSkipMirror) })
		expect("10.0.0.2 : web/81")
		rt.Delete(t, c, e, client.DeleteOptions{})
		expect("")
	})
}
