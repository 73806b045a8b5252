package spec

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/kubelet/resources"
)

// Node is what every pod of this node shares.
type Node struct {
	Name          string
	Host          resources.Host
	CgroupRoot    string // "" or a path below which /kubepods lies
	LogRoot       string // /var/log/pods
	SeccompRoot   string // below which localhost profiles lie
	ClusterDomain string
}

// Sandbox returns the CRI configuration of the pod's sandbox. users is the user namespace of a pod that has one of its own.
func Sandbox(pod *corev1.Pod, attempt uint32, dns *runtimeapi.DNSConfig, users *runtimeapi.UserNamespace, n Node) (*runtimeapi.PodSandboxConfig, error) {
	name, domain := Hostname(pod, n.ClusterDomain)
	if f := pod.Spec.SetHostnameAsFQDN; f != nil && *f && domain != "" {
		name += "." + domain
		if len(name) > 64 {
			return nil, configErrorf("host name %s is longer than the 64 characters that the kernel takes", name)
		}
	}
	if pod.Spec.HostNetwork {
		name = "" // the host's
	}
	ns := Namespaces(pod, users)
	c := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt},
		Hostname:     name,
		LogDirectory: LogDirectory(n.LogRoot, pod),
		DnsConfig:    dns,
		PortMappings: portMappings(pod),
		Labels:       podLabels(pod),
		Annotations:  pod.Annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: resources.Parent(n.CgroupRoot, pod),
			Sysctls:      map[string]string{},
			Overhead:     Overhead(pod),
			Resources:    Resources(pod, n),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: ns,
				Privileged:       anyPrivileged(pod),
			},
		},
	}
	sc := c.Linux.SecurityContext
	p := pod.Spec.SecurityContext
	if p == nil {
		sc.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
		return c, nil
	}
	if p.RunAsUser != nil {
		sc.RunAsUser = &runtimeapi.Int64Value{Value: *p.RunAsUser}
	}
	if p.RunAsGroup != nil {
		sc.RunAsGroup = &runtimeapi.Int64Value{Value: *p.RunAsGroup}
	}
	sc.SupplementalGroups = supplementalGroups(p)
	sc.SupplementalGroupsPolicy = groupsPolicy(p)
	sc.SelinuxOptions = selinux(p.SELinuxOptions)
	var err error
	if sc.Seccomp, err = seccomp(nil, p, n); err != nil {
		return nil, err
	}
	if p.SeccompProfile == nil {
		sc.Seccomp.ProfileType = runtimeapi.SecurityProfile_RuntimeDefault
	}
	for _, s := range p.Sysctls {
		c.Linux.Sysctls[strings.ReplaceAll(s.Name, "/", ".")] = s.Value
	}
	return c, nil
}

// Namespaces returns which namespaces the pod's containers share with whom.
func Namespaces(pod *corev1.Pod, users *runtimeapi.UserNamespace) *runtimeapi.NamespaceOption {
	o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: users}
	if pod.Spec.HostNetwork {
		o.Network = runtimeapi.NamespaceMode_NODE
	}
	if pod.Spec.HostIPC {
		o.Ipc = runtimeapi.NamespaceMode_NODE
	}
	switch {
	case pod.Spec.HostPID:
		o.Pid = runtimeapi.NamespaceMode_NODE
	case pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace:
		o.Pid = runtimeapi.NamespaceMode_POD
	}
	return o
}

func portMappings(pod *corev1.Pod) (out []*runtimeapi.PortMapping) {
	if pod.Spec.HostNetwork {
		return nil
	}
	for _, cs := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range cs {
			for _, p := range cs[i].Ports {
				m := &runtimeapi.PortMapping{ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP}
				switch p.Protocol {
				case corev1.ProtocolUDP:
					m.Protocol = runtimeapi.Protocol_UDP
				case corev1.ProtocolSCTP:
					m.Protocol = runtimeapi.Protocol_SCTP
				}
				out = append(out, m)
			}
		}
	}
	return out
}

// Resources are what the pod's containers may use in all.
func Resources(pod *corev1.Pod, n Node) *runtimeapi.LinuxContainerResources {
	limits := resources.PodLimits(pod, n.Host)
	return &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuShares: limits.Shares, CpuQuota: limits.Quota, MemoryLimitInBytes: limits.Memory}
}

// Overhead is what the pod takes beside its containers; nil for none.
func Overhead(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	if len(pod.Spec.Overhead) == 0 {
		return nil
	}
	return &runtimeapi.LinuxContainerResources{
		CpuShares:          resources.Shares(pod.Spec.Overhead.Cpu().MilliValue()),
		MemoryLimitInBytes: pod.Spec.Overhead.Memory().Value(),
	}
}

func anyPrivileged(pod *corev1.Pod) bool {
	found := false
	Each(pod, func(c *corev1.Container, _ Kind) {
		found = found || c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
	})
	return found
}

// Kind says what a container is to its pod.
type Kind uint8

// The kinds of containers.
const (
	Main Kind = iota
	Init
	Ephemeral
)

// String is what ContainerKindAnnotation carries.
func (k Kind) String() string {
	switch k {
	case Init:
		return "init"
	case Ephemeral:
		return "ephemeral"
	}
	return ""
}

// Each calls f with every container of the pod: init, main, ephemeral.
func Each(pod *corev1.Pod, f func(*corev1.Container, Kind)) {
	for i := range pod.Spec.InitContainers {
		f(&pod.Spec.InitContainers[i], Init)
	}
	for i := range pod.Spec.Containers {
		f(&pod.Spec.Containers[i], Main)
	}
	for i := range pod.Spec.EphemeralContainers {
		c := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		f(&c, Ephemeral)
	}
}

// Find returns the container of that name, nil where there is none.
func Find(pod *corev1.Pod, name string) (found *corev1.Container, kind Kind) {
	Each(pod, func(c *corev1.Container, k Kind) {
		if c.Name == name {
			found, kind = c, k
		}
	})
	return found, kind
}

// Path is what Events call the container of that name: spec.containers{name}.
func Path(pod *corev1.Pod, name string) string {
	field := "containers"
	switch _, kind := Find(pod, name); kind {
	case Init:
		field = "initContainers"
	case Ephemeral:
		field = "ephemeralContainers"
	}
	return "spec." + field + "{" + name + "}"
}

// Unsupported returns what the pod asks for that this kubelet cannot do, by field name; "" when there is nothing.
func Unsupported(pod *corev1.Pod) string {
	var found string
	note := func(format string, args ...any) {
		if found == "" {
			found = fmt.Sprintf(format, args...)
		}
	}
	if os := pod.Spec.OS; os != nil && os.Name != corev1.Linux {
		note("spec.os.name: %s", os.Name)
	}
	Each(pod, func(c *corev1.Container, _ Kind) {
		for _, r := range c.RestartPolicyRules {
			if r.Action != corev1.ContainerRestartRuleActionRestart {
				note("restartPolicyRules action %s of container %s", r.Action, c.Name)
			}
		}
		for i, m := range c.VolumeMounts {
			if len(m.BindMountOptions) > 0 {
				note("volumeMounts[%s].bindMountOptions of container %s", strconv.Itoa(i), c.Name)
			}
		}
	})
	return found
}
