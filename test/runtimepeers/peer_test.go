package runtimepeers

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	runtime = flag.String("runtime", "../../bin/yare-oci", "the OCI runtime under test")
	many    = flag.Int("many", 100, "containers at once")
)

const image = "localhost/box:1"

// result is what a command has said, and its exit code.
type result struct {
	out, err string
	code     int
}

// run runs a command, whatever its exit code.
func run(t testing.TB, timeout time.Duration, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	c.WaitDelay = time.Second
	c.Env = append(os.Environ(), "CONTAINERD_ADDRESS=")
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		t.Errorf("%s: %v: %s", strings.Join(args, " "), err, errs.String())
	}
	return result{out.String(), errs.String(), c.ProcessState.ExitCode()}
}

// expect is run with what must come of it.
func expect(t testing.TB, code int, out string, args ...string) {
	t.Helper()
	if r := run(t, time.Minute, args...); r.code != code || r.out != out {
		t.Errorf("%s: exit code %d, output %q, errors %q; want %d, %q", strings.Join(args, " "), r.code, r.out, r.err, code, out)
	}
}

// must is run with exit code 0.
func must(t testing.TB, args ...string) string {
	t.Helper()
	r := run(t, time.Minute, args...)
	if r.code != 0 {
		t.Fatalf("%s: exit code %d: %s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// program returns the absolute path of the runtime.
func program(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs(*runtime)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// rootfs writes a root file system of busybox as an archive.
func rootfs(t testing.TB) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "root.tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	for _, dir := range []string{"bin/", "etc/", "tmp/"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: dir, Mode: 0o755, Typeflag: tar.TypeDir}))
	}
	err = errors.Join(err, w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(text))}))
	_, werr := w.Write(text)
	err = errors.Join(err, werr)
	for _, name := range []string{"sh", "sleep", "echo", "cat", "id", "true", "ls"} {
		err = errors.Join(err, w.WriteHeader(&tar.Header{Name: "bin/" + name, Linkname: "busybox", Typeflag: tar.TypeSymlink}))
	}
	if err := errors.Join(err, w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// together calls f for so many containers, eight at a time.
func together(f func(i int)) {
	var all sync.WaitGroup
	place := make(chan struct{}, 8)
	for i := range *many {
		all.Go(func() {
			place <- struct{}{}
			defer func() { <-place }()
			f(i)
		})
	}
	all.Wait()
}

// leaks checks that no cgroup, mount or process with the folder's name is left; those that are about to end get a while.
func leaks(t testing.TB, dir, cgroup string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		left := slices.Concat(mounts(dir), cgroups(cgroup), processes(dir))
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%d things are left, such as %.200s", len(left), left[0])
			return
		}
	}
}

func mounts(dir string) (left []string) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, dir) {
			left = append(left, line)
		}
	}
	return left
}

func cgroups(name string) (left []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(p, name) {
			left = append(left, p)
		}
		return nil // others come and go
	})
	return left
}

func processes(dir string) (left []string) {
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return []string{err.Error()}
	}
	for _, p := range commands {
		text, err := os.ReadFile(p)
		if err == nil && bytes.Contains(text, []byte(dir)) && !strings.HasPrefix(p, fmt.Sprintf("/proc/%d/", os.Getpid())) {
			left = append(left, string(bytes.ReplaceAll(text, []byte{0}, []byte{' '})))
		}
	}
	return left
}
