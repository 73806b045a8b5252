package compile

import (
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/plan"

	"github.com/yare-dev/yare/oci/capability"
)

func minimal() *specs.Spec {
	return &specs.Spec{Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/"},
		Linux:   &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}}}}
}

// withDevices changes a spec to have network devices, with a network namespace or without.
func withDevices(namespace bool, d map[string]specs.LinuxNetDevice) func(*specs.Spec) {
	return func(s *specs.Spec) {
		s.Linux.NetDevices = d
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
		if namespace {
			addNS(s, specs.NetworkNamespace, "")
		}
	}
}

// TestRejected shows that what is not honoured is refused by name.
func TestRejected(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*specs.Spec){
		"ociVersion":              func(s *specs.Spec) { s.Version = "2.0" },
		"process: required":       func(s *specs.Spec) { s.Process = nil },
		"root.path":               func(s *specs.Spec) { s.Root = nil },
		"linux: required":         func(s *specs.Spec) { s.Linux = nil },
		"linux.intelRdt.closID":   func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "a/b"} },
		"linux.memoryPolicy.mode": func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} },
		"linux.memoryPolicy.nodes": func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "2-1"}
		},
		"linux.netDevices: needs":  withDevices(false, map[string]specs.LinuxNetDevice{"eth0": {}}),
		"longer than 15":           withDevices(true, map[string]specs.LinuxNetDevice{"a23456789012345": {}, "a234567890123456": {}}),
		"percent sign":             withDevices(true, map[string]specs.LinuxNetDevice{"eth%d": {}}),
		"linux.netDevices[a].name": withDevices(true, map[string]specs.LinuxNetDevice{"a": {Name: "eth%d%d"}}),
		"eth0 is that of a":        withDevices(true, map[string]specs.LinuxNetDevice{"a": {Name: "eth0"}, "eth0": {}}),
		"linux.timeOffsets: needs": func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} },
		`linux.timeOffsets "realtime"`: func(s *specs.Spec) {
			addNS(s, specs.TimeNamespace, "")
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {}}
		},
		"linux.mountLabel":        func(s *specs.Spec) { s.Linux.MountLabel = "x" },
		"process.selinuxLabel":    func(s *specs.Spec) { s.Process.SelinuxLabel = "x" },
		"process.apparmorProfile": func(s *specs.Spec) { s.Process.ApparmorProfile = "x" },
		"must map 0":              func(s *specs.Spec) { addNS(s, specs.UserNamespace, "") },
		"has its own": func(s *specs.Spec) {
			addNS(s, specs.UserNamespace, "/proc/1/ns/user")
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}}
		},
		"need a user namespace":     func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} },
		"unknown":                   func(s *specs.Spec) { addNS(s, "moon", "") },
		"hooks.poststop[0].path":    func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "x"}}} },
		"hooks.prestart[0].timeout": func(s *specs.Spec) { n := 0; s.Hooks = &specs.Hooks{Prestart: []specs.Hook{{Path: "/x", Timeout: &n}}} },
		"process.rlimits[1].type": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU"}, {Type: "RLIMIT_CPU"}}
		},
		"process.rlimits[0].soft":         func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CPU", Soft: 1}} },
		"given twice":                     func(s *specs.Spec) { addNS(s, specs.MountNamespace, "") },
		"must be absolute":                func(s *specs.Spec) { addNS(s, specs.PIDNamespace, "x") },
		"process.args":                    func(s *specs.Spec) { s.Process.Args = nil },
		"process.cwd":                     func(s *specs.Spec) { s.Process.Cwd = "here" },
		"process.env[0]":                  func(s *specs.Spec) { s.Process.Env = []string{"A=\x00"} },
		"process.oomScoreAdj":             func(s *specs.Spec) { n := 1001; s.Process.OOMScoreAdj = &n },
		"process.rlimits[0].type":         func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"linux.rootfsPropagation":         func(s *specs.Spec) { s.Linux.RootfsPropagation = "x" },
		"not of a namespace":              func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"} },
		`"kernel.panic"`:                  func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} },
		"process.execCPUAffinity.final":   func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "x"} },
		"both, and only for a bind mount": func(s *specs.Spec) { addMount(s, specs.Mount{Type: "tmpfs", UIDMappings: []specs.LinuxIDMapping{{}}}) },
		"option remount":                  func(s *specs.Spec) { addMount(s, specs.Mount{Options: []string{"remount", "tmpcopyup"}}) },
		"option idmap":                    func(s *specs.Spec) { addMount(s, specs.Mount{Type: "bind", Source: "/", Options: []string{"idmap"}}) },
		"source: required":                func(s *specs.Spec) { addMount(s, specs.Mount{Type: "bind"}) },
		"linux.devices[0]":                func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "x"}} },
	} {
		s := minimal()
		change(s)
		if _, err := Container(s, Facts{Host: Host{Grantable: 1<<41 - 1}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
}

func addNS(s *specs.Spec, kind specs.LinuxNamespaceType, path string) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
}

func addMount(s *specs.Spec, m specs.Mount) {
	m.Destination = "/mnt"
	s.Mounts = append(s.Mounts, m)
}

func TestMountOptions(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		options []string
		want    plan.Mount
	}{
		{[]string{"rbind", "ro", "nosuid"}, plan.Mount{Recursive: true, Set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}},
		{[]string{"bind", "ro", "rw"}, plan.Mount{Clear: unix.MOUNT_ATTR_RDONLY}},
		{[]string{"rbind", "rro"}, plan.Mount{Recursive: true, RecSet: unix.MOUNT_ATTR_RDONLY}},
		{[]string{"bind", "rslave"}, plan.Mount{RecPropagation: unix.MS_SLAVE}},
		{[]string{"bind", "shared", "relatime"}, plan.Mount{Propagation: unix.MS_SHARED, Clear: unix.MOUNT_ATTR__ATIME}},
	} {
		tc.want.Target, tc.want.Source = "/mnt", "/src"
		got, err := new(Result).mount(specs.Mount{Destination: "mnt", Source: "/src", Options: tc.options}, Facts{})
		if err != nil || len(got) != 1 {
			t.Errorf("%v: got %v, %v", tc.options, got, err)
			continue
		}
		g := got[0]
		if g.Target != tc.want.Target || g.Source != tc.want.Source || g.Recursive != tc.want.Recursive || g.Set != tc.want.Set ||
			g.Clear != tc.want.Clear || g.RecSet != tc.want.RecSet || g.Propagation != tc.want.Propagation || g.RecPropagation != tc.want.RecPropagation {
			t.Errorf("%v: got %+v, want %+v", tc.options, g, tc.want)
		}
	}
}

// What the launcher has not, it does not ask for.
func TestCapabilitiesOfAConfinedHost(t *testing.T) {
	bit := func(name string) uint64 {
		b, ok := capability.Bit(name)
		if !ok {
			t.Fatal(name)
		}
		return 1 << b
	}
	have := bit("CHOWN") | bit("KILL")
	all := []string{"CAP_CHOWN", "CAP_SYS_RESOURCE"}
	for name, tt := range map[string]struct {
		caps *specs.LinuxCapabilities
		want uint64
	}{
		"no sets":  {nil, have},
		"sets":     {&specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}, bit("CHOWN")},
		"none set": {&specs.LinuxCapabilities{}, 0},
	} {
		p, err := Process(&specs.Process{Cwd: "/", Args: []string{"a"}, Capabilities: tt.caps}, nil, Host{Grantable: have})
		if err != nil || p.Bounding != tt.want || p.Permitted != tt.want || p.Effective != tt.want {
			t.Errorf("%s: %v, %#x %#x %#x, want %#x", name, err, p.Bounding, p.Permitted, p.Effective, tt.want)
		}
	}
}

// What is the container's own gets its SELinux context by an option, but for message queues, which are there before, and what has contexts of the kernel's.
func TestMountLabel(t *testing.T) {
	t.Parallel()
	const context = "system_u:object_r:container_file_t:s0:c1,c2"
	made := []plan.Mount{{Type: "tmpfs"}, {Type: "devpts"}, {Type: "mqueue"}, {Type: "proc"}, {Type: "sysfs"}, {Type: "cgroup2"}, {Type: ""}, {Type: plan.Remount}}
	label(made, context)
	for _, m := range made {
		option := len(m.Options) == 1 && m.Options[0] == (plan.Setting{Key: "context", Value: context})
		if want := m.Type == "tmpfs" || m.Type == "devpts"; option != want || len(m.Options) > 0 && !want {
			t.Errorf("%s has %v", m.Type, m.Options)
		}
		if want := m.Type == "mqueue"; (m.Label == context) != want {
			t.Errorf("%s gets %q", m.Type, m.Label)
		}
	}
}
