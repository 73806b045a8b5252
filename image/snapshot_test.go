package image

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// userNamespace returns a descriptor of a user namespace in which 0 to 65535 are
// first to first+65535 outside.
func userNamespace(t *testing.T, first int) MountOptions {
	t.Helper()
	ids := []IDMap{{ContainerID: 0, HostID: first, Size: 65536}}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return MountOptions{Users: int(f.Fd()), UIDs: ids, GIDs: ids}
}

// TestMappedSnapshot mounts an image for a user namespace: files have the owners
// that look inside it as the image says, as have those that are written.
func TestMappedSnapshot(t *testing.T) {
	t.Parallel()
	owned := func(name, data string, uid, gid int) entry {
		e := file(name, data)
		e.Uid, e.Gid = uid, gid
		return e
	}
	layers := [][]byte{
		layerOf(t, owned("./", "", 7, 8), owned("etc/", "", 0, 0), owned("etc/root", "1", 0, 0)),
		layerOf(t, owned("etc/", "", 0, 0), owned("etc/user", "2", 1000, 1001), owned("etc/last", "3", 65535, 65535), owned("etc/beyond", "4", 70000, 0)),
	}
	const first = 200_000
	for _, c := range []struct{ plainCopy, readOnly bool }{{false, false}, {false, true}, {true, false}, {true, true}} {
		t.Run(fmt.Sprintf("copy=%v,readOnly=%v", c.plainCopy, c.readOnly), func(t *testing.T) {
			t.Parallel()
			s := newStore(t, func(cfg *Config) { cfg.Copy = c.plainCopy })
			for dir := filepath.Dir(s.dir); dir != os.TempDir(); dir = filepath.Dir(dir) {
				if err := os.Chmod(dir, 0o755); err != nil { // the namespace's root is nobody here
					t.Fatal(err)
				}
			}
			im, err := ingest(t, s, bundleOf(t, layers...), "x")
			if err != nil {
				t.Fatal(err)
			}
			o := userNamespace(t, first)
			o.ReadOnly = c.readOnly
			root, err := s.MountWith(t.Context(), im.ID, "mapped", o)
			if err != nil {
				t.Fatal(err)
			}
			if !c.plainCopy && copied(filepath.Dir(root)) {
				t.Error("the image was copied although the kernel maps owners")
			}
			beyond := 65534 // the kernel's overflow ID
			if c.plainCopy {
				beyond += first
			}
			for name, want := range map[string][2]int{
				"": {first + 7, first + 8}, "etc/root": {first, first}, "etc/user": {first + 1000, first + 1001},
				"etc/last": {first + 65535, first + 65535}, "etc/beyond": {beyond, first},
			} {
				wantOwner(t, filepath.Join(root, name), want)
			}
			if again, err := s.MountWith(t.Context(), im.ID, "mapped", o); err != nil || again != root {
				t.Errorf("mounted again: %s, %v", again, err)
			}
			if _, err := s.Mount(t.Context(), im.ID, "mapped"); !errors.Is(err, ErrInvalid) {
				t.Errorf("the same key without the mapping: %v, want ErrInvalid", err)
			}
			// The layers are everyone's and keep their owners.
			plain, err := s.Mount(t.Context(), im.ID, "plain")
			if err != nil {
				t.Fatal(err)
			}
			wantOwner(t, filepath.Join(plain, "etc/user"), [2]int{1000, 1001})
			if c.readOnly {
				return
			}
			// Written as a process inside would: root of the namespace, and a copy up.
			script := "echo 5 >etc/new && chown 1000:1000 etc/root && echo 6 >>etc/user"
			cmd := exec.Command("/bin/sh", "-c", script)
			cmd.Dir = root
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: o.UIDs, GidMappings: o.GIDs,
				Credential: &syscall.Credential{NoSetGroups: true}}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("write in the namespace: %v: %s", err, out)
			}
			wantOwner(t, filepath.Join(root, "etc/new"), [2]int{first, first})
			wantOwner(t, filepath.Join(root, "etc/root"), [2]int{first + 1000, first + 1000})
			wantOwner(t, filepath.Join(root, "etc/user"), [2]int{first + 1000, first + 1001})
			wantOwner(t, filepath.Join(plain, "etc/root"), [2]int{0, 0})
		})
	}
}

func wantOwner(t *testing.T, path string, want [2]int) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || [2]int{int(st.Uid), int(st.Gid)} != want {
		t.Errorf("%s belongs to %d:%d, want %v (%v)", path, st.Uid, st.Gid, want, err)
	}
}

// TestMetacopy changes the owner of a large file: its data stays where it is.
func TestMetacopy(t *testing.T) {
	t.Parallel()
	s := newStore(t, func(c *Config) { c.Copy = false })
	im, err := ingest(t, s, bundleOf(t, layerOf(t, file("big", string(make([]byte, 8<<20))))), "x")
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Mount(t.Context(), im.ID, "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(filepath.Join(root, "big"), 5, 5); err != nil {
		t.Fatal(err)
	}
	if u, err := s.SnapshotUsage("k"); err != nil || u.Bytes > 1<<20 {
		t.Errorf("the snapshot takes %d bytes after a change of owner, %v", u.Bytes, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "big")); err != nil || len(b) != 8<<20 {
		t.Errorf("read %d bytes, %v", len(b), err)
	}
}

// TestDeepSnapshot removes a snapshot in which a container has made a tree that is deeper than a process may have files open. A process of its own has
// the limit.
func TestDeepSnapshot(t *testing.T) {
	const variable = "IMAGE_TEST_DEEP"
	if os.Getenv(variable) == "" {
		c := exec.Command("/proc/self/exe", "-test.run=^TestDeepSnapshot$")
		c.Env = append(os.Environ(), variable+"=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	s := newStore(t, func(cfg *Config) { cfg.Copy = true })
	dir := s.path("snapshots", "deep")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for range 500 {
		if err == nil {
			err = unix.Mkdirat(fd, "d", 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		var next int
		next, err = unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	limit := unix.Rlimit{Cur: 100, Max: 100}
	if err := errors.Join(unix.Setrlimit(unix.RLIMIT_NOFILE, &limit), s.Unmount(t.Context(), "deep")); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}
