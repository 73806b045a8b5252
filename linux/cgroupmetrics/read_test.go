package cgroupmetrics

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/yare-dev/yare/linux"
)

// group writes files "hierarchy/file", and returns the directories by controller.
func group(t *testing.T, files map[string]string) map[string]string {
	t.Helper()
	root, dirs := t.TempDir(), map[string]string{}
	for name, text := range files {
		controller, file := filepath.Split(name)
		dir := filepath.Join(root, controller)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		dirs[strings.TrimPrefix(strings.TrimSuffix(controller, "/"), "v2")] = dir
	}
	return dirs
}

// lines are values as "name{labels} value", in order, but for those of processes, which are the kernel's.
func lines(values []Value) (out []string) {
	for _, v := range values {
		if v.Metric == &table[fileDescriptors] {
			continue
		}
		line := strings.TrimPrefix(v.Name, "container_")
		if len(v.Labels) > 0 {
			line += fmt.Sprint(v.Labels)
		}
		out = append(out, line+" "+strconv.FormatUint(v.Value, 10))
	}
	slices.Sort(out)
	return out
}

const pressure = "some avg10=0.00 avg60=1.00 avg300=2.00 total=%d\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=%d\n"

func TestGroup(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"v2": {map[string]string{
			"v2/cpu.max": "50000 100000\n", "v2/cpu.weight": "100\n",
			"v2/cpu.stat":     "usage_usec 1500001\nuser_usec 1000000\nsystem_usec 500001\nnr_periods 10\nnr_throttled 3\nthrottled_usec 250\nnr_bursts 1\nburst_usec 7\n",
			"v2/cpu.pressure": fmt.Sprintf(pressure, 5, 6), "v2/memory.pressure": fmt.Sprintf(pressure, 7, 8), "v2/io.pressure": fmt.Sprintf(pressure, 9, 10),
			"v2/memory.stat": "anon 100\nfile 200\nkernel 50\nkernel_stack 1\nslab 2\nfile_mapped 20\nfile_dirty 3\nfile_writeback 4\ninactive_file 30\nactive_file 40\n" +
				"workingset_refault_anon 11\nworkingset_refault_file 12\npgscan 13\npgsteal 14\npgfault 15\npgmajfault 16\n",
			"v2/memory.current": "350\n", "v2/memory.peak": "400\n", "v2/memory.swap.current": "60\n",
			"v2/memory.max": "1000\n", "v2/memory.min": "0\n", "v2/memory.swap.max": "max\n",
			"v2/memory.events": "low 0\nhigh 21\nmax 22\noom 23\noom_kill 24\noom_group_kill 0\n",
			"v2/pids.current":  "5\n", "v2/pids.max": "max\n", "v2/cgroup.procs": "2147483646\n2147483647\n",
			"v2/io.stat": "999:1 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n999:2\n",
		}, []string{
			"cpu_cfs_burst_periods_total 1", "cpu_cfs_burst_seconds_total 7000", "cpu_cfs_periods_total 10", "cpu_cfs_throttled_periods_total 3",
			"cpu_cfs_throttled_seconds_total 250000", "cpu_system_seconds_total 500001000", "cpu_usage_seconds_total[total] 1500001000", "cpu_user_seconds_total 1000000000",
			"memory_cache 200", "memory_events_high_total 21", "memory_events_max_total 22", "memory_failcnt 22",
			"memory_failures_total[pgfault container] 15", "memory_failures_total[pgfault hierarchy] 15",
			"memory_failures_total[pgmajfault container] 16", "memory_failures_total[pgmajfault hierarchy] 16",
			"memory_file_dirty_bytes 3", "memory_file_writeback_bytes 4", "memory_kernel_usage 50", "memory_mapped_file 20", "memory_max_usage_bytes 400",
			"memory_pgscan_total 13", "memory_pgsteal_total 14", "memory_rss 100", "memory_swap 60", "memory_total_active_file_bytes 40", "memory_total_inactive_file_bytes 30",
			"memory_usage_bytes 350", "memory_working_set_bytes 320", "memory_workingset_refault_anon_total 11", "memory_workingset_refault_file_total 12",
			"oom_events_total 24",
			"pressure_cpu_stalled_seconds_total 6000", "pressure_cpu_waiting_seconds_total 5000", "pressure_io_stalled_seconds_total 10000",
			"pressure_io_waiting_seconds_total 9000", "pressure_memory_stalled_seconds_total 8000", "pressure_memory_waiting_seconds_total 7000",
			"processes 2",
			"spec_cpu_period 100000", "spec_cpu_quota 50000", "spec_cpu_shares 2597", "spec_memory_limit_bytes 1000", "spec_memory_reservation_limit_bytes 0",
			"spec_memory_swap_limit_bytes 0", "threads 5", "threads_max 0",
		}},
		"v2 without limits, on an old kernel": {map[string]string{
			"v2/cpu.max": "max 100000\n", "v2/cpu.stat": "usage_usec 1\nuser_usec 1\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0\n",
			"v2/memory.stat": "kernel_stack 1\nslab 2\ninactive_file 30\n", "v2/memory.current": "20\n", "v2/memory.max": "max\n",
		}, []string{
			"cpu_system_seconds_total 0", "cpu_usage_seconds_total[total] 1000", "cpu_user_seconds_total 1000", "memory_kernel_usage 3",
			"memory_total_inactive_file_bytes 30", "memory_usage_bytes 20", "memory_working_set_bytes 0", "spec_cpu_period 100000", "spec_memory_limit_bytes 0",
		}},
		"v1, hybrid": {map[string]string{
			"cpu/cpu.shares": "512\n", "cpu/cpu.cfs_period_us": "100000\n", "cpu/cpu.cfs_quota_us": "20000\n",
			"cpu/cpu.stat":          "nr_periods 4\nnr_throttled 2\nthrottled_time 12345\n",
			"cpuacct/cpuacct.usage": "1234567890\n", "cpuacct/cpuacct.stat": "user 101\nsystem 22\n",
			"memory/memory.stat": "cache 1\nrss 2\nmapped_file 3\nswap 4\npgfault 5\npgmajfault 6\nhierarchical_memory_limit 9223372036854771712\ntotal_cache 10\ntotal_rss 20\n" +
				"total_mapped_file 30\ntotal_dirty 31\ntotal_writeback 32\ntotal_swap 40\ntotal_pgfault 50\ntotal_pgmajfault 60\ntotal_inactive_file 7\ntotal_active_file 8\n",
			"memory/memory.usage_in_bytes": "100\n", "memory/memory.max_usage_in_bytes": "120\n", "memory/memory.failcnt": "9\n", "memory/memory.kmem.usage_in_bytes": "33\n",
			"memory/memory.limit_in_bytes": "1000\n", "memory/memory.soft_limit_in_bytes": "9223372036854771712\n", "memory/memory.memsw.limit_in_bytes": "2000\n",
			"memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
			"pids/pids.current":         "5\n", "pids/pids.max": "100\n",
			"blkio/blkio.throttle.io_service_bytes_recursive": "999:1 Read 1\n999:1 Write 2\nTotal 3\n", "blkio/blkio.throttle.io_serviced_recursive": "Total 0\n",
			"v2/cgroup.procs": "2147483647\n", "v2/cpu.pressure": fmt.Sprintf(pressure, 5, 6),
		}, []string{
			"cpu_cfs_periods_total 4", "cpu_cfs_throttled_periods_total 2", "cpu_cfs_throttled_seconds_total 12345",
			"cpu_system_seconds_total 220000000", "cpu_usage_seconds_total[total] 1234567890", "cpu_user_seconds_total 1010000000",
			"memory_cache 10", "memory_failcnt 9", "memory_failures_total[pgfault container] 5", "memory_failures_total[pgfault hierarchy] 50",
			"memory_failures_total[pgmajfault container] 6", "memory_failures_total[pgmajfault hierarchy] 60", "memory_file_dirty_bytes 31", "memory_file_writeback_bytes 32",
			"memory_kernel_usage 33", "memory_mapped_file 30",
			"memory_max_usage_bytes 120", "memory_rss 20", "memory_swap 40", "memory_total_active_file_bytes 8", "memory_total_inactive_file_bytes 7",
			"memory_usage_bytes 100", "memory_working_set_bytes 93", "oom_events_total 3",
			"pressure_cpu_stalled_seconds_total 6000", "pressure_cpu_waiting_seconds_total 5000", "processes 1",
			"spec_cpu_period 100000", "spec_cpu_quota 20000", "spec_cpu_shares 512", "spec_memory_limit_bytes 1000",
			"spec_memory_reservation_limit_bytes 0", "spec_memory_swap_limit_bytes 2000", "threads 5", "threads_max 100",
		}},
		"v1 without quota": {map[string]string{
			"cpu/cpu.shares": "2\n", "cpu/cpu.cfs_period_us": "100000\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.stat": "nr_periods 0\n", "cpu/cgroup.procs": "", "pids/pids.current": "0\n",
		}, []string{"processes 0", "spec_cpu_period 100000", "spec_cpu_shares 2", "threads 0"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r Reader
			defer r.Close()
			r.Start()
			if err := r.Group(group(t, c.files), &Given{}); err != nil {
				t.Fatal(err)
			}
			if got := lines(r.Values()); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
		})
	}
}

// TestGiven: limits are read once, and figures each time; of a group without processes of its own some are known.
func TestGiven(t *testing.T) {
	t.Parallel()
	dirs := group(t, map[string]string{"cpu/cpu.shares": "2\n", "cpu/cpu.cfs_quota_us": "-1\n", "memory/memory.limit_in_bytes": "1000\n", "memory/memory.stat": "total_rss 1\n",
		"memory/memory.usage_in_bytes": "10\n", "memory/memory.failcnt": "5\n", "memory/memory.oom_control": "oom_kill 1\n", "cpu/cgroup.procs": "2147483647\n"})
	given := &Given{Inner: true}
	for i, change := range []struct{ file, text string }{{}, {"cpu.shares", "7\n"}, {"memory.usage_in_bytes", "20\n"}} {
		if change.file != "" {
			if err := os.WriteFile(filepath.Join(dirs[change.file[:strings.Index(change.file, ".")]], change.file), []byte(change.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		usage := []string{"10", "10", "20"}[i]
		want := []string{"memory_failcnt 5", "memory_failures_total[pgfault container] 0", "memory_failures_total[pgfault hierarchy] 0", "memory_failures_total[pgmajfault container] 0",
			"memory_failures_total[pgmajfault hierarchy] 0", "memory_rss 1", "memory_usage_bytes " + usage, "memory_working_set_bytes " + usage, "oom_events_total 0", "processes 0",
			"spec_cpu_shares 2", "spec_memory_limit_bytes 1000"}
		var r Reader
		defer r.Close()
		if err := r.Group(dirs, given); err != nil {
			t.Fatal(err)
		}
		if got := lines(r.Values()); !slices.Equal(got, want) {
			t.Errorf("%d: got\n%s", i, strings.Join(got, "\n"))
		}
	}
	var r Reader
	defer r.Close()
	if err := r.Group(dirs, &Given{}); err != nil || !slices.Contains(lines(r.Values()), "spec_cpu_shares 7") || !slices.Contains(lines(r.Values()), "processes 1") {
		t.Errorf("%v, %q", err, lines(r.Values()))
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	r.Start()
	if err := r.Group(dirs, given); !errors.Is(err, fs.ErrNotExist) || len(r.Values()) > 0 {
		t.Errorf("of a group that is gone: %v, %q", err, lines(r.Values()))
	}
}

// named is a Reader that knows devices which this machine may not have.
func named() *Reader {
	return &Reader{devices: map[string][]string{"8:0": {"/dev/sda"}, "8:16": {"/dev/sdb"}, "0:40": {""}}}
}

func TestDisks(t *testing.T) {
	t.Parallel()
	want := []string{
		"fs_reads_bytes_total[/dev/sda] 1", "fs_reads_bytes_total[/dev/sdb] 0", "fs_reads_total[/dev/sda] 3", "fs_reads_total[/dev/sdb] 0",
		"fs_writes_bytes_total[/dev/sda] 2", "fs_writes_bytes_total[/dev/sdb] 9", "fs_writes_total[/dev/sda] 4", "fs_writes_total[/dev/sdb] 1",
	}
	for name, files := range map[string]map[string]string{
		"v2": {"v2/io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=0 wbytes=9 rios=0 wios=1\n0:40 rbytes=5 wbytes=5 rios=5 wios=5\n"},
		"v1": {"blkio/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\n8:16 Write 9\n0:40 Read 5\nTotal 12\n",
			"blkio/blkio.throttle.io_serviced_recursive": "8:0 Read 3\n8:0 Write 4\n8:16 Write 1\n0:40 Read 5\nTotal 8\n"},
		"old v1": {"blkio/blkio.throttle.io_service_bytes": "8:0 Read 1\n8:0 Write 2\n8:16 Write 9\nTotal 12\n",
			"blkio/blkio.throttle.io_serviced": "8:0 Read 3\n8:0 Write 4\n8:16 Write 1\nTotal 8\n"},
	} {
		r := named()
		r.Start()
		dirs := group(t, files)
		if err := r.Group(dirs, &Given{}); err != nil {
			t.Fatal(err)
		}
		got := slices.DeleteFunc(lines(r.Values()), func(l string) bool { return !strings.HasPrefix(l, "fs_") })
		if !slices.Equal(got, want) {
			t.Errorf("%s: got\n%s", name, strings.Join(got, "\n"))
		}
	}
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "dev")
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    1000      10    1    2    0     0          0         0     2000      20    3    4    0     0       0          0
  veth1:      7       7    7    7    0     0          0         0        7       7    7    7    0     0       0          0
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var r Reader
	defer r.Close()
	r.Start()
	if err := r.Network(file, func(link string) bool { return link == "veth1" }); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"network_receive_bytes_total[eth0] 1000", "network_receive_errors_total[eth0] 1", "network_receive_packets_dropped_total[eth0] 2", "network_receive_packets_total[eth0] 10",
		"network_transmit_bytes_total[eth0] 2000", "network_transmit_errors_total[eth0] 3", "network_transmit_packets_dropped_total[eth0] 4", "network_transmit_packets_total[eth0] 20",
	}
	if got := lines(r.Values()); !slices.Equal(got, want) {
		t.Errorf("got\n%s", strings.Join(got, "\n"))
	}
}

// TestGone: who reads a group that was removed is told so.
func TestGone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "gone")
	for _, dirs := range []map[string]string{{"": dir}, {"": dir, "cpu": dir, "memory": dir}} {
		var r Reader
		defer r.Close()
		if err := r.Group(dirs, &Given{}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%v", err)
		}
	}
}

// TestRoot reads the host's own group, whatever its version.
func TestRoot(t *testing.T) {
	t.Parallel()
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	var r Reader
	defer r.Close()
	r.Start()
	if err := r.Group(Dirs(hierarchies, "/"), &Given{Host: true}); err != nil {
		t.Fatal(err)
	}
	r.Ulimits(os.Getpid())
	disk, err := r.Find("/")
	if err != nil {
		t.Fatal(err)
	}
	r.Filesystem(disk, &disk.Used)
	r.Times(1, 2, 3)
	got := map[string]uint64{}
	for _, v := range r.Values() {
		got[v.Name] = v.Value
	}
	for _, name := range []string{"container_cpu_usage_seconds_total", "container_memory_usage_bytes", "container_memory_working_set_bytes", "container_memory_rss",
		"container_processes", "container_ulimits_soft", "container_fs_limit_bytes", "container_fs_usage_bytes", "container_start_time_seconds", "container_last_seen"} {
		if got[name] == 0 {
			t.Errorf("no %s", name)
		}
	}
}

// TestHost: v2's root has no sum of memory, and a group that was just removed none either.
func TestHost(t *testing.T) {
	t.Parallel()
	dirs := group(t, map[string]string{"v2/cpu.stat": "usage_usec 1\n", "v2/memory.stat": "anon 1\n"})
	for _, host := range []bool{true, false} {
		var r Reader
		if err := r.Group(dirs, &Given{Host: host}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(strings.Join(lines(r.Values()), "\n"), "memory_working_set_bytes"); got != host {
			t.Errorf("host %v: %q", host, lines(r.Values()))
		}
	}
}

// TestTable: each row has what Prometheus wants, once.
func TestTable(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, m := range All() {
		if m.Help == "" || seen[m.Name] || !strings.HasPrefix(m.Name, "container_") || m.Nano != strings.HasSuffix(m.Name, "_seconds_total") {
			t.Errorf("%+v", m)
		}
		seen[m.Name] = true
	}
}

func BenchmarkGroup(b *testing.B) {
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		b.Fatal(err)
	}
	dirs := Dirs(hierarchies, "/")
	var r Reader
	defer r.Close()
	b.ReportAllocs()
	for b.Loop() {
		r.Start()
		if err := r.Group(dirs, &Given{}); err != nil {
			b.Fatal(err)
		}
	}
}
