package compile

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// netDevices notes which devices the container gets, and has the init wait for them.
func (r *Result) netDevices(s *specs.Spec) error {
	if len(s.Linux.NetDevices) == 0 {
		return nil
	}
	if (r.CloneFlags|r.joined)&unix.CLONE_NEWNET == 0 {
		return errors.New("linux.netDevices: needs a network namespace in linux.namespaces")
	}
	r.NetDevices, r.Plan.WaitHooks = map[string]string{}, true
	from := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(s.Linux.NetDevices)) {
		there := s.Linux.NetDevices[name].Name
		if err := deviceName(name, false); err != nil {
			return fmt.Errorf("linux.netDevices: %w", err)
		}
		if there == "" {
			there = name
		} else if err := deviceName(there, true); err != nil {
			return fmt.Errorf("linux.netDevices[%s].name: %w", name, err)
		}
		if other, ok := from[there]; ok && !strings.Contains(there, "%d") {
			return fmt.Errorf("linux.netDevices[%s].name: %s is that of %s", name, there, other)
		}
		from[there], r.NetDevices[name] = name, there
	}
	return nil
}

// deviceName reports what is wrong with a device's name; in that of a template one %d stands for a number that the kernel chooses.
func deviceName(name string, template bool) error {
	plain := name
	if template {
		plain = strings.Replace(name, "%d", "", 1)
	}
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q: not a device's name", name)
	case len(name) >= unix.IFNAMSIZ:
		return fmt.Errorf("%q: longer than %d bytes", name, unix.IFNAMSIZ-1)
	case strings.ContainsAny(plain, "/:% \t\n\v\f\r\x00"):
		return fmt.Errorf("%q: a device's name has no slash, colon, percent sign or space", name)
	}
	return nil
}
