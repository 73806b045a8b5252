package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	corev1 "k8s.io/api/core/v1"
)

// trio is the servers of one cluster.
type trio []*machine

// leader is the server whose database leads.
func (s trio) leader(t *testing.T) (leads *machine) {
	t.Helper()
	soon(t, 20*time.Second, "a leader", func() error {
		for _, m := range s {
			for _, one := range m.status().Servers {
				if one.Self && one.Leader {
					leads = m
					return nil
				}
			}
		}
		return fmt.Errorf("none leads")
	})
	return leads
}

// Faults; each returns what ends it.

func (s trio) kill(m *machine) (heal func()) {
	m.signal(syscall.SIGKILL)
	return func() { m.up() }
}

func (s trio) cut(m *machine) (heal func()) {
	sh(m.t, "ip link set %s down", m.link())
	return func() { sh(m.t, "ip link set %s up", m.link()) }
}

func (s trio) pause(m *machine) (heal func()) {
	pid := m.status().PID
	_ = syscall.Kill(pid, syscall.SIGSTOP)
	return func() { _ = syscall.Kill(pid, syscall.SIGCONT) }
}

const (
	faultAcks  = 60              // operations that each phase must see
	faultLasts = 3 * time.Second // at least: others lead by then
)

// rounds has clients of each server work while the fault happens to the one that leads, and goes. Those of the others must get on meanwhile, its
// own afterwards; what all saw is checked.
func (s trio) rounds(t *testing.T, fault func(*machine) func()) {
	leader := s.leader(t)
	h := &history{begin: time.Now()}
	first, err := s[0].client().list()
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range first.seen {
		h.before.last = max(h.before.last, k.rev)
	}
	h.before.keys = first.seen
	acked := map[*machine]*atomic.Int64{}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var clients sync.WaitGroup
	id := 0
	for _, m := range s {
		acked[m] = new(atomic.Int64)
		for range 2 {
			id++
			c, n, known := m.client(), id, first.seen
			clients.Go(func() {
				for ctx.Err() == nil {
					if h.one(c, n, &known) {
						acked[m].Add(1)
						continue
					}
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
	}
	progress := func(what string, ms ...*machine) {
		t.Helper()
		was := map[*machine]int64{}
		for _, m := range ms {
			was[m] = acked[m].Load()
		}
		soon(t, 40*time.Second, what, func() error {
			for _, m := range ms {
				if n := acked[m].Load() - was[m]; n < faultAcks/2 {
					return fmt.Errorf("%s has %d operations", m.name, n)
				}
			}
			return nil
		})
	}
	progress("before", s...)
	heal := fault(leader)
	begin := time.Now()
	var others []*machine
	for _, m := range s {
		if m != leader {
			others = append(others, m)
		}
	}
	progress("meanwhile", others...)
	time.Sleep(time.Until(begin.Add(faultLasts)))
	heal()
	progress("afterwards", leader)
	stop()
	clients.Wait()
	for _, m := range s {
		h.run(m.client(), 0, ask{verb: "list"})
	}
	model := linearModel(h.before)
	switch porcupine.CheckOperationsTimeout(model, h.ops, time.Minute) {
	case porcupine.Illegal:
		t.Fatalf("not linearizable:\n%s", h.text(model))
	case porcupine.Unknown:
		t.Fatalf("%d operations could not be checked in time", len(h.ops))
	}
	t.Logf("%d operations in an order that explains them, %s having led", len(h.ops), leader.name)
	soon(t, 40*time.Second, "all servers lead to each other", s[0].endpoints(s...))
}

// addressesAtOnce has all servers make Services at the same time: no address and no port is given twice.
func addressesAtOnce(t *testing.T, s trio) {
	const each = 12
	var mu sync.Mutex
	taken := map[string]string{}
	var wg sync.WaitGroup
	for _, m := range s {
		for range 2 {
			c := m.client()
			wg.Go(func() {
				for range each / 2 {
					svc := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80}}}}
					svc.GenerateName = "at-once-"
					b, err := c.call(http.MethodPost, "/api/v1/namespaces/default/services", svc)
					if err != nil {
						t.Error(m.name, err)
						return
					}
					var got corev1.Service
					if err := json.Unmarshal(b, &got); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					for _, has := range []string{got.Spec.ClusterIP, fmt.Sprint("port ", got.Spec.Ports[0].NodePort)} {
						if other := taken[has]; other != "" {
							t.Errorf("%s and %s both have %s", got.Name, other, has)
						}
						taken[has] = got.Name
					}
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if len(taken) != 2*each*len(s) {
		t.Errorf("%d addresses and ports", len(taken))
	}
}

// controllersWork sees one of the servers do what the leader does, after leaders have come and gone.
func controllersWork(t *testing.T, s trio) {
	if out, err := s[0].kubectl("create", "deployment", "none", "--image=none", "--replicas=0"); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	soon(t, 30*time.Second, "a ReplicaSet", func() error {
		out, err := s[1].kubectl("get", "replicasets", "-l", "app=none", "-o", "name")
		if err == nil && !strings.Contains(out, "replicaset.apps/none-") {
			err = fmt.Errorf("there is %q", out)
		}
		return err
	})
}

// agentProcess is `yare agent` on a machine.
type agentProcess struct {
	m   *machine
	cmd *exec.Cmd
	log string
}

func startAgent(t *testing.T, server, m *machine) *agentProcess {
	t.Helper()
	file := filepath.Join(m.dir, "join")
	text := server.do(bin.yare, "node-credentials", m.name, "--name", server.name, "--address", m.address())
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &agentProcess{m: m, log: filepath.Join(m.dir, "agent.log")}
	log, err := os.Create(a.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	a.cmd = m.command(context.Background(), bin.yare, "agent", "--join", file, "--name", m.name, "--data-dir", filepath.Join(m.dir, "data"))
	a.cmd.Stdout, a.cmd.Stderr = log, log
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(a.log)
			t.Logf("agent:\n%s", tail(text, 30))
		}
		_ = a.cmd.Process.Signal(syscall.SIGTERM)
		_ = a.cmd.Wait()
		m.do(bin.yare, "down", "--name", m.name)
	})
	return a
}

var goesOn = regexp.MustCompile(`msg="going on with another API server" server=([0-9.]+):6443`)

// loses kills the server that the node uses: the node goes on with another one.
func (a *agentProcess) loses(t *testing.T, s trio) {
	at := s[0].address()
	text, err := os.ReadFile(a.log)
	if err != nil {
		t.Fatal(err)
	}
	if all := goesOn.FindAllSubmatch(text, -1); len(all) > 0 {
		at = string(all[len(all)-1][1])
	}
	var uses, other *machine
	for _, m := range s {
		if m.address() == at {
			uses = m
		} else {
			other = m
		}
	}
	uses.signal(syscall.SIGKILL)
	renewed := func() string {
		out, err := other.kubectl("get", "lease", "-n", "kube-node-lease", a.m.name, "-o", "jsonpath={.spec.renewTime}")
		if err != nil {
			t.Fatalf("%v %s", err, out)
		}
		return strings.TrimSpace(out)
	}
	was := renewed()
	soon(t, 40*time.Second, "the node renews its lease elsewhere", func() error {
		if now := renewed(); now == was {
			return fmt.Errorf("renewed at %s last", now)
		}
		return nil
	})
	uses.up()
}
