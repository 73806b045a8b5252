package linux

import (
	"reflect"
	"testing"
)

func TestParseHierarchies(t *testing.T) {
	t.Parallel()
	const mountinfo = `24 1 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate
31 24 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 master:2 - cgroup cgroup rw,cpu,cpuacct
33 24 0:28 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct
34 24 0:29 /kubepods /mnt/part rw - cgroup cgroup rw,memory
35 24 0:30 / /mnt/with\040space rw - cgroup cgroup rw,pids
not a line of mountinfo
`
	want := []Hierarchy{
		{Root: "/sys/fs/cgroup/unified"},
		{Root: "/sys/fs/cgroup/systemd", Controllers: []string{"name=systemd"}},
		{Root: "/sys/fs/cgroup/cpu,cpuacct", Controllers: []string{"cpu", "cpuacct"}},
		{Root: "/mnt/with space", Controllers: []string{"pids"}},
	}
	if got := parseHierarchies([]byte(mountinfo)); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestUnescape(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{`/a`: "/a", `/a\040b`: "/a b", `/a\134b\011`: "/a\\b\t", `\04`: `\04`, `\999`: `\999`} {
		if got := Unescape(in); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}
