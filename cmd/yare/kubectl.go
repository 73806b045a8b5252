package main

import (
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

// reexec is what the program does when it is called by another name, before anything else.
var reexec = map[string]func(args []string) int{
	"kubectl":  runKubectl,
	"cni":      runCNI,
	"yare-cni": runCNI,
	"yare-oci": runOCI,
}

func kubectlCommand() *cobra.Command {
	return &cobra.Command{
		Use: "kubectl", GroupID: "use",
		Short:              "Upstream's kubectl (also by the name kubectl, as a symbolic link)",
		DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if code := runKubectl(args); code != 0 {
				return exitStatus(code)
			}
			return nil
		},
	}
}

// runKubectl runs upstream's kubectl, which prints its own errors and is ended by signals as any program is.
func runKubectl(args []string) int {
	signal.Reset(unix.SIGINT, unix.SIGTERM)
	os.Args = append([]string{"kubectl"}, args...)
	return cli.Run(kubectl.NewDefaultKubectlCommandWithArgs(kubectl.KubectlOptions{
		PluginHandler: kubectl.NewDefaultPluginHandler([]string{"kubectl"}),
		Arguments:     os.Args,
		ConfigFlags:   genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50),
		IOStreams:     genericiooptions.IOStreams{In: os.Stdin, Out: os.Stdout, ErrOut: os.Stderr},
	}))
}
