package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/oci"
)

func (a *app) start() *cobra.Command {
	return &cobra.Command{Use: "start <id>", Short: "Start a created container", Args: cobra.ExactArgs(1),
		RunE: a.verb(func(c *cobra.Command, args []string) error { return a.runtime.Start(c.Context(), args[0]) })}
}

func (a *app) state() *cobra.Command {
	return &cobra.Command{Use: "state <id>", Short: "Print a container's state", Args: cobra.ExactArgs(1),
		RunE: a.verb(func(c *cobra.Command, args []string) error {
			s, err := a.runtime.State(args[0])
			if err != nil {
				return err
			}
			return printJSON(c, s)
		})}
}

func (a *app) kill() *cobra.Command {
	var all bool
	c := &cobra.Command{Use: "kill <id> [signal]", Short: "Send a signal to a container (default: TERM)", Args: cobra.RangeArgs(1, 2)}
	c.Flags().BoolVarP(&all, "all", "a", false, "to all its processes")
	c.RunE = a.verb(func(c *cobra.Command, args []string) error {
		sig := unix.SIGTERM
		if len(args) == 2 {
			var err error
			if sig, err = parseSignal(args[1]); err != nil {
				return err
			}
		}
		return a.runtime.Kill(c.Context(), args[0], sig, all)
	})
	return c
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

func (a *app) delete() *cobra.Command {
	var force bool
	c := &cobra.Command{Use: "delete <id>", Short: "Delete a stopped container", Args: cobra.ExactArgs(1)}
	c.Flags().BoolVarP(&force, "force", "f", false, "kill it first")
	c.RunE = a.verb(func(c *cobra.Command, args []string) error { return a.runtime.Delete(c.Context(), args[0], force) })
	return c
}

func (a *app) list() *cobra.Command {
	var format string
	var quiet bool
	c := &cobra.Command{Use: "list", Short: "List containers", Args: cobra.NoArgs}
	c.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	c.Flags().BoolVarP(&quiet, "quiet", "q", false, "only identifiers")
	c.RunE = a.verb(func(c *cobra.Command, _ []string) error {
		list, err := a.runtime.List()
		if err != nil {
			return err
		}
		out := c.OutOrStdout()
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
	})
	return c
}

func (a *app) ps() *cobra.Command {
	var format string
	c := &cobra.Command{Use: "ps <id> [ps options]", Short: "Show a container's processes", Args: cobra.MinimumNArgs(1)}
	c.Flags().SetInterspersed(false)
	c.Flags().StringVarP(&format, "format", "f", "table", "table or json")
	c.RunE = a.verb(func(c *cobra.Command, args []string) error {
		group, err := a.runtime.Cgroup(args[0])
		if err != nil {
			return err
		}
		pids, err := group.Pids()
		if err != nil {
			return err
		}
		if format == "json" {
			return json.NewEncoder(c.OutOrStdout()).Encode(pids)
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
		ps := exec.CommandContext(c.Context(), "ps", append([]string{"-f", "-p", strings.Join(list, ",")}, args[1:]...)...)
		ps.Stdout, ps.Stderr = c.OutOrStdout(), c.ErrOrStderr()
		return ps.Run()
	})
	return c
}

func (a *app) events() *cobra.Command {
	var interval time.Duration
	var stats bool
	c := &cobra.Command{Use: "events <id>", Short: "Print a container's statistics", Args: cobra.ExactArgs(1)}
	c.Flags().DurationVar(&interval, "interval", 5*time.Second, "time between statistics")
	c.Flags().BoolVar(&stats, "stats", false, "once")
	c.RunE = a.verb(func(c *cobra.Command, args []string) error {
		if interval <= 0 {
			return errors.New("--interval: must be positive")
		}
		for {
			event, err := a.runtime.Stats(args[0])
			if err != nil {
				return err
			}
			if err := json.NewEncoder(c.OutOrStdout()).Encode(event); err != nil || stats {
				return err
			}
			select {
			case <-time.After(interval):
			case <-c.Context().Done():
				return nil
			}
			if s, err := a.runtime.State(args[0]); err != nil || s.Status == specs.StateStopped {
				return nil
			}
		}
	})
	return c
}

func (a *app) pause() *cobra.Command {
	return &cobra.Command{Use: "pause <id>", Short: "Freeze a container", Args: cobra.ExactArgs(1),
		RunE: a.verb(func(_ *cobra.Command, args []string) error { return a.runtime.Pause(args[0]) })}
}

func (a *app) resume() *cobra.Command {
	return &cobra.Command{Use: "resume <id>", Short: "Thaw a container", Args: cobra.ExactArgs(1),
		RunE: a.verb(func(_ *cobra.Command, args []string) error { return a.runtime.Resume(args[0]) })}
}

func (a *app) update() *cobra.Command {
	var file string
	var memory, swap, reservation, quota, pids int64
	var shares, period uint64
	var cpus, mems string
	c := &cobra.Command{Use: "update <id>", Short: "Change a container's limits", Args: cobra.ExactArgs(1)}
	f := c.Flags()
	f.StringVarP(&file, "resources", "r", "", "file with the limits as JSON, - for standard input")
	f.Int64Var(&memory, "memory", 0, "memory limit in bytes")
	f.Int64Var(&swap, "memory-swap", 0, "memory and swap limit in bytes")
	f.Int64Var(&reservation, "memory-reservation", 0, "soft memory limit in bytes")
	f.Int64Var(&quota, "cpu-quota", 0, "processor time per period in microseconds")
	f.Uint64Var(&period, "cpu-period", 0, "period in microseconds")
	f.Uint64Var(&shares, "cpu-share", 0, "relative weight")
	f.StringVar(&cpus, "cpuset-cpus", "", "processors")
	f.StringVar(&mems, "cpuset-mems", "", "memory nodes")
	f.Int64Var(&pids, "pids-limit", 0, "process limit")
	c.RunE = a.verb(func(c *cobra.Command, args []string) error {
		r := &specs.LinuxResources{}
		if file != "" {
			in := c.InOrStdin()
			if file != "-" {
				open, err := os.Open(file)
				if err != nil {
					return fmt.Errorf("read limits: %w", err)
				}
				defer open.Close()
				in = open
			}
			if err := json.NewDecoder(in).Decode(r); err != nil {
				return fmt.Errorf("parse limits: %w", err)
			}
		} else {
			r.Memory, r.CPU, r.Pids = &specs.LinuxMemory{}, &specs.LinuxCPU{Cpus: cpus, Mems: mems}, &specs.LinuxPids{}
			setIf(f.Changed("memory"), &r.Memory.Limit, memory)
			setIf(f.Changed("memory-swap"), &r.Memory.Swap, swap)
			setIf(f.Changed("memory-reservation"), &r.Memory.Reservation, reservation)
			setIf(f.Changed("cpu-quota"), &r.CPU.Quota, quota)
			setIf(f.Changed("cpu-period"), &r.CPU.Period, period)
			setIf(f.Changed("cpu-share"), &r.CPU.Shares, shares)
			setIf(f.Changed("pids-limit"), &r.Pids.Limit, pids)
		}
		group, err := a.runtime.Cgroup(args[0])
		if err != nil {
			return err
		}
		return group.Update(r)
	})
	return c
}

func setIf[T any](given bool, field **T, value T) {
	if given {
		*field = &value
	}
}

func (a *app) spec() *cobra.Command {
	var bundle string
	c := &cobra.Command{Use: "spec", Short: "Write a usual config.json", Args: cobra.NoArgs}
	c.Flags().StringVarP(&bundle, "bundle", "b", ".", "bundle directory")
	c.RunE = a.verb(func(*cobra.Command, []string) error {
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
	})
	return c
}

func (a *app) features() *cobra.Command {
	return &cobra.Command{Use: "features", Short: "Print what the runtime can do", Args: cobra.NoArgs,
		RunE: a.verb(func(c *cobra.Command, _ []string) error { return printJSON(c, oci.Features()) })}
}
