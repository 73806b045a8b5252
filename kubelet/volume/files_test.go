package volume

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// What a container puts in place of an environment file holds nobody up.
func TestReadFileTakesFilesOnly(t *testing.T) {
	v := New(t.TempDir(), Disks{})
	p := podWith(corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})
	dir, err := v.path(p, &p.Spec.Volumes[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("A='b'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 3)
	go func() {
		for _, name := range []string{"pipe", "folder", "file"} {
			_, err := v.ReadFile(p, "a", name)
			read <- err
		}
	}()
	for _, refused := range []bool{true, true, false} {
		select {
		case err := <-read:
			if (err != nil) != refused {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			if f, err := os.OpenFile(pipe, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil { // who waits there can go on
				f.Close()
			}
			t.Fatal("a pipe is waited for")
		}
	}
}
