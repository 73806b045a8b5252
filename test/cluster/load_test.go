package cluster_test

import (
	"bytes"
	"fmt"
	"os/exec"
	"syscall"
	"testing"
)

// loadFrom asks url from within the network of process pid until the returned function is called, which tells
// how it went.
func loadFrom(t *testing.T, pid, url string) (stop func() (string, error)) {
	t.Helper()
	// nsenter keeps the host's file system, so the host's hello runs in the pod's network alone.
	cmd := exec.Command("nsenter", "-t", pid, "-n", bin.hello, "load", url, "1h")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() (string, error) {
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			return out.String(), fmt.Errorf("it ended before: %w", err)
		}
		err := cmd.Wait()
		return out.String(), err
	}
}
