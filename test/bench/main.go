// Command bench measures start, pods, requests and memory on this machine, from the outside: it runs the program as a
// user does. Figures are printed as median and p99 with the number of runs, beside this release's budget and the goal.
// Absolute times differ from machine to machine and hour to hour: compare within a run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// row is one line of the table.
type row struct {
	name   string
	unit   string
	budget float64 // of this release; 0: none
	goal   float64
	more   bool // more is better
	run    func(context.Context, *bench) ([]float64, error)
}

func main() {
	b := &bench{}
	flag.StringVar(&b.yare, "yare", "bin/yare", "the program to measure")
	flag.StringVar(&b.given, "kubeconfig", "", "measure the API of this cluster in place of one of our own, as when it is being profiled")
	only := flag.String("run", "", "regular expression of the rows to run")
	flag.IntVar(&b.runs, "runs", 10, "how often to repeat what is repeated")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := b.all(ctx, *only)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) all(ctx context.Context, only string) error {
	re, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if err := b.open(); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer b.close()
	table := []string{"WHAT\tMEDIAN\tP99\tRUNS\tBUDGET\tGOAL\t"}
	for _, r := range rows() {
		if !re.MatchString(r.name) || ctx.Err() != nil {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s ...\n", r.name)
		v, err := r.within(ctx, b, rowLimit)
		if errors.Is(err, errNoPeer) {
			continue
		}
		line := r.name + "\t" + fmt.Sprint(err) + "\t\t\t\t\t"
		if err == nil {
			line = r.line(v)
		}
		fmt.Println(strings.TrimRight(strings.ReplaceAll(line, "\t", "  "), " ")) // now: the run may be cut before the table
		table = append(table, line)
	}
	fmt.Println()
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(table, "\n"))
	return t.Flush()
}

// rowLimit is several times what the longest row takes on a slow machine.
const rowLimit = 15 * time.Minute

// within runs the row, and gives it up after limit: the others are still to be measured.
func (r row) within(ctx context.Context, b *bench, limit time.Duration) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	v, err := r.run(ctx, b)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("hung, given up after %v: %w", limit, err)
	}
	return v, err
}

func (r row) line(v []float64) string {
	slices.Sort(v)
	worst := v[len(v)-1-len(v)/100]
	if r.more {
		worst = v[len(v)/100]
	}
	met := ""
	median := v[len(v)/2]
	if r.budget != 0 && (median > r.budget) != r.more {
		met = "over budget"
		if r.more {
			met = "under budget"
		}
	}
	limit := func(f float64) string {
		if f == 0 {
			return ""
		}
		return fmt.Sprintf("%.4g", f)
	}
	return fmt.Sprintf("%s, %s\t%.4g\t%.4g\t%d\t%s\t%s\t%s", r.name, r.unit, median, worst, len(v), limit(r.budget), limit(r.goal), met)
}

func rows() []row {
	rows := []row{
		{name: "binary", unit: "MB", budget: 110, goal: 90, run: binarySize},
		{name: "empty folder to Ready and DNS", unit: "s", budget: 0.8, goal: 0.6, run: coldUp},
		{name: "restart", unit: "s", budget: 0.5, goal: 0.4, run: restart},
		{name: "OCI run and delete, no-op", unit: "ms", goal: 5, run: ociRun("yare-oci")},
		{name: "  the same by runc", unit: "ms", run: ociRun("runc")},
		{name: "  the same by crun", unit: "ms", run: ociRun("crun")},
		{name: "CRI in process: sandbox with network, pool warm", unit: "ms", goal: 10, run: criCall("sandbox")},
		{name: "CRI in process: create container", unit: "ms", run: criCall("create")},
		{name: "CRI in process: start container", unit: "ms", run: criCall("start")},
		{name: "CRI in process: remove sandbox with container", unit: "ms", goal: 15, run: criCall("remove")},
		{name: "CRI in process: exec sync", unit: "ms", goal: 5, run: criCall("exec")},
		{name: "CRI: pull of 1 GB in 20 gzip layers, gunzip's time for them being 1", unit: "times", goal: 1.3,
			run: imagePull(func(p pulls) float64 { return p.cri.Seconds() / p.gunzip.Seconds() })},
		{name: "  the pull", unit: "s", run: imagePull(func(p pulls) float64 { return p.cri.Seconds() })},
		{name: "  gunzip alone", unit: "s", run: imagePull(func(p pulls) float64 { return p.gunzip.Seconds() })},
		{name: "  yare image pull, which ends when all is on the disk", unit: "s", run: imagePull(func(p pulls) float64 { return p.command.Seconds() })},
		{name: "pod create to Running, one by one", unit: "ms", budget: 60, goal: 20, run: podsOneByOne},
		{name: "graceful delete to gone", unit: "ms", goal: 60, run: deleteOneByOne},
		{name: "100 pods at once, all Running", unit: "s", budget: 5, goal: 1, run: podsAtOnce},
		{name: "100 pods at once, all gone", unit: "s", budget: 4, goal: 1, run: deleteAtOnce},
	}
	rows = append(rows, apiRows("", ours)...)
	rows = append(rows, apiRows("  the same by upstream: ", upstream)...)
	return append(rows,
		row{name: "a shim's memory, pod of 1 container", unit: "MB", goal: 1.5, run: shimMemory(1)},
		row{name: "a shim's memory, pod of 5 containers", unit: "MB", goal: 1.5, run: shimMemory(5)},
		row{name: "a shim's memory, pod of 20 containers", unit: "MB", goal: 1.5, run: shimMemory(20)},
		row{name: "idle CPU of the shims of 200 containers", unit: "% of a core", goal: 0.01, run: idleFull((*bench).shims)},
		row{name: "idle CPU of all with 200 containers", unit: "% of a core", budget: 1, goal: 0.4, run: idleFull((*bench).processes)},
		row{name: "idle memory, 60 s after start", unit: "MB", budget: 110, goal: 80, run: idleMemory},
		row{name: "idle CPU over 60 s", unit: "% of a core", budget: 1, goal: 0.4, run: idleCPU},
	)
}

// apiRows measure one API server, whose names begin alike.
func apiRows(name string, of which) []row {
	return []row{
		{name: name + "API creates, 16 workers", unit: "1/s", goal: 5000, more: true, run: creates(of)},
		{name: name + "memory at rest with 20,000 ConfigMaps", unit: "MB", goal: 150, run: memoryOf(of)},
		{name: name + "API gets, 16 workers", unit: "1/s", goal: 12000, more: true, run: gets(of)},
		{name: name + "single create, durable", unit: "ms", goal: 0.8, run: singleCreate(of)},
		{name: name + "LIST 20,000 ConfigMaps, protobuf", unit: "ms", goal: 20, run: list(of, protobuf)},
		{name: name + "LIST 20,000 ConfigMaps, JSON", unit: "ms", goal: 30, run: list(of, "application/json")},
		{name: name + "100 watchers x 1,000 updates", unit: "events/s", goal: 200000, more: true, run: watchers(of)},
		{name: name + "deletecollection of 20,000", unit: "s", goal: 1, run: deleteCollection(of)},
	}
}

func seconds(d time.Duration) float64 { return d.Seconds() }
func millis(d time.Duration) float64  { return d.Seconds() * 1000 }
