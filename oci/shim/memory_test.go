package shim_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestMemory holds the shim to its budget: 1.5 MB of private memory per pod,
// with some room for the allocator's mood.
func TestMemory(t *testing.T) {
	s := start(t, nil)
	if status, _ := s.run(s.spec("c", "true"), "c"); status.Code != 0 {
		t.Fatalf("got %+v", status)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	private := 0
	for line := range strings.Lines(string(b)) {
		var kb int
		if n, _ := fmt.Sscanf(line, "Private_Dirty: %d kB", &kb); n == 1 {
			private += kb
		}
	}
	t.Logf("private memory: %d kB", private)
	if private > 3<<10 {
		t.Errorf("private memory: got %d kB, want at most 3072", private)
	}
}
