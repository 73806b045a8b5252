package devices

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	pluginapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
)

// lister is the pod resources API (KEP-606, KEP-2403, KEP-3695). Processors and memory are given exclusively to nobody on this node, hence no
// message has any, as upstream's without its static policies.
type lister struct {
	podresourcesapi.UnimplementedPodResourcesListerServer
	set *Set
}

// List returns the pods that have not ended.
func (l lister) List(context.Context, *podresourcesapi.ListPodResourcesRequest) (*podresourcesapi.ListPodResourcesResponse, error) {
	r := &podresourcesapi.ListPodResourcesResponse{}
	for _, p := range l.set.config.Pods() {
		if !ended(p) {
			r.PodResources = append(r.PodResources, l.pod(p))
		}
	}
	return r, nil
}

// Get returns one of them.
func (l lister) Get(_ context.Context, q *podresourcesapi.GetPodResourcesRequest) (*podresourcesapi.GetPodResourcesResponse, error) {
	for _, p := range l.set.config.Pods() {
		if p.Name == q.PodName && p.Namespace == q.PodNamespace && !ended(p) {
			return &podresourcesapi.GetPodResourcesResponse{PodResources: l.pod(p)}, nil
		}
	}
	return nil, status.Errorf(codes.NotFound, "pod %s in namespace %s not found", q.PodName, q.PodNamespace)
}

// GetAllocatableResources returns all devices that are healthy, also those that are allocated.
func (l lister) GetAllocatableResources(context.Context, *podresourcesapi.AllocatableResourcesRequest) (*podresourcesapi.AllocatableResourcesResponse, error) {
	s := l.set
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &podresourcesapi.AllocatableResourcesResponse{}
	for name, st := range s.stocks {
		for _, id := range st.healthy {
			r.Devices = append(r.Devices, device(name, id, numaOf(st.devices[id])))
		}
	}
	slices.SortStableFunc(r.Devices, func(a, b *podresourcesapi.ContainerDevices) int {
		return strings.Compare(a.ResourceName, b.ResourceName)
	})
	return r, nil
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// pod returns what the containers have that run all the while: init containers are over soon.
func (l lister) pod(p *corev1.Pod) *podresourcesapi.PodResources {
	r := &podresourcesapi.PodResources{Name: p.Name, Namespace: p.Namespace}
	each(p, func(c *corev1.Container, passes bool) {
		if passes {
			return
		}
		one := &podresourcesapi.ContainerResources{Name: c.Name}
		all, names := l.set.held(p.UID, c.Name)
		for i, g := range all {
			for _, id := range g.IDs {
				one.Devices = append(one.Devices, device(names[i], id, g.NUMA[id]))
			}
		}
		r.Containers = append(r.Containers, one)
	})
	return r
}

// device is one device: upstream lists each by itself, with its NUMA nodes.
func device(resource, id string, numa []int64) *podresourcesapi.ContainerDevices {
	d := &podresourcesapi.ContainerDevices{ResourceName: resource, DeviceIds: []string{id}}
	if len(numa) > 0 {
		d.Topology = &podresourcesapi.TopologyInfo{}
	}
	for _, n := range numa {
		d.Topology.Nodes = append(d.Topology.Nodes, &podresourcesapi.NUMANode{ID: n})
	}
	return d
}

func numaOf(d *pluginapi.Device) (nodes []int64) {
	for _, n := range d.GetTopology().GetNodes() {
		nodes = append(nodes, n.GetID())
	}
	return nodes
}
