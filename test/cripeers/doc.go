// Package cripeers holds CRI's seam to what foreign programs make of it: containerd, Debian's package, passes the suite
// that our server passes (cri/critest), and crictl, upstream's command, works with our server.
//
// Facts of containerd that were hard to find out:
//
//   - It pulls the image of its sandboxes by itself, by the name in its configuration.
//   - runc says "can't get final child's PID from pipe" and no more where root has no CAP_SYS_RESOURCE and is to make a
//     process less likely to be killed for memory than itself: restrict_oom_score_adj.
//   - When a program ends, what it has printed and nobody has read yet, up to what a pipe holds, may be lost. The suite does
//     not ask about it; ours keeps it (criserver.TestQuickEnd).
//   - It measures containers' layers and images every few seconds, not when it is asked: stats_collect_period.
//
// crictl's option --transport websocket is of no use with any server of sessions that is made with upstream's library
// (k8s.io/cri-streaming), as ours and containerd's are: it asks for version 5 of the protocol, and for tunnels, which
// only an API server speaks. Version 4 over WebSocket is among the suite's cases.
package cripeers
