package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/pflag"

	"github.com/yare-dev/yare/oci"
)

// action does what a verb is for, with its arguments.
type action func(ctx context.Context, args []string) error

// verb is one of runc's commands.
type verb struct {
	name, usage, short string
	// least and most are the numbers of arguments; most < 0 is any. Of any, the flags are before the first: what comes
	// after it is somebody else's command line.
	least, most int
	// make defines the verb's flags. Only the verb that is asked for is made.
	make func(*app, *pflag.FlagSet) action
	// absent is a verb that there is not, and so whose flags are not known.
	absent bool
}

var verbs = []verb{
	{"create", "<id>", "Create a container", 1, 1, (*app).create, false},
	{"delete", "<id>", "Delete a stopped container", 1, 1, (*app).delete, false},
	{"events", "<id>", "Print a container's statistics", 1, 1, (*app).events, false},
	{"exec", "<id> <command> [args...]", "Run a process in a running container", 1, -1, (*app).exec, false},
	{"features", "", "Print what the runtime can do", 0, 0, (*app).features, false},
	{"kill", "<id> [signal]", "Send a signal to a container (default: TERM)", 1, 2, (*app).kill, false},
	{"list", "", "List containers", 0, 0, (*app).list, false},
	{"pause", "<id>", "Freeze a container", 1, 1, (*app).pause, false},
	{"ps", "<id> [ps options]", "Show a container's processes", 1, -1, (*app).ps, false},
	{"resume", "<id>", "Thaw a container", 1, 1, (*app).resume, false},
	{"run", "<id>", "Create and start a container, and wait for it", 1, 1, (*app).run, false},
	{"spec", "", "Write a usual config.json", 0, 0, (*app).spec, false},
	{"start", "<id>", "Start a created container", 1, 1, (*app).start, false},
	{"state", "<id>", "Print a container's state", 1, 1, (*app).state, false},
	{"update", "<id>", "Change a container's limits", 1, 1, (*app).update, false},
	{"checkpoint", "", "Not supported", 0, -1, absent("checkpoint"), true},
	{"restore", "", "Not supported", 0, -1, absent("restore"), true},
}

// command is a command line: a program's name and version, and what it works with.
type command struct {
	*app
	name, version string
	out           io.Writer
}

// Main is the runtime as a program of its own: it does what args ask for, says on the standard error what went wrong, and
// returns the exit code.
func Main(ctx context.Context, version string, args []string) int {
	return newCommand("yare-oci", version, oci.OpenInitIn).main(ctx, args)
}

// Run is Main as a part of the program whose command of that name it is, and returns what went wrong.
func Run(ctx context.Context, name, version string, args []string) error {
	return newCommand(name, version, oci.OpenInitIn).run(ctx, args)
}

// newCommand is a command line that makes the container init ready by program.
func newCommand(name, version string, program func(dir string) (*oci.Init, error)) *command {
	return &command{app: &app{program: program}, name: name, version: version, out: os.Stdout}
}

func (c *command) main(ctx context.Context, args []string) int {
	err := c.run(ctx, args)
	var exit *ExitError
	if errors.As(err, &exit) {
		if exit.Err != nil {
			fmt.Fprintln(os.Stderr, "yare oci:", exit.Err)
		}
		return exit.Code
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "yare oci:", err)
		return 1
	}
	return 0
}

// run is for a process per verb, which feels what more general libraries for command lines do before they come to the verb:
// they describe every verb with all its flags, and carry templates for it.
func (c *command) run(ctx context.Context, args []string) error {
	global := c.globalFlags()
	top := flagSet(c.name)
	top.SetInterspersed(false)
	top.AddFlagSet(global)
	help := helpFlag(top, c.name)
	version := top.BoolP("version", "v", false, "version for "+c.name)
	if err := top.Parse(args); err != nil {
		return err
	}
	args = top.Args()
	switch {
	case *help || len(args) == 0 && !*version || len(args) == 1 && args[0] == "help":
		c.describe(top)
		return nil
	case *version:
		// Docker and Podman read the name, the version and the specification's.
		_, err := fmt.Fprintf(c.out, "yare oci version %s\nspec: %s\n", c.version, specs.Version)
		return err
	case args[0] == "help":
		args = []string{args[1], "--help"}
	}
	i := slices.IndexFunc(verbs, func(v verb) bool { return v.name == args[0] })
	if i < 0 {
		return fmt.Errorf("unknown command %q: '%s --help' lists those that exist", args[0], c.name)
	}
	return c.do(ctx, &verbs[i], global, args[1:])
}

// do parses a verb's part of the command line, and does it.
func (c *command) do(ctx context.Context, v *verb, global *pflag.FlagSet, args []string) error {
	own := flagSet(v.name)
	act := v.make(c.app, own)
	help := helpFlag(own, v.name)
	all := flagSet(v.name)
	all.AddFlagSet(own)
	all.AddFlagSet(global)
	all.SetInterspersed(v.most >= 0 || v.absent)
	all.ParseErrorsAllowlist.UnknownFlags = v.absent
	if err := all.Parse(args); err != nil {
		return err
	}
	if *help {
		c.describeVerb(v, own, global)
		return nil
	}
	if err := v.count(all.NArg()); err != nil {
		return fmt.Errorf("%w\n  Usage: %s", err, c.usage(v))
	}
	if err := c.open(); err != nil {
		return err
	}
	if err := c.tell(act(ctx, all.Args())); err != nil {
		return err
	}
	return c.close()
}

// count checks the number of arguments.
func (v *verb) count(n int) error {
	switch {
	case n >= v.least && (n <= v.most || v.most < 0):
		return nil
	case v.most < 0:
		return fmt.Errorf("requires at least %d arg(s), only received %d", v.least, n)
	case v.least < v.most:
		return fmt.Errorf("accepts between %d and %d arg(s), received %d", v.least, v.most, n)
	}
	return fmt.Errorf("accepts %d arg(s), received %d", v.least, n)
}

// flagSet is one that leaves it to us to say what is wrong, and is sorted when it is described.
func flagSet(name string) *pflag.FlagSet {
	f := pflag.NewFlagSet(name, pflag.ContinueOnError)
	f.Usage = func() {}
	f.SortFlags = false
	return f
}

func describeFlags(f *pflag.FlagSet) string {
	f.SortFlags = true
	return f.FlagUsages()
}

func helpFlag(f *pflag.FlagSet, name string) *bool {
	return f.BoolP("help", "h", false, "help for "+name)
}

func (c *command) globalFlags() *pflag.FlagSet {
	f := flagSet("global")
	f.StringVar(&c.root, "root", "/run/yare/oci", "state directory")
	f.StringVar(&c.logPath, "log", "", "log file (default: standard error)")
	f.StringVar(&c.logFormat, "log-format", "text", "log format: text or json")
	f.BoolVar(&c.debug, "debug", false, "log more")
	f.BoolVar(&c.systemd, "systemd-cgroup", false, "have systemd make cgroups, of which a spec's path is slice:prefix:name")
	f.StringVar(&c.rootless, "rootless", "auto", "only auto and false are supported")
	return f
}

// describe prints all that there is.
func (c *command) describe(flags *pflag.FlagSet) {
	fmt.Fprintf(c.out, "Create and run containers from OCI bundles, with runc's command line\n\nUsage:\n  %s [command]\n\nAvailable Commands:\n", c.name)
	for _, v := range verbs {
		if !v.absent {
			fmt.Fprintf(c.out, "  %-11s %s\n", v.name, v.short)
		}
	}
	fmt.Fprintf(c.out, "\nFlags:\n%s\nUse \"%s [command] --help\" for more information about a command.\n", describeFlags(flags), c.name)
}

func (c *command) describeVerb(v *verb, own, global *pflag.FlagSet) {
	fmt.Fprintf(c.out, "%s\n\nUsage:\n  %s\n\nFlags:\n%s\nGlobal Flags:\n%s", v.short, c.usage(v), describeFlags(own), describeFlags(global))
}

func (c *command) usage(v *verb) string {
	return strings.Join(strings.Fields(c.name+" "+v.name+" "+v.usage+" [flags]"), " ")
}
