// Package rdt puts containers into classes of service of Intel's Resource Director Technology, by the kernel's resctrl file system: what
// linux.intelRdt of the OCI runtime specification says. It replaces runc's intelrdt. AMD's and ARM's equivalents are by the same files.
package rdt

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// Group is where one container is.
type Group struct {
	root string // where resctrl is mounted
	dir  string // the class of service
	own  bool   // named after the container: made for it, and removed with it
	// monitor is the container's own group of monitoring, or "".
	monitor string
	lines   []string // of schemata, in the order in which they are written
}

// Check reports what is wrong with a container's fields.
func Check(c *specs.LinuxIntelRdt) error {
	if id := c.ClosID; id != "" && id != "/" && !usable(id) {
		return fmt.Errorf("linux.intelRdt.closID %q: not the name of a class of service", id)
	}
	for _, line := range lines(c) {
		if strings.ContainsAny(line, "\n\x00") || !strings.Contains(line, ":") {
			return fmt.Errorf("linux.intelRdt: %q is not a line of schemata, as L3:0=ff;1=ff", line)
		}
	}
	if s := c.MemBwSchema; s != "" && !strings.HasPrefix(s, "MB:") {
		return fmt.Errorf("linux.intelRdt.memBwSchema %q: begins otherwise than MB:0=50", s)
	}
	return nil
}

// usable tells whether a folder of resctrl can be called so.
func usable(name string) bool {
	return !strings.ContainsAny(name, "/\n\x00") && !slices.Contains([]string{".", "..", "info", "mon_groups", "mon_data"}, name)
}

// lines are the container's lines of schemata, in the order of the specification.
func lines(c *specs.LinuxIntelRdt) []string {
	var all []string
	for _, s := range append([]string{c.L3CacheSchema, c.MemBwSchema}, c.Schemata...) {
		if s != "" {
			all = append(all, s)
		}
	}
	return all
}

// Mounted is where resctrl is mounted.
func Mounted() (string, error) {
	b, err := linux.ReadFile(unix.AT_FDCWD, "/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		mount, fs, _ := strings.Cut(line, " - ")
		if f := strings.Fields(mount); strings.HasPrefix(fs, "resctrl ") && len(f) > 4 {
			return linux.Unescape(f[4]), nil
		}
	}
	return "", errors.New("linux.intelRdt: resctrl is not mounted: mount -t resctrl resctrl /sys/fs/resctrl, if the processor has it")
}

// Of is the group of a container, below where resctrl is mounted. It touches nothing.
func Of(root, id string, c *specs.LinuxIntelRdt) (*Group, error) {
	if err := Check(c); err != nil {
		return nil, err
	}
	if (c.ClosID == "" || c.EnableMonitoring) && !usable(id) {
		return nil, fmt.Errorf("linux.intelRdt: container %q cannot have a group of its name", id)
	}
	g := &Group{root: root, dir: filepath.Join(root, c.ClosID), lines: lines(c)}
	if c.ClosID == "" {
		g.dir, g.own = filepath.Join(root, id), true
	}
	if c.EnableMonitoring {
		g.monitor = filepath.Join(g.dir, "mon_groups", id)
	}
	return g, nil
}

// Create makes what there is to be made. A class of another's must be as the container wants it, or if it wants nothing be there. Nothing is left
// if it fails, but a class of a name of its own, which others may be in already.
func (g *Group) Create() error {
	err := os.Mkdir(g.dir, 0o755)
	made := err == nil
	switch {
	case g.own && errors.Is(err, os.ErrExist):
		return fmt.Errorf("make class of service %s: it is there already: set closID, or take another id", g.dir)
	case made && !g.own && len(g.lines) == 0:
		return errors.Join(fmt.Errorf("linux.intelRdt.closID: there is no class of service %s", filepath.Base(g.dir)), os.Remove(g.dir))
	case err != nil && !errors.Is(err, os.ErrExist):
		return g.why("make class of service "+g.dir, err)
	}
	if made {
		err = g.configure()
	} else {
		err = g.compare()
	}
	if err == nil && g.monitor != "" {
		err = g.why("make group of monitoring "+g.monitor, os.Mkdir(g.monitor, 0o755))
	}
	if err != nil && made {
		err = errors.Join(err, os.Remove(g.dir))
	}
	return err
}

func (g *Group) configure() error {
	for _, line := range g.lines {
		if err := g.why("set schemata of "+g.dir+" to "+line, write(filepath.Join(g.dir, "schemata"), line+"\n")); err != nil {
			return err
		}
	}
	return nil
}

// compare makes sure that a class that was there is as the container wants it.
func (g *Group) compare() error {
	if len(g.lines) == 0 {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(g.dir, "schemata"))
	if err != nil {
		return err
	}
	has := map[string]string{}
	for line := range strings.Lines(string(b)) {
		resource, value := parse(line)
		has[resource] = value
	}
	want := map[string]string{} // a later line is for the one before
	for _, line := range g.lines {
		resource, value := parse(line)
		want[resource] = value
	}
	for resource, value := range want {
		for _, domain := range strings.Split(value, ";") {
			if !slices.Contains(strings.Split(has[resource], ";"), domain) {
				return fmt.Errorf("linux.intelRdt: class of service %s has %s:%s, not %s", filepath.Base(g.dir), resource, has[resource], domain)
			}
		}
	}
	return nil
}

// parse takes a line of schemata apart, in a form that can be compared: the kernel writes numbers with zeros before them.
func parse(line string) (resource, value string) {
	resource, value, _ = strings.Cut(strings.TrimSpace(line), ":")
	domains := strings.Split(value, ";")
	for i, d := range domains {
		id, n, _ := strings.Cut(strings.TrimSpace(d), "=")
		n = strings.ToLower(strings.TrimPrefix(strings.TrimSpace(n), "0x"))
		domains[i] = strings.TrimSpace(id) + "=" + strings.TrimLeft(n, "0")
	}
	return strings.TrimSpace(resource), strings.Join(domains, ";")
}

// Tasks adds to list the files, open for writing, by which a thread enters the group when it writes 0 to them; so are its children, then.
// They are the caller's, also after an error.
func (g *Group) Tasks(list []int) ([]int, error) {
	for _, dir := range []string{g.dir, g.monitor} {
		if dir == "" {
			continue
		}
		fd, err := unix.Open(filepath.Join(dir, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return list, linux.Wrap("open", filepath.Join(dir, "tasks"), err)
		}
		list = append(list, fd)
	}
	return list, nil
}

// Remove removes what is the container's own. What is gone is no error.
func (g *Group) Remove() error {
	var errs []error
	if g.monitor != "" {
		errs = append(errs, os.Remove(g.monitor))
	}
	if g.own {
		errs = append(errs, os.Remove(g.dir))
	}
	for i, err := range errs {
		if errors.Is(err, os.ErrNotExist) {
			errs[i] = nil
		}
	}
	return errors.Join(errs...)
}

func write(file, text string) error { return linux.CreateFile(file, []byte(text), 0o644) }

// why adds what the kernel says of its last refusal.
func (g *Group) why(what string, err error) error {
	if err == nil {
		return nil
	}
	if b, rerr := os.ReadFile(filepath.Join(g.root, "info/last_cmd_status")); rerr == nil {
		if said := strings.TrimSpace(string(b)); said != "" && said != "ok" {
			return fmt.Errorf("%s: %w: %s", what, err, said)
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}
