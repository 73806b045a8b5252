package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const upstream = "github.com/opencontainers/runtime-tools"

// suite is the built programs, in one folder with what they look for in their working directory.
type suite struct {
	dir   string
	names []string // sorted
}

// build returns the suite from the cache, after making it if it is not there.
func build(ctx context.Context, module, cache string, out io.Writer) (*suite, error) {
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(sums)
	s := &suite{dir: filepath.Join(cache, "suite-"+hex.EncodeToString(digest[:])[:12])}
	if s.names, err = readLines(filepath.Join(s.dir, "names")); err == nil || !errors.Is(err, os.ErrNotExist) {
		return s, err
	}
	fmt.Fprintln(out, "building upstream's validation programs (once for each version)")
	listed, err := goTool(ctx, module, out, "list", "-f", "{{if eq .Name \"main\"}}{{.ImportPath}}{{end}}", upstream+"/validation/...")
	if err != nil {
		return nil, err
	}
	packages := strings.Fields(listed)
	if len(packages) == 0 {
		return nil, errors.New("upstream's module has no validation programs")
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "bin"), 0o755); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{s.dir + "/", upstream + "/cmd/runtimetest"}, append([]string{s.dir + "/bin/"}, packages...)} {
		if _, err := goTool(ctx, module, out, append([]string{"build", "-trimpath", "-ldflags=-s -w", "-o"}, args...)...); err != nil {
			return nil, err
		}
	}
	if err := s.root(ctx); err != nil {
		return nil, fmt.Errorf("make root file system: %w", err)
	}
	for _, p := range packages {
		s.names = append(s.names, path.Base(p))
	}
	slices.Sort(s.names)
	// The list comes last: its file says that the folder is complete.
	return s, writeLines(filepath.Join(s.dir, "names"), "", s.names)
}

// goTool runs the go command in dir and returns what it prints; its complaints go to out.
func goTool(ctx context.Context, dir string, out io.Writer, args ...string) (string, error) {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir, c.Stderr = dir, out
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	printed, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("go %s: %w", strings.Join(args, " "), err)
	}
	return string(printed), nil
}

// root makes the archive that the programs unpack for each container: busybox with all its names, as upstream's own has.
func (s *suite) root(ctx context.Context) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is needed: %w", err)
	}
	applets, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	root := filepath.Join(s.dir, "root")
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	err = errors.Join(os.WriteFile(filepath.Join(root, "bin/busybox"), text, 0o755),
		os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0:root:/root:/bin/sh\n"), 0o644),
		os.WriteFile(filepath.Join(root, "etc/group"), []byte("root:x:0:\n"), 0o644))
	for _, name := range strings.Fields(string(applets)) {
		if e := os.Symlink("busybox", filepath.Join(root, "bin", name)); !errors.Is(e, os.ErrExist) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return err
	}
	archive := filepath.Join(s.dir, "rootfs-"+runtime.GOARCH+".tar.gz")
	return exec.CommandContext(ctx, "tar", "-czf", archive, "-C", root, ".").Run()
}

func (s *suite) choose(focus *regexp.Regexp) []string {
	return slices.DeleteFunc(slices.Clone(s.names), func(n string) bool { return !focus.MatchString(n) })
}

// shared are programs that use cgroups of fixed names: they run one at a time.
var shared = regexp.MustCompile(`cgroups|^delete`)

// run runs the programs against each of the runtimes. The results are in the order of names.
func (s *suite) run(ctx context.Context, w wish, names []string, ours, peer *ociRuntime) []result {
	results := make([]result, len(names))
	place := make(chan struct{}, w.procs)
	var alone sync.Mutex
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			if shared.MatchString(name) {
				alone.Lock()
				defer alone.Unlock()
			}
			place <- struct{}{}
			defer func() { <-place }()
			results[i] = result{name: name, peer: s.one(ctx, w.timeout, name, peer), ours: s.one(ctx, w.timeout, name, ours)}
		})
	}
	all.Wait()
	return results
}

// one runs a program against a runtime; what it says is kept in a file.
func (s *suite) one(ctx context.Context, timeout time.Duration, name string, r *ociRuntime) verdict {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(s.dir, "bin", name))
	c.Dir = s.dir
	c.Env = append(os.Environ(), "RUNTIME="+r.command, "TMPDIR="+r.bundles)
	// What it leaves running ends with it. The mount namespace is its own because runc leaves mounts of containers that have
	// none, and the programs then remove the bundle, mounts and all.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Unshareflags: syscall.CLONE_NEWNS}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	var text strings.Builder
	c.Stdout, c.Stderr = &text, &text
	err := c.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v", timeout)
	}
	v := read(text.String(), err)
	if err := os.WriteFile(filepath.Join(r.logs, name+".log"), []byte(text.String()), 0o644); err != nil && v.why == "" {
		v.why = err.Error()
	}
	return v
}

// ociRuntime is a runtime under test: a script that gives it a state directory of its own, and folders.
type ociRuntime struct {
	name, command, logs, bundles string
}

func newRuntime(name, program, dir string) (*ociRuntime, error) {
	program, err := exec.LookPath(program)
	if err == nil {
		program, err = filepath.Abs(program)
	}
	if err != nil {
		return nil, err
	}
	r := &ociRuntime{name: name, command: filepath.Join(dir, name, "runtime"), logs: filepath.Join(dir, name), bundles: filepath.Join(dir, name, "bundles")}
	if err := os.MkdirAll(r.bundles, 0o755); err != nil {
		return nil, err
	}
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' --root '%s/state' \"$@\"\n", program, r.logs)
	return r, os.WriteFile(r.command, []byte(script), 0o755)
}
