// Package proxy makes Services work on a node: it turns Services and EndpointSlices
// into one nftables table. It replaces kube-proxy.
//
// What the table holds is decided by pure functions (part, state): objects and facts in, sets and chains out. Proxy watches,
// computes what changed and hands it to the kernel in one transaction; nothing outside its table is touched.
//
// Services are data, not chains. A packet that opens a connection meets, whatever the number
// of Services:
//
//	prerouting, output (nat)
//	  ip daddr . meta l4proto . th dport vmap @services-ip      -> goto cluster-ip-3
//	  fib daddr type local meta l4proto . th dport vmap @nodeports-ip -> goto nodeport-ip-3
//
//	chain cluster-ip-3      one chain for each number of endpoints, shared by all Services
//	  ip saddr != 10.42.0.0/16 meta mark set mark or 0x4000
//	  dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints-ip
//
//	map endpoints-ip        (address, protocol, port, slot) -> (address, port)
//
// A node port has the address 0.0.0.0 in endpoints. Where there is a choice by source
// (externalTrafficPolicy: Local), the node's own endpoints are a second list in slots from
// localSlots on. Session affinity and load balancer source ranges are the only things that take a chain
// per Service port, and only those Services pay.
//
//	chain sticky-ns/name/tcp-80-ip-cluster
//	  recall the client's endpoint from @affinity-ip, if it is still in @sticky-cluster-ip; remember it anew; dnat
//	  otherwise pick one; remember; dnat
//
// Services without endpoints are refused in filter chains before that, by the maps unreachable-ip and
// unreachable-nodeports-ip; connections to other ports of a cluster IP (cluster-ips-ip) are refused in filter chains
// after it, so that they are not routed out of the cluster. In postrouting, marked connections and those of a pod to itself
// (hairpins-ip) are masqueraded. All of it exists once per family, with names ending in ip6.
//
// Invariants: the chains see only the first packet of a connection, so that replacing the table
// never disturbs an established one; a proxy that starts changes only what is wrong.
package proxy
