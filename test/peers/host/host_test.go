package host

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// What another cluster of this machine has mounted is no trace of ours.
func TestMounts(t *testing.T) {
	if testing.Short() || os.Geteuid() != 0 {
		t.Skip("makes namespaces, as root")
	}
	foreign, own := filepath.Join(t.TempDir(), "rootfs"), filepath.Join(t.TempDir(), "rootfs")
	for _, dir := range []string{foreign, own} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("tmpfs", foreign, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(foreign, 0); err != nil {
			t.Error(err)
		}
	})
	h, err := New(t.Context(), "mounts", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	if out, err := h.Command("mount", "-t", "tmpfs", "tmpfs", own).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got, err := h.Mounts(); err != nil || !slices.Equal(got, []string{own}) {
		t.Errorf("%v, %v", got, err)
	}
}
