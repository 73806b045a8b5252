package criserver

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	defaultPath     = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultShmBytes = 64 << 20
)

// hostFacts are what a spec depends on beside the requests. They are gathered
// before (see facts.go), so that deciding is pure.
type hostFacts struct {
	// Capabilities are all names that the kernel knows and that this host holds.
	Capabilities []string
	// Unified says that cgroup v2 has the controllers.
	Unified bool
	// Swap says that the kernel limits swap.
	Swap bool
	// Users says that user namespaces can be made, and mounts be mapped to them.
	Users bool
	// Hugepages says that the kernel limits huge pages.
	Hugepages bool
	// Seccomp is the default profile for a capability set.
	Seccomp func(capabilities []string) *specs.LinuxSeccomp
	// Rlimits apply to every container.
	Rlimits []specs.POSIXRlimit
}

// paths are the places that a container's sandbox and snapshot have.
type paths struct {
	Rootfs string
	// Shm, Hosts, Hostname and ResolvConf are bound over the image's.
	Shm, Hosts, Hostname, ResolvConf string
	// Cgroup is the container's path below the hierarchies' roots.
	Cgroup string
	// PID is the PID namespace to join; empty means a new one, "host" the host's.
	PID string
	// Users is the user namespace to join; empty means the host's.
	Users string
}

// hostDevice is a device node of the host, under its name in the container.
type hostDevice struct {
	specs.LinuxDevice
	// Access is some of "rwm".
	Access string
}

// hostMount is a mount with its source resolved: a host path, or the path
// where an image is mounted.
type hostMount struct {
	*runtimeapi.Mount
	Source string
}

// specInput is everything that containerSpec looks at.
type specInput struct {
	Sandbox   *runtimeapi.PodSandboxConfig
	Container *runtimeapi.ContainerConfig
	Image     ocispec.ImageConfig
	Facts     hostFacts
	Paths     paths
	User      user
	Devices   []hostDevice
	Mounts    []hostMount
	// Profile is the container's localhost seccomp profile, if it names one.
	Profile *specs.LinuxSeccomp
	// AppArmor is the name of the container's profile; empty for none.
	AppArmor string
	// Labels are the SELinux contexts of its processes and of file systems that are its own.
	Labels label
}

// containerSpec decides what a container is, in OCI terms. It is pure.
func containerSpec(in specInput) (*specs.Spec, error) {
	sc := in.Container.GetLinux().GetSecurityContext()
	if err := supported(in); err != nil {
		return nil, err
	}
	process, err := processSpec(in)
	if err != nil {
		return nil, err
	}
	resources, err := resourcesSpec(in.Container.GetLinux().GetResources(), in.Facts)
	if err != nil {
		return nil, err
	}
	mounts, propagation, err := mountsSpec(in)
	if err != nil {
		return nil, err
	}
	seccomp, err := seccompSpec(in, process.Capabilities.Bounding)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: in.Paths.Rootfs, Readonly: sc.GetReadonlyRootfs()},
		Mounts:      mounts,
		Annotations: maps.Clone(in.Container.GetAnnotations()),
		Linux: &specs.Linux{
			CgroupsPath:       in.Paths.Cgroup,
			Namespaces:        namespacesSpec(in.Paths),
			Resources:         resources,
			Seccomp:           seccomp,
			RootfsPropagation: propagation,
			MountLabel:        in.Labels.File,
		},
	}
	devicesSpec(s, in)
	if !sc.GetPrivileged() {
		s.Linux.MaskedPaths = sc.GetMaskedPaths()
		s.Linux.ReadonlyPaths = sc.GetReadonlyPaths()
	}
	return s, nil
}

// supported names what a request asks for that this server cannot give.
func supported(in specInput) error {
	sc := in.Container.GetLinux().GetSecurityContext()
	if !sameUsers(sc.GetNamespaceOptions(), namespaceOptions(in.Sandbox)) {
		return fmt.Errorf("the user namespace must be the sandbox's")
	}
	if in.Container.GetWindows() != nil {
		return fmt.Errorf("windows containers are not supported")
	}
	return nil
}

// processSpec is the first process.
func processSpec(in specInput) (*specs.Process, error) {
	c := in.Container
	sc := c.GetLinux().GetSecurityContext()
	args, err := arguments(c, in.Image)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(sc, in.Facts.Capabilities)
	if err != nil {
		return nil, err
	}
	cwd := c.GetWorkingDir()
	if cwd == "" {
		cwd = in.Image.WorkingDir
	}
	p := &specs.Process{
		Terminal:        c.GetTty(),
		User:            specs.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.Groups},
		Args:            args,
		Env:             environment(in),
		Cwd:             path.Clean("/" + cwd),
		Capabilities:    caps,
		Rlimits:         in.Facts.Rlimits,
		NoNewPrivileges: sc.GetNoNewPrivs(),
		ApparmorProfile: in.AppArmor,
		SelinuxLabel:    in.Labels.Process,
	}
	if r := c.GetLinux().GetResources(); r != nil {
		adj := int(r.OomScoreAdj)
		p.OOMScoreAdj = &adj
	}
	return p, nil
}

// arguments joins what the pod and the image say: a command of the pod's stands
// for the image's entrypoint and its cmd, args only for cmd.
func arguments(c *runtimeapi.ContainerConfig, image ocispec.ImageConfig) ([]string, error) {
	command, args := c.GetCommand(), c.GetArgs()
	if len(command) == 0 {
		command = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	all := slices.Concat(command, args)
	if len(all) == 0 || all[0] == "" {
		return nil, fmt.Errorf("no command: neither the container nor the image has one")
	}
	return all, nil
}

// environment is the image's, overridden by the container's.
func environment(in specInput) []string {
	env := newEnv(defaultPath)
	if in.Container.GetTty() {
		env.set("TERM=xterm")
	}
	if h := in.Sandbox.GetHostname(); h != "" {
		env.set("HOSTNAME=" + h)
	}
	for _, kv := range in.Image.Env {
		env.set(kv)
	}
	for _, kv := range in.Container.GetEnvs() {
		env.set(kv.Key + "=" + string(kv.Value))
	}
	if _, ok := env.index["HOME"]; !ok {
		env.set("HOME=" + in.User.Home)
	}
	return env.list
}

// env is a list of variables in which later ones take the place of earlier.
type env struct {
	list  []string
	index map[string]int
}

func newEnv(kvs ...string) *env {
	e := &env{index: map[string]int{}}
	for _, kv := range kvs {
		e.set(kv)
	}
	return e
}

func (e *env) set(kv string) {
	k, _, _ := strings.Cut(kv, "=")
	if i, ok := e.index[k]; ok {
		e.list[i] = kv
		return
	}
	e.index[k] = len(e.list)
	e.list = append(e.list, kv)
}

// namespacesSpec lists what is the container's own; network, IPC and UTS are
// the shim's and inherited.
func namespacesSpec(p paths) []specs.LinuxNamespace {
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}
	if p.Users != "" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.UserNamespace, Path: p.Users})
	}
	switch p.PID {
	case hostNamespace:
	case "":
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace})
	default:
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: p.PID})
	}
	return ns
}

// hostNamespace stands for the host's own in place of a path.
const hostNamespace = "host"
