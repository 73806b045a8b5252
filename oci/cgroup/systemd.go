package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/yare-dev/yare/linux"
)

// ErrNoSystemd says that the host's systemd cannot be asked for groups.
var ErrNoSystemd = errors.New("groups by systemd need a host that systemd runs, with cgroup v2 alone")

// Unit tells whether a group's name has systemd's form, "slice:prefix:name".
func Unit(name string) bool { return strings.Contains(name, ":") }

// openUnit returns the group of a unit: of the scope prefix-name.scope in the
// slice. Systemd makes and removes it, and knows its limits.
func openUnit(name string) (*Group, error) {
	parts := strings.Split(name, ":")
	if len(parts) != 3 || parts[1] == "" || parts[2] == "" || strings.ContainsAny(name, "/") {
		return nil, fmt.Errorf("cgroup %q: not of the form slice:prefix:name", name)
	}
	slice := parts[0]
	if slice == "" {
		slice = "system.slice"
	}
	above, err := systemd.ExpandSlice(slice)
	if err != nil {
		return nil, fmt.Errorf("cgroup %q: %w", name, err)
	}
	hierarchies, err := linux.Hierarchies()
	if err != nil {
		return nil, err
	}
	if !linux.Unified(hierarchies) || !systemd.IsRunningSystemd() {
		return nil, fmt.Errorf("cgroup %q: %w", name, ErrNoSystemd)
	}
	g := &Group{path: path.Join(above, parts[1]+"-"+parts[2]+".scope"), unified: true,
		unit: &cgroups.Cgroup{Parent: slice, ScopePrefix: parts[1], Name: parts[2], Systemd: true}}
	g.dirs = map[string]string{"": filepath.Join(hierarchies[0].Root, g.path)}
	return g, nil
}

// tellNoSwap names the one limit of which the library does not tell systemd, which
// would lift it when it writes all that it knows anew.
func tellNoSwap(r *cgroups.Resources) {
	if r.Memory <= 0 || r.MemorySwap != r.Memory {
		return
	}
	told := map[string]string{"memory.swap.max": "0"}
	maps.Copy(told, r.Unified)
	r.Unified = told
}

// CreateUnit is Create for a unit. Systemd makes none without a process: that of
// pid is moved there, and has to stay until another was born in the group.
func (g *Group) CreateUnit(pid int, r *specs.LinuxResources) error {
	if err := g.unused(); err != nil {
		return err
	}
	if err := g.with("create", func(m cgroups.Manager) error { return m.Apply(pid) }); err != nil {
		return err
	}
	return g.limit(r)
}
