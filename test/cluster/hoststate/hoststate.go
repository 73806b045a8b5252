// Package hoststate takes a picture of what a cluster could leave behind on a host: mounts, namespaces, links,
// addresses, routes, sysctls, nft tables, cgroups, processes and files. Two pictures are compared line by line.
package hoststate

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
)

// State is one line for each thing that exists.
type State map[string]bool

// Folders whose files are compared beside what Files names.
var folders = []string{"/var/lib/yare", "/run/yare", "/run/netns", "/var/log/pods", "/var/log/containers", "/etc/cni", "/opt/cni", "/var/lib/cni", "/dev/shm"}

var sysctls = []string{"net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv4/conf/all/rp_filter", "net/ipv4/conf/all/route_localnet",
	"net/bridge/bridge-nf-call-iptables", "net/ipv6/conf/all/forwarding", "vm/overcommit_memory", "kernel/panic"}

// Take takes a picture. Folders given are compared beside the usual ones.
func Take(more ...string) (State, error) {
	s := State{}
	for _, part := range []func(State) error{mounts, network, tables, cgroups, processes} {
		if err := part(s); err != nil {
			return nil, err
		}
	}
	for _, d := range append(slices.Clone(folders), more...) {
		if err := files(s, d); err != nil {
			return nil, err
		}
	}
	for _, name := range sysctls {
		if b, err := os.ReadFile("/proc/sys/" + name); err == nil {
			s.add("sysctl %s=%s", name, strings.TrimSpace(string(b)))
		}
	}
	return s, nil
}

// Diff returns what only after has (with +) and what only before has (with -).
func Diff(before, after State) []string {
	var d []string
	for l := range after {
		if !before[l] {
			d = append(d, "+ "+l)
		}
	}
	for l := range before {
		if !after[l] {
			d = append(d, "- "+l)
		}
	}
	slices.Sort(d)
	return d
}

func (s State) add(format string, args ...any) { s[fmt.Sprintf(format, args...)] = true }

func mounts(s State) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for _, l := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		f := strings.Fields(l)
		_, kind, _ := strings.Cut(l, " - ")
		s.add("mount %s %s %s", f[3], f[4], kind)
	}
	return nil
}

func network(s State) error {
	links, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, l := range links {
		s.add("link %s %s", l.Type(), l.Attrs().Name)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		s.add("address %s", a.IPNet)
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, 0)
	if err != nil {
		return err
	}
	for _, r := range routes {
		s.add("route %v via %v link %d table %d", r.Dst, r.Gw, r.LinkIndex, r.Table)
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range rules {
		s.add("rule %s", r.String())
	}
	return nil
}

func tables(s State) error {
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return fmt.Errorf("nft list tables: %w", err)
	}
	for _, l := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		if l != "" {
			s.add("nft %s", l)
		}
	}
	return nil
}

func cgroups(s State) error {
	return filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			s.add("cgroup %s", p)
		}
		return nil // groups come and go while we walk
	})
}

// processes notes the namespaces that are in use, and the product's own processes.
func processes(s State) error {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if stat, _ := os.ReadFile(filepath.Join(d, "stat")); strings.Contains(string(stat), ") Z ") {
			continue // ended; when it is reaped, and its last namespace with it, is its parent's affair, the host's init
		}
		for _, ns := range []string{"net", "mnt", "pid", "ipc", "uts", "user", "cgroup", "time"} {
			if l, err := os.Readlink(filepath.Join(d, "ns", ns)); err == nil {
				s.add("namespace %s", l)
			}
		}
		b, err := os.ReadFile(filepath.Join(d, "comm"))
		if exe, _ := os.Readlink(filepath.Join(d, "exe")); err == nil && (strings.HasPrefix(string(b), "yare") || filepath.Base(exe) == "yare") {
			s.add("process %s %s", filepath.Base(d), strings.TrimSpace(string(b)))
		}
	}
	return nil
}

func files(s State, dir string) error {
	return filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err == nil {
			s.add("file %s", p)
		}
		return nil
	})
}
