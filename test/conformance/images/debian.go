package images

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// debianSuite is the release whose packages the images are made of: the first with busybox 1.37, as upstream's image.
const (
	debianSuite   = "trixie"
	debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
	debianMirror  = "http://deb.debian.org/debian"
)

// debian is an apt of its own beside the host's: its lists and archives lie in the cache, nothing is installed on the
// host. The host's proxies and credentials apply, its sources do not.
type debian struct {
	dir string
	out io.Writer
}

// newDebian makes the folders and reads the lists of packages if they are not there.
func newDebian(ctx context.Context, dir string, out io.Writer) (*debian, error) {
	d := &debian{dir: dir, out: out}
	for _, tool := range []string{"apt-get", "dpkg-deb", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("the images are made of Debian's packages: %w", err)
		}
	}
	for _, sub := range []string{"state/lists/partial", "archives/partial", "none/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	source := fmt.Sprintf("deb [signed-by=%s] %s %s main\n", debianKeyring, debianMirror, debianSuite)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "sources.list"), []byte(source), 0o644),
		os.WriteFile(filepath.Join(dir, "status"), nil, 0o644)); err != nil {
		return nil, err
	}
	lists, err := filepath.Glob(filepath.Join(dir, "state/lists/*_Packages*"))
	if err != nil || len(lists) > 0 {
		return d, err
	}
	_, err = d.apt(ctx, "archives", "update", "-q")
	return d, err
}

// apt runs apt-get with the archives in the given folder and returns what it prints.
func (d *debian) apt(ctx context.Context, archives string, args ...string) ([]byte, error) {
	options := []string{
		"Dir::Etc::SourceList=" + filepath.Join(d.dir, "sources.list"), "Dir::Etc::SourceParts=/dev/null",
		"Dir::State=" + filepath.Join(d.dir, "state"), "Dir::State::Status=" + filepath.Join(d.dir, "status"),
		"Dir::Cache::archives=" + filepath.Join(d.dir, archives),
		"Dir::Cache::pkgcache=" + filepath.Join(d.dir, "pkgcache.bin"),
		"Dir::Cache::srcpkgcache=" + filepath.Join(d.dir, "srcpkgcache.bin"),
		"APT::Install-Recommends=0", "APT::Sandbox::User=root", "Acquire::Retries=3",
	}
	line := make([]string, 0, 2*len(options)+len(args))
	for _, o := range options {
		line = append(line, "-o", o)
	}
	c := exec.CommandContext(ctx, "apt-get", append(line, args...)...)
	c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C")
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("apt-get %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), nil
}

var uriLine = regexp.MustCompile(`^'[^']+' (\S+\.deb) `)

// fetch downloads packages with all they depend on, and returns their files.
func (d *debian) fetch(ctx context.Context, packages []string) ([]string, error) {
	install := append([]string{"install", "-y", "-q"}, packages...)
	// Only with an empty folder of archives does apt name those that were downloaded before.
	listed, err := d.apt(ctx, "none", append(install, "--print-uris")...)
	if err != nil {
		return nil, err
	}
	if _, err := d.apt(ctx, "archives", append(install, "--download-only")...); err != nil {
		return nil, err
	}
	var files []string
	for lines := bufio.NewScanner(bytes.NewReader(listed)); lines.Scan(); {
		if m := uriLine.FindStringSubmatch(lines.Text()); m != nil {
			files = append(files, filepath.Join(d.dir, "archives", m[1]))
		}
	}
	return files, nil
}

// install unpacks packages with all they depend on below root. Their scripts are not run: users, links and caches that
// those would make are the recipe's.
func (d *debian) install(ctx context.Context, root string, packages ...string) error {
	return d.unpack(ctx, root, packages, func(string) bool { return true })
}

// only unpacks exactly the named packages: for static programs.
func (d *debian) only(ctx context.Context, root string, packages ...string) error {
	return d.unpack(ctx, root, packages, func(name string) bool { return slices.Contains(packages, name) })
}

func (d *debian) unpack(ctx context.Context, root string, packages []string, want func(name string) bool) error {
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	files, err := d.fetch(ctx, packages)
	if err != nil {
		return err
	}
	for _, f := range files {
		if name, _, _ := strings.Cut(filepath.Base(f), "_"); !want(name) {
			continue
		}
		const extract = `dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2"`
		c := exec.CommandContext(ctx, "/bin/bash", "-o", "pipefail", "-ec", extract, "extract", f, root)
		c.Stdout, c.Stderr = d.out, d.out
		if err := c.Run(); err != nil {
			return fmt.Errorf("unpack %s: %w", filepath.Base(f), err)
		}
	}
	for _, dir := range []string{"doc", "man", "locale", "info", "lintian", "bug", "bash-completion"} {
		if err := os.RemoveAll(filepath.Join(root, "usr/share", dir)); err != nil {
			return err
		}
	}
	return nil
}
