package endpointslice

import (
	"fmt"
	"math/rand/v2"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Pods that come, go and change at random are each in exactly one slice at every step, and no slice is too large.
func TestArrangeModel(t *testing.T) {
	svc := service(func(s *corev1.Service) { s.Spec.Ports[0].TargetPort = intstr.FromString("web") })
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 0))
		pods := map[int]*corev1.Pod{}
		var slices []*discoveryv1.EndpointSlice
		for step := range 30 {
			for range r.IntN(80) {
				i := r.IntN(400)
				switch r.IntN(3) {
				case 0:
					delete(pods, i)
				case 1:
					pods[i] = pod(i, port("web", int32(8080+r.IntN(2))))
				default:
					pods[i] = pod(i, port("web", 8080), notReady)
				}
			}
			var list []*corev1.Pod
			for i := range 400 {
				if p := pods[i]; p != nil {
					list = append(list, p)
				}
			}
			slices = carryOut(arrange(svc, desired(svc, list, nil), slices), slices, fmt.Sprintf("%d-%d", seed, step))
			seen := map[string]bool{}
			for _, s := range slices {
				if len(s.Endpoints) > perSlice {
					t.Fatalf("seed %d: a slice of %d", seed, len(s.Endpoints))
				}
				for _, e := range s.Endpoints {
					if seen[e.Addresses[0]] {
						t.Fatalf("seed %d: %s is in two slices", seed, e.Addresses[0])
					}
					seen[e.Addresses[0]] = true
				}
			}
			if len(seen) != len(list) || len(slices) == 0 {
				t.Fatalf("seed %d: %d endpoints of %d pods in %d slices", seed, len(seen), len(list), len(slices))
			}
			if again := arrange(svc, desired(svc, list, nil), slices); len(again.create)+len(again.update)+len(again.remove) != 0 {
				t.Fatalf("seed %d: what was arranged is arranged again", seed)
			}
		}
	}
}

func carryOut(p plan, now []*discoveryv1.EndpointSlice, stamp string) []*discoveryv1.EndpointSlice {
	gone := map[*discoveryv1.EndpointSlice]bool{}
	for _, s := range p.remove {
		gone[s] = true
	}
	for _, u := range p.update {
		gone[u.now] = true
	}
	var out []*discoveryv1.EndpointSlice
	for _, s := range now {
		if !gone[s] {
			out = append(out, s)
		}
	}
	for _, u := range p.update {
		u.next.Name = u.now.Name
		out = append(out, u.next)
	}
	for i, s := range p.create {
		s.Name = fmt.Sprint(s.GenerateName, stamp, "-", i)
		out = append(out, s)
	}
	return out
}
