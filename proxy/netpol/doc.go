// Package netpol holds the pods of a node to the NetworkPolicies: it turns policies, namespaces and pods into one nftables
// table. It replaces what upstream's users install for it: kube-router, Calico's policy half.
//
// What the table holds is decided by pure functions (parsePolicy, compile, state): objects in, sets and chains out. Enforcer watches, computes
// what changed and hands it to the kernel in one transaction; nothing outside its table is touched. While no policy selects a pod of
// this node there is no table, and a packet costs nothing; while the cluster has no policy, neither its namespaces nor its pods are watched.
//
// A node judges what its own pods send and what is sent to them; between pods of two nodes both do. What is judged is the connection, as
// conntrack knows it: its client before masquerading, its server behind a Service's address. Every packet is judged, in either direction:
//
//	forward (filter)
//	  meta nfproto ipv6                   goto forward6: the same for IPv6, where pods have it
//	  ct state invalid,related,untracked  jump stray: to and from isolated pods dropped, but for errors about their own connections
//	  ct original ip saddr vmap @egress   -> jump out-team-HASH
//	  ct reply ip saddr vmap @ingress     -> jump in-team-HASH
//
//	chain in-team-HASH      one chain for all pods of a namespace with the same rights; HASH is that of its rules
//	  ct original ip saddr @pods-team-HASH ct protocol . ct reply proto-src @ports-HASH return
//	  ct original ip saddr @blocks-HASH return
//	  goto refused            a pod to itself is accepted, all else is dropped
//
//	set pods-team-HASH      the addresses of the pods that a rule's selectors select, shared by all rules that select alike
//	set named-team-HASH     the same with the ports that have some names in each
//	set ports-HASH          the numbers in a list of ports; spans-HASH its ranges
//	set blocks-HASH         the ranges of a list of address blocks, without their exceptions
//
// So a pod that comes or goes is an element in some sets, and policies that change are chains beside the old ones and elements that lead to them.
//
// Only what is forwarded is judged: what a node's own processes (the kubelet's probes, pods of the host's network) send to pods and are sent
// by them passes, as the API's documentation wants it. The cluster's DNS counts as a part of every node, unless its Service leads to pods.
//
// Whom the policies hold is known by address from the built-in network, not from the API: it tells of a pod before the pod's first packet (Attach)
// and before another can have its address (Detach). Pods that another network set up are its business, on the node; as peers of
// ours they count.
//
// All of it exists once per family that pods have addresses of, with a 6 in the names of what is of IPv6. What a policy says holds for all addresses
// of a pod; a block of addresses says nothing of those of the other family.
//
// Invariants: a pod that is attached is held to what the policies say from its first packet on; one that the API does not know, in a namespace with
// policies, may do nothing. An address counts as a peer only as long as every pod that claims it would count, and an address of this
// node's range only while it is attached. Nothing depends on what conntrack remembers having let through. A table that a
// killed process left holds until the next one has made it right, in one transaction.
package netpol
