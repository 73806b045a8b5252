//go:build guest

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const root = "/sys/fs/cgroup"

// TestHost makes sure that it is the host that it is said to be.
func TestHost(t *testing.T) {
	for _, c := range []string{"cpu", "cpuset", "io", "memory", "pids", "hugetlb"} {
		if has := read(t, root, "cgroup.controllers"); !strings.Contains(" "+has+" ", " "+c+" ") {
			t.Errorf("no controller %s in %s", c, has)
		}
	}
	if mounts := read(t, "/proc/mounts"); strings.Contains(mounts, " cgroup ") {
		t.Errorf("cgroup v1 in\n%s", mounts)
	}
}

// read returns a file's text without the end of its last line.
func read(t *testing.T, path ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(b), "\n")
}

// expect compares files of a group with what they should hold.
func expect(t *testing.T, group string, want map[string]string) {
	t.Helper()
	for file, text := range want {
		b, err := os.ReadFile(filepath.Join(root, group, file))
		if got := strings.TrimSpace(string(b)); err != nil || got != text {
			t.Errorf("%s of %s: %q, %v; want %q", file, group, got, err, text)
		}
	}
}

// limit bounds each command: the machine may be slow.
const limit = 2 * time.Minute

// try runs a program of the machine.
func try(t *testing.T, in, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), limit) // also when the test cleans up
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(in)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// What a started program leaves running may hold the streams.
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("took longer than %v", limit)
	}
	return out.String(), err
}

// run is try for what must succeed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	return feed(t, "", name, args...)
}

func feed(t *testing.T, in, name string, args ...string) string {
	t.Helper()
	out, err := try(t, in, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// eventually asks until the answer is empty.
func eventually(t *testing.T, complaint func() string) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		said := complaint()
		if said == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(said)
		}
	}
}

// busybox makes a folder that is a root file system.
func busybox(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"bin", "tmp", "etc", "proc", "dev", "sys"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "cp", "/bin/busybox", filepath.Join(dir, "bin"))
	run(t, "chroot", dir, "/bin/busybox", "--install", "-s", "/bin")
	return dir
}
