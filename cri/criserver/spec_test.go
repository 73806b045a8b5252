package criserver

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// plainInput is an ordinary container's.
func plainInput() specInput {
	return specInput{
		Sandbox: &runtimeapi.PodSandboxConfig{Hostname: "web-1"},
		Container: &runtimeapi.ContainerConfig{
			Annotations: map[string]string{"io.kubernetes.container.hash": "abc"},
			Envs:        []*runtimeapi.KeyValue{{Key: "A", Value: []byte("pod")}},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{CpuShares: 102, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 999},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
					Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				},
			},
		},
		Image: ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"A=image", "B=image"}, WorkingDir: "/srv"},
		Facts: hostFacts{
			Capabilities: []string{"CAP_CHOWN", "CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_SYS_ADMIN"},
			Unified:      true, Swap: true,
			Seccomp: func(caps []string) *specs.LinuxSeccomp {
				return &specs.LinuxSeccomp{DefaultAction: "DEFAULT FOR " + specs.LinuxSeccompAction(strings.Join(caps, ","))}
			},
		},
		Paths: paths{Rootfs: "/rootfs", Shm: "/sb/shm", Hosts: "/sb/hosts", Hostname: "/sb/hostname", ResolvConf: "/sb/resolv.conf", Cgroup: "/pods/c1"},
		User:  user{UID: 1000, GID: 1001, Groups: []uint32{50}, Home: "/home/alice"},
	}
}

// TestSpec compares whole specs with golden files.
func TestSpec(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*specInput){
		"plain": func(*specInput) {},
		"privileged": func(in *specInput) {
			in.Container.Linux.SecurityContext.Privileged = true
			in.Devices = []hostDevice{{LinuxDevice: specs.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}, Access: "rwm"}}
		},
		"shared": func(in *specInput) {
			in.Paths.PID = "/proc/7/ns/pid"
			in.Container.Tty = true
			in.Container.Linux.SecurityContext.ReadonlyRootfs = true
			in.Container.Linux.SecurityContext.NoNewPrivs = true
			in.Container.Linux.Resources = &runtimeapi.LinuxContainerResources{
				CpusetCpus: "0-1", CpusetMems: "0", MemorySwapLimitInBytes: 1 << 30,
				HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}, Unified: map[string]string{"memory.high": "1"},
			}
		},
		"mounts": func(in *specInput) {
			in.Mounts = []hostMount{
				{&runtimeapi.Mount{ContainerPath: "/data/deep", Readonly: true}, "/host/deep"},
				{&runtimeapi.Mount{ContainerPath: "/data", Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}, "/host/data"},
				{&runtimeapi.Mount{ContainerPath: "/etc/hosts"}, "/kubelet/hosts"},
				{&runtimeapi.Mount{ContainerPath: "/dev/shm"}, "/host/shm"},
				{&runtimeapi.Mount{ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true, MountOptions: []string{"noexec"}}, "/host/rro"},
				{&runtimeapi.Mount{ContainerPath: "/shared", Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}, "/host/shared"},
				{&runtimeapi.Mount{ContainerPath: "/model", Image: &runtimeapi.ImageSpec{Image: "m"}}, "/images/m"},
			}
			in.Devices = []hostDevice{{LinuxDevice: specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}, Access: "rw"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			in := plainInput()
			change(&in)
			s, err := containerSpec(in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(s, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("%s differs (-update rewrites it):\n%s", file, got)
			}
		})
	}
}

func TestSpecRefusals(t *testing.T) {
	t.Parallel()
	sc := func(in *specInput) *runtimeapi.LinuxContainerSecurityContext {
		return in.Container.Linux.SecurityContext
	}
	for want, change := range map[string]func(*specInput){
		"no command": func(in *specInput) { in.Image.Entrypoint, in.Image.Cmd = nil, nil },
		"must be the sandbox's": func(in *specInput) {
			sc(in).NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}}
		},
		"CAP_NOVEL": func(in *specInput) { sc(in).Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NOVEL"}} },
		"cgroup v2": func(in *specInput) {
			in.Facts.Unified = false
			in.Container.Linux.Resources.Unified = map[string]string{"a": "b"}
		},
		"ID mappings must be": func(in *specInput) {
			in.Mounts = []hostMount{{&runtimeapi.Mount{ContainerPath: "/a", UidMappings: []*runtimeapi.IDMapping{{}}}, "/x"}}
		},
		"root cannot": func(in *specInput) { in.Mounts = []hostMount{{&runtimeapi.Mount{ContainerPath: "/a/.."}, "/x"}} },
		"needs read-only": func(in *specInput) {
			in.Mounts = []hostMount{{&runtimeapi.Mount{ContainerPath: "/a", RecursiveReadOnly: true}, "/x"}}
		},
		`option "exec"`: func(in *specInput) {
			in.Mounts = []hostMount{{&runtimeapi.Mount{ContainerPath: "/a", MountOptions: []string{"exec"}}, "/x"}}
		},
	} {
		in := plainInput()
		change(&in)
		if _, err := containerSpec(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// A host that cannot limit huge pages need not forbid them, but does not pretend to hold a limit.
func TestHugepagesWithoutController(t *testing.T) {
	t.Parallel()
	limits := &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "1GB"}, {PageSize: "2MB", Limit: 4 << 20}}}
	for can, want := range map[bool]int{true: 2, false: 1} {
		r, err := resourcesSpec(limits, hostFacts{Hugepages: can})
		if err != nil || len(r.HugepageLimits) != want {
			t.Errorf("%v: %v, %v", can, r.HugepageLimits, err)
		}
	}
}

func TestArguments(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ command, args, want string }{
		{"", "", "/entry serve"},
		{"", "x y", "/entry x y"},
		{"run", "", "run"},
		{"run", "x", "run x"},
	} {
		in := plainInput()
		in.Container.Command, in.Container.Args = strings.Fields(c.command), strings.Fields(c.args)
		got, err := arguments(in.Container, in.Image)
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("command %q, args %q: %q, %v, want %q", c.command, c.args, got, err, c.want)
		}
	}
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	known := append(defaultCapabilities(), "CAP_NET_ADMIN", "CAP_SYS_ADMIN")
	for _, c := range []struct {
		add, drop []string
		has, not  string
		n         int
	}{
		{nil, nil, "CAP_CHOWN", "CAP_NET_ADMIN", 14},
		{[]string{"NET_ADMIN"}, nil, "CAP_NET_ADMIN", "CAP_SYS_ADMIN", 15},
		{[]string{"cap_net_admin"}, []string{"ALL"}, "CAP_NET_ADMIN", "CAP_CHOWN", 1},
		{[]string{"ALL"}, []string{"SYS_ADMIN"}, "CAP_NET_ADMIN", "CAP_SYS_ADMIN", 15},
		{[]string{"ALL"}, []string{"ALL"}, "", "CAP_CHOWN", 0},
		{nil, []string{"KILL", "CHOWN"}, "CAP_SETUID", "CAP_KILL", 12},
	} {
		got, err := capabilities(&runtimeapi.LinuxContainerSecurityContext{Capabilities: &runtimeapi.Capability{AddCapabilities: c.add, DropCapabilities: c.drop}}, known)
		if err != nil {
			t.Fatal(err)
		}
		list := strings.Join(got.Bounding, " ") + " "
		if len(got.Bounding) != c.n || (c.has != "" && !strings.Contains(list, c.has+" ")) || strings.Contains(list, c.not+" ") || len(got.Inheritable) != 0 {
			t.Errorf("add %v, drop %v: %v", c.add, c.drop, got)
		}
	}
}

func TestSignals(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]int{"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN+3": 37, "RTMAX-1": 63, "SIGRTMIN": 34, "SIGCLD": 17, "SIGPOLL": 29, "0": -1, "SIGFOO": -1, "SIGRTMIN+40": -1, "99": -1, "": -1} {
		got, err := parseSignal(in)
		if want < 0 && err == nil || want >= 0 && int(got) != want {
			t.Errorf("parseSignal(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, name := range runtimeapi.Signal_name {
		if name == "SIGNAL_RUNTIME_DEFAULT" {
			continue
		}
		sig := runtimeapi.Signal(runtimeapi.Signal_value[name])
		if _, err := parseSignal(signalName(sig)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if back := signalOf(signalName(sig)); back != sig {
			t.Errorf("%s comes back as %v", name, back)
		}
	}
}

// A container gets the devices that it asks for, also a privileged one, which has those of the host besides: each path is one device.
func TestHostDevices(t *testing.T) {
	ask := []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "rm"}, {HostPath: "/dev/null", ContainerPath: "/dev/zero", Permissions: "rwm"}}
	for _, privileged := range []bool{false, true} {
		all, err := hostDevices(&runtimeapi.ContainerConfig{Devices: ask, Linux: &runtimeapi.LinuxContainerConfig{
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Privileged: privileged}}})
		if err != nil {
			t.Fatal(err)
		}
		found := map[string][]hostDevice{}
		for _, d := range all {
			found[d.Path] = append(found[d.Path], d)
		}
		if (len(found["/dev/full"]) > 0) != privileged {
			t.Error("devices of the host, privileged:", privileged, found["/dev/full"])
		}
		for path, access := range map[string]string{"/dev/mine": "rm", "/dev/zero": "rwm"} {
			if d := found[path]; len(d) != 1 || d[0].Major != 1 || d[0].Minor != 3 || d[0].Access != access {
				t.Errorf("%s: %+v", path, d)
			}
		}
	}
}
