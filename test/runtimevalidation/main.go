// Command runtimevalidation runs the OCI runtime validation programs of github.com/opencontainers/runtime-tools against
// Yare's runtime and, in the same run, against a peer.
//
// The programs come unchanged from the version in go.mod and are built once, into the user's cache; their root file system is
// made of the host's static busybox. Each is run against both runtimes with state directories of their own. Red is:
//
//   - a program of passing.txt, the ratchet, that does not pass;
//   - a program that passes for the peer and not for us;
//
// in the run and in three more of its own, with nothing beside it.
//
// accept takes what the last run passed into the ratchet.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// wish is the command line.
type wish struct {
	module, yare, peer, focus string
	procs                     int
	timeout                   time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtime-validation:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, out io.Writer) error {
	var w wish
	f := flag.NewFlagSet("runtime-validation", flag.ContinueOnError)
	f.StringVar(&w.module, "module", ".", "folder of this module")
	f.StringVar(&w.yare, "yare", "yare-oci", "runtime under test")
	f.StringVar(&w.peer, "peer", "runc", "runtime to compare with")
	f.StringVar(&w.focus, "focus", "", "only programs whose names match this expression")
	f.IntVar(&w.procs, "procs", 4, "programs at a time, but for those that share a cgroup")
	f.DurationVar(&w.timeout, "timeout", time.Minute, "end a program after this long")
	if len(args) == 0 {
		return errors.New("say what to do: run or accept")
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	cache = filepath.Join(cache, "yare-runtime-validation")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	switch args[0] {
	case "run":
		return run(ctx, w, cache, out)
	case "accept":
		return accept(w, cache, out)
	}
	return fmt.Errorf("no command %q: run or accept", args[0])
}

// run runs the chosen programs. An error is a run that could not be judged, or a red one.
func run(ctx context.Context, w wish, cache string, out io.Writer) error {
	if os.Geteuid() != 0 {
		return errors.New("containers need root")
	}
	focus, err := regexp.Compile(w.focus)
	if err != nil {
		return fmt.Errorf("read focus: %w", err)
	}
	suite, err := build(ctx, w.module, cache, out)
	if err != nil {
		return err
	}
	ratchet, err := readLines(filepath.Join(w.module, ratchetName))
	if err != nil {
		return err
	}
	began := time.Now()
	dir := filepath.Join(cache, "runs", began.UTC().Format("20060102-150405"))
	ours, err := newRuntime("ours", w.yare, dir)
	if err != nil {
		return err
	}
	peer, err := newRuntime(filepath.Base(w.peer), w.peer, dir)
	if err != nil {
		return err
	}
	names := suite.choose(focus)
	fmt.Fprintf(out, "running %d programs against %s and %s; logs in %s\n", len(names), w.yare, w.peer, dir)
	results := suite.run(ctx, w, names, ours, peer)
	retry(results, ratchet, peer.name, func(name string) verdict { return suite.one(ctx, w.timeout, name, ours) })
	if ctx.Err() != nil {
		return errors.New("interrupted: this run says nothing")
	}
	// The programs' own parent, which neither runtime takes for its own. Where others use it, it stays.
	parents, _ := filepath.Glob("/sys/fs/cgroup/*/testdir")
	for _, p := range parents {
		_ = errors.Join(os.Remove(filepath.Join(p, "cgrouptest")), os.Remove(p))
	}
	if err := errors.Join(os.RemoveAll(ours.bundles), os.RemoveAll(peer.bundles)); err != nil {
		return err
	}
	report(out, results, peer.name, time.Since(began))
	if err := keep(cache, results); err != nil {
		return err
	}
	return judge(results, ratchet, peer.name)
}
