package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
	"github.com/yare-dev/yare/oci/cgroup"
	"github.com/yare-dev/yare/oci/compile"
	"github.com/yare-dev/yare/oci/wire"
)

// Prepared is a container of which everything is decided and the cgroup made,
// so that only the launch is left. The command line and the shim share it.
type Prepared struct {
	*compile.Result
	Group *cgroup.Group
	// Entry, Plan and Join are descriptors, closed by Close.
	Entry *cgroup.Entry
	Plan  int
	Joins []int
}

// PrepareOptions are what the spec does not say.
type PrepareOptions struct {
	ID, Bundle string
	Spec       *specs.Spec // read only
	NoPivot    bool
	Preserve   int
}

// CgroupPath is where a container's cgroup is: the spec's path, or one of our own.
func CgroupPath(s *specs.Spec, id string) string {
	if s.Linux != nil && s.Linux.CgroupsPath != "" {
		return s.Linux.CgroupsPath
	}
	return "/yare/" + id
}

// LoadSpec reads a bundle's config.json.
func LoadSpec(bundle string) (*specs.Spec, error) {
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	s := new(specs.Spec)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("parse %s/config.json: %w", bundle, err)
	}
	return s, nil
}

// Prepare decides about a container and makes its cgroup. On error nothing is
// left. The caller closes the result after the launch, and removes the group
// with the container.
func Prepare(o PrepareOptions) (_ *Prepared, err error) {
	if strings.Contains(CgroupPath(o.Spec, o.ID), ":") {
		return nil, fmt.Errorf("linux.cgroupsPath %q: the systemd form is not supported", o.Spec.Linux.CgroupsPath)
	}
	group, err := cgroup.Open(CgroupPath(o.Spec, o.ID))
	if err != nil {
		return nil, err
	}
	state, err := json.Marshal(specs.State{Version: specs.Version, ID: o.ID, Status: specs.StateCreated,
		Bundle: o.Bundle, Annotations: o.Spec.Annotations})
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	result, err := compile.Container(o.Spec, compile.Facts{Bundle: o.Bundle, CgroupDirs: group.Dirs(), Unified: group.Unified(),
		Grantable: Grantable(), State: state, NoPivot: o.NoPivot, Preserve: o.Preserve})
	if err != nil {
		return nil, err
	}
	p := &Prepared{Result: result, Group: group, Plan: -1}
	defer func() {
		if err != nil {
			p.Close()
			if !errors.Is(err, cgroup.ErrInUse) { // then it is somebody else's
				err = errors.Join(err, group.Remove())
			}
		}
	}()
	if err := group.Create(o.Spec.Linux.Resources); err != nil {
		return nil, err
	}
	if p.Entry, err = group.Entry(); err != nil {
		return nil, err
	}
	for _, n := range result.Join {
		fd, err := unix.Open(n.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, linux.Wrap("open "+string(n.Type)+" namespace", n.Path, err)
		}
		p.Joins = append(p.Joins, fd)
	}
	p.Plan, err = linux.SealedFile("plan", wire.Marshal(result.Plan), false)
	return p, err
}

// Close closes the descriptors.
func (p *Prepared) Close() {
	if p.Entry != nil {
		p.Entry.Close()
	}
	linux.CloseAll(p.Joins...)
	linux.CloseAll(p.Plan)
	p.Joins, p.Plan = nil, -1
}

// Grantable are the capabilities that this process has, and so can give to a container.
func Grantable() uint64 {
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
