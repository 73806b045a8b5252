package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci"
)

func (a *app) start(*pflag.FlagSet) action {
	return func(ctx context.Context, args []string) error { return a.runtime.Start(ctx, args[0]) }
}

func (a *app) state(*pflag.FlagSet) action {
	return func(_ context.Context, args []string) error {
		s, err := a.runtime.State(args[0])
		if err != nil {
			return err
		}
		return printJSON(s)
	}
}

func (a *app) kill(flags *pflag.FlagSet) action {
	var all bool
	flags.BoolVarP(&all, "all", "a", false, "to all its processes")
	return func(ctx context.Context, args []string) error {
		sig := unix.SIGTERM
		if len(args) == 2 {
			var err error
			if sig, err = parseSignal(args[1]); err != nil {
				return err
			}
		}
		return a.runtime.Kill(ctx, args[0], sig, all)
	}
}

func parseSignal(text string) (unix.Signal, error) {
	if n, err := strconv.Atoi(text); err == nil && n >= 0 && n <= 64 {
		return unix.Signal(n), nil
	}
	name := "SIG" + strings.TrimPrefix(strings.ToUpper(text), "SIG")
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("signal %q: unknown", text)
}

func (a *app) delete(flags *pflag.FlagSet) action {
	var force bool
	flags.BoolVarP(&force, "force", "f", false, "kill it first")
	return func(ctx context.Context, args []string) error { return a.runtime.Delete(ctx, args[0], force) }
}

func (a *app) list(flags *pflag.FlagSet) action {
	var format string
	var quiet bool
	flags.StringVarP(&format, "format", "f", "table", "table or json")
	flags.BoolVarP(&quiet, "quiet", "q", false, "only identifiers")
	return func(ctx context.Context, _ []string) error {
		list, err := a.runtime.List()
		if err != nil {
			return err
		}
		out := os.Stdout
		switch {
		case quiet:
			for _, s := range list {
				fmt.Fprintln(out, s.ID)
			}
			return nil
		case format == "json":
			return json.NewEncoder(out).Encode(list)
		case format != "table":
			return fmt.Errorf("--format %q: must be table or json", format)
		}
		w := tabwriter.NewWriter(out, 12, 1, 3, ' ', 0)
		fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER")
		for _, s := range list {
			fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.ID, s.Pid, s.Status, s.Bundle, s.Created.Format(time.RFC3339Nano), s.Owner)
		}
		return w.Flush()
	}
}

func (a *app) ps(flags *pflag.FlagSet) action {
	var format string
	flags.StringVarP(&format, "format", "f", "table", "table or json")
	return func(ctx context.Context, args []string) error {
		group, err := a.runtime.Cgroup(args[0])
		if err != nil {
			return err
		}
		pids, err := group.Pids()
		if err != nil {
			return err
		}
		if format == "json" {
			return json.NewEncoder(os.Stdout).Encode(pids)
		}
		if format != "table" {
			return fmt.Errorf("--format %q: must be table or json", format)
		}
		if len(pids) == 0 {
			return nil
		}
		list := make([]string, len(pids))
		for i, pid := range pids {
			list[i] = strconv.Itoa(pid)
		}
		ps := exec.CommandContext(ctx, "ps", append([]string{"-f", "-p", strings.Join(list, ",")}, args[1:]...)...)
		ps.Stdout, ps.Stderr = os.Stdout, os.Stderr
		return ps.Run()
	}
}

func (a *app) events(flags *pflag.FlagSet) action {
	var interval time.Duration
	var stats bool
	flags.DurationVar(&interval, "interval", 5*time.Second, "time between statistics")
	flags.BoolVar(&stats, "stats", false, "once")
	return func(ctx context.Context, args []string) error {
		if interval <= 0 {
			return errors.New("--interval: must be positive")
		}
		for first := true; ; first = false {
			event, err := a.runtime.Stats(args[0])
			if s, serr := a.runtime.State(args[0]); err != nil && !first && (serr != nil || s.Status == specs.StateStopped) {
				return nil // it has ended since it was last looked at
			}
			if err != nil {
				return err
			}
			if err := json.NewEncoder(os.Stdout).Encode(event); err != nil || stats {
				return err
			}
			select {
			case <-time.After(interval):
			case <-ctx.Done():
				return nil
			}
			if s, err := a.runtime.State(args[0]); err != nil || s.Status == specs.StateStopped {
				return nil
			}
		}
	}
}

func (a *app) pause(*pflag.FlagSet) action {
	return func(ctx context.Context, args []string) error { return a.runtime.Pause(args[0]) }
}

func (a *app) resume(*pflag.FlagSet) action {
	return func(ctx context.Context, args []string) error { return a.runtime.Resume(args[0]) }
}

// limits are update's flags.
type limits struct {
	file                      string
	memory, swap, reservation memory
	quota, pids, idle         int64
	burst, shares, period     uint64
	rtRuntime                 int64
	rtPeriod                  uint64
	weight                    uint16
	cpus, mems                string
}

func (a *app) update(flags *pflag.FlagSet) action {
	l := &limits{}
	flags.StringVarP(&l.file, "resources", "r", "", "file with the limits as JSON, - for standard input")
	flags.Var(&l.memory, "memory", "memory limit in bytes; k, m and g are understood, -1 is none")
	flags.Var(&l.swap, "memory-swap", "memory and swap limit in bytes")
	flags.Var(&l.reservation, "memory-reservation", "soft memory limit in bytes")
	flags.Int64Var(&l.quota, "cpu-quota", 0, "processor time per period in microseconds")
	flags.Uint64Var(&l.burst, "cpu-burst", 0, "processor time in microseconds that may be saved up")
	flags.Uint64Var(&l.period, "cpu-period", 0, "period in microseconds")
	flags.Uint64Var(&l.shares, "cpu-share", 0, "relative weight")
	flags.Int64Var(&l.rtRuntime, "cpu-rt-runtime", 0, "time of realtime scheduling per period in microseconds (v1)")
	flags.Uint64Var(&l.rtPeriod, "cpu-rt-period", 0, "period of realtime scheduling in microseconds (v1)")
	flags.Int64Var(&l.idle, "cpu-idle", 0, "1 to run only when the processor has nothing else to do")
	flags.StringVar(&l.cpus, "cpuset-cpus", "", "processors")
	flags.StringVar(&l.mems, "cpuset-mems", "", "memory nodes")
	flags.Uint16Var(&l.weight, "blkio-weight", 0, "relative weight of disk access, 10 to 1000")
	flags.Int64Var(&l.pids, "pids-limit", 0, "process limit, -1 is none")
	return func(ctx context.Context, args []string) error {
		r, err := l.resources(os.Stdin, flags.Changed)
		if err != nil {
			return err
		}
		return a.runtime.Update(args[0], r)
	}
}

// resources are the file's, or the flags'.
func (l *limits) resources(in io.Reader, given func(string) bool) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{}
	if l.file != "" {
		if l.file != "-" {
			open, err := os.Open(l.file)
			if err != nil {
				return nil, fmt.Errorf("read limits: %w", err)
			}
			defer open.Close()
			in = open
		}
		if err := json.NewDecoder(in).Decode(r); err != nil {
			return nil, fmt.Errorf("parse limits: %w", err)
		}
		return r, nil
	}
	r.Memory, r.CPU, r.Pids, r.BlockIO = &specs.LinuxMemory{}, &specs.LinuxCPU{Cpus: l.cpus, Mems: l.mems}, &specs.LinuxPids{}, &specs.LinuxBlockIO{}
	setIf(given("memory"), &r.Memory.Limit, int64(l.memory))
	setIf(given("memory-swap"), &r.Memory.Swap, int64(l.swap))
	setIf(given("memory-reservation"), &r.Memory.Reservation, int64(l.reservation))
	setIf(given("cpu-quota"), &r.CPU.Quota, l.quota)
	setIf(given("cpu-burst"), &r.CPU.Burst, l.burst)
	setIf(given("cpu-period"), &r.CPU.Period, l.period)
	setIf(given("cpu-share"), &r.CPU.Shares, l.shares)
	setIf(given("cpu-rt-runtime"), &r.CPU.RealtimeRuntime, l.rtRuntime)
	setIf(given("cpu-rt-period"), &r.CPU.RealtimePeriod, l.rtPeriod)
	setIf(given("cpu-idle"), &r.CPU.Idle, l.idle)
	setIf(given("blkio-weight"), &r.BlockIO.Weight, l.weight)
	setIf(given("pids-limit"), &r.Pids.Limit, l.pids)
	return r, nil
}

// memory is a flag's amount of memory: a number with k, m, g or t (of 1024), in either case, with or without b behind it.
type memory int64

func (m *memory) String() string { return strconv.FormatInt(int64(*m), 10) }

// Type is what help calls it.
func (m *memory) Type() string { return "bytes" }

// Set parses a flag.
func (m *memory) Set(text string) error {
	number := strings.TrimSuffix(strings.ToLower(text), "b")
	shift := 0
	if i := strings.IndexAny(number, "kmgt"); i > 0 && i == len(number)-1 {
		shift = 10 * (1 + strings.IndexByte("kmgt", number[i]))
		number = number[:i]
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n > math.MaxInt64>>shift || n < -1 || n == -1 && shift > 0 {
		return fmt.Errorf("%q is not an amount of memory", text)
	}
	*m = memory(n << shift)
	return nil
}

func setIf[T any](given bool, field **T, value T) {
	if given {
		*field = &value
	}
}

func (a *app) spec(flags *pflag.FlagSet) action {
	var bundle string
	flags.StringVarP(&bundle, "bundle", "b", ".", "bundle directory")
	return func(context.Context, []string) error {
		b, err := json.MarshalIndent(oci.DefaultSpec(), "", "\t")
		if err != nil {
			return fmt.Errorf("encode spec: %w", err)
		}
		f, err := os.OpenFile(bundle+"/config.json", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
		if err != nil {
			return fmt.Errorf("write spec: %w", err)
		}
		_, err = f.Write(append(b, '\n'))
		return errors.Join(err, f.Close())
	}
}

// absent is a verb of runc's that there is not, on purpose: an image of a process is code and memory from elsewhere.
func absent(verb string) func(*app, *pflag.FlagSet) action {
	return func(*app, *pflag.FlagSet) action {
		return func(context.Context, []string) error {
			return fmt.Errorf("%s is not supported: checkpoints are neither written nor restored", verb)
		}
	}
}

func (a *app) features(*pflag.FlagSet) action {
	return func(ctx context.Context, args []string) error { return printJSON(oci.Features()) }
}
