package spec

import (
	"maps"
	"path/filepath"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Additions are what a container gets beside what its spec says, for the devices that it has.
type Additions struct {
	Envs        []*runtimeapi.KeyValue
	Mounts      []*runtimeapi.Mount
	Devices     []*runtimeapi.Device
	Annotations map[string]string
	CDI         []*runtimeapi.CDIDevice
}

// add gives the container what it has not of its own: the spec's variables, mounts, devices and annotations come first.
func (a *Additions) add(c *runtimeapi.ContainerConfig) {
	if a == nil {
		return
	}
	c.Mounts = appendNew(c.Mounts, a.Mounts, func(m *runtimeapi.Mount) string { return filepath.Clean(m.ContainerPath) })
	c.Devices = appendNew(c.Devices, a.Devices, func(d *runtimeapi.Device) string { return filepath.Clean(d.ContainerPath) })
	own := c.Annotations
	c.Annotations = maps.Clone(a.Annotations)
	if c.Annotations == nil {
		c.Annotations = map[string]string{}
	}
	maps.Copy(c.Annotations, own)
	c.CDIDevices = a.CDI
}

// env returns the container's environment, of which own is what its spec says.
func (a *Additions) env(own []*runtimeapi.KeyValue) []*runtimeapi.KeyValue {
	if a == nil {
		return own
	}
	return appendNew(own, a.Envs, func(v *runtimeapi.KeyValue) string { return v.Key })
}

func appendNew[T any](own, more []T, key func(T) string) []T {
	have := make(map[string]bool, len(own))
	for _, o := range own {
		have[key(o)] = true
	}
	own = slices.Clip(own)
	for _, m := range more {
		if !have[key(m)] {
			own = append(own, m)
		}
	}
	return own
}
