// Package host gives programs a host of their own on this one: namespaces for network and mounts, cgroups, and a link.
//
// What programs of a node do to a machine without being asked stays inside, and goes when the last process has ended:
//
//   - nft and iptables rules, links, routes and the network's sysctls are those of the network namespace;
//   - /run, /var/lib and /var/log are empty and in memory: containerd has /run/containerd for its shims' sockets, CNI
//     /var/lib/cni, kubelet /var/log/containers, whatever they are told;
//   - kubelet writes kernel/panic, kernel/panic_on_oops, kernel/keys/* and vm/overcommit_memory, or refuses to run when they
//     are not as it wants them; files that have those values lie over the real ones;
//   - all mounts are shared inside (kubelet's mount propagation needs that) but not with the outside.
//
// Cgroups cannot be hidden on a host whose v1 hierarchies are in use: /yare-peers/NAME in each hierarchy is ours. Every
// program is born in its subgroup "system", so that all that it starts can be found and ended, whoever its parent is by
// then. kubelet refuses a cgroup root that is not there in each hierarchy, and a cpuset without processors and memory
// nodes, which v1 does not hand down.
package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is where programs run.
type Host struct {
	Name string
	// Dir is a folder for data, logs and keys. It is the same inside and outside, and on a disk.
	Dir string
	// Address is the host's, reached from outside as well; Outside is the other end of the link.
	Address, Outside netip.Addr

	holder  *exec.Cmd       // keeps the namespaces
	foreign map[string]bool // places of mounts that were there when the namespaces were made
	started []*Process
}

// inside prepares the namespaces, with the scratch folder as its argument.
const inside = `set -eu
mount --make-rshared /
for d in /run /var/lib /var/log; do mount -t tmpfs -o mode=755 tmpfs $d; done
mkdir -p /run/lock /run/netns
lay() { if [ -e /proc/sys/$1 ]; then echo "$2" > "$3/${1//\//.}"; mount --bind "$3/${1//\//.}" /proc/sys/$1; fi; }
lay vm/overcommit_memory 1 "$1"; lay vm/panic_on_oom 0 "$1"; lay kernel/panic 10 "$1"; lay kernel/panic_on_oops 1 "$1"
lay kernel/keys/root_maxkeys 1000000 "$1"; lay kernel/keys/root_maxbytes 25000000 "$1"
echo ready
exec sleep infinity`

// New makes a host. Its name, of at most 9 letters, must be nobody else's; what an ended run of the same name left is removed.
func New(ctx context.Context, name, dir string) (h *Host, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a host of its own needs root")
	}
	h = &Host{Name: name, Dir: dir}
	if err := h.removeCgroups(ctx); err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	defer func(made *Host) { // a return without a host has none in h
		if err != nil {
			err = errors.Join(err, made.Close(context.WithoutCancel(ctx)))
		}
	}(h)
	if err := h.makeCgroups(); err != nil {
		return nil, fmt.Errorf("make cgroups: %w", err)
	}
	sysctls := filepath.Join(dir, "sysctls")
	if err := os.MkdirAll(sysctls, 0o755); err != nil {
		return nil, err
	}
	h.holder = h.born("unshare", "--net", "--mount", "--propagation", "private", "bash", "-c", inside, "inside", sysctls)
	out, err := h.holder.StdoutPipe()
	if err != nil {
		return nil, err
	}
	var complaint strings.Builder
	h.holder.Stderr = &complaint
	if err := h.holder.Start(); err != nil {
		return nil, fmt.Errorf("make namespaces: %w", err)
	}
	if word := make([]byte, 6); true {
		if n, err := out.Read(word); err != nil {
			return nil, fmt.Errorf("prepare namespaces: %w: %s%s", err, word[:n], complaint.String())
		}
	}
	points, err := h.points()
	if err != nil {
		return nil, err
	}
	h.foreign = map[string]bool{}
	for _, p := range points {
		h.foreign[p] = true
	}
	if err := h.link(); err != nil {
		return nil, fmt.Errorf("make link: %w", err)
	}
	return h, nil
}

// Mounts are the places where something was mounted inside since the host was made. What others had mounted on this
// machine by then is in its namespace as well, and may never leave it.
func (h *Host) Mounts() ([]string, error) {
	points, err := h.points()
	return slices.DeleteFunc(points, func(p string) bool { return h.foreign[p] }), err
}

func (h *Host) points() (points []string, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mounts", h.holder.Process.Pid))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 {
			points = append(points, f[1])
		}
	}
	return points, err
}

// born is a command that is in the host's cgroups before it is anything else.
func (h *Host) born(args ...string) *exec.Cmd {
	const script = `for g in $1; do echo $$ > $g/cgroup.procs; done; shift; exec "$@"`
	var groups []string
	for _, dir := range h.cgroups() {
		groups = append(groups, filepath.Join(dir, "system"))
	}
	return exec.Command("bash", append([]string{"-ec", script, "born", strings.Join(groups, " ")}, args...)...)
}

// Command is a command inside.
func (h *Host) Command(args ...string) *exec.Cmd {
	pid := strconv.Itoa(h.holder.Process.Pid)
	return h.born(append([]string{"nsenter", "--net=/proc/" + pid + "/ns/net", "--mount=/proc/" + pid + "/ns/mnt", "--"}, args...)...)
}

// link joins the host with this one: a pair of links with addresses of the range that is for tests of networks.
func (h *Host) link() error {
	outer := "yp-" + h.Name
	pid := h.holder.Process.Pid
	if old, err := netlink.LinkByName(outer); err == nil {
		if err := netlink.LinkDel(old); err != nil {
			return err
		}
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: outer}, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(pair); err != nil {
		return err
	}
	net4, err := freeNet()
	if err != nil {
		return err
	}
	h.Outside = net4.Addr().Next()
	h.Address = h.Outside.Next()
	if err := netlink.AddrAdd(pair, &netlink.Addr{IPNet: ipnet(h.Outside, 30)}); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(pair); err != nil {
		return err
	}
	text := fmt.Sprintf(`ip link set lo up && ip link set eth0 up && ip addr add %s/30 dev eth0 && ip route add default via %s`, h.Address, h.Outside)
	if out, err := h.Command("sh", "-ec", text).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// freeNet is a range of four addresses that no link of this host has.
func freeNet() (netip.Prefix, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return netip.Prefix{}, err
	}
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 30)
		used := false
		for _, a := range addrs {
			ip, _ := netip.AddrFromSlice(a.IP.To4())
			used = used || p.Contains(ip)
		}
		if !used {
			return p, nil
		}
	}
	return netip.Prefix{}, errors.New("no free range in 198.18.0.0/16")
}

func ipnet(a netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, 32)}
}

// Network is the path of the host's network namespace.
func (h *Host) Network() string { return fmt.Sprintf("/proc/%d/ns/net", h.holder.Process.Pid) }

// CgroupRoot is the path of the host's cgroup in every hierarchy.
func (h *Host) CgroupRoot() string { return "/yare-peers/" + h.Name }

// cgroups are the folders of the host's cgroup.
func (h *Host) cgroups() (dirs []string) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && (f[2] == "cgroup" || f[2] == "cgroup2") {
			dirs = append(dirs, f[1]+h.CgroupRoot())
		}
	}
	return dirs
}

func (h *Host) makeCgroups() error {
	for _, dir := range h.cgroups() {
		for _, d := range []string{filepath.Dir(dir), dir, filepath.Join(dir, "system")} {
			if err := os.Mkdir(d, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			for _, set := range []string{"cpuset.cpus", "cpuset.mems"} {
				all, err := os.ReadFile(filepath.Join(filepath.Dir(d), set))
				if err != nil || len(strings.TrimSpace(string(all))) == 0 {
					continue // another controller's hierarchy, or v2, which hands them down
				}
				if err := os.WriteFile(filepath.Join(d, set), all, 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Close ends all processes of the host and removes what it made. The folder stays.
func (h *Host) Close(ctx context.Context) error {
	var errs []error
	for i := len(h.started) - 1; i >= 0; i-- {
		errs = append(errs, h.started[i].Stop())
	}
	errs = append(errs, h.removeCgroups(ctx))
	if h.holder != nil && h.holder.Process != nil {
		_ = h.holder.Wait() // it was killed with its cgroup
	}
	if l, err := netlink.LinkByName("yp-" + h.Name); err == nil {
		errs = append(errs, netlink.LinkDel(l)) // goes with the namespace, but later
	}
	return errors.Join(errs...)
}

// removeCgroups kills what is in them, and removes them.
func (h *Host) removeCgroups(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return Until(ctx, "cgroups of "+h.Name+" gone", func() error {
		for _, dir := range h.cgroups() {
			if err := removeCgroup(dir); err != nil {
				return err
			}
			_ = os.Remove(filepath.Dir(dir)) // when ours was the last host
		}
		return nil
	})
}

func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return err
	}
	for _, text := range strings.Fields(string(pids)) {
		if pid, err := strconv.Atoi(text); err == nil && pid > 0 {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Processes are those in the host's cgroups below sub, such as "kubepods".
func (h *Host) Processes(sub string) (pids []string, err error) {
	for _, dir := range h.cgroups() {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(p string, d fs.DirEntry, err error) error {
			if err != nil || d.Name() != "cgroup.procs" {
				return ignoreGone(err)
			}
			text, err := os.ReadFile(p)
			pids = append(pids, strings.Fields(string(text))...)
			return ignoreGone(err)
		})
		if err != nil {
			return nil, err
		}
	}
	return pids, nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return nil
	}
	return err
}

// Until calls done until it returns no error, or ctx ends.
func Until(ctx context.Context, what string, done func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var why error
	for {
		err := done()
		if err == nil {
			return nil
		}
		if ctx.Err() == nil || why == nil { // else it is but the end of ctx
			why = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, context.Cause(ctx), why)
		}
	}
}
