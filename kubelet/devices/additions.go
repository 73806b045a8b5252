package devices

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/spec"
)

// Additions returns what the devices of a container add to it. It fails where one of its devices was never granted, so that no container runs without.
func (s *Set) Additions(pod *corev1.Pod, c *corev1.Container) (*spec.Additions, error) {
	all, names := s.held(pod.UID, c.Name)
	for _, name := range extended(pod, c) {
		if !slices.Contains(names, name) && s.Owns(corev1.ResourceName(name)) {
			return nil, fmt.Errorf("no devices of %s were allocated to the container, since it was made before they were known: delete the pod", name)
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	a := &spec.Additions{Annotations: map[string]string{}}
	for _, g := range all {
		for key, value := range g.Response.Envs {
			a.Envs = append(a.Envs, &runtimeapi.KeyValue{Key: key, Value: []byte(value)})
		}
		for _, m := range g.Response.Mounts {
			a.Mounts = append(a.Mounts, &runtimeapi.Mount{ContainerPath: m.ContainerPath, HostPath: m.HostPath, Readonly: m.ReadOnly})
		}
		for _, d := range g.Response.Devices {
			a.Devices = append(a.Devices, &runtimeapi.Device{ContainerPath: d.ContainerPath, HostPath: d.HostPath, Permissions: d.Permissions})
		}
		for key, value := range g.Response.Annotations {
			if _, ok := a.Annotations[key]; !ok {
				a.Annotations[key] = value
			}
		}
		for _, d := range g.Response.CdiDevices {
			a.CDI = append(a.CDI, &runtimeapi.CDIDevice{Name: d.Name})
		}
	}
	// Of two plugins that want the same thing, the first by the name of its resource has its way.
	a.Envs = unique(a.Envs, func(v *runtimeapi.KeyValue) string { return v.Key })
	a.Mounts = unique(a.Mounts, func(m *runtimeapi.Mount) string { return m.ContainerPath })
	a.Devices = unique(a.Devices, func(d *runtimeapi.Device) string { return d.ContainerPath })
	a.CDI = unique(a.CDI, func(d *runtimeapi.CDIDevice) string { return d.Name })
	return a, nil
}

// unique sorts by key, and keeps the first of each.
func unique[T any](list []T, key func(T) string) []T {
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(key(a), key(b)) })
	return slices.CompactFunc(list, func(a, b T) bool { return key(a) == key(b) })
}

// Prepares reports whether Prepare has to be called before the container starts.
func (s *Set) Prepares(pod types.UID, container string) bool {
	all, _ := s.held(pod, container)
	return slices.ContainsFunc(all, func(g *grant) bool { return g.PreStart })
}

// Prepare has plugins make the devices of a container ready for another start of it.
func (s *Set) Prepare(ctx context.Context, pod types.UID, container string) error {
	all, names := s.held(pod, container)
	var errs []error
	for i, g := range all {
		if !g.PreStart {
			continue
		}
		s.mu.Lock()
		var p *plugin
		if st := s.stocks[names[i]]; st != nil {
			p = st.plugin
		}
		s.mu.Unlock()
		if p == nil {
			errs = append(errs, fmt.Errorf("the device plugin of %s is not registered, and has to prepare the devices of container %s", names[i], container))
			continue
		}
		errs = append(errs, p.prepare(ctx, g.IDs))
	}
	return errors.Join(errs...)
}
