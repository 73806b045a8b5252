package shim_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/yare-dev/yare/oci/ocitest"
	"github.com/yare-dev/yare/oci/shim"
)

// foreignRuntimes are those that the tests find on the host.
var foreignRuntimes = []string{"runc", "crun"}

// runtimeOf is the runtime that the tests below TestForeign are run with.
func runtimeOf(t *testing.T) *shim.Runtime {
	t.Helper()
	parts := strings.Split(t.Name(), "/")
	if parts[0] != "TestForeign" {
		return nil
	}
	path, err := exec.LookPath(parts[1])
	if err != nil {
		t.Skipf("%v: see scripts/setup", err)
	}
	return &shim.Runtime{Path: path}
}

// TestForeign holds containers of other runtimes to what ours are held to.
func TestForeign(t *testing.T) {
	for _, runtime := range foreignRuntimes {
		t.Run(runtime, func(t *testing.T) {
			if runtimeOf(t); runtime == "crun" && !ocitest.OneHierarchy(t) {
				return
			}
			for name, test := range map[string]func(*testing.T){
				"Lifecycle": TestLifecycle, "Exits": TestExits, "Kill": TestKill, "Exec": TestExec, "ShutdownDuringStart": TestShutdownDuringStart,
				"Adopt": TestAdopt, "ShimKilled": TestShimKilled, "Attach": TestAttach, "AttachSlowReader": TestAttachSlowReader,
				"Terminal": TestTerminal, "LogPartialAndReopen": TestLogPartialAndReopen, "Resources": TestResources,
				"OutOfMemory": TestOutOfMemory, "SharedPID": TestSharedPID, "Memory": TestMemory,
			} {
				t.Run(name, test)
			}
		})
	}
}
