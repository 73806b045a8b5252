// Command peers starts a cluster of upstream's programs alone, on a host of its own (package host), and keeps it until it
// is interrupted: a foreign cluster for the conformance suite, see doc/conformance.md, and for looking into differences.
//
// The folders: programs builds upstream's programs, host and pki are what they stand on, cluster starts them and ours in any
// mixture and has the scenario that each mixture must pass, differential asks our API server and theirs the same.
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
	"strings"
	"syscall"

	"github.com/yare-dev/yare/test/peers/cluster"
	"github.com/yare-dev/yare/test/peers/host"
	"github.com/yare-dev/yare/test/peers/programs"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := up(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "peers: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func up(ctx context.Context, args []string, out io.Writer) (err error) {
	f := flag.NewFlagSet("peers", flag.ContinueOnError)
	module := f.String("module", ".", "folder of this module")
	yare := f.String("yare", "../../bin/yare", "our program")
	name := f.String("name", "foreign", "name of the cluster's host, at most 9 letters")
	dir := f.String("dir", "", "folder for data and logs, which stays (default: one that goes)")
	ours := f.String("ours", "", "components that are to be ours: api, controllers, scheduler, proxy, kubelet, runtime")
	if err := f.Parse(args); err != nil {
		return err
	}
	plan, err := planOf(*ours)
	if err != nil {
		return err
	}
	built, err := programs.All(ctx, *module, out)
	if err != nil {
		return err
	}
	p := cluster.Programs{Programs: built}
	if p.Yare, err = filepath.Abs(*yare); err != nil {
		return err
	}
	if *dir == "" {
		if *dir, err = os.MkdirTemp("", "peers-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(*dir)) }()
	} else if *dir, err = filepath.Abs(*dir); err != nil {
		return err
	}
	h, err := host.New(ctx, *name, *dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close(context.WithoutCancel(ctx))) }()
	c, err := cluster.Start(ctx, h, p, plan)
	if err != nil {
		return err
	}
	if err := c.Ready(ctx); err != nil {
		return err
	}
	fmt.Fprintf(out, "The cluster is ready; interrupt ends it. Logs are in %s.\n\n  make conformance KUBECONFIG=%s IMAGES=local REGISTRY=%s:%s\n",
		*dir, c.Kubeconfig(), h.Outside, cluster.RegistryPort)
	<-ctx.Done()
	return nil
}

func planOf(ours string) (p cluster.Plan, err error) {
	parts := map[string]*cluster.Whose{
		"api": &p.APIServer, "controllers": &p.Controllers, "scheduler": &p.Scheduler, "proxy": &p.Proxy, "kubelet": &p.Kubelet, "runtime": &p.Runtime,
	}
	for _, name := range strings.FieldsFunc(ours, func(r rune) bool { return r == ',' || r == ' ' }) {
		if parts[name] == nil {
			return p, fmt.Errorf("no component %q", name)
		}
		*parts[name] = cluster.Ours
	}
	return p, nil
}
