package main

import (
	"context"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/yare-dev/yare/cni/plugins"
)

// cniCommand is the built-in network as a CNI plugin for other runtimes.
func cniCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cni", GroupID: "component", Args: cobra.NoArgs,
		Short: "The pod network as a CNI plugin (also by the names cni and yare-cni, as a symbolic link)",
		Long: `The pod network as a CNI plugin: the command and its arguments are in CNI_* variables, the configuration is on the
standard input, as the CNI specification says. Link it into the plugin folder of another runtime, and name it there:

  ln -s /usr/local/bin/yare /opt/cni/bin/yare-cni

  {"cniVersion": "1.1.0", "name": "pods", "plugins": [{"type": "yare-cni", "subnets": ["10.42.0.0/24"],
    "capabilities": {"portMappings": true, "bandwidth": true}}]}`,
		RunE: func(c *cobra.Command, _ []string) error {
			if plugins.Main(c.Context(), os.Stdout) != nil {
				return exitStatus(1) // the error is on the standard output, as the protocol wants it
			}
			return nil
		},
	}
}

// runCNI is the program under the plugin's name.
func runCNI([]string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if plugins.Main(ctx, os.Stdout) != nil {
		return 1
	}
	return 0
}
