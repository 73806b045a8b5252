package cgroup

import (
	"errors"
	"fmt"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// resources translates OCI limits. It is pure.
func resources(r *specs.LinuxResources, unified bool) (*cgroups.Resources, error) {
	out := &cgroups.Resources{SkipDevices: true}
	if r == nil {
		return out, nil
	}
	if len(r.Unified) > 0 && !unified {
		return nil, errors.New("linux.resources.unified needs a host with cgroup v2")
	}
	if len(r.Devices) > 0 {
		rules, err := deviceRules(r.Devices)
		if err != nil {
			return nil, err
		}
		out.Devices, out.SkipDevices = rules, false
	}
	if err := memory(out, r.Memory); err != nil {
		return nil, err
	}
	cpu(out, r.CPU, unified)
	if r.Pids != nil && r.Pids.Limit != nil {
		limit := *r.Pids.Limit
		out.PidsLimit = &limit
	}
	for _, h := range r.HugepageLimits {
		out.HugetlbLimit = append(out.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil {
			out.NetClsClassid = *n.ClassID
		}
		for _, p := range n.Priorities {
			out.NetPrioIfpriomap = append(out.NetPrioIfpriomap, &cgroups.IfPrioMap{Interface: p.Name, Priority: int64(p.Priority)})
		}
	}
	if len(r.Rdma) > 0 {
		out.Rdma = map[string]cgroups.LinuxRdma{}
		for name, l := range r.Rdma {
			out.Rdma[name] = cgroups.LinuxRdma{HcaHandles: l.HcaHandles, HcaObjects: l.HcaObjects}
		}
	}
	out.Unified = r.Unified
	blockIO(out, r.BlockIO)
	return out, nil
}

func memory(out *cgroups.Resources, m *specs.LinuxMemory) error {
	if m == nil {
		return nil
	}
	if m.Kernel != nil || m.KernelTCP != nil {
		// Kernels have ignored the former since 5.15; it is deprecated in OCI.
		if (m.Kernel != nil && *m.Kernel > 0) || (m.KernelTCP != nil && *m.KernelTCP > 0) {
			return errors.New("linux.resources.memory.kernel and kernelTCP are not supported")
		}
	}
	if m.Limit != nil {
		out.Memory = *m.Limit
	}
	if m.Reservation != nil {
		out.MemoryReservation = *m.Reservation
	}
	if m.Swap != nil {
		out.MemorySwap = *m.Swap
	}
	out.MemorySwappiness = m.Swappiness
	if m.DisableOOMKiller != nil {
		out.OomKillDisable = *m.DisableOOMKiller
	}
	if m.CheckBeforeUpdate != nil {
		out.MemoryCheckBeforeUpdate = *m.CheckBeforeUpdate
	}
	return nil
}

func cpu(out *cgroups.Resources, c *specs.LinuxCPU, unified bool) {
	if c == nil {
		return
	}
	if c.Shares != nil {
		out.CpuShares = *c.Shares
		if unified {
			out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
		}
	}
	if c.Quota != nil {
		out.CpuQuota = *c.Quota
	}
	if c.Period != nil {
		out.CpuPeriod = *c.Period
	}
	out.CpuBurst = c.Burst
	if c.RealtimeRuntime != nil {
		out.CpuRtRuntime = *c.RealtimeRuntime
	}
	if c.RealtimePeriod != nil {
		out.CpuRtPeriod = *c.RealtimePeriod
	}
	out.CpusetCpus, out.CpusetMems, out.CPUIdle = c.Cpus, c.Mems, c.Idle
}

func blockIO(out *cgroups.Resources, b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	if b.Weight != nil {
		out.BlkioWeight = *b.Weight
	}
	if b.LeafWeight != nil {
		out.BlkioLeafWeight = *b.LeafWeight
	}
	for _, d := range b.WeightDevice {
		var weight, leaf uint16
		if d.Weight != nil {
			weight = *d.Weight
		}
		if d.LeafWeight != nil {
			leaf = *d.LeafWeight
		}
		out.BlkioWeightDevice = append(out.BlkioWeightDevice, cgroups.NewWeightDevice(d.Major, d.Minor, weight, leaf))
	}
	throttle := func(list []specs.LinuxThrottleDevice) (devices []*cgroups.ThrottleDevice) {
		for _, d := range list {
			devices = append(devices, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
		}
		return devices
	}
	out.BlkioThrottleReadBpsDevice = throttle(b.ThrottleReadBpsDevice)
	out.BlkioThrottleWriteBpsDevice = throttle(b.ThrottleWriteBpsDevice)
	out.BlkioThrottleReadIOPSDevice = throttle(b.ThrottleReadIOPSDevice)
	out.BlkioThrottleWriteIOPSDevice = throttle(b.ThrottleWriteIOPSDevice)
}

// alwaysAllowed are the devices that every container may use, whatever its
// rules say: they are in every /dev. mknod alone opens nothing.
func alwaysAllowed() []*devices.Rule {
	const any = devices.Wildcard
	rules := []*devices.Rule{
		{Type: 'c', Major: any, Minor: any, Permissions: "m", Allow: true},
		{Type: 'b', Major: any, Minor: any, Permissions: "m", Allow: true},
		{Type: 'c', Major: 136, Minor: any, Permissions: "rwm", Allow: true}, // pts
	}
	for _, n := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} { // null zero full random urandom tty ptmx
		rules = append(rules, &devices.Rule{Type: 'c', Major: n[0], Minor: n[1], Permissions: "rwm", Allow: true})
	}
	return rules
}

func deviceRules(list []specs.LinuxDeviceCgroup) ([]*devices.Rule, error) {
	var rules []*devices.Rule
	for i, d := range list {
		rule := &devices.Rule{Type: 'a', Major: devices.Wildcard, Minor: devices.Wildcard,
			Permissions: devices.Permissions(d.Access), Allow: d.Allow}
		switch d.Type {
		case "", "a":
		case "c", "b":
			rule.Type = devices.Type(d.Type[0])
		default:
			return nil, fmt.Errorf("linux.resources.devices[%d].type %q: must be a, b or c", i, d.Type)
		}
		if d.Major != nil {
			rule.Major = *d.Major
		}
		if d.Minor != nil {
			rule.Minor = *d.Minor
		}
		if d.Access == "" {
			rule.Permissions = "rwm"
		}
		if !rule.Permissions.IsValid() {
			return nil, fmt.Errorf("linux.resources.devices[%d].access %q: must be of r, w, m", i, d.Access)
		}
		rules = append(rules, rule)
	}
	return append(rules, alwaysAllowed()...), nil
}
