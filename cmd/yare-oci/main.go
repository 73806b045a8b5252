// Command yare-oci is the OCI runtime alone, for those who start it once per verb: containerd, Podman, CRI-O, Docker. It is
// `yare oci` to the letter (package oci/cli) without the rest of Yare, whose size every start would pay for.
package main

import (
	"context"
	"os"

	"github.com/yare-dev/yare/oci/cli"
)

var version = "0.1.0+unknown" // set by the linker

func main() { os.Exit(cli.Main(context.Background(), version, os.Args[1:])) }
