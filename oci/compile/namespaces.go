package compile

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// CloneFlag is the CLONE_NEW flag of a namespace type; 0 is one that is not
// known.
func CloneFlag(t specs.LinuxNamespaceType) uintptr {
	switch t {
	case specs.PIDNamespace:
		return unix.CLONE_NEWPID
	case specs.NetworkNamespace:
		return unix.CLONE_NEWNET
	case specs.MountNamespace:
		return unix.CLONE_NEWNS
	case specs.IPCNamespace:
		return unix.CLONE_NEWIPC
	case specs.UTSNamespace:
		return unix.CLONE_NEWUTS
	case specs.UserNamespace:
		return unix.CLONE_NEWUSER
	case specs.CgroupNamespace:
		return unix.CLONE_NEWCGROUP
	case specs.TimeNamespace:
		return unix.CLONE_NEWTIME
	}
	return 0
}

func (r *Result) namespaces(s *specs.Spec) error {
	var seen []specs.LinuxNamespaceType
	for i, n := range s.Linux.Namespaces {
		field := fmt.Sprintf("linux.namespaces[%d] (%s)", i, n.Type)
		flag := CloneFlag(n.Type)
		switch {
		case slices.Contains(seen, n.Type):
			return fmt.Errorf("%s: given twice", field)
		case flag == 0:
			return fmt.Errorf("%s: unknown", field)
		case n.Path != "" && !filepath.IsAbs(n.Path):
			return fmt.Errorf("%s.path: must be absolute", field)
		case n.Path != "" && n.Type == specs.MountNamespace:
			r.MountNS, r.Plan.MountNS = n.Path, r.place()
		case n.Path != "":
			r.Join = append(r.Join, Namespace{n.Type, n.Path})
			r.joined |= flag
		case n.Type == specs.CgroupNamespace:
			// Only right when made from inside the container's cgroup.
			r.Plan.NewCgroupNS = true
		default:
			r.CloneFlags |= flag
		}
		seen = append(seen, n.Type)
	}
	r.Plan.Shared = r.CloneFlags&unix.CLONE_NEWNS == 0
	if err := r.clocks(s.Linux); err != nil {
		return err
	}
	return r.users(s.Linux)
}

// clocks checks the offsets of the time namespace.
func (r *Result) clocks(l *specs.Linux) error {
	if len(l.TimeOffsets) > 0 && r.CloneFlags&unix.CLONE_NEWTIME == 0 {
		return errors.New("linux.timeOffsets: needs a new time namespace")
	}
	for _, clock := range slices.Sorted(maps.Keys(l.TimeOffsets)) {
		o := l.TimeOffsets[clock]
		if clock != "monotonic" && clock != "boottime" || o.Nanosecs > 999_999_999 {
			return fmt.Errorf("linux.timeOffsets %q: must be monotonic or boottime, with less than a second of nanosecs", clock)
		}
		r.TimeOffsets = append(r.TimeOffsets, fmt.Sprintf("%s %d %d\n", clock, o.Secs, o.Nanosecs))
	}
	return nil
}

// users checks the mappings of the user namespace.
func (r *Result) users(l *specs.Linux) error {
	given := len(l.UIDMappings)+len(l.GIDMappings) > 0
	switch {
	case r.joined&unix.CLONE_NEWUSER != 0 && given:
		return errors.New("linux.uidMappings and gidMappings: a user namespace that is joined has its own")
	case r.CloneFlags&unix.CLONE_NEWUSER == 0 && r.joined&unix.CLONE_NEWUSER == 0 && given:
		return errors.New("linux.uidMappings and gidMappings: need a user namespace")
	case r.CloneFlags&unix.CLONE_NEWUSER == 0:
		return nil
	}
	for name, list := range map[string][]specs.LinuxIDMapping{"uidMappings": l.UIDMappings, "gidMappings": l.GIDMappings} {
		if !slices.ContainsFunc(list, func(m specs.LinuxIDMapping) bool { return m.ContainerID == 0 && m.Size > 0 }) {
			return fmt.Errorf("linux.%s: must map 0 of the new user namespace", name)
		}
	}
	r.UIDs, r.GIDs = IDMap(l.UIDMappings), IDMap(l.GIDMappings)
	return nil
}

// Foreign tells whether the container is in a user namespace that is not the launcher's, and so can neither reach all of the
// host's paths nor make device nodes.
func (r *Result) Foreign() bool { return (r.CloneFlags|r.joined)&unix.CLONE_NEWUSER != 0 }

// IDMap translates mappings.
func IDMap(list []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	out := make([]syscall.SysProcIDMap, len(list))
	for i, m := range list {
		out[i] = syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)}
	}
	return out
}

// place counts the init's further descriptors.
func (r *Result) place() int32 {
	r.places++
	return r.places
}
