package criserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/capability"
	"github.com/yare-dev/yare/oci/cgroup"
)

// gatherFacts asks the kernel once.
func gatherFacts() (hostFacts, error) {
	var f hostFacts
	raw, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return f, fmt.Errorf("read the kernel's capabilities: %w", err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return f, fmt.Errorf("read the kernel's capabilities: %w", err)
	}
	held, err := heldCapabilities()
	if err != nil {
		return f, err
	}
	f.Capabilities = slices.DeleteFunc(capability.Names(last), func(name string) bool {
		bit, ok := capability.Bit(name)
		return !ok || held&(1<<bit) == 0
	})
	g, err := cgroup.Open("/yare-probe-" + newID()[:12])
	if err != nil {
		return f, err
	}
	f.Unified = g.Unified()
	f.Hugepages = limitsHugepages(g)
	f.Users = mapsMounts()
	f.Swap, err = limitsSwap(g)
	return f, err
}

// heldCapabilities are those that we can give to others: a host may have taken some from all its processes.
func heldCapabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return 0, fmt.Errorf("read own capabilities: %w", err)
	}
	return uint64(sets[1].Permitted)<<32 | uint64(sets[0].Permitted), nil
}

// limitsSwap looks for the file that a limit would be written to. On v2 the root
// has none, so a group is made for it.
func limitsSwap(g *cgroup.Group) (bool, error) {
	if !g.Unified() {
		_, err := os.Stat(filepath.Join(filepath.Dir(g.Dirs()["memory"]), "memory.memsw.limit_in_bytes"))
		return err == nil, nil
	}
	if err := g.Create(nil); err != nil {
		return false, err
	}
	_, err := os.Stat(filepath.Join(g.Dirs()[""], "memory.swap.max"))
	return err == nil, g.Remove()
}

// limitsHugepages looks for the controller, which hosts may be built without.
func limitsHugepages(g *cgroup.Group) bool {
	if !g.Unified() {
		return g.Dirs()["hugetlb"] != ""
	}
	controllers, err := os.ReadFile(filepath.Join(filepath.Dir(g.Dirs()[""]), "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(controllers)), "hugetlb")
}

// hostDevices looks up the devices that a container asks for, and where it is
// privileged all of the host besides. A host path may be a directory, which
// stands for all devices in it.
func hostDevices(c *runtimeapi.ContainerConfig) ([]hostDevice, error) {
	var all []hostDevice
	if c.GetLinux().GetSecurityContext().GetPrivileged() {
		var err error
		if all, err = devicesBelow("/dev", "/dev", "rwm", true); err != nil {
			return nil, err
		}
	}
	for _, d := range c.GetDevices() {
		if strings.Trim(d.Permissions, "rwm") != "" {
			return nil, fmt.Errorf("device %s: permissions %q", d.HostPath, d.Permissions)
		}
		from, err := filepath.EvalSymlinks(d.HostPath)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		found, err := devicesBelow(from, d.ContainerPath, d.Permissions, false)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.HostPath, err)
		}
		if len(found) == 0 {
			return nil, fmt.Errorf("device %s: no device node", d.HostPath)
		}
		for _, d := range found {
			all = slices.DeleteFunc(all, func(o hostDevice) bool { return o.Path == d.Path })
			all = append(all, d)
		}
	}
	return all, nil
}

// devicesBelow lists the device nodes at and below from, as they are to appear
// at and below to. Those of every container's own (terminals, shm) are left out
// when standard is set.
func devicesBelow(from, to, access string, standard bool) ([]hostDevice, error) {
	var all []hostDevice
	err := filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p != from {
			return nil
		}
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(p, from)
		if e.IsDir() && standard && (name == "/pts" || name == "/shm" || name == "/fd" || name == "/mqueue" || name == "/.udev") {
			return filepath.SkipDir
		}
		if standard && (name == "/console" || name == "/ptmx") {
			return nil
		}
		d, ok, err := deviceAt(p)
		if errors.Is(err, fs.ErrNotExist) && p != from {
			return nil // unplugged after it was listed
		}
		if err != nil || !ok {
			return err
		}
		d.Path, d.Access = filepath.Join(to, name), access
		all = append(all, d)
		return nil
	})
	return all, err
}

func deviceAt(p string) (d hostDevice, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return d, false, linux.Wrap("stat", p, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false, nil
	}
	mode, uid, gid := os.FileMode(st.Mode&0o777), st.Uid, st.Gid
	d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	d.FileMode, d.UID, d.GID = &mode, &uid, &gid
	return d, true, nil
}

// localProfile reads a seccomp profile of the host, in OCI's form.
func localProfile(sc *runtimeapi.LinuxContainerSecurityContext) (*specs.LinuxSeccomp, error) {
	p := sc.GetSeccomp()
	if p == nil || p.ProfileType != runtimeapi.SecurityProfile_Localhost {
		return nil, nil
	}
	name := strings.TrimPrefix(p.LocalhostRef, "localhost/")
	if !filepath.IsAbs(name) {
		return nil, fmt.Errorf("seccomp profile %q: the path must be absolute", p.LocalhostRef)
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	var profile specs.LinuxSeccomp
	if err := json.Unmarshal(raw, &profile); err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", name, err)
	}
	return &profile, nil
}
