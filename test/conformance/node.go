package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// node is a second node of a fresh cluster on this machine: `yare agent` in a network namespace that a link joins with the
// machine's. What it makes elsewhere bears its name, as that of any cluster.
//
//	machine: server, pods ── link of 198.18.x.1 ─── eth0 of 198.18.x.2 ── namespace: agent, pods
type node struct {
	name    string
	yare    string
	dir     string // of logs and data
	out     io.Writer
	address netip.Addr
	six     netip.Addr // in a cluster with IPv6

	agent *exec.Cmd
	ended chan struct{}
}

const (
	nodeLink = "yare-c2"
	// patience is how long the agent may take to end when it is asked to.
	patience = 20 * time.Second
)

// secondNode makes the second node of a fresh cluster, nil where none is wanted.
func secondNode(ctx context.Context, w wish, dir string, out io.Writer) (*node, error) {
	if w.kubeconfig != "" || w.nodes < 2 {
		return nil, nil
	}
	n, err := makeNode(ctx, w.cluster+"-2", w.yare, dir, out)
	if err != nil || w.families == "" {
		return n, err
	}
	if err := n.addIPv6(ctx); err != nil {
		return nil, errors.Join(err, n.remove(context.WithoutCancel(ctx)))
	}
	return n, nil
}

// makeNode makes the namespace and its link. What a killed run left of them is removed first.
func makeNode(ctx context.Context, name, yare, dir string, out io.Writer) (n *node, err error) {
	n = &node{name: name, yare: yare, dir: dir, out: out}
	if err := n.remove(ctx); err != nil {
		return nil, err
	}
	outside, err := freeNet()
	if err != nil {
		return nil, err
	}
	n.address = outside.Next()
	for _, command := range []string{
		"netns add " + name,
		"link add " + nodeLink + " type veth peer name eth0 netns " + name,
		"addr add " + outside.String() + "/30 dev " + nodeLink,
		"link set " + nodeLink + " up",
		"-n " + name + " link set lo up",
		"-n " + name + " addr add " + n.address.String() + "/30 dev eth0",
		"-n " + name + " link set eth0 up",
		"-n " + name + " route add default via " + outside.String(),
	} {
		if err := ip(ctx, command); err != nil {
			return nil, errors.Join(err, n.remove(context.WithoutCancel(ctx)))
		}
	}
	return n, nil
}

// addIPv6 gives the link addresses of IPv6 too.
func (n *node) addIPv6(ctx context.Context) error {
	four := n.address.As4()
	outside := netip.MustParseAddr(fmt.Sprintf("fd18:%x::1", four[2]))
	n.six = outside.Next()
	for _, command := range []string{
		"addr add " + outside.String() + "/64 dev " + nodeLink + " nodad",
		"-n " + n.name + " addr add " + n.six.String() + "/64 dev eth0 nodad",
		"-6 -n " + n.name + " route add default via " + outside.String(),
	} {
		if err := ip(ctx, command); err != nil {
			return err
		}
	}
	return nil
}

func ip(ctx context.Context, command string) error {
	if text, err := exec.CommandContext(ctx, "ip", strings.Fields(command)...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", command, err, strings.TrimSpace(string(text)))
	}
	return nil
}

// freeNet is the first address of a range of four that no link of this machine has, of those that are for tests of networks.
func freeNet() (netip.Addr, error) {
	used, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 0}), 30)
		free := true
		for _, a := range used {
			if have, err := netip.ParsePrefix(a.String()); err == nil && have.Overlaps(p) {
				free = false
			}
		}
		if free {
			return p.Addr().Next(), nil
		}
	}
	return netip.Addr{}, errors.New("no free range in 198.18.0.0/16")
}

func (n *node) namespace() string { return filepath.Join("/run/netns", n.name) }

// inside is a command in the namespace.
func (n *node) inside(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.namespace(), "--"}, args...)...)
	c.Stdout, c.Stderr = n.out, n.out
	return c
}

// listen opens a TCP port in the namespace.
func (n *node) listen(address string) (net.Listener, error) {
	type result struct {
		net.Listener
		error
	}
	got := make(chan result)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		var l net.Listener
		f, err := os.Open(n.namespace())
		if err == nil {
			defer f.Close()
			if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err == nil {
				l, err = net.Listen("tcp", address)
			}
		}
		got <- result{l, err}
	}()
	r := <-got
	return r.Listener, r.error
}

// join makes the namespace a node of c and waits until it is ready. A nil node joins nothing.
func (n *node) join(ctx context.Context, c *cluster, kubectl string) error {
	if n == nil {
		return nil
	}
	file := filepath.Join(n.dir, n.name+".join")
	args := []string{"node-credentials", n.name, "--name", c.name, "--address", n.address.String()}
	if n.six.IsValid() {
		args = append(args, "--address", n.six.String())
	}
	text, err := exec.CommandContext(ctx, n.yare, args...).Output()
	if err != nil {
		return fmt.Errorf("credentials of the second node: %w", err)
	}
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(n.dir, "agent.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	n.agent = n.inside(context.WithoutCancel(ctx), n.yare, "agent", "--join", file, "--name", n.name, "--data-dir", filepath.Join(n.dir, n.name))
	n.agent.Stdout, n.agent.Stderr = log, log
	n.agent.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt of the run is not for it
	if err := n.agent.Start(); err != nil {
		return fmt.Errorf("start the second node: %w", err)
	}
	n.ended = make(chan struct{})
	go func() {
		_ = n.agent.Wait() // its log says why
		close(n.ended)
	}()
	for _, state := range []string{"create", "condition=Ready"} {
		wait := exec.CommandContext(ctx, kubectl, "--kubeconfig", c.kubeconfig, "wait", "--for="+state, "node/"+n.name, "--timeout=60s")
		if text, err := wait.CombinedOutput(); err != nil {
			return fmt.Errorf("wait for the second node, whose log is %s: %w: %s", log.Name(), err, strings.TrimSpace(string(text)))
		}
	}
	fmt.Fprintf(n.out, "a second node, %s, is ready at %v\n", n.name, n.address)
	return nil
}

// down ends the agent and removes what there is of the node.
func (n *node) down(ctx context.Context) error {
	if n == nil {
		return nil
	}
	if n.agent != nil && n.agent.Process != nil {
		if err := n.agent.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-n.ended:
		case <-time.After(patience):
			_ = n.agent.Process.Kill() // it has ended meanwhile, or ends now
			<-n.ended
		}
	}
	n.agent = nil
	return n.remove(ctx)
}

// remove removes what there is, also of an earlier run.
func (n *node) remove(ctx context.Context) error {
	if _, err := os.Stat(n.namespace()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	all, err := exec.CommandContext(ctx, n.yare, "status", "--all").Output()
	if err != nil {
		return fmt.Errorf("yare status: %w", err)
	}
	for line := range strings.Lines(string(all)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == n.name {
			err = n.inside(ctx, n.yare, "down", "--name", n.name).Run()
		}
	}
	return errors.Join(err, ip(ctx, "netns del "+n.name)) // the link goes with it
}
