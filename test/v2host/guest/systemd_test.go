//go:build guest

package guest

import (
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestSystemd is run in a machine of systemd's: it makes the container's group, knows its limits and takes it away.
func TestSystemd(t *testing.T) {
	const unit = "yare-guest.scope"
	t.Cleanup(func() { // after the container's deletion, which is asked for later
		if out := run(t, "systemctl", "show", "-p", "LoadState,ActiveState", unit); !strings.Contains(out, "ActiveState=inactive") {
			t.Errorf("the unit is left: %s", out)
		}
	})
	b := bundle{id: "guest", group: "guest.slice/guest-test.slice/" + unit}
	b.run(t, "guest-test.slice:yare:guest", &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(20000)), Period: ptr(uint64(100000))},
		Memory:  &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(64 << 20))},
		Pids:    &specs.LinuxPids{Limit: ptr(int64(50))},
		Unified: map[string]string{"memory.high": "50331648"},
	}, []string{"sleep", "1000000"}, "--systemd-cgroup")
	show := func(want ...string) {
		t.Helper()
		out := run(t, "systemctl", "show", unit)
		for _, w := range want {
			if !strings.Contains(out, w+"\n") {
				t.Errorf("no %s in\n%s", w, out)
			}
		}
	}
	show("ActiveState=active", "Slice=guest-test.slice", "MemoryMax=67108864", "MemoryHigh=50331648", "MemorySwapMax=0", "CPUWeight=100",
		"CPUQuotaPerSecUSec=200ms", "TasksMax=50", "Delegate=yes", "DevicePolicy=strict")
	limits := map[string]string{"memory.max": "67108864", "memory.high": "50331648", "memory.swap.max": "0", "cpu.weight": "100", "cpu.max": "20000 100000", "pids.max": "50"}
	expect(t, b.group, limits)
	if pids := strings.Fields(read(t, root, b.group, "cgroup.procs")); len(pids) != 1 {
		t.Errorf("processes %v, want the container's alone", pids)
	}
	if out := run(t, "yare", "oci", "exec", b.id, "cat", "/proc/self/cgroup"); out != "0::/\n" {
		t.Errorf("a process joined %s", out)
	}

	run(t, "yare", "oci", "--systemd-cgroup", "update", "--memory", "96m", "--memory-swap", "96m", "--pids-limit", "60", b.id)
	show("MemoryMax=100663296", "TasksMax=60")
	// Systemd writes all that it knows anew, and must not know better.
	run(t, "systemctl", "daemon-reload")
	limits["memory.max"], limits["pids.max"] = "100663296", "60"
	expect(t, b.group, limits)
	if out, err := try(t, "", "yare", "oci", "exec", b.id, "sh", "-c", "mknod /tmp/d b 254 0 && : < /tmp/d"); err == nil || !strings.Contains(out, "Operation not permitted") || strings.Contains(out, "mknod") {
		t.Errorf("the disk was opened: %v %s", err, out)
	}

	run(t, "yare", "oci", "pause", b.id)
	expect(t, b.group, map[string]string{"cgroup.freeze": "1"})
	run(t, "yare", "oci", "resume", b.id)
}
