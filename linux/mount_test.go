package linux

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMountAttributes(t *testing.T) {
	t.Parallel()
	const ro, noexec, atime, strict, noatime = unix.MOUNT_ATTR_RDONLY, unix.MOUNT_ATTR_NOEXEC, unix.MOUNT_ATTR__ATIME, unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR_NOATIME
	for _, tt := range []struct {
		options    string
		set, clear uint64
		unknown    string
	}{
		{options: ""},
		{options: "ro noexec", set: ro | noexec},
		{options: "rw ro", set: ro},
		{options: "ro rw", clear: ro},
		{options: "noatime", set: noatime, clear: atime},
		{options: "noatime strictatime ro", set: strict | ro, clear: atime},
		{options: "noatime relatime", clear: atime},
		{options: "ro discard data=journal", unknown: "discard"},
	} {
		got, unknown := MountAttributes(strings.Fields(tt.options))
		if unknown != tt.unknown || unknown == "" && (got.Attr_set != tt.set || got.Attr_clr != tt.clear) {
			t.Errorf("%s: %x %x %q", tt.options, got.Attr_set, got.Attr_clr, unknown)
		}
	}
}

func TestMounted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at, link := filepath.Join(dir, "at"), filepath.Join(dir, "link")
	expect := func(path string, want bool) {
		t.Helper()
		if got, err := Mounted(path); got != want || err != nil {
			t.Errorf("%s: %v %v", path, got, err)
		}
	}
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", link); err != nil {
		t.Fatal(err)
	}
	expect("/", true)
	expect(link, false)
	expect(at, false)
	expect(filepath.Join(at, "missing"), false)
	if _, err := Mounted(filepath.Join("/proc/self/status", "below")); err == nil {
		t.Error("what cannot be told is told")
	}
	if os.Getuid() != 0 {
		return
	}
	if err := unix.Mount(dir, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, unix.MNT_DETACH) })
	expect(at, true)
}
