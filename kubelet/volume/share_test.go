package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/linux"
)

// The kubelet's folder becomes shared, once, where it is on a private mount; what is mounted below it already would vanish under it.
func TestShare(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	host := t.TempDir()
	if err := unix.Mount("tmpfs", host, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmountBelow(host); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", host, "", unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	root, link := filepath.Join(host, "data", "kubelet"), filepath.Join(host, "link")
	if err := os.MkdirAll(filepath.Join(root, "pods"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(root, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(root, "pods"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := Share(link); err == nil || !strings.Contains(err.Error(), filepath.Join(root, "pods")+" is mounted below it already") {
		t.Error(err)
	}
	if err := unix.Unmount(filepath.Join(root, "pods"), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Share(link); err != nil {
			t.Fatal(err)
		}
		if shared, err := linux.Shared(root); err != nil || !shared {
			t.Error(shared, err)
		}
		if below, err := mountsBelow(root); err != nil || len(below) != 1 {
			t.Error(below, err)
		}
	}
}
