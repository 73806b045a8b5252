// Package selinux asks the kernel's security module SELinux, and gives files their contexts. It is not part of package linux because that is linked into
// yare-init.
//
// A context is user:role:type:level. Policy decides by the type what processes may do with files; levels keep containers of the same type apart:
// "s0:c1,c2" may use what has both categories, or none.
package selinux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	selinuxFS = "/sys/fs/selinux"
	attribute = "security.selinux"
)

// Enabled says whether the kernel has SELinux on.
func Enabled() bool {
	var fs unix.Statfs_t
	return unix.Statfs(selinuxFS, &fs) == nil && fs.Type == unix.SELINUX_MAGIC
}

// Context is one in its parts. Where the policy has no levels, Level is empty.
type Context struct{ User, Role, Type, Level string }

// Parse takes a context apart.
func Parse(text string) (Context, error) {
	parts := strings.SplitN(text, ":", 4)
	if len(parts) < 3 || slices.Contains(parts, "") {
		return Context{}, fmt.Errorf("SELinux context %q is not of the form user:role:type:level", text)
	}
	c := Context{User: parts[0], Role: parts[1], Type: parts[2]}
	if len(parts) == 4 {
		c.Level = parts[3]
	}
	return c, nil
}

func (c Context) String() string {
	text := c.User + ":" + c.Role + ":" + c.Type
	if c.Level != "" {
		text += ":" + c.Level
	}
	return text
}

// Usual are the contexts that the host's policy means for containers: of their processes and of their files.
type Usual struct{ Process, File Context }

// FindUsual reads them. Policies for containers come with a file of them; the error says how to get one.
func FindUsual() (Usual, error) {
	files := []string{"/usr/share/containers/selinux/contexts"}
	config, err := os.ReadFile("/etc/selinux/config")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Usual{}, err
	}
	if name := setting(string(config), "SELINUXTYPE"); name != "" {
		files = append(files, filepath.Join("/etc/selinux", name, "contexts/lxc_contexts"))
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return Usual{}, err
		}
		u, err := parseUsual(string(text))
		if err != nil {
			err = fmt.Errorf("%s: %w", file, err)
		}
		return u, err
	}
	return Usual{}, fmt.Errorf("the host's SELinux policy says nothing of containers (neither %s is there): install the package container-selinux", strings.Join(files, " nor "))
}

func parseUsual(text string) (u Usual, err error) {
	if u.Process, err = Parse(setting(text, "process")); err != nil {
		return u, fmt.Errorf("process: %w", err)
	}
	if u.File, err = Parse(setting(text, "file")); err != nil {
		return u, fmt.Errorf("file: %w", err)
	}
	return u, nil
}

// setting looks for a line `key = "value"`.
func setting(text, key string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(line, "="); ok && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"`)
		}
	}
	return ""
}

// Check says whether the host's policy has the context.
func Check(c Context) error {
	f, err := os.OpenFile(selinuxFS+"/context", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(c.String()); errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("SELinux context %s is not known to the host's policy", c)
	} else if err != nil {
		return fmt.Errorf("check SELinux context %s: %w", c, err)
	}
	return nil
}
