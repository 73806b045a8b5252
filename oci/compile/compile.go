// Package compile turns an OCI spec into a plan: the deciding half of the
// runtime. It is pure: the spec and facts about the host go in, numbers and
// lists come out, and golden tests cover it. What it cannot honour it rejects,
// naming the field.
package compile

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci/plan"
	"github.com/yare-dev/yare/oci/rdt"
	"github.com/yare-dev/yare/oci/seccomp"
)

// Host is what a process depends on.
type Host struct {
	// Grantable are the capabilities that the launcher has to give.
	Grantable uint64
	// AppArmor and SELinux say which security module is there.
	AppArmor, SELinux bool
}

// Facts are what a plan depends on beside the spec.
type Facts struct {
	// Bundle is the absolute bundle directory.
	Bundle string
	// CgroupDirs are the container's cgroup directories by controller, "" for
	// v2; Unified says that v2 has the controllers.
	CgroupDirs map[string]string
	Unified    bool
	Host
	// State is the container's state as hooks read it, see plan.Container.
	State []byte
	// NoPivot moves the root by MS_MOVE and chroot (for a root on initramfs).
	NoPivot bool
	// Preserve is the number of descriptors from 3 on that the program keeps.
	Preserve int
}

// Namespace is an existing one to join.
type Namespace struct {
	Type specs.LinuxNamespaceType
	Path string
}

// Result is all that a launch needs.
type Result struct {
	Plan *plan.Container
	// CloneFlags make new namespaces, Join lists existing ones.
	CloneFlags uintptr
	Join       []Namespace
	UIDs, GIDs []syscall.SysProcIDMap
	// TimeOffsets are lines for a new time namespace's timens_offsets.
	TimeOffsets []string
	// OOMScoreAdj is for the launcher to set: a process in a user namespace cannot.
	OOMScoreAdj *int32
	// MountNS, if not empty, is the first of the descriptors that the init gets
	// beyond the usual ones; Trees are those after it.
	MountNS string
	Trees   []Tree

	// NetDevices are the devices that the launcher moves to the container's network namespace while the init waits, by their names
	// here; the values are those there.
	NetDevices map[string]string

	joined uintptr // CLONE_NEW flags
	places int32
}

// Tree is a mount that the launcher has to detach for the init.
type Tree struct {
	Source    string
	Recursive bool
	// Mapped says that it is id-mapped, with what is below it too if
	// MappedBelow: by UIDs and GIDs, or if there are none as the container's
	// user namespace is.
	Mapped, MappedBelow bool
	UIDs, GIDs          []syscall.SysProcIDMap
	// Propagation is set on all its mounts (an MS_ flag, 0: leave): a copy of one that is shared would be so too, and what
	// the container mounts would come up on the host.
	Propagation uint64
}

// Container compiles a whole spec.
func Container(s *specs.Spec, f Facts) (*Result, error) {
	if err := supported(s, f.Host); err != nil {
		return nil, err
	}
	r := &Result{Plan: &plan.Container{Hostname: s.Hostname, Domainname: s.Domainname, State: f.State, NoPivot: f.NoPivot}}
	p := r.Plan
	if err := errors.Join(r.namespaces(s), r.netDevices(s)); err != nil {
		return nil, err
	}
	process, err := Process(s.Process, s.Linux.Seccomp, f.Host)
	if err != nil {
		return nil, err
	}
	p.Process = *process
	p.Process.CPUs, p.Process.FirstCPUs = nil, nil // they are for further processes only
	if r.Foreign() {
		r.OOMScoreAdj, p.Process.OOMScoreAdj = p.Process.OOMScoreAdj, nil
	}
	p.Process.Preserve = int32(f.Preserve)
	if per := s.Linux.Personality; per != nil {
		if p.Process.Personality, err = personality(per); err != nil {
			return nil, err
		}
	}
	if m := s.Linux.MemoryPolicy; m != nil {
		if p.Process.Memory, err = memoryPolicy(m); err != nil {
			return nil, err
		}
	}
	p.Root = s.Root.Path
	if !filepath.IsAbs(p.Root) {
		p.Root = filepath.Join(f.Bundle, p.Root)
	}
	p.RootReadonly = s.Root.Readonly
	if err := propagation(p, s.Linux.RootfsPropagation); err != nil {
		return nil, err
	}
	if r.Foreign() {
		// The root is never shared: the kernel would not pivot to it.
		root := Tree{Source: p.Root, Recursive: true, Propagation: unix.MS_PRIVATE}
		if p.HostPropagation&unix.MS_SLAVE != 0 {
			root.Propagation = unix.MS_SLAVE
		}
		p.RootFD = r.tree(root)
	}
	if err := r.mounts(s, f); err != nil {
		return nil, err
	}
	if err := devices(p, s, r.Foreign()); err != nil {
		return nil, err
	}
	p.Masked, p.Readonly = s.Linux.MaskedPaths, s.Linux.ReadonlyPaths
	if p.Sysctls, err = sysctls(s); err != nil {
		return nil, err
	}
	if h := s.Hooks; h != nil {
		if err := checkHooks(h); err != nil {
			return nil, err
		}
		p.WaitHooks = p.WaitHooks || len(h.Prestart)+len(h.CreateRuntime) > 0
		p.CreateContainer, p.StartContainer = hooks(h.CreateContainer), hooks(h.StartContainer)
	}
	return r, nil
}

// supported rejects what is missing or not implemented, all at once.
func supported(s *specs.Spec, h Host) error {
	var errs []error
	reject := func(wrong bool, what string) {
		if wrong {
			errs = append(errs, errors.New(what))
		}
	}
	reject(!strings.HasPrefix(s.Version, "1."), fmt.Sprintf("ociVersion %q: must be 1.x", s.Version))
	reject(s.Process == nil, "process: required")
	reject(s.Root == nil || s.Root.Path == "", "root.path: required")
	reject(s.Linux == nil, "linux: required")
	reject(s.VM != nil || s.Windows != nil || s.Solaris != nil || s.ZOS != nil || s.FreeBSD != nil, "only the linux platform is supported")
	if l := s.Linux; l != nil {
		if l.IntelRdt != nil {
			errs = append(errs, rdt.Check(l.IntelRdt))
		}
		reject(l.MountLabel != "" && !h.SELinux, "linux.mountLabel: this host has no SELinux")
	}
	return errors.Join(errs...)
}

func propagation(p *plan.Container, name string) error {
	p.HostPropagation = unix.MS_SLAVE | unix.MS_REC
	switch name {
	case "":
	case "private", "rprivate":
		p.HostPropagation = unix.MS_PRIVATE | unix.MS_REC
	case "slave", "rslave":
		p.RootPropagation = unix.MS_SLAVE | unix.MS_REC
	case "shared", "rshared":
		p.HostPropagation = unix.MS_SHARED | unix.MS_REC
		p.RootPropagation = unix.MS_SHARED | unix.MS_REC
	case "unbindable", "runbindable":
		p.RootPropagation = unix.MS_UNBINDABLE
	default:
		return fmt.Errorf("linux.rootfsPropagation %q: unknown", name)
	}
	return nil
}

// sysctls checks that every one is namespaced and its namespace the
// container's own: a write would change the host otherwise.
func sysctls(s *specs.Spec) ([]plan.Setting, error) {
	has := func(t specs.LinuxNamespaceType) bool {
		return slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == t })
	}
	var list []plan.Setting
	for key, value := range s.Linux.Sysctl {
		// Both "net.ipv4.ip_forward" and "net/ipv4/ip_forward" are in use, the
		// latter for names with dots.
		dotted := strings.ReplaceAll(key, "/", ".")
		ok := false
		switch {
		case strings.HasPrefix(dotted, "net."):
			ok = has(specs.NetworkNamespace)
		case strings.HasPrefix(dotted, "fs.mqueue."), strings.HasPrefix(dotted, "kernel.msg"),
			strings.HasPrefix(dotted, "kernel.shm"), dotted == "kernel.sem":
			ok = has(specs.IPCNamespace)
		case dotted == "kernel.domainname", dotted == "kernel.hostname":
			ok = has(specs.UTSNamespace)
		}
		if !ok {
			return nil, fmt.Errorf("linux.sysctl %q: not of a namespace of the container", key)
		}
		name := key
		if !strings.Contains(key, "/") {
			name = strings.ReplaceAll(key, ".", "/")
		}
		if slices.Contains(strings.Split(name, "/"), "..") {
			return nil, fmt.Errorf("linux.sysctl %q: invalid name", key)
		}
		list = append(list, plan.Setting{Key: name, Value: value})
	}
	slices.SortFunc(list, func(a, b plan.Setting) int { return strings.Compare(a.Key, b.Key) })
	return list, nil
}

func personality(p *specs.LinuxPersonality) (*uint32, error) {
	if len(p.Flags) > 0 {
		return nil, errors.New("linux.personality.flags: not supported")
	}
	var n uint32
	switch p.Domain {
	case specs.PerLinux:
	case specs.PerLinux32:
		n = 8
	default:
		return nil, fmt.Errorf("linux.personality.domain %q: unknown", p.Domain)
	}
	return &n, nil
}

// devices decides on /dev: the default nodes and links, and those of the spec.
func devices(p *plan.Container, s *specs.Spec, bind bool) error {
	if !ownsDev(s.Mounts) {
		return nil
	}
	for _, d := range []struct {
		name         string
		major, minor uint32
	}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}} {
		p.Devices = append(p.Devices, plan.Device{Path: "/dev/" + d.name, Mode: unix.S_IFCHR | 0o666,
			Dev: unix.Mkdev(d.major, d.minor), Bind: bind})
	}
	for i, d := range s.Linux.Devices {
		device, err := device(d)
		if err != nil {
			return fmt.Errorf("linux.devices[%d]: %w", i, err)
		}
		device.Bind = bind
		p.Devices = slices.DeleteFunc(p.Devices, func(o plan.Device) bool { return o.Path == device.Path })
		if device.Path == "/dev/ptmx" {
			continue // it is a link to the container's own
		}
		p.Devices = append(p.Devices, device)
	}
	p.Links = []plan.Link{
		{Path: "/dev/fd", Target: "/proc/self/fd"}, {Path: "/dev/stdin", Target: "/proc/self/fd/0"},
		{Path: "/dev/stdout", Target: "/proc/self/fd/1"}, {Path: "/dev/stderr", Target: "/proc/self/fd/2"},
		{Path: "/dev/core", Target: "/proc/kcore"}, {Path: "/dev/ptmx", Target: "pts/ptmx"},
	}
	return nil
}

// ownsDev tells whether /dev is the container's own, rather than the host's
// bind mounted, where nothing may be made.
func ownsDev(mounts []specs.Mount) bool {
	for _, m := range mounts {
		if path.Clean(m.Destination) == "/dev" && (m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")) {
			return false
		}
	}
	return true
}

func device(d specs.LinuxDevice) (plan.Device, error) {
	out := plan.Device{Path: path.Clean(d.Path), Mode: 0o666}
	if !path.IsAbs(d.Path) {
		return out, fmt.Errorf("path %q: must be absolute", d.Path)
	}
	if d.FileMode != nil {
		out.Mode = uint32(*d.FileMode) & 0o7777
	}
	switch d.Type {
	case "c", "u":
		out.Mode |= unix.S_IFCHR
	case "b":
		out.Mode |= unix.S_IFBLK
	case "p":
		out.Mode |= unix.S_IFIFO
	default:
		return out, fmt.Errorf("type %q: must be c, u, b or p", d.Type)
	}
	if d.Type != "p" {
		out.Dev = unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	}
	if d.UID != nil {
		out.UID = *d.UID
	}
	if d.GID != nil {
		out.GID = *d.GID
	}
	return out, nil
}

// filter compiles a seccomp profile; nil is none.
func filter(p *plan.Process, profile *specs.LinuxSeccomp) error {
	if profile == nil {
		return nil
	}
	program, flags, err := seccomp.Compile(profile)
	if err != nil {
		return fmt.Errorf("linux.seccomp: %w", err)
	}
	p.Seccomp, p.SeccompFlags, p.Notify = program, flags, flags&seccomp.Listener != 0
	return nil
}
