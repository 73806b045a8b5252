package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// ociRuntimes are measured together: one run of each after the other, so that all see the same machine.
var ociRuntimes = []string{"yare-oci", "runc", "crun"}

// ociRun measures an OCI runtime's command line with a bundle whose program does nothing.
func ociRun(name string) func(context.Context, *bench) ([]float64, error) {
	return func(ctx context.Context, b *bench) ([]float64, error) {
		if b.oci == nil {
			done := make(chan error)
			go func() {
				runtime.LockOSThread() // its mount namespace goes with the thread
				done <- b.ociRuns(ctx)
			}()
			if err := <-done; err != nil {
				return nil, err
			}
		}
		if len(b.oci[name]) == 0 {
			return nil, errors.New("not installed")
		}
		return b.oci[name], nil
	}
}

// ociRuns fills b.oci. The mount namespace has the state in memory, as /run is on most hosts, and none but the cgroup
// hierarchies of v1 or v2: crun refuses a host with both.
func (b *bench) ociRuns(ctx context.Context) error {
	dir := filepath.Join(b.dir, "bundles")
	defer os.RemoveAll(dir)
	state := filepath.Join(dir, "state")
	err := errors.Join(os.MkdirAll(state, 0o711), syscall.Unshare(syscall.CLONE_NEWNS|syscall.CLONE_FS))
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""), syscall.Mount("tmpfs", state, "tmpfs", 0, "")); err != nil {
		return err
	}
	defer func() { _ = syscall.Unmount(state, 0) }()
	_ = syscall.Unmount("/sys/fs/cgroup/unified", syscall.MNT_DETACH) // where it is not there, nothing has to be done
	programs := map[string]string{}
	for _, name := range ociRuntimes {
		program := filepath.Join(filepath.Dir(b.yare), name)
		if name != "yare-oci" {
			if program, err = exec.LookPath(name); err != nil {
				continue
			}
		}
		programs[name] = program
		if err := makeBundle(filepath.Join(dir, name), filepath.Base(b.dir)+"-"+name); err != nil {
			return err
		}
	}
	b.oci = map[string][]float64{}
	for i := range 5 * b.runs {
		for name, program := range programs {
			begin := time.Now()
			c := exec.CommandContext(ctx, program, "--root", filepath.Join(state, name), "run", "--bundle", filepath.Join(dir, name), fmt.Sprint(name, "-", i))
			if out, err := c.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", name, err, out)
			}
			b.oci[name] = append(b.oci[name], millis(time.Since(begin)))
		}
	}
	return nil
}

func makeBundle(bundle, cgroup string) error {
	bin := filepath.Join(bundle, "rootfs", "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is needed: make setup")
	}
	text, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bin, "true"), text, 0o755); err != nil {
		return err
	}
	spec := map[string]any{
		"ociVersion": "1.0.2",
		"process":    map[string]any{"user": map[string]any{"uid": 0, "gid": 0}, "args": []string{"/bin/true"}, "cwd": "/", "env": []string{"PATH=/bin"}},
		"root":       map[string]any{"path": "rootfs"},
		"mounts": []any{
			map[string]any{"destination": "/proc", "type": "proc", "source": "proc"},
			map[string]any{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
		},
		"linux": map[string]any{
			"cgroupsPath": "/" + cgroup, // one level: what the runtime removes is all that was made
			"namespaces":  []any{map[string]any{"type": "pid"}, map[string]any{"type": "mount"}, map[string]any{"type": "ipc"}, map[string]any{"type": "uts"}, map[string]any{"type": "network"}},
		},
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o644)
}
