package pod

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Containers can write their hosts file: whatever one makes of it, the next is started with what belongs there.
func TestHostsFileThatAContainerSpoiled(t *testing.T) {
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(elsewhere, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func(path string) error{
		"too large to be read": func(path string) error { return os.Truncate(path, 1<<42) },
		"other text":           func(path string) error { return os.WriteFile(path, []byte("x"), 0o644) },
		"as long":              func(path string) error { return fill(path, 'x') },
		"a pipe": func(path string) error {
			_ = os.Remove(path)
			return syscall.Mkfifo(path, 0o644)
		},
		"a link": func(path string) error {
			_ = os.Remove(path)
			return os.Symlink(elsewhere, path)
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBed(t)
				b.api.Put(newPod("a"))
				b.wantRunning("app")
				path := hostsFile(t, b.runtime.Running()["app"])
				if err := spoil(path); err != nil {
					t.Skip("this file system does not do that:", err)
				}
				b.runtime.Exit("app", 1)
				b.wantRunning("app")
				info, err := os.Lstat(path)
				if err != nil || !info.Mode().IsRegular() || info.Size() > 1<<10 {
					t.Fatal("hosts file:", info, err)
				}
				text, err := os.ReadFile(path)
				if err != nil || !strings.Contains(string(text), "localhost") {
					t.Errorf("hosts file: %q, %v", text, err)
				}
				if b, err := os.ReadFile(elsewhere); err != nil || string(b) != "theirs" {
					t.Errorf("the link was followed: %q, %v", b, err)
				}
			})
		})
	}
}

func fill(path string, with byte) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(strings.Repeat(string(with), int(info.Size()))), 0o644)
}

func hostsFile(t *testing.T, c *runtimeapi.ContainerConfig) string {
	t.Helper()
	for _, m := range c.Mounts {
		if m.ContainerPath == "/etc/hosts" {
			return m.HostPath
		}
	}
	t.Fatal("no hosts file:", c.Mounts)
	return ""
}
