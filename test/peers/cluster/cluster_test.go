package cluster

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/yare-dev/yare/test/peers/host"
	"github.com/yare-dev/yare/test/peers/programs"
)

var keep = flag.Bool("keep-logs", false, "write the ends of all logs, also when a test passes")

// Each component alone among upstream's, and the whole of each kind.
func TestPeers(t *testing.T) {
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("starts clusters, as root")
	}
	module, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	built, err := programs.All(t.Context(), module, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	p := Programs{Programs: built, Yare: filepath.Join(module, "../../bin/yare")}
	if _, err := exec.LookPath(p.Yare); err != nil {
		t.Fatalf("make build first: %v", err)
	}
	for _, tt := range []struct {
		name string // also of the host: at most 9 letters
		plan Plan
	}{
		{"upstream", Plan{}},
		{"api", Plan{APIServer: Ours}},
		{"control", Plan{Controllers: Ours}},
		{"scheduler", Plan{Scheduler: Ours}},
		{"proxy", Plan{Proxy: Ours}},
		{"kubelet", Plan{Kubelet: Ours}},
		{"runtime", Plan{Runtime: Ours}},
		{"node", Plan{Kubelet: Ours, Runtime: Ours, Proxy: Ours}},
		{"plane", Plan{APIServer: Ours, Controllers: Ours, Scheduler: Ours}},
		{"ours", Plan{APIServer: Ours, Controllers: Ours, Scheduler: Ours, Kubelet: Ours, Runtime: Ours, Proxy: Ours}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, err := host.New(t.Context(), tt.name, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				for _, p := range h.Started() {
					if t.Failed() || *keep {
						t.Logf("%s:\n%s", p.Name, p.Tail(40))
					}
				}
				if err := h.Close(context.WithoutCancel(t.Context())); err != nil {
					t.Error(err)
				}
			})
			c, err := Start(t.Context(), h, p, tt.plan)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Scenario(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}
