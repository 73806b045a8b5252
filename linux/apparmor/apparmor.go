// Package apparmor asks the kernel's security module AppArmor which profiles it has, and loads and removes them. A profile's text is
// compiled by the host's own apparmor_parser: what the kernel takes is its private format. It is not part of package linux because that is
// linked into yare-init.
package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

const (
	enabledFile = "/sys/module/apparmor/parameters/enabled"
	profiles    = "/sys/kernel/security/apparmor/profiles"
	removal     = "/sys/kernel/security/apparmor/.remove"
	parserName  = "apparmor_parser"
)

// compileTimeout bounds apparmor_parser, which takes less than a second.
const compileTimeout = time.Minute

// ErrNoParser says that no profile can be loaded, as the program that compiles it is not installed.
var ErrNoParser = errors.New("this host has no apparmor_parser: install it (Debian's package apparmor)")

// Enabled says whether the kernel has AppArmor on.
func Enabled() bool {
	text, err := os.ReadFile(enabledFile)
	return err == nil && bytes.HasPrefix(text, []byte("Y"))
}

// Loaded says whether the kernel has the profile.
func Loaded(name string) (bool, error) {
	list, err := os.ReadFile(profiles)
	if err != nil {
		return false, fmt.Errorf("list AppArmor's profiles (is securityfs mounted?): %w", err)
	}
	return listed(string(list), name), nil
}

// listed looks for a profile in the kernel's list, whose lines are "name (mode)".
func listed(list, name string) bool {
	for line := range strings.Lines(list) {
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == name {
			return true
		}
	}
	return false
}

// Load gives the kernel the profiles of the text, in place of those with the same names. The error is [ErrNoParser] where nothing is there to
// compile them.
func Load(ctx context.Context, text string) error {
	parser, err := findParser()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, compileTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache", "--quiet")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", parser, err, bytes.TrimSpace(out))
	}
	return nil
}

// findParser looks where distributions have it, too: not everybody's PATH has the administrator's folders.
func findParser() (string, error) {
	for _, name := range []string{parserName, "/usr/sbin/" + parserName, "/sbin/" + parserName} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNoParser
}

// Remove takes a profile from the kernel; what ran under it is unconfined from then on. It is no error if there is none, nor on a host without AppArmor.
func Remove(name string) error {
	if !Enabled() {
		return nil
	}
	f, err := os.OpenFile(removal, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // securityfs is not mounted, so nobody loaded one by it
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.WriteString(name); errors.Is(err, unix.ENOENT) {
		return nil
	}
	return linux.Wrap("remove AppArmor profile", name, err)
}
