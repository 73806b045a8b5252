//go:build guest

package guest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// bundle is a container of the command line, gone at the test's end.
type bundle struct{ id, group string }

// runBundle starts a container with these limits.
func runBundle(t *testing.T, r *specs.LinuxResources, args ...string) bundle {
	t.Helper()
	b := bundle{id: strings.ToLower(t.Name()), group: "guest/" + strings.ToLower(t.Name())}
	t.Cleanup(func() {
		if err := os.Remove(filepath.Join(root, "guest")); err != nil {
			t.Error(err)
		}
	})
	b.run(t, "/"+b.group, r, args)
	return b
}

// run starts the container, whose spec names a path for its group.
func (b bundle) run(t *testing.T, path string, r *specs.LinuxResources, args []string, flags ...string) {
	t.Helper()
	dir := t.TempDir()
	run(t, "yare", "oci", "spec", "--bundle", dir)
	spec := new(specs.Spec)
	if err := json.Unmarshal([]byte(read(t, dir, "config.json")), spec); err != nil {
		t.Fatal(err)
	}
	spec.Root = &specs.Root{Path: busybox(t)}
	spec.Process.Args, spec.Process.Terminal = args, false
	spec.Process.Capabilities.Bounding = append(spec.Process.Capabilities.Bounding, "CAP_MKNOD")
	spec.Process.Capabilities.Effective = append(spec.Process.Capabilities.Effective, "CAP_MKNOD")
	spec.Process.Capabilities.Permitted = append(spec.Process.Capabilities.Permitted, "CAP_MKNOD")
	r.Devices = append(spec.Linux.Resources.Devices, r.Devices...)
	spec.Linux.CgroupsPath, spec.Linux.Resources = path, r
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	flags = append([]string{"oci"}, flags...)
	run(t, "yare", append(flags, "run", "--detach", "--bundle", dir, b.id)...)
	t.Cleanup(func() {
		run(t, "yare", append(flags, "delete", "--force", b.id)...)
		if _, err := os.Stat(filepath.Join(root, b.group)); err == nil {
			t.Errorf("%s is left", b.group)
		}
	})
}

func ptr[T any](v T) *T { return &v }

// TestLimits sets every limit there is, and changes some in place.
func TestLimits(t *testing.T) {
	disk := strings.TrimSpace(read(t, "/sys/class/block/vda/dev"))
	b := runBundle(t, &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(20000)), Period: ptr(uint64(50000)), Burst: ptr(uint64(10000)), Cpus: "0", Mems: "0"},
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Reservation: ptr(int64(16 << 20)), Swap: ptr(int64(80 << 20))},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(20))},
		BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500)),
			ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{throttle(254, 0, 1<<20)},
			ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{throttle(254, 0, 100)}},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 6 << 20}},
		Unified:        map[string]string{"memory.high": "50331648", "memory.min": "4194304", "memory.oom.group": "1", "hugetlb.2MB.rsvd.max": "4194304"},
	}, "sleep", "1000000")
	expect(t, b.group, map[string]string{
		"cpu.weight": "100", "cpu.max": "20000 50000", "cpu.max.burst": "10000", "cpuset.cpus": "0", "cpuset.mems": "0",
		"memory.max": "67108864", "memory.low": "16777216", "memory.swap.max": "16777216", "memory.high": "50331648", "memory.min": "4194304",
		"memory.oom.group": "1", "pids.max": "20", "hugetlb.2MB.max": "6291456", "hugetlb.2MB.rsvd.max": "4194304",
		"io.max": disk + " rbps=1048576 wbps=max riops=max wiops=100", "io.weight": "default 4950",
	})
	run(t, "yare", "oci", "update", "--memory", "96m", "--memory-swap", "128m", "--memory-reservation", "32m", "--cpu-share", "2048", "--cpu-quota", "30000", "--pids-limit", "30", "--blkio-weight", "100", b.id)
	expect(t, b.group, map[string]string{
		"memory.max": "100663296", "memory.swap.max": "33554432", "memory.low": "33554432", "cpu.weight": "174", "cpu.max": "30000 50000", "pids.max": "30", "io.weight": "default 910",
		// What was not named stays.
		"cpu.max.burst": "10000", "memory.high": "50331648", "cpuset.cpus": "0", "hugetlb.2MB.max": "6291456", "io.max": disk + " rbps=1048576 wbps=max riops=max wiops=100",
	})
	feed(t, `{"unified": {"memory.high": "max", "memory.min": "0"}, "memory": {"swap": -1}, "pids": {"limit": -1}}`, "yare", "oci", "update", "-r", "-", b.id)
	expect(t, b.group, map[string]string{"memory.high": "max", "memory.min": "0", "memory.swap.max": "max", "pids.max": "max", "memory.max": "100663296"})
	for text, want := range map[string]string{
		`{"unified": {"memory.hihg": "1"}}`:   "memory.hihg",
		`{"unified": {"../x": "1"}}`:          "../x",
		`{"unified": {"memory.high": "lot"}}`: "memory.high",
	} {
		if out, err := try(t, text, "yare", "oci", "update", "-r", "-", b.id); err == nil || !strings.Contains(out, want) {
			t.Errorf("update with %s: %v %s", text, err, out)
		}
	}
	out := run(t, "yare", "oci", "events", "--stats", b.id)
	if !strings.Contains(out, `"limit":100663296`) || strings.Contains(out, `"usage":{"kernel":0,"total":0,"user":0}`) {
		t.Errorf("statistics: %s", out)
	}
}

func throttle(major, minor int64, rate uint64) specs.LinuxThrottleDevice {
	d := specs.LinuxThrottleDevice{Rate: rate}
	d.Major, d.Minor = major, minor
	return d
}

// TestPause freezes a container, which then does nothing, and dies frozen when it is to.
func TestPause(t *testing.T) {
	b := runBundle(t, &specs.LinuxResources{}, "sh", "-c", "while true; do echo >>/tmp/beats; usleep 20000; done")
	usage := func() string {
		f := strings.Fields(read(t, root, b.group, "cpu.stat"))
		return f[1]
	}
	run(t, "yare", "oci", "pause", b.id)
	expect(t, b.group, map[string]string{"cgroup.freeze": "1"})
	if s := read(t, root, b.group, "cgroup.events"); !strings.Contains(s, "frozen 1") {
		t.Error(s)
	}
	if out := run(t, "yare", "oci", "state", b.id); !strings.Contains(out, `"paused"`) {
		t.Error(out)
	}
	before := usage()
	run(t, "yare", "oci", "list")
	if now := usage(); now != before {
		t.Errorf("it used %s us, and frozen %s", before, now)
	}
	run(t, "yare", "oci", "resume", b.id)
	if out := run(t, "yare", "oci", "state", b.id); !strings.Contains(out, `"running"`) {
		t.Error(out)
	}
	eventually(t, func() string {
		if usage() == before {
			return "it did not go on"
		}
		return ""
	})
	run(t, "yare", "oci", "pause", b.id) // and is deleted so
}

// TestDevices asks the kernel's programs: what the rules allow can be opened, all else not.
func TestDevices(t *testing.T) {
	b := runBundle(t, &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(228)), Access: "r"}}}, "sleep", "1000000")
	for _, tt := range []struct {
		node, open string
		refused    bool
	}{
		{"c 1 3", "<", false},    // null
		{"c 1 3", ">", false},    //
		{"b 254 0", "<", true},   // the disk
		{"c 1 1", "<", true},     // the memory
		{"c 10 228", "<", false}, // hpet, given for reading
		{"c 10 228", ">", true},  //
		{"c 1 11", "<", true},    // kernel messages
	} {
		out, err := try(t, "", "yare", "oci", "exec", b.id, "sh", "-c", "rm -f /tmp/d; mknod /tmp/d "+tt.node+" && : "+tt.open+" /tmp/d")
		if refused := err != nil && strings.Contains(out, "Operation not permitted") && !strings.Contains(out, "mknod"); refused != tt.refused || err != nil && !refused && !strings.Contains(out, "busy") {
			t.Errorf("open %s %s: %v %s", tt.open, tt.node, err, out)
		}
	}
}
