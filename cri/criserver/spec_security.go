package criserver

import (
	"fmt"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// defaultCapabilities is what every runtime gives a container.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

const allCapabilities = "ALL"

// capabilities are computed in upstream's order: ALL first, then each added,
// then each dropped. Nothing is inheritable (CVE-2022-24769).
func capabilities(sc *runtimeapi.LinuxContainerSecurityContext, known []string) (*specs.LinuxCapabilities, error) {
	if sc.GetPrivileged() {
		return &specs.LinuxCapabilities{Bounding: known, Effective: known, Permitted: known}, nil
	}
	add, err := capabilityNames(sc.GetCapabilities().GetAddCapabilities(), known)
	if err != nil {
		return nil, err
	}
	drop, err := capabilityNames(sc.GetCapabilities().GetDropCapabilities(), known)
	if err != nil {
		return nil, err
	}
	ambient, err := capabilityNames(sc.GetCapabilities().GetAddAmbientCapabilities(), known)
	if err != nil {
		return nil, err
	}
	have := defaultCapabilities()
	if slices.Contains(add, allCapabilities) {
		have = slices.Clone(known)
	}
	if slices.Contains(drop, allCapabilities) {
		have = []string{}
	}
	for _, c := range slices.Concat(add, ambient) {
		if c != allCapabilities && !slices.Contains(have, c) {
			have = append(have, c)
		}
	}
	have = slices.DeleteFunc(have, func(c string) bool { return slices.Contains(drop, c) })
	caps := &specs.LinuxCapabilities{Bounding: have, Effective: have, Permitted: have}
	if len(ambient) > 0 {
		caps.Inheritable, caps.Ambient = ambient, ambient
	}
	return caps, nil
}

// capabilityNames completes names: pods say NET_ADMIN, the kernel CAP_NET_ADMIN.
func capabilityNames(names, known []string) ([]string, error) {
	var out []string
	for _, n := range names {
		n = strings.ToUpper(n)
		if n == allCapabilities || n == "CAP_"+allCapabilities {
			out = append(out, allCapabilities)
			continue
		}
		if !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("capability %s is not known to this kernel, or not held by this host", n)
		}
		out = append(out, n)
	}
	return out, nil
}

// seccompSpec chooses the profile; nil is none.
func seccompSpec(in specInput, caps []string) (*specs.LinuxSeccomp, error) {
	sc := in.Container.GetLinux().GetSecurityContext()
	if sc.GetPrivileged() {
		return nil, nil
	}
	profile := sc.GetSeccomp()
	if profile == nil {
		return nil, nil // the kubelet asks for RuntimeDefault where that is the default
	}
	switch profile.ProfileType {
	case runtimeapi.SecurityProfile_Unconfined:
		return nil, nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return in.Facts.Seccomp(caps), nil
	case runtimeapi.SecurityProfile_Localhost:
		if in.Profile == nil {
			return nil, fmt.Errorf("seccomp profile %q was not read", profile.LocalhostRef)
		}
		return in.Profile, nil
	}
	return nil, fmt.Errorf("seccomp profile type %d is not known", profile.ProfileType)
}

// devicesSpec lists device nodes and who may use them. What every /dev has
// (null, zero, full, random, urandom, tty, ptmx) the runtime adds itself.
func devicesSpec(s *specs.Spec, in specInput) {
	r := s.Linux.Resources
	if in.Container.GetLinux().GetSecurityContext().GetPrivileged() {
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		for _, d := range in.Devices {
			s.Linux.Devices = append(s.Linux.Devices, d.LinuxDevice)
		}
		return
	}
	r.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range in.Devices {
		s.Linux.Devices = append(s.Linux.Devices, d.LinuxDevice)
		major, minor := d.Major, d.Minor
		r.Devices = append(r.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &major, Minor: &minor, Access: d.Access})
	}
}

// resourcesSpec translates limits. Zero means "no limit given".
func resourcesSpec(r *runtimeapi.LinuxContainerResources, facts hostFacts) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil
	}
	cpu := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CpuShares > 0 {
		shares := uint64(r.CpuShares)
		cpu.Shares = &shares
	}
	if r.CpuQuota != 0 {
		cpu.Quota = &r.CpuQuota
	}
	if r.CpuPeriod > 0 {
		period := uint64(r.CpuPeriod)
		cpu.Period = &period
	}
	out.CPU = cpu
	memory := &specs.LinuxMemory{}
	if r.MemoryLimitInBytes != 0 {
		memory.Limit = &r.MemoryLimitInBytes
	}
	// Memory and swap together: without a figure of its own, a container with a
	// memory limit does not swap.
	switch {
	case !facts.Swap:
	case r.MemorySwapLimitInBytes != 0:
		memory.Swap = &r.MemorySwapLimitInBytes
	case r.MemoryLimitInBytes > 0:
		memory.Swap = &r.MemoryLimitInBytes
	}
	out.Memory = memory
	for _, h := range r.HugepageLimits {
		if h.Limit == 0 && !facts.Hugepages {
			continue // upstream's kubelet forbids every size that the container did not ask for, whatever the host can limit
		}
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
	}
	if len(r.Unified) > 0 {
		if !facts.Unified {
			return nil, fmt.Errorf("resources.unified needs a host with cgroup v2")
		}
		out.Unified = r.Unified
	}
	return out, nil
}
