package criserver

import (
	"flag"
	"os/exec"
	"testing"

	"github.com/yare-dev/yare/cri/critest"
	"github.com/yare-dev/yare/oci/ocitest"
)

var allOfHandlers = flag.Bool("handlers", false, "run all of the suite with each handler, not only what touches the runtime")

// withHandlers configures the runtimes that the host has.
func withHandlers(c *Config) {
	c.Handlers = map[string]Handler{}
	for _, name := range []string{"runc", "crun"} {
		if path, err := exec.LookPath(name); err == nil {
			c.Handlers[name] = Handler{Path: path}
		}
	}
}

// needHandler skips the test where the host has no such runtime. It returns false when there is nothing left to do.
func needHandler(t *testing.T, name string) bool {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%v: see scripts/setup", err)
	}
	return name != "crun" || ocitest.OneHierarchy(t)
}

// TestSuiteHandlers runs the suite of CRI with the containers of other runtimes.
func TestSuiteHandlers(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"runc", "crun"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !needHandler(t, name) {
				return
			}
			h := newHarness(t, withHandlers)
			target := h.target(h.Client)
			target.Handler = name
			critest.Run(t, target)
		})
	}
}
