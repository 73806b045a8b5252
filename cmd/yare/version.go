package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// version is set by the linker: what `yare --version` prints and the Node tells of its container runtime. Its form is semver.org's.
var version = "0.1.0+unknown"

// kubernetesVersion is the release whose API and behaviour Yare has.
const kubernetesVersion = "v1.37.2"

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", GroupID: "use", Args: cobra.NoArgs,
		Short: "Print the version, as --version does",
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(c.OutOrStdout(), "yare version %s\n", version)
			return err
		},
	}
}
