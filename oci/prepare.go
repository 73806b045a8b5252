package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/linux/apparmor"
	"github.com/yare-dev/yare/linux/selinux"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/launch"
	"github.com/yare-dev/yare/oci/wire"
)

// Prepared is a container of which everything is decided. The command line and
// the shim share it.
type Prepared struct {
	*compile.Result
	Group *cgroup.Group
	// Entry, PlanFD and Joins are descriptors, closed by Close. Entry has the v1
	// groups after Furnish.
	Entry  *cgroup.Entry
	PlanFD int
	Joins  []int
	// Extras are the init's further descriptors, from plan.FirstFD on.
	Extras []int

	limits    *specs.LinuxResources
	furnished bool
	unit      *sleeper // nil: the group is ours
}

// PrepareOptions are what the spec does not say.
type PrepareOptions struct {
	ID, Bundle string
	Spec       *specs.Spec // read only
	NoPivot    bool
	// NoNewKeyring leaves the container its launcher's session keyring.
	NoNewKeyring bool
	Preserve     int
	// Systemd has systemd make the cgroup, for which Init is needed.
	Systemd bool
	Init    *Init
}

// CgroupPath is where a container's cgroup is: the spec's path, or one of our own.
func CgroupPath(s *specs.Spec, id string, systemd bool) string {
	switch {
	case s.Linux != nil && s.Linux.CgroupsPath != "":
		return s.Linux.CgroupsPath
	case systemd:
		return "system.slice:yare:" + id
	}
	return "/yare/" + id
}

// Bundle is a bundle that has been read.
type Bundle struct {
	Dir  string // absolute
	Spec *specs.Spec
	text []byte
}

// OpenBundle reads a bundle's config.json.
func OpenBundle(dir string) (*Bundle, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	b := &Bundle{Dir: dir}
	if b.text, err = linux.ReadFile(unix.AT_FDCWD, filepath.Join(dir, "config.json")); err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	if b.Spec, err = decodeSpec(b.text); err != nil {
		return nil, fmt.Errorf("parse %s/config.json: %w", dir, err)
	}
	return b, nil
}

// LoadSpec reads a bundle's config.json.
func LoadSpec(bundle string) (*specs.Spec, error) {
	b, err := OpenBundle(bundle)
	if err != nil {
		return nil, err
	}
	return b.Spec, nil
}

// Prepare decides about a container and makes what its process must be born in.
// What is left to do before the process may be told to go on is Furnish, of which
// the init knows by the plan if it is to be born before. On error nothing is
// left. The caller closes the result after the launch, and removes the group
// with the container.
func Prepare(o PrepareOptions) (_ *Prepared, err error) {
	where := CgroupPath(o.Spec, o.ID, o.Systemd)
	if cgroup.Unit(where) != o.Systemd {
		return nil, fmt.Errorf("linux.cgroupsPath %q: the form slice:prefix:name goes with systemd's cgroup driver, and only it", where)
	}
	group, err := cgroup.Open(where)
	if err != nil {
		return nil, err
	}
	if !showsCgroups(o.Spec) {
		group.Frugal()
	}
	var state []byte
	if o.Spec.Hooks != nil {
		if state, err = hookState(&o); err != nil {
			return nil, err
		}
	}
	result, err := compile.Container(o.Spec, compile.Facts{Bundle: o.Bundle, CgroupDirs: group.Dirs(), Unified: group.Unified(),
		Host: Host(), State: state, NoPivot: o.NoPivot, Preserve: o.Preserve})
	if err != nil {
		return nil, err
	}
	result.Plan.Process.Keyring = !o.NoNewKeyring
	p := &Prepared{Result: result, Group: group, PlanFD: -1, limits: o.Spec.Linux.Resources}
	defer func() {
		if err != nil {
			p.Close()
			if !errors.Is(err, cgroup.ErrInUse) { // then it is somebody else's
				err = errors.Join(err, group.Remove())
			}
		}
	}()
	if o.Systemd {
		err = p.createUnit(&o)
	} else {
		p.Entry, err = group.Begin()
	}
	if err != nil {
		return nil, err
	}
	if err := p.openNamespaces(); err != nil {
		return nil, err
	}
	return p, p.openTrees()
}

// showsCgroups tells whether a container sees its own groups: by a mount, or by a namespace in which it may mount them.
func showsCgroups(s *specs.Spec) bool {
	return slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "cgroup" || m.Type == "cgroup2" }) ||
		s.Linux != nil && slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
}

// Furnish makes the rest of the cgroup, and sets its limits.
func (p *Prepared) Furnish() error {
	if p.furnished {
		return nil
	}
	p.furnished = true
	return p.Group.Finish(p.Entry, p.limits)
}

// Seal makes the plan what the init gets; it is not changed from then on.
func (p *Prepared) Seal() (err error) {
	p.PlanFD, err = SealPlan(p.Plan)
	return err
}

// SealPlan returns a plan as the descriptor that an init reads.
func SealPlan(p wire.Message) (int, error) {
	b, err := wire.MarshalTexts(p)
	if err != nil {
		return -1, err
	}
	return linux.SealedFile("plan", b, false)
}

// hookState is what plan.Container's State has to be.
func hookState(o *PrepareOptions) ([]byte, error) {
	b, err := json.Marshal(struct {
		Version     string            `json:"ociVersion"`
		ID          string            `json:"id"`
		Bundle      string            `json:"bundle"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}{specs.Version, o.ID, o.Bundle, o.Spec.Annotations})
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return b[1:], nil
}

func (p *Prepared) openNamespaces() error {
	for _, n := range p.Join {
		fd, err := openNamespace(string(n.Type), n.Path)
		if err != nil {
			return err
		}
		p.Joins = append(p.Joins, fd)
	}
	if p.MountNS == "" {
		return nil
	}
	fd, err := openNamespace("mount", p.MountNS)
	if err == nil {
		p.Extras = append(p.Extras, fd)
	}
	return err
}

// openNamespace opens a namespace and makes sure that it is one: nothing else is ever given to setns.
func openNamespace(kind, path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, linux.Wrap("open "+kind+" namespace", path, err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.NSFS_MAGIC && fs.Type != unix.PROC_SUPER_MAGIC {
		unix.Close(fd)
		return -1, fmt.Errorf("open %s namespace %s: not a namespace", kind, path)
	}
	return fd, nil
}

// openTrees detaches the mounts that the init cannot, and maps their ids.
func (p *Prepared) openTrees() error {
	for _, t := range p.Trees {
		fd, err := linux.CloneTree(unix.AT_FDCWD, t.Source, t.Recursive)
		if err != nil {
			return err
		}
		p.Extras = append(p.Extras, fd)
		if t.Propagation != 0 {
			if err := linux.SetMountAttr(fd, true, unix.MountAttr{Propagation: t.Propagation}, t.Source); err != nil {
				return err
			}
		}
		if t.Mapped {
			if err := p.mapTree(fd, t); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Prepared) mapTree(tree int, t compile.Tree) (err error) {
	users := -1
	switch own := slices.IndexFunc(p.Join, func(n compile.Namespace) bool { return n.Type == specs.UserNamespace }); {
	case len(t.UIDs) > 0:
		users, err = launch.UserNamespace(t.UIDs, t.GIDs)
	case own >= 0:
		users, err = unix.FcntlInt(uintptr(p.Joins[own]), unix.F_DUPFD_CLOEXEC, 3)
	default:
		users, err = launch.UserNamespace(p.UIDs, p.GIDs)
	}
	if err != nil {
		return err
	}
	defer unix.Close(users)
	err = linux.SetMountAttr(tree, t.MappedBelow, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users)}, t.Source)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("map ids of %s: the kernel cannot for its file system: %w", t.Source, err)
	}
	return err
}

// Close closes the descriptors, and ends what held a unit.
func (p *Prepared) Close() {
	if p.Entry != nil {
		p.Entry.Close()
	}
	linux.CloseAll(p.Joins...)
	linux.CloseAll(p.Extras...)
	linux.CloseAll(p.PlanFD)
	p.Joins, p.Extras, p.PlanFD = nil, nil, -1
	p.unit.end()
	p.unit = nil
}

// Host is what a process depends on here.
func Host() compile.Host {
	return compile.Host{Grantable: grantable(), AppArmor: apparmor.Enabled(), SELinux: selinux.Enabled()}
}

// grantable are the capabilities that this process has, and so can give to a container.
func grantable() uint64 {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if unix.Capget(&header, &sets[0]) != nil {
		return 0
	}
	return uint64(sets[1].Permitted)<<32 | uint64(sets[0].Permitted)
}

// LastCap is the highest capability that this kernel knows.
func LastCap() int {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 40
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 40
	}
	return n
}
