// Package plugins is the built-in pod network: what upstream's users get from the
// ptp, host-local, portmap, bandwidth and loopback plugins, in one process and without exec.
// It is also a CNI plugin of its own, type "yare" (see Main), for other runtimes.
//
// Every packet of a pod is routed by the host, also between two pods of one node, so
// that conntrack sees both directions and Service rewriting is always reversed:
//
//	pod namespace                          host namespace
//	┌────────────────────────────┐         ┌──────────────────────────────────────┐
//	│ lo up                      │         │ 10.42.0.7 dev y1a2b3… scope link     │
//	│ eth0 10.42.0.7/32 ─────────┼── veth ─┼─ y1a2b3c4d5e6f7  ee:ee:ee:ee:ee:ee   │
//	│ default via 169.254.1.1    │         │ neigh 10.42.0.7 permanent            │
//	│ neigh 169.254.1.1 permanent│         │ rp_filter=1: a pod cannot spoof      │
//	└────────────────────────────┘         └──────────────────────────────────────┘
//
// A range of IPv6 is the same once more: an address with /128, which is usable at once (nodad), and the gateway fe80::1. The kernel has no
// rp_filter for it; a rule of the table's guard drops what has no way back by the link that it came in by.
//
// The gateway address is on no link; a permanent neighbour entry stands for it, so there
// is no ARP at all. Nor has the host's end an address: so rp_filter is strict there even where the host's setting makes it loose (2). The host learns nothing from a pod, no router and no redirection either (CVE-2020-10749). Links have the MTU of the host's default route.
//
// Host ports and masquerading are in an nftables table of the network's own. A host port is
// matched on the destination address: an address of this host, or the given one (CVE-2025-67499).
//
// Who judges packets (network policies) is told of a pod's addresses before they lead to it, and when they do not any more: see Guard.
//
// Several clusters share a host: the table's name is the configuration's, links begin with a hash
// of it, and pod ranges must not overlap.
//
// State, below Config.Dir, which must not survive a reboot (/run), so that nothing needs
// an fsync and a record never outlives its link:
//
//	netns/<random>      the namespaces, bind mounts
//	addrs/<address>     a symbolic link to the pod's ID: made in one system call, never twice
//	given.<range>       the address given last, as a hint
//	pods/<ID>           the attachment, JSON, renamed into place
//
// An attachment is recorded before the kernel is touched, and forgotten after, so that a crash at
// any point leaves at most something that Teardown or Prune can find.
//
// A few namespaces with links, routes and neighbours are kept ready while Run runs; giving one to
// a pod takes an address, a route and a neighbour. Deleting a veth pair takes the kernel 10 ms and
// more, so Teardown takes the route and the address away and the link goes with its namespace,
// in the background; what is not gone after a while is deleted by name.
//
// Other processes share the state: host ports change, in the records and in the table, by whoever holds the lock of Config.Dir (flock).
//
// Lock order: Network.mu, under which only the host is set up, then Network.portsMu, then Config.Dir.
package plugins
