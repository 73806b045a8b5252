package cluster_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

var serverFaults = flag.Int("server-faults", 1, "how often TestServers does each of killing, cutting off and pausing the server that leads")

// Machines of these tests are network, mount and host name namespaces on a bridge of this one.
const (
	bridge    = "ytsbr"
	serverNet = "198.18.97."
)

type machine struct {
	t      *testing.T
	n      int
	name   string // of its share of the host
	dir    string
	holder *exec.Cmd
	config *rest.Config // of its API server, from here
	down   bool         // it is to be there no more
}

func (m *machine) address() string { return serverNet + strconv.Itoa(m.n) }
func (m *machine) link() string    { return "yts" + strconv.Itoa(m.n) }

// machines makes n of them.
func machines(t *testing.T, n int) []*machine {
	t.Helper()
	sh(t, "ip link add %[1]s type bridge && ip addr add %[2]s254/24 dev %[1]s && ip link set %[1]s up", bridge, serverNet)
	t.Cleanup(func() { sh(t, "ip link del %s", bridge) })
	var all []*machine
	for i := range n {
		m := &machine{t: t, n: i + 1, name: fmt.Sprintf("sv%d", i+1), dir: t.TempDir()}
		m.holder = exec.Command("unshare", "--net", "--mount", "--uts", "--propagation", "private", "bash", "-ec",
			"hostname "+m.name+`; mount --make-rshared /; for d in /run /var/lib; do mount -t tmpfs -o mode=755 tmpfs $d; done; echo ready; exec sleep infinity`)
		m.holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := m.holder.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.holder.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = m.holder.Process.Kill()
			_ = m.holder.Wait()
		})
		sh(t, "ip link add %s type veth peer name eth0 netns %d && ip link set %[1]s master %[3]s up", m.link(), m.holder.Process.Pid, bridge)
		m.do("ip", "link", "set", "lo", "up")
		m.do("ip", "addr", "add", m.address()+"/24", "dev", "eth0")
		m.do("ip", "link", "set", "eth0", "up")
		m.do("ip", "route", "add", "default", "via", serverNet+"254")
		t.Cleanup(func() {
			if t.Failed() {
				log, _ := os.ReadFile(filepath.Join(m.dir, "data", "server.log"))
				t.Logf("%s:\n%s", m.name, tail(log, 40))
			}
			if m.down {
				return
			}
			if out, err := m.try(bin.yare, "down", "--force", "--name", m.name); err != nil {
				t.Errorf("%s down: %v\n%s", m.name, err, out)
			}
		})
		all = append(all, m)
	}
	return all
}

func sh(t *testing.T, format string, args ...any) {
	t.Helper()
	if out, err := exec.Command("sh", "-ec", fmt.Sprintf(format, args...)).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", fmt.Sprintf(format, args...), err, out)
	}
}

func (m *machine) command(ctx context.Context, args ...string) *exec.Cmd {
	pid := strconv.Itoa(m.holder.Process.Pid)
	c := exec.CommandContext(ctx, "nsenter", append([]string{"-t", pid, "-n", "-m", "-u", "--"}, args...)...)
	c.Env = append(os.Environ(), "HOME="+m.dir, "KUBECONFIG="+filepath.Join(m.dir, "kubeconfig"))
	return c
}

func (m *machine) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := m.command(ctx, args...).CombinedOutput()
	return string(out), err
}

func (m *machine) do(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %s: %v\n%s", m.name, strings.Join(args, " "), err, out)
	}
	return out
}

// up starts, or joins, and has m.config lead here.
func (m *machine) up(join ...string) {
	m.t.Helper()
	m.do(append([]string{bin.yare, "up", "--name", m.name, "--data-dir", filepath.Join(m.dir, "data")}, join...)...)
	c, err := clientcmd.BuildConfigFromFlags("", filepath.Join(m.dir, "data", "admin.kubeconfig"))
	if err != nil {
		m.t.Fatal(err)
	}
	c.Host = "https://" + m.address() + ":6443"
	m.config = c
}

// joining are the arguments by which another machine joins: those of the command that is printed, the token in a file.
func (m *machine) joining() []string {
	m.t.Helper()
	command, token, _ := strings.Cut(m.do(bin.yare, "server-token", "--name", m.name), "\n")
	words := strings.Fields(command)
	if len(words) != 7 || strings.Join(words[4:], " ") != "--token-file - <<'END'" {
		m.t.Fatalf("server-token prints %q", command)
	}
	file := filepath.Join(m.dir, "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		m.t.Fatal(err)
	}
	return append(words[2:5], file)
}

func (m *machine) client() *asker {
	m.t.Helper()
	hc, err := rest.HTTPClientFor(rest.CopyConfig(m.config))
	if err != nil {
		m.t.Fatal(err)
	}
	hc.Timeout = 5 * time.Second
	return &asker{m.config.Host, hc}
}

func (m *machine) kubectl(args ...string) (string, error) {
	return m.try(append([]string{bin.yare, "kubectl", "--kubeconfig", filepath.Join(m.dir, "data", "admin.kubeconfig")}, args...)...)
}

type serversStatus struct {
	PID     int
	Servers []struct {
		Name, State  string
		Leader, Self bool
	}
}

func (m *machine) status() (s serversStatus) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.do(bin.yare, "status", "--name", m.name, "-o", "json")), &s); err != nil {
		m.t.Fatal(err)
	}
	return s
}

func (m *machine) signal(sig syscall.Signal) {
	m.t.Helper()
	if err := syscall.Kill(m.status().PID, sig); err != nil {
		m.t.Fatal(err)
	}
}

// soon calls f until it returns no error.
func soon(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// endpoints are the addresses of the Service `kubernetes`.
func (m *machine) endpoints(want ...*machine) func() error {
	return func() error {
		out, err := m.kubectl("get", "endpoints", "kubernetes", "-n", "default", "-o", "jsonpath={.subsets[*].addresses[*].ip}")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		var ips []string
		for _, w := range want {
			ips = append(ips, w.address())
		}
		out, _, _ = strings.Cut(strings.TrimPrefix(out, "Warning: v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\n"), "\n")
		if out != strings.Join(ips, " ") {
			return fmt.Errorf("endpoints %q, want %v", out, ips)
		}
		return nil
	}
}

// TestServers makes a cluster of three servers and a node, lets each fault happen to the one that leads while clients of all three work, and ends the
// cluster server by server. What the clients saw must be linearizable, whichever server they asked.
func TestServers(t *testing.T) {
	all := machines(t, 4)
	a, b, c, node := all[0], all[1], all[2], all[3]
	node.down = true
	a.up()
	join := a.joining()
	b.up(join...)
	c.up(join...)
	servers := trio(all[:3])
	soon(t, 20*time.Second, "three servers", a.endpoints(a, b, c))
	for _, s := range a.status().Servers {
		if s.State != "up" {
			t.Errorf("%+v", s)
		}
	}
	agent := startAgent(t, a, node)
	t.Run("at once", func(t *testing.T) { addressesAtOnce(t, servers) })
	for range *serverFaults {
		t.Run("killed", func(t *testing.T) { servers.rounds(t, servers.kill) })
		t.Run("cut off", func(t *testing.T) { servers.rounds(t, servers.cut) })
		t.Run("paused", func(t *testing.T) { servers.rounds(t, servers.pause) })
		if t.Failed() {
			return
		}
	}
	t.Run("controllers", func(t *testing.T) { controllersWork(t, servers) })
	t.Run("power cut", func(t *testing.T) {
		for _, m := range servers {
			m.signal(syscall.SIGKILL)
		}
		var wg sync.WaitGroup
		for _, m := range servers {
			wg.Go(func() { m.up() })
		}
		wg.Wait()
		soon(t, 20*time.Second, "three servers again", a.endpoints(a, b, c))
	})
	t.Run("the node's server goes", func(t *testing.T) { agent.loses(t, servers) })
	t.Run("removed dead", func(t *testing.T) {
		c.signal(syscall.SIGKILL)
		a.do(bin.yare, "server-remove", "--name", a.name, c.name)
		if out, err := c.try(bin.yare, "up", "--name", c.name); err == nil || !strings.Contains(out, "was removed from its cluster: 'yare down --name sv3'") {
			t.Errorf("a removed server starts: %v %s", err, out)
		}
		c.do(bin.yare, "down", "--name", c.name)
		c.down = true
	})
	t.Run("leave", func(t *testing.T) {
		b.do(bin.yare, "down", "--name", b.name)
		b.down = true
		soon(t, 30*time.Second, "one server", a.endpoints(a))
		if out, err := a.kubectl("create", "configmap", "after"); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
}
