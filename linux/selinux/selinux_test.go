package selinux

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParse(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"system_u:system_r:container_t:s0:c1,c2", "u:r:t", "u:r:t:s0-s0:c0.c1023"} {
		if c, err := Parse(text); err != nil || c.String() != text {
			t.Errorf("%s: %v, %v", text, c, err)
		}
	}
	for _, text := range []string{"", "u:r", "u:r:", ":r:t", "u:r:t:"} {
		if c, err := Parse(text); err == nil {
			t.Errorf("%q: %v", text, c)
		}
	}
}

func TestUsual(t *testing.T) {
	t.Parallel()
	u, err := parseUsual("# of a policy\nprocess = \"system_u:system_r:container_t:s0\"\ncontent = \"x\"\nfile= \"system_u:object_r:container_file_t:s0\"\n")
	if err != nil || u.Process.String() != "system_u:system_r:container_t:s0" || u.File.String() != "system_u:object_r:container_file_t:s0" {
		t.Errorf("%v, %v", u, err)
	}
	for text, want := range map[string]string{"": "process", "process = u:r:t\n": "file", "process = u:r\nfile = u:r:t": "process"} {
		if _, err := parseUsual(text); err == nil || !strings.HasPrefix(err.Error(), want+":") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// trusted is an attribute as root's alone as SELinux' is, which every host has.
var trusted = relabeler{"trusted.yare-test"}

func contextOf(t *testing.T, path string) string {
	t.Helper()
	b := make([]byte, 100)
	n, err := unix.Lgetxattr(path, trusted.attribute, b)
	if err != nil {
		return ""
	}
	return string(b[:n])
}

// A link in a volume is a file like others: what it leads to is not the volume's.
func TestRelabel(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	outside, dir := t.TempDir(), t.TempDir()
	if err := unix.Setxattr(dir, trusted.attribute, []byte("first"), 0); err != nil {
		t.Skipf("the file system has no attributes: %v", err)
	}
	deep := filepath.Join(dir, "a/b/c")
	for _, err := range []error{os.MkdirAll(deep, 0o700), os.WriteFile(filepath.Join(deep, "f"), nil, 0o600), os.Symlink(outside, filepath.Join(dir, "a/out")),
		os.Symlink("a", filepath.Join(dir, "in")), unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600), os.WriteFile(filepath.Join(outside, "f"), nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"second", "longer than it was", "third"} {
		if err := trusted.tree(t.Context(), dir, want); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"", "a", "a/b", "a/b/c", "a/b/c/f", "a/out", "in", "pipe"} {
			if got := contextOf(t, filepath.Join(dir, p)); got != want {
				t.Errorf("%s has %q, want %q", p, got, want)
			}
		}
		for _, p := range []string{"", "f"} {
			if got := contextOf(t, filepath.Join(outside, p)); got != "" {
				t.Errorf("%s outside has %q", p, got)
			}
		}
	}
	file := filepath.Join(deep, "f")
	if err := trusted.tree(t.Context(), file, "of a file"); err != nil || contextOf(t, file) != "of a file" {
		t.Errorf("%v, %q", err, contextOf(t, file))
	}
	if err := trusted.tree(t.Context(), filepath.Join(dir, "none"), "x"); err == nil {
		t.Error("what is not there was given a context")
	}
	for _, p := range []string{"/", "/etc", "/usr/", "/var/lib"} {
		if err := trusted.tree(t.Context(), p, "x"); err == nil || !strings.Contains(err.Error(), p) {
			t.Errorf("%s: %v", p, err)
		}
	}
	given, cancel := context.WithCancel(t.Context())
	cancel()
	if err := trusted.tree(given, dir, "given up"); !errors.Is(err, context.Canceled) || contextOf(t, deep) == "given up" {
		t.Errorf("given up: %v, %q", err, contextOf(t, deep))
	}
}
