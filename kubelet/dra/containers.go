package dra

import (
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/dynamic-resource-allocation/resourceclaim"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/yare-dev/yare/kubelet/spec"
)

// use is one entry of a container's resources.claims, or one of its requests in the claim that was made for extended resources: the entry is the
// claim's name then.
type use struct {
	entry, request string
	record         *record // nil: nothing was prepared
	devices        []served
}

type served struct {
	driver string
	device
}

// uses returns what a container has of the pod's claims, without those that the pod turned out not to need.
func (s *Set) uses(pod *corev1.Pod, container string) (out []use) {
	special := pod.Status.ExtendedResourceClaimStatus
	if len(pod.Spec.ResourceClaims) == 0 && special == nil {
		return nil
	}
	c, _ := spec.Find(pod, container)
	if c == nil || len(c.Resources.Claims) == 0 && special == nil {
		return nil
	}
	held := s.held(pod.UID)
	for _, want := range c.Resources.Claims {
		i := slices.IndexFunc(pod.Spec.ResourceClaims, func(e corev1.PodResourceClaim) bool { return e.Name == want.Name })
		if i < 0 {
			continue
		}
		name, _, err := resourceclaim.Name(pod, &pod.Spec.ResourceClaims[i])
		if err == nil && name == nil {
			continue
		}
		u := use{entry: want.Name, request: want.Request}
		if err == nil {
			u.record = named(held, pod.Namespace, *name)
		}
		if u.record != nil {
			u.devices = u.record.of(want.Request)
		}
		out = append(out, u)
	}
	if special == nil {
		return out
	}
	for _, m := range special.RequestMappings {
		if q := c.Resources.Requests[corev1.ResourceName(m.ResourceName)]; m.ContainerName != container || q.Sign() <= 0 {
			continue
		}
		u := use{entry: special.ResourceClaimName, request: m.RequestName, record: named(held, pod.Namespace, special.ResourceClaimName)}
		if u.record != nil {
			u.devices = u.record.of(m.RequestName)
		}
		out = append(out, u)
	}
	return out
}

// of returns the devices of one request, or with "" all.
func (r *record) of(request string) (out []served) {
	for _, driver := range slices.Sorted(maps.Keys(r.Drivers)) {
		for _, d := range r.Drivers[driver].Devices {
			is := func(name string) bool { return name == request || resourceclaim.BaseRequestRef(name) == request }
			if request == "" || len(d.Requests) == 0 || slices.ContainsFunc(d.Requests, is) {
				out = append(out, served{driver, d})
			}
		}
	}
	return out
}

// Devices returns the CDI devices of a container, each once. It fails where one of its claims is not prepared, so that no container runs without.
func (s *Set) Devices(pod *corev1.Pod, c *corev1.Container) (out []*runtimeapi.CDIDevice, err error) {
	for _, u := range s.uses(pod, c.Name) {
		if u.record == nil || !u.record.ready(s.config.Boot) {
			return nil, fmt.Errorf("resource claim %s is not prepared", u.entry)
		}
		for _, d := range u.devices {
			for _, id := range d.CDI {
				if !slices.ContainsFunc(out, func(o *runtimeapi.CDIDevice) bool { return o.Name == id }) {
					out = append(out, &runtimeapi.CDIDevice{Name: id})
				}
			}
		}
	}
	return out, nil
}

// Resources returns what the pod resources API tells of a container: each claim once, with the devices that are the container's.
func (s *Set) Resources(pod *corev1.Pod, container string) (out []*podresourcesapi.DynamicResource) {
	seen := map[deviceKey]bool{}
	for _, u := range s.uses(pod, container) {
		if u.record == nil {
			continue
		}
		i := slices.IndexFunc(out, func(r *podresourcesapi.DynamicResource) bool { return r.ClaimName == u.record.Name })
		if i < 0 {
			i = len(out)
			out = append(out, &podresourcesapi.DynamicResource{ClaimName: u.record.Name, ClaimNamespace: u.record.Namespace})
		}
		for _, d := range u.devices {
			share := ""
			if d.Share != nil {
				share = *d.Share
			}
			key := deviceKey{d.driver, d.Pool, d.Name + "/" + share + "/" + u.record.Name}
			if seen[key] {
				continue
			}
			seen[key] = true
			one := &podresourcesapi.ClaimResource{DriverName: d.driver, PoolName: d.Pool, DeviceName: d.Name, ShareId: d.Share}
			for _, id := range d.CDI {
				one.CdiDevices = append(one.CdiDevices, &podresourcesapi.CDIDevice{Name: id})
			}
			out[i].ClaimResources = append(out[i].ClaimResources, one)
		}
	}
	return out
}
