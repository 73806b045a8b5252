package compile

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/plan"
)

func (r *Result) mounts(s *specs.Spec, f Facts) error {
	namespaced := slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
	for i, m := range s.Mounts {
		if f.Unified && !namespaced && (m.Type == "cgroup" || m.Type == "cgroup2") {
			// The file system would show all groups of the host.
			m.Type, m.Source = "bind", f.CgroupDirs[""]
		}
		made, err := r.mount(m, f)
		if err != nil {
			return fmt.Errorf("mounts[%d] (%s): %w", i, m.Destination, err)
		}
		if l := s.Linux.MountLabel; l != "" {
			label(made, l)
		}
		r.Plan.Mounts = append(r.Plan.Mounts, made...)
	}
	return nil
}

// label gives file systems of the container's own the SELinux context, but for those that have one of the kernel's. The message queues of an IPC namespace are
// there before they are mounted, too late for an option.
func label(made []plan.Mount, context string) {
	for i, m := range made {
		switch m.Type {
		case "", plan.Remount, "proc", "sysfs", "cgroup2":
		case "mqueue":
			made[i].Label = context
		default:
			made[i].Options = append(made[i].Options, plan.Setting{Key: "context", Value: context})
		}
	}
}

// mount compiles one mount; a cgroup mount can be several.
func (r *Result) mount(m specs.Mount, f Facts) ([]plan.Mount, error) {
	if m.Destination == "" {
		return nil, errors.New("destination: required")
	}
	tree := Tree{Mapped: len(m.UIDMappings)+len(m.GIDMappings) > 0, UIDs: IDMap(m.UIDMappings), GIDs: IDMap(m.GIDMappings)}
	out := plan.Mount{Target: path.Clean("/" + m.Destination), Type: m.Type, Source: m.Source}
	bind, remount := m.Type == "bind", false
	for _, o := range m.Options {
		switch {
		case o == "bind" || o == "rbind":
			bind = true
			out.Recursive = out.Recursive || o == "rbind"
		case o == "remount":
			remount = true
		case o == "idmap" || o == "ridmap":
			tree.Mapped, tree.MappedBelow = true, o == "ridmap"
			if len(tree.UIDs)+len(tree.GIDs) == 0 && !r.Foreign() {
				return nil, fmt.Errorf("option %s: needs uidMappings and gidMappings, or a user namespace", o)
			}
		default:
			if err := option(&out, o); err != nil {
				return nil, err
			}
		}
	}
	if remount {
		if tree.Mapped || out.CopyUp {
			return nil, errors.New("option remount: neither ids nor contents can be changed")
		}
		if bind { // the mount alone, not its file system
			out.Options = nil
		}
		out.Type, out.Source = plan.Remount, ""
		return []plan.Mount{out}, nil
	}
	if tree.Mapped && (!bind || len(tree.UIDs) == 0 != (len(tree.GIDs) == 0)) {
		return nil, errors.New("uidMappings and gidMappings: both, and only for a bind mount")
	}
	if bind {
		return r.bindMount(out, tree, f)
	}
	if out.CopyUp && m.Type != "tmpfs" {
		return nil, errors.New("option tmpcopyup: only for tmpfs")
	}
	switch m.Type {
	case "":
		return nil, errors.New("type: required unless bind mounted")
	case "cgroup", "cgroup2":
		return cgroupMount(out, f), nil
	case "proc", "sysfs", "mqueue":
		if out.Source == "" {
			out.Source = m.Type
		}
	}
	return []plan.Mount{out}, nil
}

func (r *Result) bindMount(m plan.Mount, tree Tree, f Facts) ([]plan.Mount, error) {
	if m.Source == "" {
		return nil, errors.New("source: required for a bind mount")
	}
	for _, o := range m.Options { // as mount(2) does: they are the file system's, which is mounted already
		r.Plan.Process.Warnings = append(r.Plan.Process.Warnings, fmt.Sprintf("mount %s: option %s has no effect on a bind mount", m.Target, o.Key))
	}
	m.Options = nil
	if m.CopyUp {
		return nil, errors.New("option tmpcopyup: only for tmpfs")
	}
	m.Type = ""
	if !filepath.IsAbs(m.Source) {
		m.Source = filepath.Join(f.Bundle, m.Source)
	}
	if tree.Mapped || r.Foreign() { // only the launcher can map, and can reach every source
		tree.Source, tree.Recursive = m.Source, m.Recursive
		// As if the init had copied it from the host's mounts, of which it makes that first.
		tree.Propagation = r.Plan.HostPropagation &^ (unix.MS_REC | unix.MS_SHARED)
		m.FD = r.tree(tree)
	}
	return []plan.Mount{m}, nil
}

func (r *Result) tree(t Tree) int32 {
	r.Trees = append(r.Trees, t)
	return r.place()
}

// cgroupMount shows a container its own cgroup: the v2 file system, or on v1
// and hybrid hosts a directory with one bind mount per v1 hierarchy. A hybrid host's v2 hierarchy has no controllers; to
// programs in a container its sight would mean that limits are to be found there.
func cgroupMount(m plan.Mount, f Facts) []plan.Mount {
	if f.Unified {
		m.Type, m.Source, m.Options = "cgroup2", "cgroup", nil
		return []plan.Mount{m}
	}
	// The directory is writable until the mount points are made.
	top := plan.Mount{Target: m.Target, Type: "tmpfs", Source: "tmpfs", Set: m.Set &^ unix.MOUNT_ATTR_RDONLY,
		Options: []plan.Setting{{Key: "mode", Value: "755"}}}
	list := []plan.Mount{top}
	for _, controller := range slices.Sorted(maps.Keys(f.CgroupDirs)) {
		if controller == "" {
			continue
		}
		name := strings.TrimPrefix(controller, "name=")
		list = append(list, plan.Mount{Target: path.Join(m.Target, name), Source: f.CgroupDirs[controller],
			Set: m.Set, Clear: m.Clear, RecSet: m.RecSet, RecClear: m.RecClear})
	}
	if m.Set&unix.MOUNT_ATTR_RDONLY != 0 {
		list = append(list, plan.Mount{Target: m.Target, Type: plan.Remount, Set: unix.MOUNT_ATTR_RDONLY})
	}
	return list
}

func option(m *plan.Mount, o string) error {
	if a, ok := linux.MountAttribute(o); ok {
		m.Set, m.Clear = m.Set&^a.Attr_clr|a.Attr_set, m.Clear&^a.Attr_set|a.Attr_clr
		return nil
	}
	if a, ok := linux.MountAttribute(strings.TrimPrefix(o, "r")); ok && strings.HasPrefix(o, "r") {
		m.RecSet, m.RecClear = m.RecSet&^a.Attr_clr|a.Attr_set, m.RecClear&^a.Attr_set|a.Attr_clr
		return nil
	}
	switch o {
	case "defaults", "silent", "loud": // nothing is said anyway
	case "iversion", "noiversion": // the file system's own business in kernels that we support
	case "private":
		m.Propagation = unix.MS_PRIVATE
	case "slave":
		m.Propagation = unix.MS_SLAVE
	case "shared":
		m.Propagation = unix.MS_SHARED
	case "unbindable":
		m.Propagation = unix.MS_UNBINDABLE
	case "rprivate":
		m.RecPropagation = unix.MS_PRIVATE
	case "rslave":
		m.RecPropagation = unix.MS_SLAVE
	case "rshared":
		m.RecPropagation = unix.MS_SHARED
	case "runbindable":
		m.RecPropagation = unix.MS_UNBINDABLE
	case "tmpcopyup":
		m.CopyUp = true
	case "src-nofollow", "dest-nofollow":
		m.NoFollow = o == "dest-nofollow"
		if o == "src-nofollow" {
			return errors.New("option src-nofollow: not supported")
		}
	case "copy-symlink":
		return fmt.Errorf("option %s: not supported", o)
	default:
		key, value, _ := strings.Cut(o, "=")
		m.Options = append(m.Options, plan.Setting{Key: key, Value: value})
	}
	return nil
}
