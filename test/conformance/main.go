// Command conformance runs upstream's conformance suite against a fresh cluster of Yare's or against any other, and
// keeps what has passed.
//
// run builds what is not in the cache (package suite: the test program; package images: the images that the tests ask
// for), serves the images on a loopback address, starts a cluster, runs the tests and says what they said (package
// report). accept takes up the results of the last run. images makes the images anew.
//
// All that can be made again lies in the cache, all that people decide lies in files beside this one: passing.txt is the
// ratchet, smoke.txt the short run, reasons.txt why tests do not pass.
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

	"github.com/yare-dev/yare/test/conformance/images"
	"github.com/yare-dev/yare/test/conformance/report"
	"github.com/yare-dev/yare/test/conformance/suite"
)

// wish is the command line.
type wish struct {
	module     string
	cluster    string
	yare       string
	kubectl    string
	focus      string
	skip       string
	names      string
	beside     bool
	procs      int
	timeout    time.Duration
	kubeconfig string
	nodes      int
	families   string
	images     string
	registry   string
	document   string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "conformance: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string, out io.Writer) error {
	var w wish
	f := flag.NewFlagSet("conformance", flag.ContinueOnError)
	f.StringVar(&w.module, "module", ".", "folder of this module")
	f.StringVar(&w.cluster, "cluster", "conformance", "name of the fresh cluster; one that has it is removed")
	f.StringVar(&w.yare, "yare", "yare", "program under test")
	f.StringVar(&w.kubectl, "kubectl", "kubectl", "kubectl that the tests call")
	f.StringVar(&w.focus, "focus", "", "run the tests whose names match this expression")
	f.StringVar(&w.skip, "skip", "", "but not those whose names match this one")
	f.StringVar(&w.names, "names", "", "run the tests named in this file")
	f.BoolVar(&w.beside, "beside", false, "choose among the program's tests beside the suite; what they show is not kept")
	f.IntVar(&w.procs, "procs", 4, "tests at a time, but for the serial ones")
	f.DurationVar(&w.timeout, "timeout", 90*time.Minute, "end the run after this long")
	f.StringVar(&w.kubeconfig, "kubeconfig", "", "test this cluster instead of a fresh one")
	f.IntVar(&w.nodes, "nodes", 2, "nodes of the fresh cluster, 1 or 2")
	f.StringVar(&w.families, "families", "", "families of the fresh cluster, the main one first: 46, 64 or 6, of IPv6 as this machine must have; what the tests show is not kept")
	f.StringVar(&w.images, "images", "", "local, upstream, or a file that maps registries (default local, upstream with -kubeconfig)")
	f.StringVar(&w.registry, "registry", "127.0.0.1:0", "where to serve local images; the cluster must reach it, and take plain HTTP from it")
	f.StringVar(&w.document, "document", "../../doc/conformance.md", "the document that accept keeps")
	if len(args) == 0 {
		return errors.New("say what to do: run, accept or images")
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if _, known := settings[w.families]; !known {
		return fmt.Errorf("-families %s: 46, 64 or 6", w.families)
	}
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	switch args[0] {
	case "run":
		return run(ctx, w, cache, out)
	case "accept":
		return accept(ctx, w, cache, out)
	case "images":
		_, err := localImages(ctx, w.module, cache, true, out)
		return err
	}
	return fmt.Errorf("no command %q: run, accept or images", args[0])
}

func cacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "yare-conformance")
	return dir, os.MkdirAll(dir, 0o755)
}

// run runs the chosen tests. An error is a run that could not be judged, or one that lost what had passed before.
func run(ctx context.Context, w wish, cache string, out io.Writer) (err error) {
	program, err := suite.Build(ctx, w.module, cache, out)
	if err != nil {
		return err
	}
	all := program.Names
	if w.beside {
		if all, err = program.Beside(ctx); err != nil {
			return err
		}
	}
	names, err := choose(all, w)
	if err != nil {
		return err
	}
	ratchet, err := report.ReadRatchet(filepath.Join(w.module, "passing.txt"))
	if err != nil {
		return err
	}
	r := &report.Run{Began: time.Now(), Foreign: w.kubeconfig != "" || w.families != "", Beside: w.beside, Procs: w.procs, Version: "another cluster"}
	dir := filepath.Join(cache, "runs", r.Began.UTC().Format("20060102-150405"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	o := suite.Options{Kubeconfig: w.kubeconfig, Procs: w.procs, Dir: dir, Log: out, Grace: 40 * time.Second}
	if w.beside && w.kubeconfig == "" {
		o.Nodes = w.nodes
	}
	if o.Kubectl, err = filepath.Abs(w.kubectl); err != nil {
		return err
	}
	second, err := secondNode(ctx, w, dir, out)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, second.down(context.WithoutCancel(ctx))) }()
	done, err := serveImages(ctx, w, cache, &o, second, out)
	if err != nil {
		return err
	}
	defer done()
	// What is made once does not count.
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	if err := against(ctx, w, program, &o, names, second, r); err != nil {
		return err
	}
	r.Took = time.Since(r.Began)
	reasons, err := report.ReadReasons(filepath.Join(w.module, "reasons.txt"))
	if err != nil {
		return err
	}
	report.Discount(r.Results, reasons)
	return judge(r, ratchet, cache, dir, out)
}

// against runs the tests against the cluster that is asked for. A cluster of ours is gone when it returns.
func against(ctx context.Context, w wish, p *suite.Program, o *suite.Options, names []string, second *node, r *report.Run) (err error) {
	if w.kubeconfig == "" {
		c, err := upCluster(ctx, w, o.Dir, o.Log)
		if err != nil {
			return err
		}
		o.Kubeconfig, r.Version = c.kubeconfig, c.version(ctx)
		defer func() {
			err = errors.Join(err, second.down(context.WithoutCancel(ctx)), c.down(context.WithoutCancel(ctx)))
		}()
		if err := second.join(ctx, c, o.Kubectl); err != nil {
			return err
		}
	}
	if o.Kubeconfig, err = filepath.Abs(o.Kubeconfig); err != nil {
		return err
	}
	fmt.Fprintf(o.Log, "running %d tests, %.1f s after the command; logs and reports in %s\n", len(names), time.Since(r.Began).Seconds(), o.Dir)
	if r.Results, err = p.Run(ctx, *o, names); errors.Is(ctx.Err(), context.Canceled) {
		return errors.New("interrupted: this run says nothing")
	}
	return err
}

// choose returns the tests that are asked for.
func choose(all []string, w wish) ([]string, error) {
	focus, err := regexp.Compile(w.focus)
	if err != nil {
		return nil, fmt.Errorf("read focus: %w", err)
	}
	skip, err := regexp.Compile(w.skip)
	if err != nil {
		return nil, fmt.Errorf("read skip: %w", err)
	}
	named := map[string]bool{}
	if w.names != "" {
		list, err := suite.ReadLines(w.names)
		if err != nil {
			return nil, err
		}
		for _, n := range list {
			named[n] = true
		}
	}
	var chosen []string
	for _, n := range all {
		if w.names != "" && !named[n] {
			continue
		}
		delete(named, n)
		if focus.MatchString(n) && (w.skip == "" || !skip.MatchString(n)) {
			chosen = append(chosen, n)
		}
	}
	for n := range named {
		return nil, fmt.Errorf("%s names a test that is not of this suite: %s", w.names, n)
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("none of the %d tests is chosen by focus %q and skip %q", len(all), w.focus, w.skip)
	}
	return chosen, nil
}

// localImages returns the folder of the images, after making them if they are not there or are wanted anew.
func localImages(ctx context.Context, module, cache string, anew bool, out io.Writer) (string, error) {
	key, err := images.Key(module)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "images-"+key)
	if _, err := os.Stat(dir); err == nil && !anew {
		return dir, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, images.Build(ctx, module, cache, dir, out)
}
