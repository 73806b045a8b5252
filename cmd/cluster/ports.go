package cluster

import (
	"fmt"
	"net"
	"strconv"
)

const (
	firstAPIPort     = 6443
	firstKubeletPort = 10250
	firstHealthzPort = 10248
	firstPeerPort    = 2380
	// Each cluster of a host has its own share of upstream's usual NodePort range 30000-32767 and beyond; the
	// first has all of upstream's.
	firstNodePort = 30000
	lastNodePort  = 32767
)

// choosePorts takes the first free ports from upstream's usual ones upwards.
func (r *Record) choosePorts(w Wish, others []*Record) error {
	used := map[int]string{}
	for _, o := range others {
		used[o.APIPort], used[o.KubeletPort], used[o.HealthzPort], used[o.Peers()] = o.Name, o.Name, o.Name, o.Name
	}
	if w.APIPort != 0 {
		if o := used[w.APIPort]; o != "" {
			return fmt.Errorf("port %d belongs to cluster %q: choose another --api-port", w.APIPort, o)
		}
		if err := free(w.APIPort); err != nil {
			return fmt.Errorf("port %d is in use on this host: end what listens there or choose another --api-port: %w", w.APIPort, err)
		}
		r.APIPort = w.APIPort
	}
	next := func(from int) int {
		for p := from; p < 65536; p++ {
			if used[p] == "" && free(p) == nil {
				used[p] = r.Name
				return p
			}
		}
		return 0
	}
	if r.APIPort == 0 {
		r.APIPort = next(firstAPIPort)
	}
	r.KubeletPort, r.HealthzPort = next(firstKubeletPort), next(firstHealthzPort)
	r.PeerPort = next(firstPeerPort)
	if r.APIPort == 0 || r.KubeletPort == 0 || r.HealthzPort == 0 || r.PeerPort == 0 {
		return fmt.Errorf("no free port above %d", firstPeerPort)
	}
	if w.NodePorts != [2]int{} {
		r.NodePorts = w.NodePorts
		return nil
	}
	// NodePorts are rules, not listeners: every cluster sees only its own table, so shares keep them apart.
	r.NodePorts = [2]int{firstNodePort, lastNodePort}
	if r.Index > 0 {
		share := (60999 - lastNodePort) / maxClusters
		r.NodePorts[0] = lastNodePort + 1 + (r.Index-1)*share
		r.NodePorts[1] = r.NodePorts[0] + share - 1
	}
	return nil
}

// Peers is the port for other servers.
func (r *Record) Peers() int {
	if r.PeerPort == 0 { // of an older release
		return firstPeerPort + r.Index
	}
	return r.PeerPort
}

// free says whether the port can be listened on, on all addresses.
func free(port int) error {
	l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
	if err != nil {
		return err
	}
	return l.Close()
}
