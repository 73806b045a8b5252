package netpol

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/yare-dev/yare/api"
)

// pod is what policies see of a Pod.
type pod struct {
	labels labels.Set
	uid    string // empty for the mirror of a static pod, whose own is another
	ports  map[namedPort]uint16
	// addrs are its addresses by its status, unless they are the host's or it may have lost them.
	addrs []netip.Addr
}

type namedPort struct {
	proto uint8
	name  string
}

func (p namedPort) compare(o namedPort) int {
	return cmp.Or(cmp.Compare(p.proto, o.proto), cmp.Compare(p.name, o.name))
}

func parsePod(o *corev1.Pod) *pod {
	p := &pod{labels: o.Labels, uid: string(o.UID), ports: map[namedPort]uint16{}}
	if _, mirror := o.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		p.uid = ""
	}
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			key := namedPort{protocolNumber(port.Protocol), port.Name}
			if _, twice := p.ports[key]; port.Name != "" && !twice {
				p.ports[key] = uint16(port.ContainerPort)
			}
		}
	}
	for i := range o.Spec.Containers {
		add(&o.Spec.Containers[i])
	}
	for i := range o.Spec.InitContainers {
		if c := &o.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	if o.Spec.HostNetwork || api.PodTerminal(o) {
		return p
	}
	for _, ip := range o.Status.PodIPs {
		p.addrs = appendAddr(p.addrs, ip.IP)
	}
	if len(o.Status.PodIPs) == 0 {
		p.addrs = appendAddr(p.addrs, o.Status.PodIP)
	}
	return p
}

func appendAddr(as []netip.Addr, text string) []netip.Addr {
	if a, err := netip.ParseAddr(text); err == nil {
		return append(as, a.Unmap())
	}
	return as
}

func (p *pod) equal(o *pod) bool {
	return p.uid == o.uid && maps.Equal(p.labels, o.labels) && maps.Equal(p.ports, o.ports) && slices.Equal(p.addrs, o.addrs)
}

// Attachment is a pod of this node that the built-in network connects.
type Attachment struct {
	Sandbox              string // distinguishes those of one pod, one after the other
	Namespace, Name, UID string // without a UID: whichever pod has the name
	Addrs                []netip.Addr
}

func (a *Attachment) key() api.Key { return api.Key{Namespace: a.Namespace, Name: a.Name} }

// is says whether the pod is the one that is attached.
func (a *Attachment) is(p *pod) bool {
	return p != nil && (a.UID == "" || p.uid == "" || a.UID == p.uid)
}
