package servicelb

import (
	"sync/atomic"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/client"
)

// TestHeedsSlices: slices wake the controller where their Service looks at its endpoints, or they were such a Service's.
func TestHeedsSlices(t *testing.T) {
	t.Parallel()
	slice := func(service, node string) *discoveryv1.EndpointSlice {
		return &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "d", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
			Endpoints: []discoveryv1.Endpoint{{NodeName: &node}}}
	}
	c := controller{local: new(atomic.Pointer[map[api.Key]bool])}
	if !c.heeds(client.Event{Op: client.Modified, Object: slice("any", "a")}) {
		t.Error("before anybody has looked, a slice is passed over")
	}
	c.local.Store(&map[api.Key]bool{{Namespace: "d", Name: "local"}: true})
	for name, e := range map[string]struct {
		op       client.Op
		old, now *discoveryv1.EndpointSlice
		want     bool
	}{
		"another node":             {client.Modified, slice("local", "a"), slice("local", "b"), true},
		"the same":                 {client.Modified, slice("local", "a"), slice("local", "a"), false},
		"deleted":                  {client.Deleted, slice("local", "a"), slice("local", "a"), true},
		"of another, but once?":    {client.Modified, nil, slice("cluster", "a"), true},
		"of another, new":          {client.Added, nil, slice("cluster", "a"), false},
		"of another, another node": {client.Modified, slice("cluster", "a"), slice("cluster", "b"), false},
		"of another, deleted":      {client.Deleted, slice("cluster", "a"), slice("cluster", "a"), false},
		"it becomes another's":     {client.Modified, slice("local", "a"), slice("cluster", "a"), true},
		"it was another's":         {client.Modified, slice("cluster", "a"), slice("local", "a"), true},
		"one nobody's to nobody's": {client.Modified, slice("", "a"), slice("", "b"), false},
	} {
		event := client.Event{Op: e.op, Object: e.now}
		if e.old != nil {
			event.Old = e.old
		}
		if got := c.heeds(event); got != e.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
