// Command yare is a whole Kubernetes cluster in one program. See `yare --help`; compose.go wires the components
// together and is the place to start reading.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cmd/cluster"
)

func main() {
	if run := reexec[filepath.Base(os.Args[0])]; run != nil {
		os.Exit(run(os.Args[1:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		var status exitStatus
		if errors.As(err, &status) {
			os.Exit(int(status)) // the command has said what went wrong
		}
		fmt.Fprintln(os.Stderr, "yare:", mend(err))
		os.Exit(1)
	}
}

// exitStatus is an error that carries the exit code of a command that ran for us and has already said what went wrong.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// mend adds to errors that a person can do something about what that is.
func mend(err error) string {
	text := err.Error()
	var unknown *cluster.UnknownError
	switch {
	case errors.Is(err, unix.ENOSPC):
		text += "\n  The disk is full: free some space; what is stored is intact."
	case errors.As(err, &unknown):
		text += "\n  'yare up" + nameFlag(unknown.Name) + "' makes it; 'yare status --all' lists those that exist."
	case os.Geteuid() != 0 && (errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EPERM)):
		text += "\n  Yare makes namespaces, cgroups and mounts: run it as root."
	}
	return text
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "yare",
		Short: "Kubernetes in one program",
		Long:  "Yare is Kubernetes in one program: 'yare up' starts a cluster on this machine, 'yare down' removes it without a trace.",
		Example: `  yare up                                  # a cluster, ready in a second
  yare kubectl create deployment web --image=hello
  yare status
  yare down`,
		SilenceUsage: true, SilenceErrors: true,
		Version: version,
	}
	root.AddGroup(
		&cobra.Group{ID: "cluster", Title: "A cluster on this machine:"},
		&cobra.Group{ID: "use", Title: "Using it:"},
		&cobra.Group{ID: "component", Title: "One component alone, with upstream's peers:"})
	root.AddCommand(
		upCommand(), downCommand(), serverCommand(), statusCommand(), configCommand(),
		kubectlCommand(), imageCommand(), agentCommand(), nodeCredentialsCommand(),
		serverTokenCommand(), serverRemoveCommand(), versionCommand())
	root.AddCommand(componentCommands()...)
	explain(root)
	return root
}

// explain makes complaints about arguments say what is expected, and unknown subcommands errors.
func explain(parent *cobra.Command) {
	for _, c := range parent.Commands() {
		explain(c)
		switch check := c.Args; {
		case !c.Runnable():
			c.RunE = func(c *cobra.Command, args []string) error {
				if len(args) > 0 {
					return fmt.Errorf("unknown command %q: '%s --help' lists those that exist", args[0], c.CommandPath())
				}
				return c.Help()
			}
		case check != nil:
			c.Args = func(c *cobra.Command, args []string) error {
				if err := check(c, args); err != nil {
					return fmt.Errorf("%w\n  Usage: %s", err, c.UseLine())
				}
				return nil
			}
		}
	}
}

// requireRoot refuses early what could only fail half done later.
func requireRoot() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("not root: %w", fs.ErrPermission)
	}
	return nil
}
