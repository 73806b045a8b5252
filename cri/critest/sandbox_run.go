package critest

import (
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type sandboxConfig = runtimeapi.PodSandboxConfig

func sandboxRunCases() []Case {
	return []Case{
		{"the sandbox is ready when the call returns", 0, runReady},
		{"each sandbox has an ID of its own", 0, runIDs},
		{"the same name and attempt again is refused", 0, runTwice},
		{"another attempt is another sandbox", 0, runAttempt},
		{"the same name in another namespace is another sandbox", 0, runNamespace},
		{"the hostname is the containers'", 0, runHostname},
		{"the hostname is in /etc/hostname", 0, runHostnameFile},
		{"the hostname is in the environment", 0, runHostnameEnv},
		{"resolv.conf is made of the DNS configuration", 0, runDNS},
		{"sysctls hold in the sandbox", 0, runSysctls},
		{"a sysctl that is not there is refused", 0, runSysctlUnknown},
		{"a sandbox has an address", 0, runAddress},
		{"with the host's network there is no address", 0, runHostAddress},
		{"with the host's network the namespace is the host's", 0, runHostNetwork},
		{"two sandboxes have two networks", 0, runTwoNetworks},
		{"containers' cgroups are below the cgroup parent", 0, runCgroupParent},
		{"a handler that is not configured is refused", 0, runHandlerUnknown},
		{"a configuration without metadata is refused", 0, runNoMetadata},
		{"a container port without a host port is fine", 0, runNoHostPort},
		{"a user, groups and a read-only root for the sandbox are taken", 0, runUser},
		{"a seccomp profile for the sandbox is taken", 0, runSeccomp},
		{"a privileged sandbox is taken", 0, runPrivileged},
		{"overhead and resources of the pod are taken", 24, runResources},
		{"labels and annotations of all characters are kept", 0, runLabels},
		{"a failed run leaves its name free", 0, runFailedName},
	}
}

func runReady(t *T) {
	pod, _ := t.newPod()
	if s := t.sandboxStatus(pod); s.State != runtimeapi.PodSandboxState_SANDBOX_READY {
		t.Errorf("%v", s)
	}
}

func runIDs(t *T) {
	a, _ := t.newPod()
	b, _ := t.newPod()
	if a == b || a == "" || strings.ContainsAny(a, "/ ") {
		t.Errorf("%q and %q", a, b)
	}
}

func (t *T) tryPod(config *sandboxConfig, handler string) error {
	t.Helper()
	_, err := t.tryRun(t.TB, config, handler)
	return err
}

func clone[M proto.Message](m M) M { return proto.Clone(m).(M) }

func runTwice(t *T) {
	_, config := t.newPod()
	t.refused("the second run", t.tryPod(clone(config), ""))
}

func runAttempt(t *T) {
	a, config := t.newPod()
	other := clone(config)
	other.Metadata.Attempt++
	if b := t.runPod(other); a == b {
		t.Errorf("both attempts are %s", a)
	}
}

func runNamespace(t *T) {
	a, config := t.newPod()
	other := clone(config)
	other.Metadata.Namespace, other.Metadata.Uid = "other", "uid-other"+config.Metadata.Name
	if b := t.runPod(other); a == b {
		t.Errorf("both are %s", a)
	}
}

func runHostname(t *T) {
	pod := t.own()
	t.prints(pod.config.Hostname+"\n", pod, t.script("hostname"))
}

func runHostnameFile(t *T) {
	pod := t.own()
	t.prints(pod.config.Hostname+"\n", pod, t.script("cat /etc/hostname"))
}

func runHostnameEnv(t *T) {
	pod := t.any()
	t.prints(pod.config.Hostname+"\n", pod, t.script("echo $HOSTNAME"))
}

func runDNS(t *T) {
	t.prints("nameserver 192.0.2.53\noptions ndots:5\nsearch a.test b.test\n", t.any(), t.script("sort /etc/resolv.conf"))
}

func runSysctls(t *T) {
	pod := t.own(func(c *sandboxConfig) {
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "1024\t2048", "kernel.shm_rmid_forced": "1"}
	})
	t.prints("1024\t2048\n1\n", pod, t.script("cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced"))
}

func runSysctlUnknown(t *T) {
	c := t.sandboxConfig()
	c.Linux.Sysctls = map[string]string{"net.ipv4.no_such_thing": "1"}
	t.refused("a sysctl that is not there", t.tryPod(c, ""))
}

func runAddress(t *T) {
	pod, _ := t.newPod()
	if ip := t.sandboxStatus(pod).Network.GetIp(); ip == "" {
		t.Error("no address")
	} else if _, err := netip.ParseAddr(ip); err != nil {
		t.Error(err)
	}
}

// hostNetwork puts a pod into the host's network; it then has the host's name.
func hostNetwork(c *sandboxConfig) {
	c.Hostname = ""
	c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
}

// inHostNetwork is the same wish in a container, which the kubelet repeats.
func inHostNetwork(c *runtimeapi.ContainerConfig) *runtimeapi.ContainerConfig {
	security(c).NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	return c
}

func runHostAddress(t *T) {
	pod, _ := t.newPod(hostNetwork)
	if n := t.sandboxStatus(pod).Network; n.GetIp() != "" || len(n.GetAdditionalIps()) != 0 {
		t.Errorf("%v", n)
	}
}

// namespaceOf is what a container of the pod sees its namespace called.
func (t *T) namespaceOf(kind string, pod pods, config *runtimeapi.ContainerConfig) string {
	t.Helper()
	config.Command = []string{"readlink", "/proc/self/ns/" + kind}
	_, log := t.finish(pod, config)
	return said(log, "stdout")
}

func runHostNetwork(t *T) {
	a, b := t.own(hostNetwork), t.own(hostNetwork)
	x, y := t.namespaceOf("net", a, inHostNetwork(t.config())), t.namespaceOf("net", b, inHostNetwork(t.config()))
	if other := t.namespaceOf("net", t.any(), t.config()); x == "" || x != y || x == other {
		t.Errorf("%q, %q; another pod has %q", x, y, other)
	}
}

func runTwoNetworks(t *T) {
	a, b := t.own(), t.own()
	if x, y := t.namespaceOf("net", a, t.config()), t.namespaceOf("net", b, t.config()); x == "" || x == y {
		t.Errorf("%q and %q", x, y)
	}
}

func runCgroupParent(t *T) {
	pod := t.own()
	id := t.sleeper(pod)
	if dir := t.cgroup(pod, id, "memory"); !strings.Contains(dir, pod.config.Linux.CgroupParent) {
		t.Errorf("%s", dir)
	}
}

func runHandlerUnknown(t *T) {
	t.refused("a handler that is not there", t.tryPod(t.sandboxConfig(), "no-such-handler"))
}

func runNoMetadata(t *T) {
	c := t.sandboxConfig()
	c.Metadata = nil
	t.refused("a sandbox without metadata", t.tryPod(c, ""))
}

func runNoHostPort(t *T) {
	t.newPod(func(c *sandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80}, {ContainerPort: 53, Protocol: runtimeapi.Protocol_UDP}}
	})
}

func runUser(t *T) {
	pod := t.own(func(c *sandboxConfig) {
		sc := c.Linux.SecurityContext
		sc.RunAsUser, sc.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 1001}
		sc.SupplementalGroups, sc.ReadonlyRootfs = []int64{2000}, true
	})
	t.prints("0\n", pod, t.script("id -u")) // a container says for itself who it is
}

func runSeccomp(t *T) {
	t.newPod(func(c *sandboxConfig) {
		c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	})
}

func runPrivileged(t *T) {
	t.newPod(func(c *sandboxConfig) { c.Linux.SecurityContext.Privileged = true })
}

func runResources(t *T) {
	t.newPod(func(c *sandboxConfig) {
		c.Linux.Overhead = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 10 << 20}
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 512, MemoryLimitInBytes: 100 << 20}
	})
}

func runLabels(t *T) {
	labels := map[string]string{"example.com/a.b_c-d": "x.y_z-1", "empty": ""}
	notes := map[string]string{"example.com/json": `{"a": ["\n", "ü"]}`, "empty": ""}
	pod, _ := t.newPod(func(c *sandboxConfig) { c.Labels, c.Annotations = labels, notes })
	want := &runtimeapi.PodSandboxStatus{Labels: labels, Annotations: notes}
	s := t.sandboxStatus(pod)
	if got := (&runtimeapi.PodSandboxStatus{Labels: s.Labels, Annotations: s.Annotations}); !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func runFailedName(t *T) {
	c := t.sandboxConfig()
	c.Linux.Sysctls = map[string]string{"net.ipv4.no_such_thing": "1"}
	t.refused("a sysctl that is not there", t.tryPod(clone(c), ""))
	c.Linux.Sysctls = nil
	t.runPod(c)
}
