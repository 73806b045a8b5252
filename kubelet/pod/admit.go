package pod

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/yare-dev/yare/api"
	"github.com/yare-dev/yare/kubelet/resources"
	"github.com/yare-dev/yare/kubelet/spec"
)

// Admit decides whether the node can take the pod beside the others that it has; nil says yes. It repeats what the scheduler
// decided, since pods can be bound past it and the node may have changed. What is counted elsewhere is left out.
func Admit(pod *corev1.Pod, node *corev1.Node, others []*corev1.Pod, unsafeSysctls []string, elsewhere func(corev1.ResourceName) bool) *Condition {
	if what := spec.Unsupported(pod); what != "" {
		reason := "UnsupportedPodFeature"
		if pod.Spec.OS != nil && pod.Spec.OS.Name != corev1.Linux {
			reason = "PodOSNotSupported"
		}
		return &Condition{reason, "Pod was rejected: this node does not support " + what}
	}
	if c := admitSysctls(pod, unsafeSysctls); c != nil {
		return c
	}
	if node == nil {
		return nil // static pods run before the node is known
	}
	if c := admitNode(pod, node); c != nil {
		return c
	}
	if c := admitPorts(pod, others); c != nil {
		return c
	}
	return admitResources(pod, node, others, elsewhere)
}

func admitNode(pod *corev1.Pod, node *corev1.Node) *Condition {
	if os := node.Labels[corev1.LabelOSStable]; pod.Spec.NodeSelector[corev1.LabelOSStable] != "" && os != pod.Spec.NodeSelector[corev1.LabelOSStable] {
		return &Condition{"PodOSSelectorNodeLabelDoesNotMatch", "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(pod).Match(node); err == nil && !ok {
		return &Condition{"NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
	}
	for _, t := range node.Spec.Taints {
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		if !slices.ContainsFunc(pod.Spec.Tolerations, func(tol corev1.Toleration) bool { return tolerates(tol, t) }) {
			return &Condition{"TaintToleration", "Pod was rejected: Predicate TaintToleration failed: node(s) had untolerated taint(s)"}
		}
	}
	return nil
}

func tolerates(t corev1.Toleration, taint corev1.Taint) bool {
	if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
		return false
	}
	switch t.Operator {
	case "", corev1.TolerationOpEqual:
		return t.Value == taint.Value
	case corev1.TolerationOpExists:
		return true
	}
	return false
}

type hostPort struct {
	ip, protocol string
	port         int32
}

func hostPorts(pod *corev1.Pod) (out []hostPort) {
	spec.Each(pod, func(c *corev1.Container, k spec.Kind) {
		if k == spec.Init && !api.Sidecar(c) || k == spec.Ephemeral {
			return
		}
		for _, p := range c.Ports {
			if p.HostPort == 0 {
				continue
			}
			h := hostPort{p.HostIP, string(p.Protocol), p.HostPort}
			if h.ip == "" || h.ip == "::" {
				h.ip = "0.0.0.0"
			}
			if h.protocol == "" {
				h.protocol = string(corev1.ProtocolTCP)
			}
			out = append(out, h)
		}
	})
	return out
}

func admitPorts(pod *corev1.Pod, others []*corev1.Pod) *Condition {
	mine := hostPorts(pod)
	if len(mine) == 0 {
		return nil
	}
	for _, o := range others {
		for _, theirs := range hostPorts(o) {
			for _, m := range mine {
				if m.port == theirs.port && m.protocol == theirs.protocol && (m.ip == theirs.ip || m.ip == "0.0.0.0" || theirs.ip == "0.0.0.0") {
					return &Condition{"NodePorts", "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"}
				}
			}
		}
	}
	return nil
}

func admitResources(pod *corev1.Pod, node *corev1.Node, others []*corev1.Pod, elsewhere func(corev1.ResourceName) bool) *Condition {
	if most, ok := node.Status.Allocatable[corev1.ResourcePods]; ok && int64(len(others)+1) > most.Value() {
		return &Condition{"OutOfpods", fmt.Sprintf("Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: %d, capacity: %d", len(others), most.Value())}
	}
	wants := requests(pod)
	maps.DeleteFunc(wants, func(name corev1.ResourceName, _ resource.Quantity) bool {
		if !strings.Contains(string(name), "/") {
			return false
		}
		_, known := node.Status.Allocatable[name] // else it is the whole cluster's, which the scheduler counts
		return !known || elsewhere(name)
	})
	if name, text := lacking(wants, node, others); name != "" {
		return &Condition{"OutOf" + string(name), "Pod was rejected: " + text}
	}
	return nil
}

// requests are what the pod asks of the node: what it has a claim for is none of that.
func requests(pod *corev1.Pod) corev1.ResourceList {
	all := resources.Requests(pod)
	maps.DeleteFunc(all, func(name corev1.ResourceName, _ resource.Quantity) bool { return spec.ByClaim(pod, string(name)) })
	return all
}

// lacking returns the first resource of which the node has not enough for the requests beside the others, and says so.
func lacking(wants corev1.ResourceList, node *corev1.Node, others []*corev1.Pod) (corev1.ResourceName, string) {
	used := corev1.ResourceList{}
	for _, o := range others {
		for name, q := range requests(o) {
			sum := used[name]
			sum.Add(q)
			used[name] = sum
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wants)) {
		want := wants[name]
		if want.IsZero() || len(node.Status.Allocatable) == 0 {
			continue
		}
		capacity, sum := node.Status.Allocatable[name], used[name]
		total := sum.DeepCopy()
		total.Add(want)
		if total.Cmp(capacity) > 0 {
			return name, fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
				name, units(name, want), units(name, sum), units(name, capacity))
		}
	}
	return "", ""
}

// units is the number that messages show: thousandths of CPUs, bytes, pieces.
func units(name corev1.ResourceName, q resource.Quantity) int64 {
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

// safeSysctls belong to one pod's namespaces and cannot harm another's.
func safeSysctls() []string {
	return []string{"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
		"net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time",
		"net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem",
		"net.ipv4.tcp_wmem", "net.ipv4.tcp_notsent_lowat"}
}

func admitSysctls(pod *corev1.Pod, unsafe []string) *Condition {
	if pod.Spec.SecurityContext == nil {
		return nil
	}
	allowed := append(safeSysctls(), unsafe...)
	for _, s := range pod.Spec.SecurityContext.Sysctls {
		name := strings.ReplaceAll(s.Name, "/", ".")
		ok := slices.ContainsFunc(allowed, func(a string) bool {
			prefix, wild := strings.CutSuffix(a, "*")
			return a == name || wild && strings.HasPrefix(name, prefix)
		})
		shared := strings.HasPrefix(name, "net.") && pod.Spec.HostNetwork ||
			(strings.HasPrefix(name, "kernel.shm") || strings.HasPrefix(name, "kernel.msg") || name == "kernel.sem" || strings.HasPrefix(name, "fs.mqueue.")) && pod.Spec.HostIPC
		if !ok || shared {
			return &Condition{"SysctlForbidden", fmt.Sprintf("Pod was rejected: forbidden sysctl: %q not allowlisted", s.Name)}
		}
	}
	return nil
}

// admitWithoutAppArmor refuses a pod that asks for a profile on a host that has no AppArmor. One that runs already, from before the kernel was
// started without, is left alone.
func admitWithoutAppArmor(pod *corev1.Pod) *Condition {
	if phase := pod.Status.Phase; phase != "" && phase != corev1.PodPending {
		return nil
	}
	asks := func(a *corev1.AppArmorProfile) bool {
		return a != nil && a.Type != corev1.AppArmorProfileTypeUnconfined
	}
	wanted := pod.Spec.SecurityContext != nil && asks(pod.Spec.SecurityContext.AppArmorProfile)
	spec.Each(pod, func(c *corev1.Container, _ spec.Kind) { wanted = wanted || asks(spec.AppArmorProfile(pod, c)) })
	if !wanted {
		return nil
	}
	return &Condition{"AppArmor", "Pod was rejected: Cannot enforce AppArmor: AppArmor is not enabled on the host"}
}
