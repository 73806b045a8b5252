// Package cni is the seam between whoever makes pod sandboxes and whoever gives
// them a network. It replaces the CNI glue of containerd (go-cni) and of
// dockershim; it knows no Kubernetes type.
//
// Vocabulary:
//
//	namespace  a network namespace kept alive by a bind-mounted file (its path
//	           is what Pod.NetNS holds), not a Kubernetes namespace
//	network    one implementation of the seam
//	plugin     a CNI executable
//
// There are three implementations of Network:
//
//   - Exec runs CNI plugins of the configuration lists in /etc/cni/net.d,
//     through the project's own libcni, with cached results;
//   - cni/plugins is the built-in network, in process, without any exec;
//   - Select holds both: a configuration list that appears in the folder takes
//     over from the built-in network, for new pods, at once.
//
// The life of one pod's network, as the caller sees it:
//
//	NewNamespace  ──> Setup ──> (Check)* ──> Teardown ──> DeleteNamespace
//	   path            Result
//
// The caller writes the path and the Result down before it goes on. After a
// crash it calls Prune with the pods that it still knows, and everything else
// that this network ever made is removed.
//
// Invariants: Teardown and DeleteNamespace are idempotent and succeed for what
// is already gone or never was; Setup that fails leaves nothing behind; every
// method may be called from any goroutine, also for several pods at once.
package cni

import (
	"context"
	"errors"
	"net/netip"
)

// ErrNotReady is wrapped by Status (and by Setup) when there is no usable
// network yet, for example no configuration list in the folder.
var ErrNotReady = errors.New("network is not ready")

// Network gives pods their network.
type Network interface {
	// NewNamespace makes a network namespace, with its loopback up, and
	// returns the path that holds it. The namespace may come from a pool and
	// may already have links prepared in it; it has no address. The caller's
	// thread stays where it is.
	NewNamespace(ctx context.Context) (path string, err error)

	// DeleteNamespace lets go of a namespace that NewNamespace made, with all
	// links in it. The kernel reaps them in the background.
	DeleteNamespace(ctx context.Context, path string) error

	// Setup attaches the pod. p.NetNS is a path of NewNamespace, or any other
	// path to a network namespace (of a user namespace, for example).
	Setup(ctx context.Context, p Pod) (*Result, error)

	// Check reports whether what Setup made is still as it should be.
	Check(ctx context.Context, p Pod) error

	// Teardown detaches the pod: its addresses are free and its ports are
	// unmapped when Teardown returns. p.NetNS may be empty or gone.
	Teardown(ctx context.Context, p Pod) error

	// Status is nil when Setup can be expected to work; otherwise the error
	// says what is missing. It backs the CRI condition NetworkReady.
	Status(ctx context.Context) error

	// Prune removes all namespaces and attachments made by this network that
	// belong to none of the live pods (by ID and NetNS). To be called once,
	// after a restart, before the first Setup. Pods in a LeftError are for Teardown to try again.
	Prune(ctx context.Context, live []Pod) error
}

// LeftError is Prune's where pods that are gone are still attached.
type LeftError struct {
	Pods []Pod // with their ID alone
	Err  error
}

func (e *LeftError) Error() string { return e.Err.Error() }
func (e *LeftError) Unwrap() error { return e.Err }

// Pod is what a network may know about a pod sandbox.
type Pod struct {
	// ID is the sandbox's id: CNI_CONTAINERID.
	ID string
	// Namespace, Name and UID are the pod's, as Kubernetes names them.
	Namespace, Name, UID string
	// NetNS is the path of the pod's network namespace.
	NetNS string
	// Interface is the name of the interface in the pod; empty means eth0.
	Interface string
	// PortMappings are the host ports; entries with HostPort 0 are ignored.
	PortMappings []PortMapping
	// Bandwidth limits the pod's traffic; nil means no limit.
	Bandwidth *Bandwidth
	// DNS is handed to plugins that declare the "dns" capability.
	DNS DNS
	// IPs asks for these addresses; empty means any.
	IPs []netip.Addr
	// CgroupParent is the path of the pod's cgroup, for plugins that declare
	// the "cgroupPath" capability.
	CgroupParent string
	Labels       map[string]string
	Annotations  map[string]string
}

// Protocol of a port mapping, in lower case as CNI has it.
type Protocol string

// The protocols.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// PortMapping leads a port of the host to a port of the pod.
type PortMapping struct {
	Protocol      Protocol // empty means TCP
	HostPort      uint16
	ContainerPort uint16
	// HostIP restricts the mapping to one address of the host; the zero
	// value, 0.0.0.0 and :: mean every local address.
	HostIP netip.Addr
}

// Bandwidth is in bits per second and bits; zero means no limit.
type Bandwidth struct {
	IngressRate, IngressBurst uint64
	EgressRate, EgressBurst   uint64
}

// Result is what Setup made, in the shape of a CNI 1.x result.
type Result struct {
	Interfaces []Interface
	// IPs holds the pod's addresses, the primary one first.
	IPs    []IP
	Routes []Route
	DNS    DNS
}

// Addrs returns the pod's addresses, the primary one first and at most one of
// each family, as pod status wants them.
func (r *Result) Addrs() []netip.Addr {
	var out []netip.Addr
	var seen4, seen6 bool
	for _, ip := range r.IPs {
		a := ip.Address.Addr()
		if seen := &seen4; a.Is4() && !*seen {
			*seen, out = true, append(out, a)
		} else if seen := &seen6; !a.Is4() && !*seen {
			*seen, out = true, append(out, a)
		}
	}
	return out
}

// Interface is a link that Setup made.
type Interface struct {
	Name string
	MAC  string
	MTU  int
	// Sandbox is the path of the namespace that the link is in; empty means
	// the host's.
	Sandbox string
}

// IP is an address of the pod.
type IP struct {
	Address netip.Prefix
	Gateway netip.Addr // may be invalid: none
	// Interface is the index in Result.Interfaces, -1 if unknown.
	Interface int
}

// Route is a route in the pod.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr // may be invalid: on link
}

// DNS is the resolver configuration.
type DNS struct {
	Servers, Searches, Options []string
}
