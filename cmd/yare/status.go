package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/yare-dev/yare/cmd/cluster"
	"github.com/yare-dev/yare/etcd"
)

// status is what `yare status -o json` prints, and a list of it with --all; fields are only ever added.
type status struct {
	Name       string            `json:"name"`
	Running    bool              `json:"running"`
	PID        int               `json:"pid,omitempty"`
	Uptime     string            `json:"uptime,omitempty"`
	Version    string            `json:"version"`
	Kubernetes string            `json:"kubernetesVersion"`
	API        string            `json:"api"`
	Context    string            `json:"context"`
	PodCIDR    string            `json:"podCIDR"`
	Services   string            `json:"serviceCIDR"`
	DNS        string            `json:"dns"`
	DataDir    string            `json:"dataDir"`
	KubeletDir string            `json:"kubeletDir"` // that drivers of storage have to know
	Ephemeral  bool              `json:"ephemeral"`
	Components []componentStatus `json:"components,omitempty"`
	Servers    []serverStatus    `json:"servers,omitempty"` // of several
	Processes  []processStatus   `json:"processes,omitempty"`
	MemoryMB   float64           `json:"memoryMB"`   // proportional set size of all our processes
	CPUPercent float64           `json:"cpuPercent"` // of one core, since they started
}

type componentStatus struct {
	Name   string `json:"name"`
	Health string `json:"health"`
}

type processStatus struct {
	PID      int     `json:"pid"`
	Name     string  `json:"name"`
	MemoryMB float64 `json:"memoryMB"`
	CPU      string  `json:"cpuTime"`

	cpu, age time.Duration
}

func statusCommand() *cobra.Command {
	var name, output string
	var all bool
	c := &cobra.Command{
		Use: "status", GroupID: "cluster", Args: cobra.NoArgs,
		Short: "Components, their health, addresses, memory and CPU",
		RunE: func(c *cobra.Command, _ []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("--output %q: use json or leave it out", output)
			}
			h := cluster.Host{}
			if all {
				rs, err := h.List()
				if err != nil {
					return err
				}
				return printClusters(c.Context(), c.OutOrStdout(), rs, output)
			}
			r, err := h.Find(name)
			if err != nil {
				return err
			}
			s, err := statusOf(c.Context(), r)
			if err != nil {
				return err
			}
			if output == "json" {
				return printJSON(c.OutOrStdout(), s)
			}
			return s.print(c.OutOrStdout())
		},
	}
	f := c.Flags()
	f.StringVar(&name, "name", cluster.DefaultName, "name of the cluster")
	f.StringVarP(&output, "output", "o", "", "json")
	f.BoolVar(&all, "all", false, "list all clusters of this host")
	return c
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printClusters prints a line for each cluster, or as JSON all that is known of each.
func printClusters(ctx context.Context, w io.Writer, rs []*cluster.Record, output string) error {
	if output == "json" {
		all := []*status{}
		for _, r := range rs {
			s, err := statusOf(ctx, r)
			if err != nil {
				return fmt.Errorf("cluster %q: %w", r.Name, err)
			}
			all = append(all, s)
		}
		return printJSON(w, all)
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tRUNNING\tAPI\tDATA")
	for _, r := range rs {
		_, running := r.Server()
		fmt.Fprintf(t, "%s\t%v\t%s\t%s\n", r.Name, running, apiURL(r), r.DataDir)
	}
	return t.Flush()
}

func apiURL(r *cluster.Record) string { return fmt.Sprintf("https://127.0.0.1:%d", r.APIPort) }

// joined is a list of addresses or ranges as Kubernetes writes them in one text.
func joined[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, x := range list {
		texts[i] = x.String()
	}
	return strings.Join(texts, ",")
}

func statusOf(ctx context.Context, r *cluster.Record) (*status, error) {
	s := &status{
		Name: r.Name, Version: version, Kubernetes: kubernetesVersion, API: apiURL(r), Context: r.Context(),
		PodCIDR: joined(r.PodCIDRs()), Services: joined(r.ServiceCIDRs()), DNS: joined(r.DNSAddresses()), DataDir: r.DataDir, KubeletDir: r.KubeletPath(), Ephemeral: r.Ephemeral,
	}
	if s.PID, s.Running = r.Server(); !s.Running {
		return s, nil
	}
	var err error
	if s.Components, err = health(ctx, r); err != nil {
		text := err.Error()
		if etcd.HasPeers(etcdDir(r)) {
			text += "; it may wait for a majority: start the cluster's other servers"
		}
		s.Components = []componentStatus{{"apiserver", text}}
	} else if err := askServer(ctx, r, http.MethodGet, "", &s.Servers); err != nil || len(s.Servers) < 2 {
		s.Servers = nil // whoever cannot say it is told about above
	}
	pids, err := ourProcesses(r, s.PID)
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		p, err := readProcess(pid)
		if err != nil {
			continue // it has ended meanwhile
		}
		if pid == s.PID {
			p.Name = "yare" // to the kernel it is "exe", for the link that it was started by
		}
		s.Processes = append(s.Processes, p)
		s.MemoryMB += p.MemoryMB
		if p.age > 0 {
			s.CPUPercent += 100 * p.cpu.Seconds() / p.age.Seconds()
		}
		if pid == s.PID {
			s.Uptime = p.age.Round(time.Second).String()
		}
	}
	return s, nil
}

// health asks the server for the state of its components.
func health(ctx context.Context, r *cluster.Record) ([]componentStatus, error) {
	resp, err := askAsAdmin(ctx, r, 5*time.Second, http.MethodGet, "/readyz?verbose")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var cs []componentStatus
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		// "[+]etcd ok" or "[-]kubelet not ready".
		if line := lines.Text(); len(line) > 3 && line[0] == '[' {
			name, state, _ := strings.Cut(line[3:], " ")
			cs = append(cs, componentStatus{name, state})
		}
	}
	return cs, lines.Err()
}

// askAsAdmin asks the server on this host, as the administrator. The caller closes the answer's body.
func askAsAdmin(ctx context.Context, r *cluster.Record, limit time.Duration, method, at string) (*http.Response, error) {
	config, err := clientcmd.BuildConfigFromFlags("", adminKubeconfig(r))
	if err != nil {
		return nil, err
	}
	config.Timeout = limit
	hc, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, config.Host+at, http.NoBody)
	if err != nil {
		return nil, err
	}
	return hc.Do(req)
}

// ourProcesses returns the server and the shims: everything of the cluster but the containers' own processes.
func ourProcesses(r *cluster.Record, server int) ([]int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	pids := []int{server}
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		groups, _ := os.ReadFile(d + "/cgroup")
		comm, _ := os.ReadFile(d + "/comm")
		if pid != server && strings.Contains(string(groups), ":"+r.Cgroup()+"/") && strings.HasPrefix(string(comm), "yare") {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids[1:])
	return pids, nil
}

// ticksPerSecond is USER_HZ, the unit of times in /proc/<pid>/stat; it is 100 on every architecture that we build for.
const ticksPerSecond = 100

func readProcess(pid int) (processStatus, error) {
	p := processStatus{PID: pid}
	dir := fmt.Sprintf("/proc/%d/", pid)
	stat, err := os.ReadFile(dir + "stat")
	if err != nil {
		return p, err
	}
	head, rest, _ := strings.Cut(string(stat), ") ")
	_, p.Name, _ = strings.Cut(head, "(")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return p, fmt.Errorf("%sstat: %d fields", dir, len(f))
	}
	ticks := func(s string) time.Duration {
		n, _ := strconv.ParseInt(s, 10, 64)
		return time.Duration(n) * time.Second / ticksPerSecond
	}
	p.cpu = ticks(f[11]) + ticks(f[12])
	p.CPU = p.cpu.String()
	if up, err := os.ReadFile("/proc/uptime"); err == nil {
		seconds, _, _ := strings.Cut(string(up), " ")
		now, _ := strconv.ParseFloat(seconds, 64)
		p.age = time.Duration(now*float64(time.Second)) - ticks(f[19])
	}
	rollup, err := os.ReadFile(dir + "smaps_rollup")
	if err != nil {
		return p, err
	}
	for line := range strings.Lines(string(rollup)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(v)[0], 64)
			p.MemoryMB = kb * 1024 / 1e6
		}
	}
	return p, nil
}

func (s *status) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	state := "stopped; 'yare up" + nameFlag(s.Name) + "' resumes it"
	if s.Running {
		state = fmt.Sprintf("running for %s (process %d)", s.Uptime, s.PID)
	}
	for _, row := range [][2]string{
		{"cluster", s.Name + ", " + state}, {"version", s.Version + ", Kubernetes " + s.Kubernetes},
		{"api", s.API + " (context " + s.Context + ")"},
		{"addresses", "pods " + s.PodCIDR + ", Services " + s.Services + ", DNS " + s.DNS}, {"data", s.DataDir}, {"kubelet", s.KubeletDir},
	} {
		fmt.Fprintf(t, "%s\t%s\n", row[0], row[1])
	}
	if err := t.Flush(); err != nil || !s.Running {
		return err
	}
	fmt.Fprintln(t, "\nCOMPONENT\tHEALTH")
	for _, c := range s.Components {
		fmt.Fprintf(t, "%s\t%s\n", c.Name, c.Health)
	}
	if len(s.Servers) > 0 {
		fmt.Fprintln(t, "\nSERVER\tSTATE\tADDRESS FOR OTHERS")
	}
	for _, o := range s.Servers {
		if o.Leader {
			o.State += ", leads the database"
		}
		if o.Self {
			o.Name += " (this one)"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", o.Name, o.State, o.URL)
	}
	fmt.Fprintln(t, "\nPROCESS\tPID\tMEMORY\tCPU TIME")
	for _, p := range s.Processes {
		fmt.Fprintf(t, "%s\t%d\t%.1f MB\t%s\n", p.Name, p.PID, p.MemoryMB, p.CPU)
	}
	fmt.Fprintf(t, "all\t\t%.1f MB\t%.2f %% of a core\n", s.MemoryMB, s.CPUPercent)
	return t.Flush()
}
