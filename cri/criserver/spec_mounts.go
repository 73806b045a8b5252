package criserver

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mountsSpec lists the mounts, parents first, and the propagation that the
// container's root needs for them. A mount of the container's takes the place of
// the default one at the same path.
func mountsSpec(in specInput) (mounts []specs.Mount, propagation string, err error) {
	privileged := in.Container.GetLinux().GetSecurityContext().GetPrivileged()
	propagation = "rprivate"
	taken := map[string]bool{}
	for _, m := range in.Mounts {
		bound, err := bindMount(m, namespaceOptions(in.Sandbox))
		if err != nil {
			return nil, "", err
		}
		switch {
		case m.Propagation == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			propagation = "rshared"
		case m.Propagation == runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER && propagation == "rprivate":
			propagation = "rslave"
		}
		taken[bound.Destination] = true
		mounts = append(mounts, bound)
	}
	var all []specs.Mount
	for _, m := range slices.Concat(kernelMounts(privileged), sandboxMounts(in)) {
		if !taken[m.Destination] {
			all = append(all, m)
		}
	}
	all = append(all, mounts...)
	slices.SortStableFunc(all, func(a, b specs.Mount) int {
		return cmp.Compare(strings.Count(a.Destination, "/"), strings.Count(b.Destination, "/"))
	})
	return all, propagation, nil
}

// kernelMounts are the kernel's file systems.
func kernelMounts(privileged bool) []specs.Mount {
	access := "ro"
	if privileged {
		access = "rw"
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", access}},
	}
}

// sandboxMounts are the files and the shared memory that belong to the sandbox.
func sandboxMounts(in specInput) []specs.Mount {
	access := "rw"
	if in.Container.GetLinux().GetSecurityContext().GetReadonlyRootfs() {
		access = "ro"
	}
	var mounts []specs.Mount
	for _, f := range [][2]string{
		{"/etc/hostname", in.Paths.Hostname}, {"/etc/hosts", in.Paths.Hosts}, {"/etc/resolv.conf", in.Paths.ResolvConf},
	} {
		if f[1] != "" {
			mounts = append(mounts, specs.Mount{Destination: f[0], Type: "bind", Source: f[1], Options: []string{"rbind", "rprivate", access}})
		}
	}
	if in.Paths.Shm != "" {
		mounts = append(mounts, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.Paths.Shm, Options: []string{"rbind", "rprivate", "rw"}})
	}
	return mounts
}

func bindMount(m hostMount, sandbox *runtimeapi.NamespaceOption) (specs.Mount, error) {
	out := specs.Mount{Destination: path.Clean("/" + m.ContainerPath), Type: "bind", Source: m.Source, Options: []string{"rbind"}}
	fail := func(why string) (specs.Mount, error) {
		return out, fmt.Errorf("mount %s: %s", out.Destination, why)
	}
	if out.Destination == "/" {
		return fail("the root cannot be a mount")
	}
	switch given := len(m.UidMappings) + len(m.GidMappings); {
	case given == 0 || m.Image.GetImage() != "": // an image is mapped when it is mounted
	case !sameMappings(m.UidMappings, m.GidMappings, sandbox.GetUsernsOptions()):
		return fail("ID mappings must be those of the sandbox's user namespace")
	default:
		out.Options = append(out.Options, "idmap")
	}
	switch m.Propagation {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		out.Options = append(out.Options, "rprivate")
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		out.Options = append(out.Options, "rslave")
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		out.Options = append(out.Options, "rshared")
	default:
		return fail(fmt.Sprintf("propagation %d is not known", m.Propagation))
	}
	switch {
	case m.RecursiveReadOnly && !m.Readonly:
		return fail("recursive read-only needs read-only")
	case m.RecursiveReadOnly && m.Propagation != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return fail("recursive read-only needs private propagation")
	case m.RecursiveReadOnly:
		out.Options = append(out.Options, "rro")
	case m.Readonly || m.Image != nil:
		out.Options = append(out.Options, "ro")
	default:
		out.Options = append(out.Options, "rw")
	}
	for _, o := range m.MountOptions {
		if !slices.Contains([]string{"noexec", "nodev", "nosuid", "noatime", "nodiratime", "relatime", "strictatime", "nosymfollow"}, o) {
			return fail(fmt.Sprintf("option %q is not supported", o))
		}
		out.Options = append(out.Options, o)
	}
	return out, nil
}
