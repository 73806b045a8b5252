package endpointslice

import (
	"maps"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// same says that a stored slice needs no write to be like next. The order of endpoints means nothing, and
// deprecated topology is not ours to remove.
func same(now, next *discoveryv1.EndpointSlice) bool {
	return maps.Equal(now.Labels, next.Labels) && equality.Semantic.DeepEqual(now.OwnerReferences, next.OwnerReferences) &&
		portsID(now.Ports) == portsID(next.Ports) && sameEndpoints(next.Endpoints, now.Endpoints)
}

func sameEndpoints(a, b []discoveryv1.Endpoint) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !sameEndpoint(&a[i], &b[i]) {
			return false
		}
	}
	return true
}

func sameEndpoint(a, b *discoveryv1.Endpoint) bool {
	return slices.Equal(a.Addresses, b.Addresses) && equal(a.Conditions.Ready, b.Conditions.Ready) &&
		equal(a.Conditions.Serving, b.Conditions.Serving) && equal(a.Conditions.Terminating, b.Conditions.Terminating) &&
		equal(a.NodeName, b.NodeName) && equal(a.Zone, b.Zone) && equal(a.Hostname, b.Hostname) && equal(a.TargetRef, b.TargetRef) &&
		equality.Semantic.DeepEqual(a.Hints, b.Hints)
}

func equal[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}
