package shim_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/yare-dev/yare/oci/shim"
)

// memoryBudget is what a shim may have of memory of its own, in kB, whatever the number of its containers. The program's
// text is a file in memory that all shims of a server share, but the one here with nobody.
const memoryBudget = 1536

// TestMemory holds the shim to its budget, with containers that have been written to, executed in, and ended.
func TestMemory(t *testing.T) {
	for _, n := range []int{1, 5, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := start(t, nil)
			for i := range n {
				id := fmt.Sprint("c", i)
				s.create(shim.CreateRequest{ID: id, Spec: s.spec(id, "sh", "-c", "yes 0123456789 | head -n 20000; exec sleep 1000")})
				if err := s.Start(t.Context(), id); err != nil {
					t.Fatal(err)
				}
			}
			process := *s.spec("c0", "head", "-c", "100000", "/dev/zero").Process
			if _, _, status, err := s.ExecSync(t.Context(), "c0", &process, 0, 1<<20); err != nil || status.Code != 0 {
				t.Errorf("exec: %+v, %v", status, err)
			}
			if status, _ := s.run(s.spec("ended", "true"), "ended"); status.Code != 0 {
				t.Errorf("got %+v", status)
			}
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", s.Pid()))
			if err != nil {
				t.Fatal(err)
			}
			own := 0
			for line := range strings.Lines(string(b)) {
				if n, _ := fmt.Sscanf(line, "Pss_Anon: %d kB", &own); n == 1 {
					break
				}
			}
			t.Logf("%d kB are its own, of\n%s", own, b)
			if own == 0 || own > memoryBudget {
				t.Errorf("its own: %d kB, want at most %d", own, memoryBudget)
			}
		})
	}
}
